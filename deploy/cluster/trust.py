"""What every machine of a cluster knows: which authorities to trust, which certificates not, and
the cluster's secrets. The machine with the authority's key writes it; all others take it over.

Each machine notes the versions that it has, and takes nothing older.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from deploy.cluster import certificates, documents
from deploy.cluster.authority import Authority, Role
from deploy.cluster.documents import DocumentError
from deploy.host import whole_file
from deploy.layout import Layout
from worker.storage import certificates as rows
from worker.storage.certificates import Document
from worker.storage.secret import cluster_secrets, other_secrets

TRUST, SECRETS = "trust", "secrets"


@dataclass(frozen=True)
class Trust:
    """PEM. ``authorities``: the one that signs now comes first. ``revocations``: a CRL of each."""

    authorities: str
    revocations: str

    @property
    def certificates(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.authorities.encode())


@dataclass(frozen=True)
class Secrets:
    """The first signs, all verify. ``key_secret`` is that of the keys' hashes, which never changes:
    no stored key would fit any more."""

    key_secret: bytes = field(repr=False)
    signing: tuple[bytes, ...] = field(repr=False)

    def to_json(self) -> bytes:
        told = {"key": self.key_secret.hex(), "signing": [each.hex() for each in self.signing]}
        return json.dumps(told).encode()

    @classmethod
    def of_json(cls, text: bytes) -> "Secrets":
        told = json.loads(text)
        signing = tuple(bytes.fromhex(each) for each in told["signing"])
        return cls(bytes.fromhex(told["key"]), signing)


def trusted_here(layout: Layout) -> list[x509.Certificate]:
    """The authorities that this machine trusts, the one that signs now first."""
    return x509.load_pem_x509_certificates(layout.authority_certificate.read_bytes())


def secrets_here(layout: Layout) -> Secrets:
    return Secrets(layout.key_secret.read_bytes(), cluster_secrets(layout.cluster_secret))


def write_trust(layout: Layout, trust: Trust) -> None:
    """Put it where nginx reads it. ``DocumentError`` where nginx would trust nobody with it: each
    authority needs its list of revocations."""
    lists = _revocation_lists(trust.revocations)
    for authority in trust.certificates:
        if not any(each.is_signature_valid(_key(authority)) for each in lists):
            name = authority.subject.rfc4514_string()
            raise DocumentError(f"there is no list of revocations of {name}")
    # Each authority has its list at every moment: one more does no harm, one less refuses all.
    issuers = {each.issuer for each in lists}
    leaving = [each for each in _lists_here(layout) if each.issuer not in issuers]
    pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in leaving)
    _write(layout.revocation_list, trust.revocations.encode() + pem, 0o644)
    _write(layout.authority_certificate, trust.authorities.encode(), 0o644)
    _write(layout.revocation_list, trust.revocations.encode(), 0o644)


def write_secrets(layout: Layout, secrets: Secrets) -> None:
    """At every moment what was signed with the first of before or of now still verifies."""
    first, *others = secrets.signing
    file = other_secrets(layout.cluster_secret)
    _write(layout.key_secret, secrets.key_secret, 0o600)
    if (present := _present(layout)) != first:
        _write(file, _lines([*secrets.signing, present]), 0o600)
        _write(layout.cluster_secret, first, 0o600)
    _write(file, _lines(others), 0o600)


def _lines(secrets: Sequence[bytes]) -> bytes:
    return "".join(f"{each.hex()}\n" for each in secrets if each).encode()


def _present(layout: Layout) -> bytes:
    try:
        return layout.cluster_secret.read_bytes()
    except FileNotFoundError:
        return b""


def _write(path: Path, data: bytes, mode: int) -> None:
    """Only where it is another: who reads it goes by its time."""
    if not path.exists() or path.read_bytes() != data:
        whole_file.write(path, data, mode)


def _revocation_lists(pem: str) -> list[x509.CertificateRevocationList]:
    end = "-----END X509 CRL-----"
    parts = [part for part in pem.split(end) if part.strip()]
    return [x509.load_pem_x509_crl(f"{part}{end}\n".encode()) for part in parts]


def _key(certificate: x509.Certificate) -> Any:
    return certificate.public_key()


# The machine with the authority's key


def issue(connection: sa.Connection, signer: Authority, csr: bytes, host: str, role: Role) -> bytes:
    """A certificate (PEM) for ``host``, and its row. ``AuthorityError``: ``csr`` is no request."""
    made = signer.sign(csr, host, role)
    pem = certificates.pem(made)
    ends_at = made.not_valid_after_utc.timestamp()
    serial = certificates.serial(made)
    rows.record(connection, rows.Certificate(serial, host, role, pem.decode(), ends_at))
    return pem


def publish_trust(
    connection: sa.Connection, layout: Layout, authorities: Sequence[Authority]
) -> Trust:
    """Tell all machines to trust ``authorities``, the first of which signs now, and none of the
    revoked certificates. A repetition changes nothing.

    What this machine's own list has stays revoked, whatever the database says now."""
    revoked = {**_revoked_here(layout), **rows.revoked(connection)}
    pems = b"".join(each.pem for each in authorities).decode()
    facts = {"authorities": pems, "revoked": sorted(f"{serial:x}" for serial in revoked)}
    found = rows.document(connection, TRUST)
    known = _opened(authorities, found)
    if known is not None and known.get("facts") == facts:
        return Trust(pems, str(known["revocations"]))
    trust = Trust(pems, b"".join(each.revocation_list(revoked) for each in authorities).decode())
    body = {"facts": facts, "revocations": trust.revocations}
    _put(connection, documents.sign(authorities, TRUST, _next(layout, TRUST, found), body))
    return trust


def _revoked_here(layout: Layout) -> dict[int, float]:
    revoked = (each for one in _lists_here(layout) for each in one)
    return {each.serial_number: each.revocation_date_utc.timestamp() for each in revoked}


def _lists_here(layout: Layout) -> list[x509.CertificateRevocationList]:
    try:
        return _revocation_lists(layout.revocation_list.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):  # missing or damaged: another takes its place
        return []


def publish_secrets(
    connection: sa.Connection, layout: Layout, authorities: Sequence[Authority]
) -> None:
    """Seal the secrets for all whose certificates are good. A repetition changes nothing."""
    recipients = [
        x509.load_pem_x509_certificate(row.pem.encode()) for row in rows.all_good(connection)
    ]
    secrets = secrets_here(layout)
    text = secrets.to_json()
    # Tells whether they are the same, and nothing of them.
    digest = hmac.digest(secrets.signing[0], text, hashlib.sha256).hex()
    facts = {"digest": digest, "for": sorted(map(certificates.serial, recipients))}
    found = rows.document(connection, SECRETS)
    known = _opened(authorities, found)
    if known is None or known.get("facts") != facts:
        body = {"facts": facts, "sealed": documents.seal(recipients, text)}
        _put(connection, documents.sign(authorities, SECRETS, _next(layout, SECRETS, found), body))


def is_of(authorities: Sequence[Authority], document: Document) -> bool:
    """Whether one of ``authorities`` has signed it."""
    return _opened(authorities, document) is not None


def _opened(authorities: Sequence[Authority], found: Document | None) -> dict[str, Any] | None:
    if found is None:
        return None
    try:
        body = documents.open_signed([each.certificate for each in authorities], found)
    except DocumentError:  # somebody else's: ours takes its place
        return None
    return body if isinstance(body, dict) else None


def _put(connection: sa.Connection, made: Document) -> None:
    rows.put(connection, made.name, made.content, made.version)


def _next(layout: Layout, name: str, found: Document | None) -> int:
    """Above what any machine may have, also where somebody has deleted the document."""
    return 1 + max(versions(layout).get(name, 0), found.version if found else 0)


# Every machine


def versions(layout: Layout) -> dict[str, int]:
    """Of what this machine has, by name of the document."""
    try:
        known = json.loads(_versions_file(layout).read_bytes())
        return {name: int(version) for name, version in known.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def take_over(layout: Layout, found: Sequence[Document], *, is_source: bool = False) -> None:
    """Take over the documents that are newer than what this machine has. ``DocumentError``: one was
    not, and those before it were. ``is_source``: this machine says which secrets there are."""
    has = versions(layout)
    for document in sorted(found, key=lambda each: each.name == SECRETS):  # trust first
        if document.version <= has.get(document.name, 0):
            continue
        body = documents.open_signed(trusted_here(layout), document)
        if not isinstance(body, dict):
            raise DocumentError(f"the document {document.name} is damaged")
        if document.name == TRUST:
            write_trust(layout, Trust(body["facts"]["authorities"], body["revocations"]))
        elif not is_source:
            write_secrets(layout, _unsealed(layout, body["sealed"]))
        note(layout, document)


def note(layout: Layout, document: Document) -> None:
    """This machine has it."""
    known = {**versions(layout), document.name: document.version}
    whole_file.write(_versions_file(layout), json.dumps(known).encode(), 0o600)


def read_documents(connection: sa.Connection) -> list[Document]:
    """Those that every machine takes over, as far as there are any."""
    found = (rows.document(connection, name) for name in (TRUST, SECRETS))
    return [document for document in found if document is not None]


def _unsealed(layout: Layout, sealed: dict[str, str]) -> Secrets:
    for role in certificates.ROLES:
        own = certificates.installed(layout, role)
        if own is not None and certificates.serial(own) in sealed:
            key = certificates.load_key(layout.cluster_key(role))
            return Secrets.of_json(documents.unseal(sealed, own, key))
    raise DocumentError("the cluster's secrets are not sealed for this machine's certificates yet")


def _versions_file(layout: Layout) -> Path:
    return layout.cluster_dir / "versions.json"
