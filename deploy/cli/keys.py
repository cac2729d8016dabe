"""``zimage keys``: who may use the cell, and how much. Changes reach all workers within 2 s."""

import functools
import inspect
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deploy import output, store
from deploy.cell import Cell, CellError
from deploy.cli.options import AsJson, Config, open_cell
from worker.models.loras.folder import require_name
from worker.models.loras.head import UnusableLora

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.storage.keys import Key

app = typer.Typer(name="keys", help="Who may use the cell, and how much.", no_args_is_help=True)


class Role(StrEnum):
    USER = "user"
    OPS = "ops"


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


Name = Annotated[str, typer.Argument(help="Name of the key, its id, or the beginning of that.")]
_NOT_TOLD = {"hash", "hint", "signs_out"}
_NAME = re.compile(r"[^\x00-\x1f\x7f/]{1,64}")
_FIRST = "first"
_OWN_TOKEN = re.compile(r"[!-~]{32,256}")
"""A key that a person brings: long enough that nobody guesses it."""


@dataclass(frozen=True)
class Limits:
    """What a key may do: an option each. None: not named."""

    role: Annotated[
        Role | None, typer.Option(help="ops also sees what others drew and used. [default: user]")
    ] = None
    priority: Annotated[
        Priority | None,
        typer.Option(help="batch: its requests always wait for others. [default: interactive]"),
    ] = None
    images_per_day: Annotated[
        int | None, typer.Option(min=0, help="Of one day, UTC. 0: no limit.")
    ] = None
    concurrency: Annotated[
        int | None, typer.Option(min=0, max=256, help="Requests at a time. 0: no limit.")
    ] = None
    max_pixels: Annotated[
        int | None, typer.Option(min=0, help="Of one picture. 0: the cell's limit.")
    ] = None
    max_steps: Annotated[
        int | None, typer.Option(min=0, help="Of one picture. 0: the cell's limit.")
    ] = None
    loras: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Adapters that it may use; all, or none. [default: all]"
        ),
    ] = None
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Last day, as 2027-12-31, or a moment, as 2027-12-31T18:00; UTC. never: no end.",
        ),
    ] = None

    def columns(self) -> dict[str, Any]:
        """Those that were named; a limit of 0 is none."""
        named = {key: value for key, value in vars(self).items() if value is not None}
        if self.expires is not None:
            del named["expires"]
            named["expires_at"] = _moment(self.expires)
        columns = {
            key: value.value if isinstance(value, StrEnum) else value or None
            for key, value in named.items()
        }
        if self.loras is not None:
            columns["loras"] = _loras(self.loras)
        return columns


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the options of ``Limits`` in place of its parameter ``limits``."""
    own, options = inspect.signature(command), inspect.signature(Limits).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        limits = Limits(**{name: given.pop(name) for name in options})
        command(limits=limits, **given)

    first, *rest = (p for p in own.parameters.values() if p.name != "limits")
    shown = [p.replace(kind=p.KEYWORD_ONLY) for p in (first, *options.values(), *rest)]
    run.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in shown}
    return run


@app.command()
@with_limits
def create(
    name: Annotated[str, typer.Argument(help="Whom it is for: a person, a team, a program.")],
    limits: Limits,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only a hash of it is stored."""
    if not _NAME.fullmatch(name) or name.startswith("key_"):
        raise typer.BadParameter("1 to 64 characters without / that do not begin with key_")
    values = limits.columns()
    cell = open_cell(config, create=True)
    try:
        key, token = _insert(cell, _secret(cell), name, **values)
    except store.Taken:
        raise CellError(f"there is a key {name} already; rotate or delete that one") from None
    _print_token(cell, key, token, as_json=as_json)


@app.command()
def first(
    config: Config = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Where the key stands on one line; a changed one takes its place."),
    ] = None,
) -> None:
    """Make a key and print it where there is none yet, or see to it that the key in a file is good:
    for machines that nobody sits at. Nothing where nobody is asked for one."""
    own = _token_in(file) if file else ""
    cell = open_cell(config, create=True)
    if cell.config.listen.auth != "keys" or not cell.config.cluster.draws:
        return
    secret = _secret(cell)
    found = store.run(cell, store.keys.snapshot).keys
    if own:
        _keep(cell, secret, own, next((key for key in found if key.name == _FIRST), None))
    elif not found:
        with suppress(store.Taken):  # by another cell of the same database, which printed it
            _print_token(cell, *_insert(cell, secret, _FIRST), as_json=False)


@app.command("list")
def list_keys(config: Config = None, as_json: AsJson = False) -> None:
    """Show all keys and what each may do."""
    cell = open_cell(config)
    found = store.run(cell, store.keys.snapshot).keys
    if as_json:
        output.as_json([described(key) for key in found])
    elif found:
        output.console.print(_table(found))
    else:
        output.say("no keys yet; make one with: zimage keys create NAME")


@app.command()
def show(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Show one key: everything but the key itself, which nobody can show again."""
    found = described(_find(open_cell(config), name))
    if as_json:
        output.as_json(found)
        return
    for field, value in found.items():
        output.say(f"{field:<15} {'–' if value is None else value}")


@app.command()
@with_limits
def change(
    name: Name,
    limits: Limits,
    config: Config = None,
) -> None:
    """Change what a key may do; what is not named stays."""
    values = limits.columns()
    if not values:
        raise typer.BadParameter("name what to change, for example --images-per-day 200")
    cell = open_cell(config)
    _change(cell, _find(cell, name), "key_changed", **values)
    output.done(f"changed {name}: " + ", ".join(f"{k} {v}" for k, v in values.items()))


@app.command()
def rotate(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Give a key a new secret and print it; the old one and its sign-ins end at once."""
    cell = open_cell(config)
    key, secret = _find(cell, name), store.secret_for(cell)
    fresh, token = store.keys.new_key(secret, key.name)
    _change(cell, key, "key_rotated", hash=fresh.hash, hint=fresh.hint, signs_out=True)
    _print_token(cell, key, token, as_json=as_json)


@app.command()
def disable(name: Name, config: Config = None) -> None:
    """Switch a key off, sign out whoever is signed in with it, and hold its jobs."""
    cell = open_cell(config)
    key = _find(cell, name)
    _change(cell, key, "key_disabled", disabled=True, signs_out=True)
    output.done(
        f"{key.name} is disabled and its jobs wait; let it in again with: "
        f"zimage keys enable {key.name}"
    )


@app.command("sign-out")
def sign_out(name: Name, config: Config = None) -> None:
    """Sign out whoever is signed in with a key; the key itself stays good."""
    cell = open_cell(config)
    key = _find(cell, name)
    store.run(cell, lambda connection: store.keys.end_sessions(connection, key.id))
    _note(cell, "key_signed_out", key)
    output.done(f"nobody is signed in with {key.name} any more; the key itself stays good")


@app.command()
def enable(name: Name, config: Config = None) -> None:
    """Switch a disabled key on again."""
    cell = open_cell(config)
    key = _find(cell, name)
    _change(cell, key, "key_enabled", disabled=False)
    output.done(f"{key.name} is enabled")


@app.command()
def delete(name: Name, config: Config = None) -> None:
    """Delete a key for good and cancel its jobs. What it used stays in the ledger, under its id."""
    cell = open_cell(config)
    key = _find(cell, name)
    why, now = f"The key {key.name} was deleted.", datetime.now(UTC).timestamp()

    def work(connection: "Connection") -> int:
        store.keys.delete(connection, key.id)
        return store.job_changes.cancel_all(connection, key.id, why, now)

    cancelled = store.run(cell, work)
    _note(cell, "key_deleted", key)
    ended = f"; jobs cancelled: {cancelled}" if cancelled else ""
    output.done(f"deleted {key.name} ({key.id}){ended}")


def described(key: "Key") -> dict[str, Any]:
    """Everything of ``key`` that a person may see."""
    shown = asdict(key)
    del shown["hash"], shown["version"]
    shown["hint"] = f"…{key.hint}"
    return shown | {"expires_at": _date(key.expires_at), "created_at": _date(key.created_at)}


def _secret(cell: Cell) -> bytes:
    """What keys are hashed with, and a database that can hold them, on a new machine, too."""
    cell.layout.create()
    store.migrate(cell)
    return store.secret_for(cell)


def _insert(
    cell: Cell, secret: bytes, name: str, own: str = "", **values: Any
) -> "tuple[Key, str]":
    key, token = store.keys.new_key(secret, name, own, **values)
    store.run(cell, lambda connection: store.keys.insert(connection, key, secret))
    _note(cell, "key_created", key, **values)
    return key, token


def _token_in(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CellError(f"{file} cannot be read: {error}") from None
    if not _OWN_TOKEN.fullmatch(token):
        raise CellError(
            f"{file} holds no key: one line of 32 to 256 letters, digits and signs, such as "
            "openssl rand -hex 32 writes"
        )
    return token


def _keep(cell: Cell, secret: bytes, own: str, stored: "Key | None") -> None:
    """See to it that ``own`` is the first key, whatever that was; who signed in with another one
    is signed out."""
    if stored is None:
        with suppress(store.Taken):  # by another cell of the same database, from the same file
            _insert(cell, secret, _FIRST, own)
        return
    fresh, _ = store.keys.new_key(secret, _FIRST, own)
    if fresh.hash != stored.hash:
        _change(cell, stored, "key_rotated", hash=fresh.hash, hint=fresh.hint, signs_out=True)


def _moment(text: str) -> float | None:
    """Seconds since the epoch of the end of ``text``; None: never."""
    if text == "never":
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--expires {text}: write it as 2027-12-31") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (at + timedelta(days=1) if len(text) == 10 else at).timestamp()


def _loras(text: str) -> str | None:
    """Names as they are stored; None: all. Those that are not here yet may come."""
    names = sorted({name.strip() for name in text.split(",")} - {""})
    if names == ["all"]:
        return None
    if names == ["none"]:
        return ""
    for name in names:
        try:
            require_name(name)
        except UnusableLora as error:
            raise typer.BadParameter(f"--loras: {error}") from None
    if not names:
        raise typer.BadParameter("--loras: name adapters, or all, or none")
    return ",".join(names)


def _find(cell: Cell, name: str) -> "Key":
    found: Key | None = store.run(cell, lambda connection: store.keys.find(connection, name))
    if found is None and name.startswith("key_") and name != "key_":
        alike = [
            key for key in store.run(cell, store.keys.snapshot).keys if key.id.startswith(name)
        ]
        if len(alike) > 1:
            ids = ", ".join(key.id for key in alike[:3])
            raise CellError(f"several keys begin with {name} ({ids} …): write more of it")
        found = alike[0] if alike else None
    if found is None:
        raise CellError(f"no key {name}; see zimage keys list")
    return found


def _change(cell: Cell, key: "Key", event: str, **values: Any) -> None:
    def work(connection: "Connection") -> None:
        store.keys.change(connection, key.id, **values)
        store.job_turns.let_draw(connection, key.id)
        if {"disabled", "expires_at"} & values.keys():
            store.job_changes.stop(connection, key.id)

    store.run(cell, work)
    _note(cell, event, key, **{name: values[name] for name in values.keys() - _NOT_TOLD})


def _note(cell: Cell, event: str, key: "Key", **changes: Any) -> None:
    """Write into the audit log who did this with ``key``, whose own deeds it has by its id."""
    if not cell.config.audit.log:
        return
    from worker.observability import audit

    note = audit.Note(time.time(), event, key.id, key.name, f"{_person()} on this host", changes)
    try:
        audit.append(cell.layout.audit_dir, "zimage", note)
    except OSError as error:
        output.warn(f"done, but the audit log {cell.layout.audit_dir} cannot be written: {error}")


def _person() -> str:
    """Who typed the command, also where that was through sudo."""
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or f"user {os.getuid()}"


def _print_token(cell: Cell, key: "Key", token: str, *, as_json: bool) -> None:
    if as_json:
        output.as_json({"id": key.id, "name": key.name, "key": token}, indent=None)
        return
    output.done(f"key of {key.name}; it is shown this once:")
    output.say(f"\n  {token}\n")
    if cell.config.listen.auth != "keys":
        output.warn('nobody is asked for it yet: set listen.auth = "keys", then zimage up')


def _table(found: "tuple[Key, ...]") -> Table:
    heads = ("name", "state", "role", "priority", "a day", "at once", "last day", "key")
    table = output.table(*heads, right=("a day", "at once"), fold=["name"])
    now = datetime.now(UTC).timestamp()
    for key in found:
        table.add_row(
            key.name,
            key.why_not(now) or "good",
            key.role,
            key.priority,
            str(key.images_per_day or "–"),
            str(key.concurrency or "–"),
            "–" if key.expires_at is None else store.usage.day_of(key.expires_at - 1),
            f"…{key.hint}",
        )
    return table


def _date(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
