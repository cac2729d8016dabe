"""A release's environment: its own Python packages, each with the hash that its lock says.

Which packages they are, the wheel itself says: ``deploy/requirements/*.txt`` in it. torch comes
first and by itself, for it has a build a kind of machine; nothing is resolved (``--no-deps``).
"""

import shutil
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy import installation
from deploy.cell import CellError
from deploy.host import processes

_REQUIREMENTS = "deploy/requirements/"
_TIMEOUT_S = 3600.0
"""torch for CUDA is some GB, and a company's mirror may be slow."""
_CHECK_TIMEOUT_S = 120.0
_LINES = 6


def make(wheel: Path, folder: Path) -> None:
    """An environment with ``wheel`` and what it needs in ``folder``, which is replaced.

    ``CellError`` with pip's last words; what was begun is deleted.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with TemporaryDirectory(prefix="zimage-requirements-") as name:
            _fill(wheel, folder, _unpacked(wheel, Path(name)))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def fetch(version: str, into: Path) -> Path:
    """The wheel of ``version`` from the package index that pip is set up with; ``CellError``."""
    wanted = f"{installation.NAME}=={version}"
    _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(into), wanted)
    return next(into.glob("*.whl"))


def _fill(wheel: Path, folder: Path, requirements: Path) -> None:
    # Without pip of its own: ours puts everything in, and Debian has ensurepip in a package apart.
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], _CHECK_TIMEOUT_S)
    into = ("--python", str(folder / "bin" / "python"))
    for names in ([f"torch-{_torch_build()}.txt"], ["kit.txt", *_extras()]):
        for name in names:
            if not (requirements / name).is_file():
                told = f"{wheel.name} says nothing of its packages: no {_REQUIREMENTS}{name}"
                raise CellError(told)
        lists = (word for name in names for word in ("-r", str(requirements / name)))
        _pip(*into, "install", "--no-deps", "--require-hashes", *lists)
    _pip(*into, "install", "--no-deps", "--no-index", str(wheel.absolute()))
    _pip(*into, "check")


def _torch_build() -> str:
    """The one that runs here now."""
    try:
        return "cpu" if metadata.version("torch").endswith("+cpu") else "cuda"
    except metadata.PackageNotFoundError:
        return "cuda"


_EXTRAS = {
    "alarms.txt": "apprise",
    "hopper.txt": "flash-attn-4",
    "modelscope.txt": "modelscope-hub",
    "otel.txt": "opentelemetry-exporter-otlp-proto-http",
    "postgres.txt": "psycopg",
    "s3.txt": "obstore",
}
"""List of each extra's packages, and the one that shows that it is installed."""


def _extras() -> list[str]:
    """The extras that are installed here: a new version has them, too."""
    return [name for name, package in _EXTRAS.items() if _installed(package)]


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _unpacked(wheel: Path, into: Path) -> Path:
    """Its lists of packages."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(_REQUIREMENTS)]
            archive.extractall(into, names)
    except (OSError, zipfile.BadZipFile) as error:
        raise CellError(f"{wheel} is no wheel that can be read: {error}") from None
    return into / _REQUIREMENTS


def _pip(*arguments: str) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--no-color"]
    _run([sys.executable, "-m", "pip", *options, *arguments], _TIMEOUT_S)


def _run(command: list[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command,
            cwd="/",  # no module of the working directory
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            umask=0o022,  # the service user reads what root installs
            check=False,
            preexec_fn=processes.bound(signal.SIGKILL),  # the next command makes it anew
        )
    except subprocess.TimeoutExpired:
        raise CellError(f"`{' '.join(command[1:5])} …` took longer than {timeout_s:g} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-_LINES:]
        words = "\n".join(f"  | {line}" for line in said)
        raise CellError(f"`{' '.join(command[1:5])} …` failed:\n{words}")
