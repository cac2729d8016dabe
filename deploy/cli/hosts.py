"""``zimage hosts``: the machines of a cluster, and what is wanted of each."""

import json
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
    _wait(cell, name, "taking requests", host_table.takes_requests, _limit_s(cell, timeout_s))
    output.done(f"{name} takes requests")


@app.command()
def remove(
    name: HostName,
    config: Config = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
    force: Force = False,
    timeout_s: Timeout = None,
) -> None:
    """Take a host out of the cluster for good, once it has finished what it has."""
    cell = open_member(config)
    seen = _look(cell)
    there = _find(seen, name)
    if there and there["role"] != "front" and there["wanted"] != "removed":
        _finish_first(cell, seen, name, reason, force=force, timeout_s=timeout_s)
    _decide(cell, lambda wishes, c: wishes.remove(c, name, _signed(reason), force=force))
    output.done(f"{name} belongs to {cell.config.cluster.name} no more; it may be switched off")


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


def _decide(cell: Cell, what: "Callable[[Any, Connection], float]") -> None:
    from deploy.cluster import wishes

    try:
        store.run(cell, lambda connection: what(wishes, connection))
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
    def is_drained(host: dict[str, Any], at: float) -> bool:
        return host_table.state_of(host, at) == "drained" and host["at"] > host["wanted_at"]

    _wait(cell, name, "drained", is_drained, timeout_s)


def _wait(
    cell: Cell,
    name: str,
    what: str,
    is_done: Callable[[dict[str, Any], float], bool],
    timeout_s: float,
) -> None:
    """Until host ``name`` itself says that it is ``what``, telling each change."""
    began, said = time.monotonic(), ""
    while True:
        seen = _look(cell)
        host, waited_s = seen.get(name), time.monotonic() - began
        if is_done(host, seen.at):
            return
        state = host_table.state_of(host, seen.at)
        now = f"{state}, {host['queued'] + host['running']} left" if state == "draining" else state
        if now != said:
            said = now
            output.say(f"  {waited_s:5.1f} s  {name}: {now}")
        if state in ("lost", "silent"):
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
