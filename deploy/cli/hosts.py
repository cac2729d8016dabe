"""``zimage hosts``: the machines of a cluster, and what is wanted of each."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy import output, store
from deploy.cell import Cell, CellError
from deploy.cli import host_table, invites
from deploy.cli.cluster import open_member
from deploy.cli.options import AsJson, Config
from deploy.cli.shutting_out import shut_out
from deploy.rollout.operation import person

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = typer.Typer(name="hosts", help="The machines of a cluster.", invoke_without_command=True)

HostName = Annotated[str, typer.Argument(metavar="NAME", help="Of a host, as zimage hosts has it.")]
Force = Annotated[bool, typer.Option("--force", help="Also the last host that draws.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, metavar="SECONDS", help="How long to wait for its end."),
]

_LOOK_S = 1.0
_RESTART_S = 60.0
"""An upgrade restarts the program that speaks for a host."""
_LEAVE_S = 10.0
"""Fronts hear of a wish within five seconds."""
_MARGIN_S = 30.0
"""What a host and the fronts need to learn of a wish, beyond the drawing itself."""


@dataclass(frozen=True)
class Seen:
    """The hosts at one moment. ``at``: of the database's clock; ``away``: why it is of a file."""

    cluster: str
    at: float
    hosts: list[dict[str, Any]]
    away: str = ""

    def get(self, name: str) -> dict[str, Any]:
        return next(host for host in self.hosts if host["id"] == name)


@app.callback()
def hosts(context: typer.Context, config: Config = None, as_json: AsJson = False) -> None:
    """Show the machines of the cluster. Exit code 0 only while one of them draws."""
    if context.invoked_subcommand is None:
        raise typer.Exit(show(open_member(config), as_json=as_json))
    if as_json:
        raise typer.BadParameter("--json shows the hosts; it goes with no other verb")
    if config is not None:  # as if it had been said behind the verb
        context.default_map = {context.invoked_subcommand: {"config": str(config)}}


app.command()(invites.invite)


@app.command()
def drain(
    name: HostName,
    config: Config = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever finds it drained.")] = "",
    force: Force = False,
    timeout_s: Timeout = None,
) -> None:
    """Take a host out of the pool and let it finish. It stays out until undrain."""
    cell = open_member(config)
    output.step(f"{name}: no new requests, nothing new of jobs; finish what it has")
    _decide(cell, lambda wishes, c: wishes.drain(c, name, _signed(reason), force=force))
    _wait_drained(cell, name, _limit_s(cell, timeout_s))
    output.done(f"{name} is drained; let it in again with: zimage hosts undrain {name}")


@app.command()
def undrain(name: HostName, config: Config = None, timeout_s: Timeout = None) -> None:
    """Let a drained host take requests again."""
    cell = open_member(config)
    _decide(cell, lambda wishes, c: wishes.undrain(c, name))
    _wait(cell, name, "taking requests", _is_let_in, _limit_s(cell, timeout_s))
    output.done(f"{name} takes requests")


@app.command()
def leave(config: Config = None) -> None:
    """Take this machine out before its own end, without a word to operators: a pod's last act."""
    from deploy.cluster import hearing, wishes

    cell = open_member(config)
    own = cell.config.cluster.host_id
    store.run(cell, lambda connection: wishes.leave(connection, own))
    end = time.monotonic() + _LEAVE_S
    while time.monotonic() < end:
        rows, at = store.run(cell, wishes.read)
        if hearing.is_shut_out(rows, own, at):
            output.done(f"no front sends requests to {own} any more")
            return
        time.sleep(_LOOK_S)
    output.warn(f"fronts may send requests to {own} still, and repeat them elsewhere")


@app.command()
def remove(
    name: HostName,
    config: Config = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
    force: Force = False,
    timeout_s: Timeout = None,
) -> None:
    """Take a host out of the cluster for good, once it has finished what it has."""
    from deploy.cluster import revocation

    cell = open_member(config)
    revocation.require_removable(cell, name)
    seen = _look(cell)
    there = _find(seen, name)
    if there and there["role"] != "front" and there["wanted"] != "removed":
        _finish_first(cell, seen, name, reason, force=force, timeout_s=timeout_s)
    _decide(cell, lambda wishes, c: wishes.remove(c, name, _signed(reason), force=force))
    shut_out(cell, name)
    output.done(f"{name} belongs to {cell.config.cluster.name} no more; it may be switched off")


@app.command()
def upgrade(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Such as 1.2.0.")],
    config: Config = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="For each host.")
    ] = 7200.0,
) -> None:
    """Take all hosts to another version, one after the other. Stops at the first that fails."""
    if not re.fullmatch(r"\d[\w.!+]*", version):
        raise typer.BadParameter(
            f"{version} is no version, such as 1.2.0; a wheel is taken on each host by itself: "
            "zimage hosts drain NAME, zimage upgrade FILE there, zimage hosts undrain NAME"
        )
    cell = open_member(config)
    todo, unheard = _to_upgrade(_look(cell), cell.config.cluster.host_id, version)
    for done, name in enumerate(todo):
        output.step(f"{name}: take it to {version} ({done + 1} of {len(todo)})")
        try:
            _upgrade_one(cell, name, version, timeout_s)
        except CellError as error:
            left = ", ".join(todo[done + 1 :])
            stopped = f"stopped here: {left} run as before" if left else "stopped here"
            raise CellError(f"{error}\n{stopped}; the same command again goes on") from None
    if unheard:
        raise CellError(
            f"{', '.join(unheard)} said nothing and run as before; the same command again once "
            "they are back"
        )
    output.done(f"all hosts run {version}")


def show(cell: Cell, *, as_json: bool) -> int:
    """Print the hosts; the exit code."""
    seen = _look(cell, may_be_old=True)
    drawing = [host for host in seen.hosts if host_table.takes_requests(host, seen.at)]
    if as_json:
        output.as_json({**asdict(seen), "hosts": _told(seen)})
        return 0 if drawing else 1
    if seen.away:
        output.warn(seen.away)
    if not seen.hosts:
        output.fail("no host has written yet; zimage up on each, zimage logs membership there")
        return 1
    width = output.console.width
    output.console.print(host_table.shown(seen.cluster, seen.hosts, seen.at, width))
    return 0 if drawing else 1


# Deciding


def _decide(cell: Cell, what: "Callable[[Any, Connection], float]") -> float:
    from deploy.cluster import wishes

    try:
        return store.run(cell, lambda connection: what(wishes, connection))
    except wishes.Refused as error:
        raise CellError(str(error)) from None


def _signed(reason: str) -> str:
    who = person()
    return f"{reason} ({who})" if reason else f"by {who}"


def _finish_first(
    cell: Cell, seen: Seen, name: str, reason: str, *, force: bool, timeout_s: float | None
) -> None:
    """A host that still says something is let finish; one that does not has nothing to finish."""
    if host_table.state_of(seen.get(name), seen.at) in ("lost", "silent"):
        output.warn(f"{name} says nothing any more: it is not waited for")
        return
    output.step(f"{name}: no new requests, nothing new of jobs; finish what it has")
    _decide(cell, lambda wishes, c: wishes.drain(c, name, _signed(reason), force=force))
    _wait_drained(cell, name, _limit_s(cell, timeout_s))


# Upgrading


def _to_upgrade(seen: Seen, own: str, version: str) -> tuple[list[str], list[str]]:
    """Names in the order to take: this machine first, whose `up` brings the database along, fronts
    last; and those that say nothing."""
    others = [h for h in seen.hosts if h["wanted"] != "removed" and h["version"] != version]
    others.sort(key=lambda host: (host["role"] == "front", host["id"] != own))
    unheard = [
        host["id"] for host in others if host_table.state_of(host, seen.at) in ("lost", "silent")
    ]
    return [host["id"] for host in others if host["id"] not in unheard], unheard


def _upgrade_one(cell: Cell, name: str, version: str, timeout_s: float) -> None:
    """Out, the other version, in again. Where nobody else draws it stays in: its workers are taken
    there one by one."""
    goes_out = _goes_out(_look(cell), name)
    if goes_out:
        reason = _signed(f"upgrade to {version}")
        _decide(cell, lambda wishes, c: wishes.drain(c, name, reason))
        _wait_drained(cell, name, _limit_s(cell, None))
    try:
        since = _decide(cell, lambda wishes, c: wishes.upgrade(c, name, version))
        _wait_upgraded(cell, name, version, since, timeout_s)
    finally:  # one that failed runs its old version again
        if goes_out:
            _decide(cell, lambda wishes, c: wishes.undrain(c, name))
    if goes_out:
        _wait(cell, name, "taking requests", _is_let_in, _limit_s(cell, None))


def _goes_out(seen: Seen, name: str) -> bool:
    others = [host for host in seen.hosts if host["id"] != name]
    another = any(host_table.takes_requests(host, seen.at) for host in others)
    host = seen.get(name)
    return another and host["role"] != "front" and host["wanted"] == "in"


def _wait_upgraded(cell: Cell, name: str, version: str, since: float, timeout_s: float) -> None:
    def is_done(_: Seen, host: dict[str, Any]) -> bool:
        said = host["facts"].get("upgrade", {})
        if said.get("at") != since:
            return False
        if said["state"] == "failed":
            raise CellError(f"{name} did not take {version}: {said['text'] or 'see its log'}")
        return bool(said["state"] == "done" and host["version"] == version)

    _wait(cell, name, f"at {version}", is_done, timeout_s, patience_s=_RESTART_S)


# Looking and waiting


def _look(cell: Cell, *, may_be_old: bool = False) -> Seen:
    """The hosts now; ``may_be_old``: or as they were last listed here."""
    from deploy.cluster import wishes

    try:
        rows, at = store.run(cell, wishes.read)
    except CellError as error:
        if not may_be_old:
            raise
        return _listed(cell, str(error))
    return Seen(cell.config.cluster.name, at, [asdict(row) for row in rows])


def _listed(cell: Cell, why: str) -> Seen:
    try:
        told = json.loads(cell.layout.hosts_json.read_bytes())
    except (OSError, ValueError):
        raise CellError(why) from None
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["at"]))
    return Seen(told["cluster"], told["at"], told["hosts"], f"as of {at}, for {why}")


def _told(seen: Seen) -> list[dict[str, Any]]:
    return [
        {**host, "state": host_table.state_of(host, seen.at), "said": host["state"]}
        for host in seen.hosts
    ]


def _find(seen: Seen, name: str) -> dict[str, Any] | None:
    return next((host for host in seen.hosts if host["id"] == name), None)


def _limit_s(cell: Cell, asked_s: float | None) -> float:
    return cell.config.timeouts.drain_timeout_s + _MARGIN_S if asked_s is None else asked_s


def _wait_drained(cell: Cell, name: str, timeout_s: float) -> None:
    def is_drained(seen: Seen, host: dict[str, Any]) -> bool:
        return host_table.state_of(host, seen.at) == "drained" and host["at"] > host["wanted_at"]

    _wait(cell, name, "drained", is_drained, timeout_s)


def _is_let_in(seen: Seen, host: dict[str, Any]) -> bool:
    """It would take requests, and one of the fronts that hear it sends some."""
    fronts = [other for other in seen.hosts if seen.at - other["at"] <= host_table.SILENT_S]
    heard = [other["facts"].get("hears", {}).get(host["id"]) for other in fronts]
    said = [each["open"] for each in heard if each]
    return host_table.takes_requests(host, seen.at) and (any(said) or not said)


def _wait(
    cell: Cell,
    name: str,
    what: str,
    is_done: Callable[[Seen, dict[str, Any]], bool],
    timeout_s: float,
    patience_s: float = 0.0,
) -> None:
    """Until host ``name`` itself says that it is ``what``, telling each change. ``patience_s``: how
    long it may say nothing meanwhile, beyond what is usual."""
    began, said = time.monotonic(), ""
    while True:
        seen = _look(cell)
        host, waited_s = seen.get(name), time.monotonic() - began
        if is_done(seen, host):
            return
        state = host_table.state_of(host, seen.at)
        now = f"{state}, {host['queued'] + host['running']} left" if state == "draining" else state
        if now != said:
            said = now
            output.say(f"  {waited_s:5.1f} s  {name}: {now}")
        quiet_s = seen.at - host["at"] - host_table.SILENT_S
        if state in ("lost", "silent") and quiet_s >= patience_s:
            raise CellError(_unheard(name, host, seen.at))
        if waited_s > timeout_s:
            raise CellError(
                f"{name} is not {what} after {timeout_s:g} s; last seen {now}. What is wanted of "
                "it stays: the same command again goes on waiting"
            )
        time.sleep(_LOOK_S)


def _unheard(name: str, host: dict[str, Any], at: float) -> str:
    ago = output.span(at - host["at"])
    return (
        f"{name} says nothing any more (last row {ago} ago), so nobody knows what it has left; "
        f"what is wanted of it stays. See zimage status there; gone for good: "
        f"zimage hosts remove {name}"
    )
