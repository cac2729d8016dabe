"""What the machines of a cluster hand to each other through the database, which they need not
trust: whoever can write there can neither make a document nor read a secret, nor bring an old one
back.

A document is signed by the authority, together with its name and version. What only some machines
may read is sealed for the keys of their certificates (ECDH with a key of its own, HKDF, AES-GCM).
"""

import base64
import json
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from deploy.cluster import certificates
from deploy.cluster.authority import Authority
from deploy.errors import CellError
from worker.storage.certificates import Document

_X962 = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
_POINT_BYTES = 65
_NONCE = bytes(12)  # a key seals once


class DocumentError(CellError):
    """A document is not what the authority wrote; the message says which and why."""


def sign(authorities: Iterable[Authority], name: str, version: int, body: object) -> Document:
    """A document that who trusts any of ``authorities`` opens. ``body``: what JSON has."""
    text = json.dumps(body, ensure_ascii=False).encode()
    signed = _signed(name, version, text)
    algorithm = ec.ECDSA(hashes.SHA256())
    signatures = [_base64(authority.key.sign(signed, algorithm)) for authority in authorities]
    content = {"body": text.decode(), "signatures": signatures}
    return Document(name, json.dumps(content).encode(), version)


def open_signed(trusted: Iterable[x509.Certificate], document: Document) -> object:
    """The body; ``DocumentError`` unless an authority of ``trusted`` has signed it."""
    try:
        content = json.loads(document.content)
        text = content["body"].encode()
        signatures = [base64.b64decode(each) for each in content["signatures"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DocumentError(f"the document {document.name} is damaged") from None
    signed = _signed(document.name, document.version, text)
    for certificate in trusted:
        if any(_is_of(certificate, signature, signed) for signature in signatures):
            body: object = json.loads(text)
            return body
    text_of_error = f"the document {document.name} is not signed by the cluster's authority"
    raise DocumentError(text_of_error)


def seal(recipients: Sequence[x509.Certificate], body: bytes) -> dict[str, str]:
    """``body`` for each of the certificates, by serial number."""
    return {certificates.serial(each): _base64(_seal(each, body)) for each in recipients}


def unseal(
    sealed: dict[str, str], certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> bytes:
    """What was sealed for ``certificate``; ``DocumentError``: nothing, or not for its ``key``."""
    try:
        content = base64.b64decode(sealed[certificates.serial(certificate)])
        point, cipher = content[:_POINT_BYTES], content[_POINT_BYTES:]
        other = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        shared = key.exchange(ec.ECDH(), other)
        return AESGCM(_derived(shared, point)).decrypt(_NONCE, cipher, None)
    except KeyError:
        raise DocumentError("nothing is sealed for this machine yet") from None
    except (ValueError, InvalidTag):
        raise DocumentError("what is sealed for this machine is damaged") from None


def _seal(recipient: x509.Certificate, body: bytes) -> bytes:
    public = recipient.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    own = ec.generate_private_key(ec.SECP256R1())
    point = own.public_key().public_bytes(*_X962)
    key = _derived(own.exchange(ec.ECDH(), public), point)
    return point + AESGCM(key).encrypt(_NONCE, body, None)


def _derived(shared: bytes, point: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=point, info=b"zimage cluster").derive(shared)


def _signed(name: str, version: int, text: bytes) -> bytes:
    return f"zimage document\0{name}\0{version}\0".encode() + text


def _is_of(certificate: x509.Certificate, signature: bytes, signed: bytes) -> bool:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
