"""What may be shown as a certificate, and what is refused with a remedy."""

import os
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.cell import Cell
from deploy.config import parse
from deploy.finding import Finding
from deploy.guard.housekeeping import days_of_certificate
from deploy.host import private_file
from deploy.layout import Layout
from deploy.rendering import certificate
from deploy.rendering.certificate import CertificateError, check, install, read, self_signed
from deploy.rollout import checks

DAY = timedelta(days=1)


def write_pair(
    folder: Path, *, begins: timedelta = -DAY, ends: timedelta = 90 * DAY, password: str = ""
) -> dict[str, str]:
    """A certificate for zimage.test and its key; the settings that name them."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "zimage.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("zimage.test")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        secret = serialization.BestAvailableEncryption(password.encode())
    folder.mkdir(exist_ok=True)
    key_path, path = folder / "key.pem", folder / "full.pem"
    key_path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, secret))
    key_path.chmod(0o600)
    path.write_bytes(made.public_bytes(pem))
    return {"certificate": str(path), "key": str(key_path)}


def cell(tmp_path: Path, tls: dict[str, object]) -> Cell:
    data = {"cell": {"var_dir": str(tmp_path / "var")}, "tls": tls}
    return Cell(parse(data), tmp_path / "cluster.toml")


def finding(tmp_path: Path, tls: dict[str, str]) -> Finding:
    [found] = checks.https(cell(tmp_path, dict(tls)))
    return found


def test_good_pair_passes(tmp_path: Path) -> None:
    found = finding(tmp_path, write_pair(tmp_path / "a"))
    assert found.level == "ok"
    assert found.text.startswith("for zimage.test; ends on ")


def test_end_that_comes_near_is_a_warning(tmp_path: Path) -> None:
    found = finding(tmp_path, write_pair(tmp_path / "a", ends=20 * DAY))
    assert (found.level, found.remedy) == ("warn", "renew it (certbot renew), then: zimage reload")


def swapped_key(tmp_path: Path) -> dict[str, str]:
    return {**write_pair(tmp_path / "a"), "key": write_pair(tmp_path / "b")["key"]}


def readable_key(tmp_path: Path) -> dict[str, str]:
    pair = write_pair(tmp_path / "a")
    Path(pair["key"]).chmod(0o644)
    return pair


def test_a_key_among_the_secrets_of_a_container_has_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = readable_key(tmp_path)
    assert finding(tmp_path, pair).level == "fail"
    monkeypatch.setattr(private_file, "SECRETS", tmp_path)
    assert finding(tmp_path, pair).level == "ok"


def missing(tmp_path: Path) -> dict[str, str]:
    return {**write_pair(tmp_path / "a"), "certificate": str(tmp_path / "none.pem")}


def garbage(tmp_path: Path) -> dict[str, str]:
    pair = write_pair(tmp_path / "a")
    Path(pair["certificate"]).write_text("not a certificate", encoding="utf-8")
    return pair


def garbage_key(tmp_path: Path) -> dict[str, str]:
    pair = write_pair(tmp_path / "a")
    Path(pair["key"]).write_text("not a key", encoding="utf-8")
    return pair


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (swapped_key, "not the key of the first certificate"),
        (readable_key, "every user may read"),
        (missing, "none.pem: No such file"),
        (garbage, "no PEM certificate"),
        (garbage_key, "no PEM private key"),
        (lambda t: write_pair(t / "a", password="x"), "the key is encrypted"),
        (lambda t: write_pair(t / "a", begins=-9 * DAY, ends=-DAY), "ended on"),
        (lambda t: write_pair(t / "a", begins=DAY), "begins on"),
    ],
)
def test_unusable_pair_is_refused_with_a_remedy(
    tmp_path: Path, make: Callable[[Path], dict[str, str]], text: str
) -> None:
    found = finding(tmp_path, make(tmp_path))
    assert (found.level, text in found.text) == ("fail", True), found
    assert found.remedy


def test_expired_pair_is_never_put_in_place(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    pair = parse({"tls": write_pair(tmp_path / "a", begins=-9 * DAY, ends=-DAY)}).tls
    with pytest.raises(CertificateError, match="ended on"):
        install(check(read(pair)), layout)
    assert not layout.pair.exists()


def test_pair_in_place_is_this_users_alone_and_known_to_the_guard(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    pair = check(read(parse({"tls": write_pair(tmp_path / "a")}).tls))
    assert [install(pair, layout), install(pair, layout)] == [True, False]
    assert layout.pair.stat().st_mode & 0o777 == 0o600
    assert layout.tls_dir.stat().st_mode & 0o777 == 0o700
    assert b"PRIVATE" not in layout.certificate.read_bytes()
    assert days_of_certificate(layout.certificate_json) == pytest.approx(90, abs=0.1)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(layout.pair)


def test_former_pair_stays_for_handshakes_that_began_with_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    folders = []
    for name in "abc":
        install(check(read(parse({"tls": write_pair(tmp_path / name)}).tls)), layout)
        folders.append(layout.active_pair.resolve())
        assert list((folders[-1] / "empty").iterdir()) == []
    first, second, _ = folders
    assert first.exists()
    minute_ago = time.time() - 61
    os.utime(first, (minute_ago, minute_ago))
    assert install(check(read(parse({"tls": write_pair(tmp_path / "d")}).tls)), layout)
    assert (first.exists(), second.exists()) == (False, True)


def test_self_signed_is_kept_until_its_names_change(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    one = parse({"tls": {"self_signed": True, "names": ["zimage.test", "10.0.0.7"]}})
    other = parse({"tls": {"self_signed": True, "names": ["other.test"]}})
    first = self_signed(one, layout)
    assert first.names == ("zimage.test", "10.0.0.7")
    assert self_signed(one, layout) == first
    assert self_signed(other, layout).names == ("other.test",)


def test_self_signed_is_renewed_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    config = parse({"tls": {"self_signed": True}})
    monkeypatch.setattr(certificate, "_SELF_SIGNED_FOR", 20 * DAY)
    first = self_signed(config, layout)
    assert self_signed(config, layout).pem != first.pem


def test_key_is_in_no_message(tmp_path: Path) -> None:
    source = read(parse({"tls": write_pair(tmp_path / "a")}).tls)
    assert "PRIVATE" not in repr(source) + repr(check(source))
