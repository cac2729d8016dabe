"""What a download brought: the record that lies beside a model of a hub.

Hubs name a hash of each file. They are kept, so that a copy can be checked whenever somebody asks,
without the hub.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

NAME = "zimage-pulled.json"
_PIECE_BYTES = 1 << 24


class File(BaseModel):
    """Of a model. Git's own hash (of length and content) is all that a hub knows of small ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = ""
    git_sha1: str = ""


class Record(BaseModel):
    """``folder`` is relative to where the record lies; ``hub`` is the address that was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    hub: str
    revision: str
    pulled_at: float
    folder: str
    files: dict[str, File]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, File]) -> dict[str, File]:
        for name in files:
            require_inside(name)
        return files

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files.values())


def require_inside(name: str) -> None:
    """``ValueError`` for a name that would lead out of the model's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name:
        raise ValueError(f"{name!r} is no name of a model's file")


def read(home: Path) -> Record | None:
    """Of the model in ``home``; None: it was not pulled, or not to its end."""
    try:
        return Record.model_validate_json((home / NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def write(home: Path, record: Record) -> None:
    fresh = home / f".{NAME}.new"
    fresh.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    fresh.replace(home / NAME)


def unfit(folder: Path, record: Record) -> Iterator[str]:
    """Names of files that are not there, or not as long as they should be."""
    for name, file in record.files.items():
        try:
            if (folder / name).stat().st_size == file.size:
                continue
        except OSError:
            pass
        yield name


def is_genuine(path: Path, file: File, on_bytes: Callable[[int], None] = lambda _: None) -> bool:
    """Whether ``path`` is what the hub said of it. ``on_bytes``: called with how many were read."""
    try:
        if path.stat().st_size != file.size:
            return False
        digests = [(hashlib.sha256(), file.sha256)] if file.sha256 else []
        if file.git_sha1:
            head = f"blob {file.size}\0".encode()
            digests.append((hashlib.sha1(head, usedforsecurity=False), file.git_sha1))
        with path.open("rb") as content:
            while piece := content.read(_PIECE_BYTES):
                for digest, _ in digests:
                    digest.update(piece)
                on_bytes(len(piece))
    except OSError:
        return False
    return all(digest.hexdigest() == wanted.lower() for digest, wanted in digests)
