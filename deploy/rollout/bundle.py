"""One file with all that a machine without a network needs: `zimage bundle`.

It holds the kit as it lies here, the wheels of its lock files, Debian's packages of what
``scripts/env`` installs, and a model if one is named. ``SHA256SUMS`` names every file; what is
signed is that list, so ``scripts/unpack-bundle`` checks it with what each machine has
(``sha256sum``, ``ssh-keygen``) before it runs anything of it.
"""

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy import installation, output
from deploy.cell import CellError
from deploy.host import processes
from deploy.installation import ROOT

NAMESPACE = "zimage-bundle"
"""Of signatures, so that one for something else is none for a bundle."""
SUMS = "SHA256SUMS"
FORMAT = "1"

_SYSTEM = ("nginx",)
_PYTHON = ("python3", "python3-venv")
_BUILD = ("editables", "hatchling")
"""What makes the kit itself a package of its environment."""
_LISTS = ROOT / "deploy" / "requirements"
_TIMEOUT_S = 3600.0
_LINES = 6
_MARGIN_BYTES = 1 << 28


def make(out: Path, torch: str, extras: Iterable[str], model: Path | None, key: Path | None) -> int:
    """Write the bundle to ``out``; its size in bytes. ``model``: a folder in diffusers' layout;
    ``key``: of SSH, which signs. ``CellError``: what is missing, and nothing is written."""
    if not installation.IS_CHECKOUT:
        raise CellError("a release has no kit to copy: run zimage bundle in a checkout")
    fresh = out.with_name(f".{out.name}.new")
    with TemporaryDirectory(prefix=".zimage-bundle-", dir=out.parent) as name:
        folder = Path(name)
        files = dict(_kit())
        output.step(f"wheels for Python {_python()}, torch for {torch}")
        files |= _within(folder, "wheels", _wheels(folder / "wheels", torch, extras))
        output.step("Debian's packages of nginx and Python, with what they need")
        files |= _within(folder, "debs", _debs(folder / "debs"))
        if model:
            files |= {f"model/{path}": model / path for path in _files_below(model)}
        about = _about(torch, model)
        (folder / "ABOUT").write_text(about, encoding="utf-8")
        files["ABOUT"] = folder / "ABOUT"
        _require_room(out, files)
        output.step(f"write {out}" + ("" if key else ", unsigned"))
        heads = [_sums(folder / SUMS, files)]
        if key:
            heads.append(_signature(folder / SUMS, key))
        try:
            with tarfile.open(fresh, "w") as archive:
                for path in heads:
                    _add(archive, path, path.name)
                for place, path in sorted(files.items()):
                    _add(archive, path, place)
            fresh.replace(out)
        finally:
            fresh.unlink(missing_ok=True)
    return out.stat().st_size


def _kit() -> Iterator[tuple[str, Path]]:
    """Every file of the checkout that git knows, as it lies here."""
    listed = _run(["git", "-C", str(ROOT), "ls-files", "-z"]).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "loadtest/gpu/")):
            yield f"kit/{name}", ROOT / name


def _wheels(into: Path, torch: str, extras: Iterable[str]) -> list[str]:
    lists = [f"torch-{torch}", "kit", *extras]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--dest", str(into)]
    pip += ["--disable-pip-version-check", "--only-binary", ":all:"]
    _require_lists(lists)
    for name in lists:
        _run([*pip, "--no-deps", "--require-hashes", "-r", str(_LISTS / f"{name}.txt")])
    _run([*pip, "-c", str(ROOT / "constraints.txt"), *_BUILD])
    return [path.name for path in into.iterdir()]


def _require_lists(names: Iterable[str]) -> None:
    for name in names:
        if not (_LISTS / f"{name}.txt").is_file():
            there = ", ".join(sorted(path.stem for path in _LISTS.glob("*.txt")))
            raise CellError(f"no list of packages {name}.txt; there are: {there}")


def _debs(into: Path) -> list[str]:
    """A repository of apt's: what is asked for and all that it needs, down to the C library, for
    the other machine may have less. apt takes of it what is missing there."""
    into.mkdir()
    if shutil.which("apt-get") is None:
        output.warn("no apt here: the other machine must have nginx and Python already")
        return []
    own = _run(["/usr/bin/python3", "-c", _VERSION]).strip() if _has_python() else ""
    asked = [*_SYSTEM, *(_PYTHON if own == _python() else ())]
    if own != _python():
        output.warn(
            f"Debian's Python here is {own or 'missing'}, and this one {_python()}: the other "
            "machine must have it"
        )
    recursive = ["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests"]
    recursive += ["--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances", *asked]
    lines = _run(recursive).splitlines()
    names = sorted({line for line in lines if line and line[0] not in " <" and ":" not in line})
    real = [name for name in names if _candidate(name)]
    as_owner = ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
    _run(["apt-get", *as_owner, "-qq", "download", *real], cwd=into)
    stanzas = []
    for path in sorted(into.glob("*.deb")):
        content = _run(["dpkg-deb", "--field", str(path)]).strip()
        size, digest = path.stat().st_size, _sha256(path)
        stanzas.append(f"{content}\nFilename: ./{path.name}\nSize: {size}\nSHA256: {digest}\n")
    (into / "Packages").write_text("\n".join(stanzas), encoding="utf-8")
    return [path.name for path in into.iterdir()]


_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def _has_python() -> bool:
    return Path("/usr/bin/python3").exists()


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _candidate(name: str) -> bool:
    """Whether it is a package that can be had, not a name that others provide."""
    said = _run(["apt-cache", "policy", name])
    return "Candidate:" in said and "Candidate: (none)" not in said


def _about(torch: str, model: Path | None) -> str:
    """Lines of KEY=value, which bash reads."""
    told = {
        "FORMAT": FORMAT,
        "VERSION": installation.version(),
        "PYTHON": _python(),
        "MACHINE": platform.machine(),
        "SYSTEM": system(),
        "TORCH": torch,
        "REQUIREMENTS": requirements_digest(ROOT),
        "MODEL": _name(model) if model else "",
    }
    return "".join(f"{key}={value}\n" for key, value in told.items())


def system(path: Path = Path("/etc/os-release")) -> str:
    """Such as debian-12."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    name, number = (said.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    return f"{name or 'linux'}-{number or '0'}"


def requirements_digest(root: Path) -> str:
    """As ``scripts/env`` tells whether anything has changed."""
    texts = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _name(model: Path) -> str:
    """Of letters, digits, dots and dashes, for it names a folder."""
    word = model.name if len(model.name) < 40 else model.parents[1].name.split("--")[-1]
    if word == "master":
        word = model.parents[1].name.split("--")[-1]
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in word).strip(".-") or "model"


def _files_below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield str(path.relative_to(folder))


def _within(folder: Path, place: str, names: Iterable[str]) -> dict[str, Path]:
    return {f"{place}/{name}": folder / place / name for name in names}


def _require_room(out: Path, files: dict[str, Path]) -> None:
    need = sum(path.stat().st_size for path in files.values())
    free = shutil.disk_usage(out.parent).free
    if need + _MARGIN_BYTES > free:
        raise CellError(
            f"{out} takes {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {out.parent}"
        )


def _sums(path: Path, files: dict[str, Path]) -> Path:
    lines = [f"{_sha256(file)}  {place}\n" for place, file in sorted(files.items())]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _signature(sums: Path, key: Path) -> Path:
    if shutil.which("ssh-keygen") is None:
        raise CellError("no ssh-keygen here: apt-get install openssh-client, or --unsigned")
    # It may ask for a passphrase, or for a token to be touched.
    done = subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(sums)], check=False
    )
    signature = sums.with_name(f"{SUMS}.sig")
    if done.returncode or not signature.exists():
        raise CellError(f"ssh-keygen could not sign with {key}, as it says above")
    return signature


def _add(archive: tarfile.TarFile, path: Path, place: str) -> None:
    """Links are followed, and whose it is here is not told."""
    entry = tarfile.TarInfo(place)
    status = path.stat()
    entry.size, entry.mtime = status.st_size, int(status.st_mtime)
    entry.mode = 0o755 if status.st_mode & 0o100 else 0o644
    with path.open("rb") as content:
        archive.addfile(entry, content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            check=False,
            preexec_fn=processes.bound(signal.SIGKILL),
        )
    except subprocess.TimeoutExpired:
        raise CellError(f"`{' '.join(command[:4])} …` took longer than {_TIMEOUT_S:g} s") from None
    except FileNotFoundError:
        raise CellError(f"{command[0]} is needed, and is not here") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-_LINES:]
        words = "\n".join(f"  | {line}" for line in said)
        raise CellError(f"`{' '.join(command[:4])} …` failed:\n{words}")
    return done.stdout
