"""Whoever can write into the database changes nothing that a machine of the cluster believes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from deploy.cluster import certificates, documents
from deploy.cluster.authority import Authority
from deploy.cluster.documents import DocumentError
from tests.deploy.cluster.machines import equip, layout_in
from worker.storage.certificates import Document

OWN, OTHER = Authority.make("studio"), Authority.make("studio")
MADE = documents.sign([OWN], "trust", 3, {"a": "ü"})
TRUSTED = [OTHER.certificate, OWN.certificate]


def with_body(body: str) -> bytes:
    return json.dumps({**json.loads(MADE.content), "body": body}).encode()


def test_signed_document_opens() -> None:
    assert documents.open_signed(TRUSTED, MADE) == {"a": "ü"}


@pytest.mark.parametrize(
    "forged",
    [
        replace(MADE, version=4),
        replace(MADE, name="secrets"),
        replace(MADE, content=with_body('{"a": "o"}')),
        replace(MADE, content=b"\xff"),
        replace(MADE, content=b"[]"),
        replace(MADE, content=b'{"body": 1, "signatures": []}'),
        documents.sign([OTHER], "trust", 3, {"a": "ü"}),
    ],
    ids=["version", "name", "body", "bytes", "list", "type", "signer"],
)
def test_forged_document_does_not(forged: Document) -> None:
    with pytest.raises(DocumentError, match="the document"):
        documents.open_signed([OWN.certificate], forged)


def test_sealed_is_read_by_whom_it_is_for_alone(tmp_path: Path) -> None:
    pairs = []
    for host in ("gpu1", "gpu2", "gpu3"):
        layout = layout_in(tmp_path / host)
        equip(layout, OWN, host)
        own = certificates.installed(layout, "host")
        assert own is not None
        pairs.append((own, certificates.load_key(layout.cluster_key("host"))))
    sealed = documents.seal([own for own, _ in pairs[:2]], b"secret")
    assert [documents.unseal(sealed, *pair) for pair in pairs[:2]] == [b"secret"] * 2
    with pytest.raises(DocumentError, match="nothing is sealed"):
        documents.unseal(sealed, *pairs[2])
    with pytest.raises(DocumentError, match="damaged"):
        documents.unseal(sealed, pairs[0][0], pairs[2][1])
    serial = certificates.serial(pairs[0][0])
    with pytest.raises(DocumentError, match="damaged"):
        documents.unseal({serial: sealed[serial][:-8]}, *pairs[0])
    assert isinstance(pairs[0][0], x509.Certificate)
