"""The certificate that nginx shows: read, checked, made where nobody has one, put in place.

nginx reads key and chain at each handshake, so that a renewed certificate is there with the next
connection, without a reload. Each pair has a folder of its own that never changes, and one link
says which is shown: a handshake that follows the link once never sees halves of two pairs.
"""

import hashlib
import ipaddress
import json
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.config import ClusterConfig, Tls
from deploy.host import private_file, whole_file
from deploy.layout import Layout, under_root

WARN_BEFORE = timedelta(days=21)
"""Certbot renews 30 days before the end: what comes so close was not renewed."""

_SELF_SIGNED_FOR = timedelta(days=730)
_OTHERS_MAY_READ = 0o004
_HANDSHAKE_S = 60.0
"""Whoever followed the link before a change reads the former pair within this time."""


class CertificateError(Exception):
    """The certificate cannot be used; ``remedy`` says what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(f"{text}; {remedy}")
        self.text, self.remedy = text, remedy


@dataclass(frozen=True)
class Source:
    """The files as ``cluster.toml`` names them. Read before root becomes the cell's user, for the
    key is often root's alone. ``problem``: why they cannot be used."""

    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    problem: CertificateError | None = None


@dataclass(frozen=True)
class Certificate:
    """A checked pair. ``pem`` is the key, the server's certificate and its chain."""

    pem: bytes = field(repr=False)
    names: tuple[str, ...]
    begins: datetime
    ends: datetime

    @property
    def days_left(self) -> int:
        return (self.ends - datetime.now(UTC)).days

    def require_valid(self) -> None:
        """``CertificateError`` outside its time."""
        now = datetime.now(UTC)
        if now >= self.ends:
            text = f"the certificate for {self.names[0]} ended on {self.ends:%Y-%m-%d}"
            raise CertificateError(text, "renew it (certbot renew), or set tls.self_signed = true")
        if now < self.begins:
            text = f"the certificate for {self.names[0]} begins on {self.begins:%Y-%m-%d %H:%M} UTC"
            raise CertificateError(text, "correct this machine's clock, or wait")


def read(tls: Tls) -> Source:
    """What ``tls.certificate`` and ``tls.key`` hold. Raises nothing: not every command needs it."""
    if not tls.certificate:
        return Source()
    try:
        certificate, key = under_root(tls.certificate), under_root(tls.key)
        if private_file.is_exposed(key, key.stat().st_mode, _OTHERS_MAY_READ):
            problem = CertificateError(f"tls.key: every user may read {key}", f"chmod 600 {key}")
            return Source(problem=problem)
        return Source(certificate.read_bytes(), key.read_bytes())
    except OSError as error:
        remedy = "correct tls.certificate and tls.key, or run this as root, who may read them"
        return Source(problem=CertificateError(f"{error.filename}: {error.strerror}", remedy))


def check(source: Source) -> Certificate:
    """The pair in ``source``; ``CertificateError`` where the two are not one."""
    if source.problem:
        raise source.problem
    try:
        chain = x509.load_pem_x509_certificates(source.certificate)
    except ValueError:
        text = "tls.certificate: no PEM certificate in that file"
        raise CertificateError(text, "give the chain in PEM, such as fullchain.pem") from None
    key = _private_key(source.key)
    if _public(chain[0].public_key()) != _public(key.public_key()):
        text = "tls.key: this is not the key of the first certificate in tls.certificate"
        raise CertificateError(
            text, "name the files of one pair, the server's own certificate before its chain"
        )
    return _certificate(key, chain)


def self_signed(config: ClusterConfig, layout: Layout) -> Certificate:
    """The cell's own certificate; made when there is none, when its names change or it ends."""
    names = tuple(dict.fromkeys(config.tls.names or _own_names(config.listen.address)))
    try:
        kept = layout.self_signed.read_bytes()
        found = check(Source(kept, kept))
    except (OSError, CertificateError):
        found = None
    if found and found.names == names and found.ends - datetime.now(UTC) > WARN_BEFORE:
        return found
    made = make(names)
    whole_file.write(layout.self_signed, made.pem, 0o600)
    return made


def install(certificate: Certificate, layout: Layout) -> bool:
    """Show ``certificate`` from the next connection on; whether it was another one before."""
    certificate.require_valid()
    try:
        if layout.pair.read_bytes() == certificate.pem:
            return False
    except FileNotFoundError:
        pass
    known = {"names": certificate.names, "ends_at": certificate.ends.timestamp()}
    whole_file.write(layout.certificate_json, json.dumps(known).encode(), 0o600)
    whole_file.write(layout.certificate, _public_part(certificate.pem), 0o644)
    _show(certificate.pem, layout)
    return True


def trusting(layout: Layout) -> ssl.SSLContext:
    """For a client on this machine: it trusts this cell's certificate alone, by any address."""
    context = ssl.create_default_context(cafile=str(layout.certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _private_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        text = "tls.key: the key is encrypted, and nobody is there to type its password"
        raise CertificateError(text, "decrypt it: openssl pkey -in KEY -out PLAIN") from None
    except ValueError:
        text = "tls.key: no PEM private key in that file"
        raise CertificateError(text, "give the key in PEM, such as privkey.pem") from None


def _public(key: object) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, form)  # type: ignore[attr-defined]
    return encoded


def _certificate(key: PrivateKeyTypes, chain: list[x509.Certificate]) -> Certificate:
    pem = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    parts = [key.private_bytes(pem, form, plain), *(c.public_bytes(pem) for c in chain)]
    own = chain[0]
    return Certificate(
        b"".join(parts), _names(own), own.not_valid_before_utc, own.not_valid_after_utc
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return (certificate.subject.rfc4514_string(),)
    return tuple(str(name.value) for name in extension.value)


def _public_part(pem: bytes) -> bytes:
    chain = x509.load_pem_x509_certificates(pem)
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain)


def make(names: tuple[str, ...]) -> Certificate:
    """A new one for ``names``, signed with its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    now = datetime.now(UTC)
    usage = (True, *(False,) * 8)  # digital signature alone
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.SubjectAlternativeName(map(_general_name, names)), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.KeyUsage(*usage), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # for clients whose clocks are behind
        .not_valid_after(now + _SELF_SIGNED_FOR)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return _certificate(key, [builder.sign(key, hashes.SHA256())])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _own_names(address: str) -> Iterable[str]:
    yield from (socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1", "::1")
    plain = address.strip("[]")
    if plain not in {"0.0.0.0", "::"}:
        yield plain


def _show(pem: bytes, layout: Layout) -> None:
    folder = layout.tls_dir / f"pair-{hashlib.sha256(pem).hexdigest()[:16]}"
    whole_file.write(folder / "pair.pem", pem, 0o600)
    (folder / "empty").mkdir(exist_ok=True)
    fresh = layout.active_pair.with_name(".shown.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name)
    with suppress(FileNotFoundError):
        os.utime(layout.active_pair)  # the folder behind the link: until now it was shown
    fresh.replace(layout.active_pair)
    for old in layout.tls_dir.glob("pair-*"):
        if old != folder and time.time() - old.stat().st_mtime > _HANDSHAKE_S:
            shutil.rmtree(old)
