"""The cluster's certificate authority. Its key lies on one machine alone: who has it can make
himself a front or a host.

Clocks of hosts differ, and a list of revoked certificates that is out of date would refuse all of
them: what is signed here holds since yesterday, and the list until the authority ends. That it is
a recent one, its readers see to (``renewal``).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.errors import CellError
from deploy.host import whole_file
from deploy.layout import Layout

Role = Literal["host", "front"]

LIFE = timedelta(days=3653)
CERTIFICATE_LIFE = timedelta(days=90)

ANY_HOST = "zimage-host"
"""A name of every host's certificate: by it fronts check that there is one."""

_BACKDATED = timedelta(days=1)
_OTHERS_MAY_READ = 0o044
_PURPOSES = {"host": ExtendedKeyUsageOID.SERVER_AUTH, "front": ExtendedKeyUsageOID.CLIENT_AUTH}
_PEM = serialization.Encoding.PEM


class AuthorityError(CellError):
    """The authority cannot do it; the message says why, and what to do."""


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def make(cls, cluster: str) -> "Authority":
        """A new one, which differs in name from all that the cluster had before."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = _name(f"{cluster} {now:%Y-%m-%d} {x509.random_serial_number():040x}"[:60])
        builder = _builder(name, name, key.public_key(), now, LIFE)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_usage(key_cert_sign=True, crl_sign=True), True),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        ]
        return cls(_extended(builder, extensions).sign(key, hashes.SHA256()), key)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    def sign(
        self, request: bytes, host: str, role: Role, now: datetime | None = None
    ) -> x509.Certificate:
        """A certificate for ``host`` in ``role``, good for 90 days.

        Of the request (CSR, PEM) its key counts alone, which the sender has: everything else is
        said here. ``AuthorityError`` where it is none.
        """
        public = _requested(request)
        names = [host, ANY_HOST] if role == "host" else [host]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.SubjectAlternativeName(map(x509.DNSName, names)), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([_PURPOSES[role]]), True),
            (x509.SubjectKeyIdentifier.from_public_key(public), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        ]
        issuer = self.certificate.subject
        builder = _builder(_name(host), issuer, public, now or datetime.now(UTC), CERTIFICATE_LIFE)
        return _extended(builder, extensions).sign(self.key, hashes.SHA256())

    def revocation_list(self, revoked: Mapping[int, float]) -> bytes:
        """The CRL (PEM). ``revoked``: serial numbers, and when each was (seconds since the
        epoch)."""
        own = self.certificate
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(own.subject)
            .last_update(datetime.now(UTC) - _BACKDATED)
            .next_update(own.not_valid_after_utc)
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        number = x509.CRLNumber(time.time_ns() // 1_000_000)
        builder = builder.add_extension(identifier, False).add_extension(number, False)
        for serial, at in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            entry = entry.revocation_date(datetime.fromtimestamp(at, UTC))
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM)


def load(layout: Layout) -> list[Authority]:
    """Those whose keys lie on this machine: the first one signs, and there is another while one
    takes the place of another. ``AuthorityError``: there is none."""
    path = layout.authority_key
    try:
        if path.stat().st_mode & _OTHERS_MAY_READ:
            raise AuthorityError(f"other users may read {path}; chmod 600 {path}")
        pem = path.read_bytes()
    except FileNotFoundError:
        raise AuthorityError(
            f"no key of the cluster's authority on this machine ({path}); use the one where "
            "zimage cluster init ran"
        ) from None
    return parse(pem, path)


def parse(pem: bytes, path: Path) -> list[Authority]:
    """What ``save`` has written. ``AuthorityError`` names ``path``."""
    try:
        found = [Authority(*pair) for pair in zip(_certificates(pem), _keys(pem), strict=True)]
    except ValueError:
        found = []
    if not found or any(each.certificate.public_key() != each.key.public_key() for each in found):
        raise AuthorityError(f"{path} is damaged; restore it from its backup")
    return found


def save(layout: Layout, authorities: Iterable[Authority]) -> None:
    """All in one file, with their certificates, so that a crash leaves no halves."""
    whole_file.write(layout.authority_key, text(authorities), 0o600)


def text(authorities: Iterable[Authority]) -> bytes:
    """As ``parse`` reads it (PEM)."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return b"".join(each.key.private_bytes(_PEM, form, plain) + each.pem for each in authorities)


def has_signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether ``authority`` has; says nothing of time and revocation."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _requested(request: bytes) -> ec.EllipticCurvePublicKey:
    try:
        found = x509.load_pem_x509_csr(request)
        key = found.public_key()
        sound = found.is_signature_valid
    except ValueError as error:
        raise AuthorityError(f"this is no request for a certificate: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError("the key of a request for a certificate must be one of P-256")
    if not sound:
        raise AuthorityError("the request for a certificate is not signed with its key")
    return key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _extended(
    builder: x509.CertificateBuilder, extensions: list[tuple[x509.ExtensionType, bool]]
) -> x509.CertificateBuilder:
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


def _usage(**given: bool) -> x509.KeyUsage:
    names = [
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ]
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def _keys(pem: bytes) -> list[ec.EllipticCurvePrivateKey]:
    begin = b"-----BEGIN PRIVATE KEY-----"
    parts = (begin + part for part in pem.split(begin)[1:])
    keys = [serialization.load_pem_private_key(part, password=None) for part in parts]
    return [key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)]
