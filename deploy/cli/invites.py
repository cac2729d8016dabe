"""``zimage hosts invite``: lets one machine join, and waits for it."""

import asyncio
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from cryptography import x509

from deploy import output, store
from deploy.cell import Cell, CellError
from deploy.cli.cluster import open_member
from deploy.cli.options import Config
from deploy.config import patterns
from deploy.config.schema import is_loopback

if TYPE_CHECKING:
    from deploy.cluster.door import Door
    from deploy.cluster.invites import Token
    from deploy.cluster.welcome import Asked, Welcome

_DOOR_PORT = 7863
_ALIVE_S = 60.0


class Role(StrEnum):
    HOST = "host"
    FRONT = "front"
    BOTH = "both"


def invite(
    name: Annotated[str, typer.Argument(help="What the machine is called within the cluster.")],
    role: Annotated[
        Role, typer.Option(help="host draws, front hands requests to hosts.")
    ] = Role.HOST,
    door: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the machine finds this one. [default: the host of cluster.address, port "
            "7863, or one of the nine above]",
        ),
    ] = "",
    credentials: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Of the bucket, for this machine alone. [default: objects.credentials_file]",
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Print a token with which one machine may join within ten minutes, and wait for it."""
    _check(name, door)
    cell = open_member(config)
    waiting = _Waiting(cell, name, role.value, credentials)
    _refuse_taken(cell, name)
    for what in _local(cell):
        output.warn(f"{what} is this machine's own: another one cannot reach it by that name")
    came = asyncio.run(waiting.wait(*_door_of(cell, door)))
    if came is None:
        raise CellError(f"nobody joined as {name} within ten minutes; the token is good no more")


class _Waiting:
    """Everything that needs the cluster's own modules, which other commands do not load."""

    def __init__(self, cell: Cell, host: str, role: str, credentials: "Path | None") -> None:
        from deploy.cluster import authority

        self._cell, self._host, self._role = cell, host, role
        self._credentials = credentials
        self._authorities = authority.load(cell.layout)

    async def wait(self, address: str, port: int) -> "Welcome | None":
        """Who came; None: nobody did while the invite was good."""
        from deploy.cluster import certificates, door
        from deploy.rendering import certificate
        from worker.storage import certificates as rows

        shown = certificate.make(("zimage-door",))
        pin = certificates.fingerprint(x509.load_pem_x509_certificate(shown.pem))
        opened = door.Door(self._look, self._admit, output.warn)
        async with opened.open(address.strip("[]"), port, shown) as own_port:
            token = self._invite(f"{address}:{own_port}", pin)
            try:
                async with asyncio.timeout(rows.INVITE_LIFE_S):
                    return await self._came(opened)
            except TimeoutError:
                return None
            finally:
                store.run(self._cell, lambda c: rows.withdraw(c, token.invite))

    async def _came(self, opened: "Door") -> "Welcome":
        while True:
            came = await opened.admitted.get()
            _greet(came)
            if came.host == self._host:  # or one that was invited elsewhere at the same time
                return came

    def _look(self, asked: "Asked") -> dict[str, Any]:
        from deploy.cluster import welcome

        return welcome.look(self._cell, asked)

    def _admit(self, asked: "Asked") -> "Welcome":
        from deploy.cluster import welcome

        return welcome.welcome(self._cell, self._authorities, asked, self._credentials)

    def _invite(self, door: str, pin: bytes) -> "Token":
        from deploy.cluster import invites
        from worker.storage import certificates as rows

        token = invites.Token.new(door, pin, self._host, self._role)
        own = (token.invite, self._host, self._role, invites.hash_of(token.secret))
        store.run(self._cell, lambda connection: rows.invite(connection, *own))
        output.raw(f"{token.text}\n")  # alone on standard output: for a pipe
        output.note(
            f"for one machine, once, within ten minutes; on {self._host}, in a checkout of this "
            f"version, give it to: scripts/up --join -\n  it knocks at {door}; this waits for it"
        )
        return token


def _check(name: str, door: str) -> None:
    if not re.fullmatch(patterns.NAME, name):
        raise typer.BadParameter(f'"{name}" {patterns.WORDS[patterns.NAME]}')
    if door and not re.fullmatch(patterns.HOST_AND_PORT, door):
        raise typer.BadParameter(f'--door "{door}" {patterns.WORDS[patterns.HOST_AND_PORT]}')


def _refuse_taken(cell: Cell, name: str) -> None:
    """Another machine of the same name would shut out the first."""
    from worker.storage import hosts
    from worker.storage.database import clock

    rows, now = store.run(cell, lambda c: (hosts.read_all(c), clock(c)))
    found = next((host for host in rows if host.id == name and host.wanted != "removed"), None)
    if found is not None and now - found.at < _ALIVE_S:
        raise CellError(
            f"{name} is in the cluster and lives (it wrote {now - found.at:.0f} s ago): choose "
            f"another name, or take it out first: zimage hosts remove {name}"
        )


def _local(cell: Cell) -> Iterator[str]:
    """What the settings that are handed on call by a name of this machine."""
    from sqlalchemy import make_url

    url = make_url(cell.config.database.url)
    named = url.query.get("host", url.host or "")
    for host in (named,) if isinstance(named, str) else named:
        if not host or host.startswith("/") or is_loopback(host):
            yield f'database.url with host "{host}"'
    endpoint = urlsplit(cell.config.objects.endpoint).hostname or ""
    if is_loopback(endpoint):
        yield f"objects.endpoint {cell.config.objects.endpoint}"


def _door_of(cell: Cell, door: str) -> tuple[str, int]:
    own, _, _ = cell.config.cluster.address.rpartition(":")
    if not door and not own:
        raise CellError("a front has no cluster.address: name where it is found, --door HOST:PORT")
    host, _, port = (door or f"{own}:{_DOOR_PORT}").rpartition(":")
    return host, int(port)


def _greet(came: "Welcome") -> None:
    roles = " and ".join(came.certificates)
    access = "a role of its own" if came.own_role else "the cluster's own role and password"
    output.note(
        f"{came.host} has joined {came.cluster} as {roles}; in the database it has {access}"
    )
    output.note("  next     zimage hosts shows it as soon as it draws")
