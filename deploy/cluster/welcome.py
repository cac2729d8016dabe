"""What a machine that joins is given: certificates, secrets, access to database and bucket, and the
settings that all hosts have in common."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509

from deploy import installation, store
from deploy.cell import Cell, CellError
from deploy.cluster import certificates, host_role, invites, trust
from deploy.cluster.authority import Authority, Role
from deploy.layout import objects_of, under_root

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

    from worker.storage.certificates import Invite

MAX_SKEW_S = 5.0
"""Leases and limits are told by the database's clock, links and places by the hosts' own."""

_COMMON = (
    *("model", "models", "auth", "limits", "labels", "gallery", "audit", "traces", "usage"),
    *("front", "database", "objects"),
)
_FILES = (("database", "password_file"), ("objects", "credentials_file"))
_NOT_GOOD = (
    "the token is not good, or no more: it holds for ten minutes and five tries; make another with "
    "zimage hosts invite"
)
_CONNECT_S = 5.0


class Refused(CellError):
    """The machine may not join now; the message says why, and what to do there."""


@dataclass(frozen=True)
class Asked:
    """What a machine says that wants to join. ``requests``: a CSR (PEM) a role; none: it only looks
    what it would be told. ``now``: its clock."""

    invite: str
    secret: bytes = field(repr=False)
    version: str
    now: float
    requests: dict[str, str]

    @classmethod
    def of(cls, told: Any) -> "Asked":
        """``Refused`` where it is not what ``zimage up --join`` sends."""
        try:
            secret, requests = bytes.fromhex(told["secret"]), told["requests"]
            asked = cls(told["invite"], secret, told["version"], told["now"], dict(requests))
            texts = (asked.invite, asked.version, *asked.requests, *asked.requests.values())
            if not all(isinstance(text, str) for text in texts) or not isinstance(
                asked.now, int | float
            ):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise Refused("this is no request to join") from None
        return asked


@dataclass(frozen=True)
class Welcome:
    """The answer. ``database`` and ``objects`` have secrets of their own beside the settings."""

    cluster: str
    host: str
    role: str
    certificates: dict[str, str]
    authorities: str
    revocations: str
    secrets: str = field(repr=False)
    versions: dict[str, int]
    settings: dict[str, Any]
    files: dict[str, str] = field(repr=False)
    """Texts of files that settings name: ``section.key``."""
    own_role: bool
    """Whether the database has a role for this host alone."""


class _Looked(Exception):
    """Nothing is to be stored."""


def look(cell: Cell, asked: Asked) -> dict[str, Any]:
    """The settings that a machine would get, and which files beside; the invite stays as it is.
    ``Refused``."""

    def work(connection: "Connection") -> None:
        invite = _used(connection, asked)
        if invite is not None:
            raise _Looked(_settings(cell, invite.host, invite.role))

    try:
        store.run(cell, work)
    except _Looked as looked:
        return {"settings": looked.args[0], "files": sorted(_files(cell, None))}
    raise Refused(_NOT_GOOD)


def welcome(
    cell: Cell, authorities: list[Authority], asked: Asked, credentials: Path | None = None
) -> Welcome:
    """Use up the invite and let the machine in; ``Refused``, and only a wrong secret has cost a
    try then. ``credentials``: of the bucket, for this host alone."""
    files = _files(cell, credentials)
    secrets = trust.secrets_here(cell.layout)

    def work(connection: "Connection") -> tuple[Welcome, str | None] | None:
        from worker.storage import certificates as rows

        rows.lock_cluster(connection)
        invite = _used(connection, asked)
        if invite is None:
            return None  # not by an exception: the try counts
        signed = _signed(connection, authorities[0], invite, asked)
        trusted = trust.publish_trust(connection, cell.layout, authorities)
        trust.publish_secrets(connection, cell.layout, authorities)
        _let_in(connection, invite.host)
        made = Welcome(
            cluster=cell.config.cluster.name,
            host=invite.host,
            role=invite.role,
            certificates=signed,
            authorities=trusted.authorities,
            revocations=trusted.revocations,
            secrets=secrets.to_json().decode(),
            versions={each.name: each.version for each in trust.read_documents(connection)},
            settings=_settings(cell, invite.host, invite.role),
            files=files,
            own_role=False,
        )
        return made, host_role.make(connection, host_role.name_of(cell, invite.host))

    done = store.run(cell, work)
    if done is None:
        raise Refused(_NOT_GOOD)
    return _with_role(cell, *done)


def _used(connection: "Connection", asked: Asked) -> "Invite | None":
    from worker.storage import certificates as rows

    invite = rows.use(connection, asked.invite, invites.hash_of(asked.secret))
    if invite is not None:
        _check(connection, asked)
    return invite


def _check(connection: "Connection", asked: Asked) -> None:
    from worker.storage.database import clock

    if asked.version != (own := installation.version()):
        raise Refused(
            f"this machine has version {asked.version} and the cluster {own}: install that one "
            "here, then the same token again"
        )
    skew_s = asked.now - clock(connection)
    if abs(skew_s) > MAX_SKEW_S:
        way = "ahead" if skew_s > 0 else "behind"
        raise Refused(
            f"this machine's clock is {abs(skew_s):.0f} s {way}: set it (systemctl enable --now "
            "chrony, or timedatectl set-ntp true), then the same token again"
        )


def _signed(
    connection: "Connection", signer: Authority, invite: "Invite", asked: Asked
) -> dict[str, str]:
    """Certificates by role. Whoever comes again with the same keys, because the answer was lost,
    gets those that it had."""
    from worker.storage import certificates as rows

    roles = certificates.roles_of(invite.role)
    if any(role not in asked.requests for role in roles):
        raise Refused(f"the invite is for a machine as {invite.role}; the token says so, too")
    if invite.was_used:
        known = {row.role: row.pem for row in rows.of_host(connection, invite.host)}
        if all(role in known and _same_key(known[role], asked.requests[role]) for role in roles):
            return {role: known[role] for role in roles}
        raise Refused(
            f"another machine has joined with this token as {invite.host}; if that was not yours, "
            f"zimage hosts remove {invite.host}; else make another token"
        )
    rows.revoke(connection, invite.host)  # of a machine that had this name before
    return {role: _issued(connection, signer, asked, invite.host, role) for role in roles}


def _issued(
    connection: "Connection", signer: Authority, asked: Asked, host: str, role: Role
) -> str:
    csr = asked.requests[role].encode()
    return trust.issue(connection, signer, csr, host, role).decode()


def _same_key(certificate: str, csr: str) -> bool:
    try:
        asked = x509.load_pem_x509_csr(csr.encode()).public_key()
    except ValueError:
        return False
    return x509.load_pem_x509_certificate(certificate.encode()).public_key() == asked


def _let_in(connection: "Connection", host: str) -> None:
    """A host that was removed and comes again is wanted again."""
    from worker.storage import hosts
    from worker.storage.database import clock

    hosts.want(connection, host, "in", "", clock(connection))


def _settings(cell: Cell, host: str, role: str) -> dict[str, Any]:
    """What this machine's file says and another's should say, too."""
    told = cell.config.model_dump(exclude_unset=True, mode="json")
    settings: dict[str, Any] = {name: told[name] for name in _COMMON if name in told}
    if "auth" in told.get("listen", {}):
        settings["listen"] = {"auth": told["listen"]["auth"]}
    for section, key in _FILES:
        settings.get(section, {}).pop(key, None)
    settings["cluster"] = {"name": cell.config.cluster.name, "host": host, "role": role}
    return settings


def _files(cell: Cell, credentials: Path | None) -> dict[str, str]:
    files = {}
    if cell.config.database.password_file:
        files["database.password_file"] = _text(under_root(cell.config.database.password_file))
    if root := _root_certificate(cell.config.database.url):
        files["database.sslrootcert"] = _text(root)
    path = credentials or Path(objects_of(cell.config).credentials_file)
    files["objects.credentials_file"] = _text(path)
    return files


def _root_certificate(url: str) -> Path | None:
    """The file by which the database's server is known, if the URL names one."""
    from sqlalchemy import make_url

    named = make_url(url).query.get("sslrootcert")
    return under_root(named) if isinstance(named, str) and named != "system" else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"the machine that invites cannot read {path}: {error}") from None


def _with_role(cell: Cell, made: Welcome, password: str | None) -> Welcome:
    """With a role of its own, where one can connect as it: pg_hba.conf may know none but ours."""
    from sqlalchemy import make_url

    if password is None:
        return made
    name = host_role.name_of(cell, made.host)
    url = make_url(cell.config.database.url).set(username=name)
    if not _connects(url.set(password=password)):
        store.run(cell, lambda connection: host_role.remove(connection, name))
        return made
    settings = copy.deepcopy(made.settings)
    settings["database"]["url"] = url.render_as_string(hide_password=False)
    files = {**made.files, "database.password_file": password}
    return replace(made, settings=settings, files=files, own_role=True)


def _connects(url: "URL") -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    from worker.storage.database import create_engine

    engine = create_engine(url.render_as_string(hide_password=False), _CONNECT_S)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 FROM hosts LIMIT 1")
    except SQLAlchemyError:
        return False
    finally:
        engine.dispose()
    return True
