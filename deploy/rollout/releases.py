"""The versions of an installation: which are there, which one is to run, which one was before.

A version is a folder that never changes once its note is in it; going to another one is one link.
The installation itself (a checkout) counts as a version, too: the one of no link.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from deploy import installation
from deploy.cell import CellError
from deploy.rollout import lock, operation

_NOTE = "release.json"


@dataclass(frozen=True)
class Release:
    """``sha256`` is that of the wheel it was made of."""

    version: str
    sha256: str
    made_at: float


@dataclass(frozen=True)
class Releases:
    """Those of the installation in ``base``."""

    base: Path = installation.BASE

    def folder(self, version: str) -> Path:
        return self.base / "releases" / version

    def find(self, version: str) -> Release | None:
        """The release, if it is there and whole."""
        return _noted(self.folder(version))

    @property
    def current(self) -> Path:
        """The folder of the version that the cell is to run."""
        return self._leads("current") or self.base

    @property
    def previous(self) -> Path | None:
        """The folder of the version that was current before, if it is still there."""
        return self._leads("previous")

    def name(self, folder: Path) -> str:
        """How people call the version in ``folder``."""
        release = _noted(folder)
        return release.version if release else f"the code in {folder}"

    def half_taken(self) -> list[str]:
        """Versions that guard or workers run although another one is current: going there or back
        was cut short."""
        folders = [self.base, *sorted((self.base / "releases").glob("[!.]*"))]
        others = [folder for folder in folders if folder != self.current]
        return [self.name(folder) for folder in others if _draws(folder)]

    def note(self, version: str, sha256: str) -> None:
        """Its folder is whole, and changes no more."""
        text = json.dumps(asdict(Release(version, sha256, time.time())))
        fresh = self.folder(version) / f".{_NOTE}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)  # the service user reads what root has installed
        fresh.replace(self.folder(version) / _NOTE)

    def switch(self, folder: Path) -> None:
        """From now on the version in ``folder`` is current, and the one of before is previous."""
        before = self.current
        if folder == before:
            return
        self._lead("previous", before)
        if folder == self.base:
            (self.base / "current").unlink()
        else:
            self._lead("current", folder)

    def prune(self) -> list[str]:
        """Delete what is neither current nor previous, and of which no process runs."""
        kept = {self.current, self.previous}
        gone = []
        for folder in sorted((self.base / "releases").glob("[!.]*")):
            if folder not in kept and not commands_of(folder):
                (folder / _NOTE).unlink(missing_ok=True)  # first: half of it is no release
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder.name)
        return gone

    @contextlib.contextmanager
    def locked(self, doing: str) -> Iterator[None]:
        """One command at a time makes releases; ``CellError`` names the other."""
        folder = self.base / "releases"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # the service user enters what root has made
        try:
            with lock.exclusive(folder / ".lock", doing, operation.person()):
                yield
        except lock.Held as holder:
            raise CellError(f"{holder} is changing versions; wait for its end") from None

    def _leads(self, link: str) -> Path | None:
        path = self.base / link
        folder = path.resolve()
        usable = path.is_symlink() and installation.python_of(folder).exists()
        return folder if usable else None

    def _lead(self, link: str, folder: Path) -> None:
        fresh = self.base / f".{link}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.relative_to(self.base))
        fresh.replace(self.base / link)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _noted(folder: Path) -> Release | None:
    try:
        return Release(**json.loads((folder / _NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _draws(folder: Path) -> bool:
    """supervisord and nginx's attendant do not count: they outlast versions."""
    words = ("-m deploy.guard", "-m worker")
    return any(word in command for command in commands_of(folder) for word in words)


def commands_of(folder: Path) -> list[str]:
    """What runs with the Python of the version in ``folder``, as it was started. A supervisord
    lasts longer than the version that started it."""
    python = f"{installation.python_of(folder).parent}/"
    found = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    return [command for command in found if command.startswith(python)]
