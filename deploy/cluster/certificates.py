"""This machine's certificates within a cluster: as a host, for serving, and as a front, by which
hosts know it. Their keys are made here and never leave the machine."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.cluster.authority import Role
from deploy.host import whole_file
from deploy.layout import Layout

ROLES: tuple[Role, ...] = ("host", "front")


@dataclass(frozen=True)
class Request:
    """``key`` and ``csr`` are PEM. The key is not to be told to anybody."""

    key: bytes = field(repr=False)
    csr: bytes


def roles_of(role: str) -> tuple[Role, ...]:
    """What a machine with ``cluster.role`` "host", "front" or "both" has certificates for."""
    return ROLES if role == "both" else tuple(known for known in ROLES if known == role)


def new_request(host: str) -> Request:
    """A new key, and the request that a certificate be signed for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Request(_private(key), _csr(key, host))


def pending(layout: Layout, role: Role, host: str) -> Request:
    """The request under way. Its key is on disk before anybody signs for it, and the same until
    ``install`` takes it, so that no certificate is lost to a crash."""
    path = _pending_key(layout, role)
    try:
        key = load_key(path)
    except (FileNotFoundError, ValueError):
        request = new_request(host)
        whole_file.write(path, request.key, 0o600)
        return request
    return Request(_private(key), _csr(key, host))


def install(layout: Layout, role: Role, pem: bytes) -> None:
    """Put a certificate (PEM) in place, with its key: the pending one or, again, the present one.
    ``ValueError`` where it belongs to neither."""
    public = x509.load_pem_x509_certificate(pem).public_key()
    keys = (_pending_key(layout, role), layout.cluster_key(role))
    if not any(_fits(path, public) for path in keys):
        raise ValueError(f"the certificate as {role} belongs to no key of this machine")
    whole_file.write(layout.cluster_certificate(role), pem, 0o644)
    settle(layout, role)


def is_pending(layout: Layout, role: Role, certificate: x509.Certificate) -> bool:
    """Whether ``certificate`` is for the request under way."""
    return _fits(_pending_key(layout, role), certificate.public_key())


def settle(layout: Layout, role: Role) -> None:
    """Bring the key to its certificate where a crash came between the two."""
    found, path = installed(layout, role), _pending_key(layout, role)
    if found is not None and _fits(path, found.public_key()):
        path.replace(layout.cluster_key(role))


def installed(layout: Layout, role: Role) -> x509.Certificate | None:
    """The certificate that nginx has or gets with its next reload; None where there is none."""
    try:
        return x509.load_pem_x509_certificate(layout.cluster_certificate(role).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def is_due(certificate: x509.Certificate, now: datetime | None = None) -> bool:
    """Whether two thirds of its life are over."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (now or datetime.now(UTC)) >= begins + (ends - begins) * 2 / 3


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def serial(certificate: x509.Certificate) -> str:
    """As the database has it."""
    return f"{certificate.serial_number:x}"


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of all of it."""
    return certificate.fingerprint(hashes.SHA256())


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """``FileNotFoundError``, or ``ValueError`` where it is none."""
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is no key of P-256")
    return key


def _fits(path: Path, public: object) -> bool:
    try:
        return load_key(path).public_key() == public
    except (FileNotFoundError, ValueError):
        return False


def _pending_key(layout: Layout, role: Role) -> Path:
    return layout.cluster_key(role).with_suffix(".key.pending")


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def _csr(key: ec.EllipticCurvePrivateKey, host: str) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)
