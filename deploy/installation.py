"""Where this version of the kit lies, and what all versions of one installation share.

A checkout is one version, which changes in place. Releases lie beside one another in
``releases/<version>``, each with an environment of its own that never changes, so that what runs
keeps its code. ``current`` leads to the one that the cell is to run, ``previous`` to that before.
``cluster.toml`` and ``var`` lie beside them. This module loads little: nginx's program needs it.
"""

import hashlib
import os
import re
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

NAME = "zimage-cluster"

ROOT = Path(__file__).resolve().parents[1]
"""This version's code, page and documents."""

_PREFIX = Path(sys.prefix).resolve()  # not as ``current`` leads there: that link moves

IS_RELEASE = _PREFIX.parent.name == "releases" and ROOT.is_relative_to(_PREFIX)
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()

BASE = _PREFIX.parents[1] if IS_RELEASE else ROOT if IS_CHECKOUT else _PREFIX
"""Where the installation lies: relative paths in ``cluster.toml`` start here."""

CURRENT = BASE / "current"

PYTHON = str(_PREFIX / "bin" / "python") if IS_RELEASE else sys.executable
"""What runs this version, whatever ``current`` leads to later."""

_AS_IT_IS = "ZIMAGE_AS_IT_IS"
_COMMAND = "ZIMAGE_COMMAND"


def lasting_python() -> str:
    """What runs the version of its day: for what must not change with each version, such as the
    command of nginx, which would be restarted."""
    if not IS_RELEASE:
        return PYTHON
    own = next((p for p in (".venv", ".") if (BASE / p / "bin" / "python").exists()), "current")
    return str(BASE / own / "bin" / "python")


def version() -> str:
    """Such as 1.2.0. A checkout's own word: what pip noted may be older."""
    if IS_CHECKOUT:
        with (ROOT / "pyproject.toml").open("rb") as file:
            return str(tomllib.load(file)["project"]["version"])
    return metadata.version(NAME)


def packages_digest() -> str:
    """Ten digits that change with what pip has installed of the packages that a cell needs."""
    lists = (ROOT / "deploy" / "requirements").glob("*.txt")
    texts = [path.read_text(encoding="utf-8") for path in lists]
    needed = {_package(n) for text in texts for n in re.findall(r"^([\w.-]+)==", text, re.M)}
    digest = hashlib.sha256()
    for folder in sorted(Path(sysconfig.get_path("purelib")).glob("*.dist-info")):
        record = folder / "RECORD"
        if _package(folder.name.split("-")[0]) in needed and record.is_file():
            digest.update(folder.name.encode() + b"\0" + record.read_bytes())
    return digest.hexdigest()[:10]


def _package(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def python_of(folder: Path) -> Path:
    """What runs the version in ``folder``: a release, or the installation itself."""
    checkout = folder / ".venv" / "bin" / "python"
    return checkout if checkout.exists() else folder / "bin" / "python"


def command_of(folder: Path) -> list[str]:
    """``zimage`` of the version in ``folder``. -P: whatever lies in the working directory."""
    return [str(python_of(folder)), "-P", "-m", "deploy.cli.app"]


def as_it_is(command: str) -> dict[str, str]:
    """The environment of a part of what was typed, which is not to hand over to ``current``."""
    return {**os.environ, _AS_IT_IS: "1", _COMMAND: command}


def command(own: str) -> str:
    """What was typed, where this process is a part of that; else ``own``."""
    return os.environ.get(_COMMAND, own)


def hand_over(arguments: list[str]) -> None:
    """Become ``zimage`` of the version that ``current`` leads to, whichever was called: a unit of
    systemd, or `scripts/up` in the checkout that the releases lie in, speaks for all of them."""
    if os.environ.pop(_AS_IT_IS, "") or not CURRENT.is_symlink():
        return
    folder = CURRENT.resolve()
    if folder == _PREFIX or not python_of(folder).exists():
        return
    command = [*command_of(folder), *arguments]
    os.execv(command[0], command)
