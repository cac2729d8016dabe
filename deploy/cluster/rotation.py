"""New secrets and a new authority, one step after another: each only when every machine has what
the step before brought, so that nothing that one signs is unknown to another. Whoever is cut short
goes on with the same command.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cryptography import x509

from deploy import store
from deploy.cell import Cell, CellError
from deploy.cluster import authority, renewal, trust
from deploy.cluster.authority import Authority
from deploy.cluster.trust import SECRETS, TRUST, Secrets
from deploy.host import whole_file
from deploy.layout import Layout
from worker.storage import certificates as rows

if TYPE_CHECKING:
    from sqlalchemy import Connection

Tell = Callable[[str], None]

_LOOK_S = 2.0
_READ_S = 5.0
"""Workers read secrets again within this time."""


def rotate_secret(cell: Cell, tell: Tell, timeout_s: float) -> float:
    """Sign with a new secret once every machine knows it; when the old one ends, by this machine's
    clock. ``CellError``: a machine does not take it over."""
    authorities, layout = authority.load(cell.layout), cell.layout
    present = trust.secrets_here(layout)
    if not (state := _state(layout)) or state["ends_at"] is not None:
        fresh = secrets.token_bytes(32)
        state = {"new": _digest(fresh), "ends_at": None}
        tell("make a new secret, and tell it to every machine")
        _spread(layout, present, fresh, state)
    present = trust.secrets_here(layout)
    by_digest = {_digest(each): each for each in present.signing}
    if state["new"] not in by_digest:  # cut short before it was written
        _spread(layout, present, secrets.token_bytes(32), state)
        return rotate_secret(cell, tell, timeout_s)
    if _digest(present.signing[0]) != state["new"]:
        _wait(cell, authorities, _without(SECRETS), tell, timeout_s)
        time.sleep(_READ_S)
        tell("sign with it; what was signed with the old one stays good for a link's lifetime")
        new = by_digest[state["new"]]
        others = [each for each in present.signing if each != new]
        trust.write_secrets(layout, Secrets(present.key_secret, (new, *others)))
    ends_at = time.time() + cell.config.limits.worker.url_ttl_s
    _write_state(layout, {**state, "ends_at": ends_at})
    store.run(cell, lambda c: renewal.serve(c, layout, authorities))
    _wait(cell, authorities, _without(SECRETS), tell, timeout_s)
    return ends_at


def _spread(layout: Layout, present: Secrets, fresh: bytes, state: dict[str, Any]) -> None:
    _write_state(layout, {**state, "new": _digest(fresh)})
    signing = (present.signing[0], fresh, *present.signing[1:])
    trust.write_secrets(layout, Secrets(present.key_secret, signing))


def _state(layout: Layout) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(renewal.rotation_file(layout).read_bytes())
        return state
    except (OSError, ValueError):
        return {}


def _write_state(layout: Layout, state: dict[str, Any]) -> None:
    whole_file.write(renewal.rotation_file(layout), json.dumps(state).encode(), 0o600)


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def rotate_authority(cell: Cell, tell: Tell, timeout_s: float) -> None:
    """Put a new authority in the place of the present one: every machine trusts both before the new
    one signs, and the old one goes when it has no certificate left. ``CellError``: a machine does
    not take it over."""
    layout, present = cell.layout, authority.load(cell.layout)
    if len(present) == 1:
        tell("make a new authority, and let every machine trust both")
        present = [*present, Authority.make(cell.config.cluster.name)]
        authority.save(layout, present)
    old, new = sorted(present, key=lambda each: each.certificate.not_valid_before_utc)
    if present[0] is old:
        _wait(cell, present, _without(TRUST), tell, timeout_s)
        tell("sign with the new one; every certificate is renewed")
        present = [new, old]
        authority.save(layout, present)
    _wait(cell, present, _not_signed_by(new), tell, timeout_s)
    tell("trust the new one alone")
    authority.save(layout, [new])
    _wait(cell, [new], _without(TRUST), tell, timeout_s)


# Waiting

Missing = Callable[["Connection"], Iterable[str]]
"""The machines that have not done it yet."""


def _wait(
    cell: Cell, authorities: list[Authority], missing: Missing, tell: Tell, timeout_s: float
) -> None:
    """Serve until every machine has done it; ``CellError`` names those that do not."""
    deadline, told = time.monotonic() + timeout_s, ""

    def work(connection: "Connection") -> list[str]:
        renewal.serve(connection, cell.layout, authorities)
        return sorted(missing(connection))

    while left := store.run(cell, work):
        if time.monotonic() > deadline:
            raise CellError(
                f"not taken over by {', '.join(left)} within {timeout_s:.0f} s: see zimage logs "
                "membership there, or zimage hosts remove NAME where it is gone; then the same "
                "command goes on. Until then everything goes on as before"
            )
        if (names := ", ".join(left)) != told:
            tell(f"wait for {names}")
            told = names
        time.sleep(_LOOK_S)


def _without(name: str) -> Missing:
    """Who has not the newest document of that name."""

    def missing(connection: "Connection") -> Iterable[str]:
        document = rows.document(connection, name)
        newest = document.version if document else 0
        for host, has in _has(connection).items():
            if has.get("versions", {}).get(name, 0) < newest:
                yield host

    return missing


def _not_signed_by(signer: Authority) -> Missing:
    """Who shows a certificate of another authority."""

    def missing(connection: "Connection") -> Iterable[str]:
        signed = {
            row.serial
            for row in rows.all_good(connection)
            if authority.has_signed(signer.certificate, _certificate(row))
        }
        for host, has in _has(connection).items():
            shown = set(has.get("certificates", {}).values())
            if not shown or not shown <= signed:
                yield host

    return missing


def _certificate(row: rows.Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(row.pem.encode())


def _has(connection: "Connection") -> dict[str, dict[str, Any]]:
    """What each machine whose certificates are good says that it has; nothing, until it does."""
    hosts = {row.host for row in rows.all_good(connection)}
    told = {
        document.name.removeprefix(renewal.HAS): json.loads(document.content)
        for document in rows.documents(connection, renewal.HAS)
    }
    return {host: told.get(host, {}) for host in hosts}
