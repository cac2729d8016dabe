"""Bundles for machines without a network: what is in them, and what is taken from nobody."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from deploy.cell import CellError
from deploy.config import ROOT
from deploy.rollout import bundle
from tests import command_line

Made = Callable[..., Path]
_COPIED = (
    "pyproject.toml",
    "constraints.txt",
    "scripts/unpack-bundle",
    "scripts/up",
    "scripts/env",
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys, and who is trusted: the first."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        words = ["-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(["ssh-keygen", *words], check=True)
    public = (folder / "ours.pub").read_text("utf-8")
    (folder / "signers").write_text(f'ops@here namespaces="zimage-bundle" {public}', "utf-8")
    return folder


@pytest.fixture
def made(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A bundle with a wheel and a package that are not worth their names."""

    def files(into: Path, *_: object) -> list[str]:
        into.mkdir()
        (into / "thing-1.whl").write_bytes(b"thing" * 1000)
        return ["thing-1.whl"]

    monkeypatch.setattr(bundle, "_wheels", files)
    monkeypatch.setattr(bundle, "_debs", files)

    def make(key: str = "ours", model: Path | None = None) -> Path:
        out = tmp_path / "zimage.bundle"
        bundle.make(out, "cpu", (), model, keys / key if key else None)
        return out

    return make


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in _COPIED:
        shutil.copy(ROOT / name, folder / name)
    return folder


def unpack(checkout: Path, file: Path, *words: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [checkout / "scripts/unpack-bundle", file, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
    )
    if done.returncode:
        assert not (checkout / ".bundle").exists()
        assert not (checkout / ".bundle.new").exists()
        assert not (checkout / "models").exists()
    return done.returncode, done.stdout


def changed(file: Path, name: str, content: Callable[[bytes], bytes]) -> None:
    """Write ``file`` again with other ``content`` of one of its files."""
    with tarfile.open(file) as archive:
        entries = []
        for member in archive.getmembers():
            stream = archive.extractfile(member)
            assert stream is not None
            entries.append((member, stream.read()))
    with tarfile.open(file, "w") as archive:
        for member, data in entries:
            new = content(data) if member.name == name else data
            member.size = len(new)
            archive.addfile(member, BytesIO(new))


def test_what_is_signed_by_whom_one_trusts_is_unpacked(
    made: Made, keys: Path, checkout: Path
) -> None:
    file = made(model=ROOT / "tinymodel" / "weights")
    code, said = unpack(checkout, file, "--signers", keys / "signers")
    assert code == 0, said
    assert "is signed by ops@here" in said
    assert (checkout / ".bundle/wheels/thing-1.whl").read_bytes() == b"thing" * 1000
    assert (checkout / ".bundle/kit/scripts/up").exists()
    assert os.access(checkout / ".bundle/kit/scripts/up", os.X_OK)
    assert (checkout / "models/weights/model_index.json").exists()
    toml = (checkout / "cluster.toml").read_text("utf-8")
    assert toml == '[model]\nsource = "./models/weights"\n'
    code, said = unpack(
        checkout, file, "--signers", keys / "signers"
    )  # again: nothing is in its way
    assert code == 0, said
    assert "cluster.toml is made" not in said


def test_a_model_of_ones_own_is_not_overwritten(made: Made, keys: Path, checkout: Path) -> None:
    file = made(model=ROOT / "tinymodel" / "weights")
    (checkout / "models/weights").mkdir(parents=True)
    done = subprocess.run(
        [checkout / "scripts/unpack-bundle", file, "--signers", keys / "signers"],
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 1
    assert "models/weights is there already, and of no bundle: move it away" in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wheels/thing-1.whl", "was changed or cut: wheels/thing-1.whl: FAILED"),
        ("kit/scripts/up", "was changed or cut: kit/scripts/up: FAILED"),
        ("ABOUT", "was changed or cut: ABOUT: FAILED"),
        ("SHA256SUMS", "the signature of ops@here does not fit: it was changed"),
    ],
)
def test_a_changed_file_is_refused(
    made: Made, keys: Path, checkout: Path, name: str, said: str
) -> None:
    file = made()
    changed(file, name, lambda data: data.replace(b"i", b"j", 1))
    code, text = unpack(checkout, file, "--signers", keys / "signers")
    assert code == 1
    assert said in text


def add(file: Path, name: str) -> None:
    """An empty file of that name, at the end."""
    with tarfile.open(file, "a") as archive:
        archive.addfile(tarfile.TarInfo(name))


def test_a_file_that_nobody_signed_for_is_not_unpacked(
    made: Made, keys: Path, checkout: Path
) -> None:
    file = made()
    add(file, "wheels/evil-1.whl")
    assert unpack(checkout, file, "--signers", keys / "signers")[0] == 0
    assert not (checkout / ".bundle/wheels/evil-1.whl").exists()


def test_a_second_file_of_one_name_does_not_pass_for_the_first(
    made: Made, keys: Path, checkout: Path
) -> None:
    file = made()
    add(file, "kit/scripts/up")
    code, text = unpack(checkout, file, "--signers", keys / "signers")
    assert (code, "kit/scripts/up: FAILED" in text) == (1, True)


def test_another_signer_is_refused(made: Made, keys: Path, checkout: Path) -> None:
    code, said = unpack(checkout, made(key="theirs"), "--signers", keys / "signers")
    assert code == 1
    assert "is signed by nobody whom" in said


def test_a_signature_for_something_else_is_refused(
    made: Made, keys: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "NAMESPACE", "file")
    code, said = unpack(checkout, made(), "--signers", keys / "signers")
    assert code == 1
    assert "ops@here" not in said or "does not fit" in said


def test_an_unsigned_one_is_taken_only_by_saying_so(made: Made, keys: Path, checkout: Path) -> None:
    file = made(key="")
    assert unpack(checkout, file)[0] == 2
    code, said = unpack(checkout, file, "--signers", keys / "signers")
    assert (code, "is not signed" in said) == (1, True)
    code, said = unpack(checkout, file, "--unsigned")
    assert (code, "nobody can tell who made it" in said) == (0, True)


@pytest.mark.parametrize("kept", [0, 5000, 200_000])
def test_a_cut_file_is_refused(made: Made, keys: Path, checkout: Path, kept: int) -> None:
    file = made()
    file.write_bytes(file.read_bytes()[:kept])
    code, said = unpack(checkout, file, "--signers", keys / "signers")
    assert code == 1
    assert said.startswith("✗") or "✗" in said


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("MACHINE=mips", f"this machine is {platform.machine()}: have one made on such a machine"),
        ("REQUIREMENTS=0", "is of another version"),
        ("FORMAT=2", "is of a newer format"),
    ],
)
def test_what_is_for_other_machines_is_refused_with_the_remedy(
    made: Made, checkout: Path, monkeypatch: pytest.MonkeyPatch, about: str, said: str
) -> None:
    key = about.partition("=")[0]
    told = "".join(
        f"{line}\n" for line in bundle._about("cpu", None).splitlines() if not line.startswith(key)
    )
    monkeypatch.setattr(bundle, "_about", lambda *_: f"{told}{about}\n")
    code, text = unpack(checkout, made(key=""), "--unsigned")
    assert code == 1
    assert said in text


def test_names_outside_of_the_folder_are_refused(
    made: Made, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = made(key="")
    changed(file, "SHA256SUMS", lambda data: data + b"0" * 64 + b"  ../cluster.toml\n")
    code, said = unpack(checkout, file, "--unsigned")
    assert (code, "names files outside of its folder" in said) == (1, True)


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no nginx")
def test_up_leaves_nothing_of_a_bundle_that_does_not_fit(
    made: Made, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = re.sub("(PYTHON|SYSTEM)=.*", r"\1=9.9", bundle._about("cpu", None))
    monkeypatch.setattr(bundle, "_about", lambda *_: told)
    up = [str(checkout / "scripts/up"), "--bundle", str(made(key="")), "--unsigned"]
    done = subprocess.run(up, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert "wheels are for Python 9.9" in done.stderr
    assert not (checkout / ".bundle").exists()


@pytest.mark.parametrize("words", [("--unsigned",), ("--signers", "x"), ("--bundle",)])
def test_words_about_a_bundle_need_one(checkout: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [checkout / "scripts/up", *words], capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.returncode, "FILE" in done.stderr or "name the file" in done.stderr) == (2, True)


def env(checkout: Path, **about: str) -> subprocess.CompletedProcess[str]:
    """``scripts/env`` with a bundle that says ``about`` of itself and holds no wheel."""
    folder = checkout / ".bundle"
    (folder / "wheels").mkdir(parents=True)
    (folder / "ABOUT").write_text("".join(f"{k}={v}\n" for k, v in about.items()), "utf-8")
    return subprocess.run(
        [checkout / "scripts/env"],
        env={**os.environ, "ZIMAGE_BUNDLE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no nginx")
def test_wheels_for_another_python_are_refused_with_the_remedy(checkout: Path) -> None:
    done = env(checkout, PYTHON="3.99", SYSTEM="plan-9")
    assert done.returncode == 1
    assert "wheels are for Python 3.99, and this machine has Python 3" in done.stdout
    assert "install python3.99, or have a bundle made with this one" in done.stdout


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="no nginx")
def test_a_wheel_that_is_missing_is_named(checkout: Path) -> None:
    python = checkout / ".venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", checkout / ".venv"], check=True)
    done = env(checkout, PYTHON=bundle._python(), SYSTEM=bundle.system())
    assert done.returncode != 0
    assert python.exists()
    assert "Cannot install pip because" in done.stdout  # and no other version of it is looked for
    assert "the bundle lacks that wheel" in done.stdout


def test_a_list_that_is_not_there_is_named() -> None:
    with pytest.raises(CellError, match=r"no list of packages quantum\.txt; there are: .*kit"):
        bundle._require_lists(["torch-cpu", "quantum"])


@pytest.mark.parametrize("words", [(), ("--unsigned", "--sign", "key")])
def test_whether_it_is_signed_must_be_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    asked = ("bundle", "--out", str(tmp_path / "z"), *words)
    done = command_line.zimage(asked, os.environ)
    assert done.returncode == 2
    assert "--unsigned" in done.stderr
