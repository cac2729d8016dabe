"""Certificates that renew themselves, and what all machines know taken over, once a minute.

A machine asks for its next certificate by a row that its present key signs, so that nobody else can
ask in its name; the machine with the authority's key answers by a row. It need not run all the
time: a certificate is asked for a month before the old one ends.
"""

import asyncio
import json
import logging
import signal
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.cluster import authority, certificates, trust
from deploy.cluster.authority import Authority, AuthorityError, Role
from deploy.cluster.documents import DocumentError
from deploy.cluster.trust import Secrets
from deploy.errors import CellError
from deploy.host import nginx_process, whole_file
from deploy.layout import Layout
from worker.errors import StoreAway
from worker.storage import certificates as rows
from worker.storage.certificates import Document
from worker.storage.database import Database

BEAT_S = 60.0
REQUEST, HAS = "request:", "has:"
_SIGNING = ec.ECDSA(hashes.SHA256())

_log = logging.getLogger("membership")


@dataclass(frozen=True)
class Member:
    """This machine within its cluster. ``role``: that of ``cluster.toml``."""

    layout: Layout
    host: str
    role: str


@dataclass(frozen=True)
class _Found:
    documents: list[Document]
    own: list[rows.Certificate]
    has: Document | None


async def keep(member: Member, database: Database) -> None:
    """For ever. What fails is tried again a minute later."""
    while True:
        try:
            await beat(member, database)
        except (StoreAway, CellError, OSError, ValueError) as error:
            _log.warning("certificates and secrets of the cluster stay as they are: %s", error)
        await asyncio.sleep(BEAT_S)


async def beat(member: Member, database: Database) -> bool:
    """Serve where the authority is, ask, and take over; whether nginx read its files again."""
    layout = member.layout
    authorities = await asyncio.to_thread(_authorities, layout)
    if authorities:
        await database.run(lambda connection: serve(connection, layout, authorities))
    asked = await asyncio.to_thread(_requests, member)
    found = await database.run(lambda connection: _exchange(connection, member, asked))
    try:
        await asyncio.to_thread(_take_over, member, found)
    except DocumentError as error:
        _log.warning("%s", error)
    finally:
        await asyncio.to_thread(_note_ends, member)
        reloaded = await asyncio.to_thread(reload_if_changed, layout)
    await _tell(member, database, found.has)
    return reloaded


def _authorities(layout: Layout) -> list[Authority]:
    return authority.load(layout) if layout.authority_key.exists() else []


# The machine with the authority's key


def serve(connection: sa.Connection, layout: Layout, authorities: list[Authority]) -> None:
    """Sign what machines of the cluster ask for, and tell all what they should know."""
    rows.lock_cluster(connection)
    for asked in rows.documents(connection, REQUEST):
        _, host, role = asked.name.split(":")
        try:
            csr = _proven(connection, authorities, host, role, asked.content)
            trust.issue(connection, authorities[0], csr, host, _known_role(role))
            _log.info("signed the next certificate of %s as %s", host, role)
        except (AuthorityError, ValueError) as error:
            _log.warning("no certificate for %s as %s: %s", host, role, error)
        rows.forget(connection, asked.name)
    trust.publish_trust(connection, layout, authorities)
    _end_old_secrets(layout)
    trust.publish_secrets(connection, layout, authorities)


def rotation_file(layout: Layout) -> Path:
    """How far the rotation of the secret is, on this machine."""
    return layout.cluster_dir / "rotation.json"


def _end_old_secrets(layout: Layout) -> None:
    """Once what was signed with them is over."""
    try:
        ends_at = json.loads(rotation_file(layout).read_bytes())["ends_at"]
    except (OSError, ValueError, KeyError):
        return
    if ends_at is not None and time.time() >= ends_at:
        present = trust.secrets_here(layout)
        trust.write_secrets(layout, Secrets(present.key_secret, present.signing[:1]))
        rotation_file(layout).unlink()


def _proven(
    connection: sa.Connection, authorities: list[Authority], host: str, role: str, content: bytes
) -> bytes:
    """The request (CSR, PEM), which the key of a good certificate of ``host`` has signed."""
    try:
        told = json.loads(content)
        csr, proof = str(told["csr"]).encode(), b64decode(told["proof"])
        present = x509.load_pem_x509_certificate(str(told["certificate"]).encode())
    except (ValueError, KeyError, TypeError):
        raise AuthorityError("this is no request for another certificate") from None
    if not any(authority.has_signed(each.certificate, present) for each in authorities):
        raise AuthorityError("the present one is of another authority")
    known = {row.serial: row.role for row in rows.of_host(connection, host)}
    if known.get(certificates.serial(present)) != role:
        raise AuthorityError(f"the present one is none of {host} as {role} that is good: it ended "
                             "or was revoked, and the machine has to join again")  # fmt: skip
    key = present.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(proof, _proof_text(host, role, csr), _SIGNING)
    except InvalidSignature:
        raise AuthorityError("its present key has not signed that") from None
    return csr


def _known_role(role: str) -> Role:
    found: Role = next(each for each in certificates.ROLES if each == role)
    return found


# Every machine


def _requests(member: Member) -> dict[str, bytes]:
    """What to ask for, by name of the row. A request under way keeps its key."""
    layout, made = member.layout, {}
    signer = trust.trusted_here(layout)[0]
    for role in certificates.roles_of(member.role):
        certificates.settle(layout, role)
        present = certificates.installed(layout, role)
        if present is None:
            _log.warning("this machine has no certificate as %s: it has to join again", role)
        elif certificates.is_due(present) or not authority.has_signed(signer, present):
            csr = certificates.pending(layout, role, member.host).csr
            key = certificates.load_key(layout.cluster_key(role))
            told = {
                "csr": csr.decode(),
                "certificate": certificates.pem(present).decode(),
                "proof": b64encode(
                    key.sign(_proof_text(member.host, role, csr), _SIGNING)
                ).decode(),
            }
            made[f"{REQUEST}{member.host}:{role}"] = json.dumps(told).encode()
    return made


def _proof_text(host: str, role: str, csr: bytes) -> bytes:
    return f"zimage renewal\0{host}\0{role}\0".encode() + csr


def _exchange(connection: sa.Connection, member: Member, asked: dict[str, bytes]) -> _Found:
    own = rows.of_host(connection, member.host)
    answered = {row.role for row in own if _is_answer(member.layout, row)}
    for name, content in asked.items():
        if name.rpartition(":")[2] not in answered and rows.document(connection, name) is None:
            rows.put(connection, name, content, 1)
    has = rows.document(connection, f"{HAS}{member.host}")
    return _Found(trust.read_documents(connection), own, has)


def _is_answer(layout: Layout, row: rows.Certificate) -> bool:
    """Whether ``row`` is what this machine waits for."""
    made = x509.load_pem_x509_certificate(row.pem.encode())
    return certificates.is_pending(layout, _known_role(row.role), made)


def _take_over(member: Member, found: _Found) -> None:
    layout = member.layout
    for row in found.own:
        if row.role in certificates.roles_of(member.role) and _is_answer(layout, row):
            certificates.install(layout, _known_role(row.role), row.pem.encode())
            _log.info("took on the next certificate as %s", row.role)
    trust.take_over(layout, found.documents, is_source=layout.authority_key.exists())


def reload_if_changed(layout: Layout) -> bool:
    """Have nginx and a front's links read certificates and lists again where these are newer than
    what was read; a crash in between loses nothing. Whether any was told."""
    mark = layout.cluster_dir / "nginx-told"
    files = [layout.authority_certificate, layout.revocation_list]
    files += [layout.cluster_certificate(role) for role in certificates.ROLES]
    changed_at, told_at = max(map(_changed_at, files)), _changed_at(mark)
    nginxes = [(layout.nginx_pid, layout.nginx_conf), *nginx_process.links_of(layout)]
    old = [each for each in nginxes if changed_at > max(told_at, _changed_at(each[0]))]
    told = [nginx_process.tell(*each, signal.SIGHUP) for each in old]
    if any(told):
        mark.touch()
    return any(told)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


async def _tell(member: Member, database: Database, before: Document | None) -> None:
    """What this machine has, where that has changed: rotations wait for it."""
    has = await asyncio.to_thread(what_it_has, member)
    content = json.dumps(has).encode()
    if before is None or before.content != content:
        version = before.version + 1 if before else 1
        name = f"{HAS}{member.host}"
        await database.run(lambda connection: rows.put(connection, name, content, version))


def what_it_has(member: Member) -> dict[str, Any]:
    """Versions of the documents, and serial numbers of the certificates by role."""
    present = {
        role: certificates.installed(member.layout, role)
        for role in certificates.roles_of(member.role)
    }
    serials = {role: certificates.serial(each) for role, each in present.items() if each}
    return {"versions": trust.versions(member.layout), "certificates": serials}


def _note_ends(member: Member) -> None:
    """For the guard, which alarms."""
    layout, roles = member.layout, certificates.roles_of(member.role)
    present = [certificates.installed(layout, role) for role in roles]
    ends = [each.not_valid_after_utc.timestamp() if each else 0.0 for each in present]
    told = json.dumps({"ends_at": min(ends)}).encode()
    if not layout.cluster_certificates_json.exists() or (
        layout.cluster_certificates_json.read_bytes() != told
    ):
        whole_file.write(layout.cluster_certificates_json, told, 0o600)
