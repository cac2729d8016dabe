"""The folder of adapters: ``NAME.safetensors`` each, in one form (see ``conversion``).

The head of each says what it was made from: the SHA-256 of the file that was added, which stands
for it in fingerprints and records, and that of its own values, which shows a spoilt copy.
"""

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from worker.models.loras.head import Head, Tensor, UnusableLora, read

SUFFIX = ".safetensors"
NAME = r"[a-z0-9._-]{1,64}"
MAX_LORAS = 1000
"""In one folder; the first by name are used."""
MADE_BY = "zimage_sha256"
"""In the head: the SHA-256 of the file that was added. Without it, a file was put here by hand."""
VALUES = "zimage_values_sha256"
SOURCE = "zimage_source"
_NAME = re.compile(rf"(?![.-]){NAME}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20


@dataclass(frozen=True)
class StoredLora:
    """``shapes``: inputs and outputs of the layers that it changes, by name. ``elements``: values
    that are on a device while it is used. ``source``: what the file was called."""

    name: str
    path: Path
    sha256: str
    rank: int
    elements: int
    source: str
    shapes: Mapping[str, tuple[int, int]] = field(repr=False)
    values_sha256: str = field(repr=False)

    def open(self) -> BinaryIO:
        """Its file; raises ``UnusableLora`` where it is not there any more."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UnusableLora(f"{self.path} cannot be read ({error})", "add it again") from error


class LoraFolder:
    """What ``zimage loras add`` put into ``path``, as it is now; from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: object = None
        self._known: dict[str, StoredLora] = {}
        self._files: dict[str, tuple[object, StoredLora | None]] = {}

    def all(self) -> Mapping[str, StoredLora]:
        """By name, sorted. Files that cannot be used are left out: ``problems`` has them."""
        with self._lock:
            seen = _stamp(self.path)
            if seen is None:
                return {}
            if seen != self._seen:
                self._known, self._seen = self._scanned(), seen
            return self._known

    def problems(self) -> dict[str, UnusableLora]:
        """What is in the folder and cannot be used, by file name, and why."""
        found = {}
        for path in self._paths():
            try:
                stored_in(path)
            except UnusableLora as error:
                found[path.name] = error
        return found

    def _scanned(self) -> dict[str, StoredLora]:
        files: dict[str, tuple[object, StoredLora | None]] = {}
        for path in self._paths()[:MAX_LORAS]:
            stamp = _stamp(path)
            known = self._files.get(path.name)
            if known is None or known[0] != stamp:
                known = stamp, _stored(path)
            files[path.name] = known
        self._files = files
        return {lora.name: lora for _, lora in files.values() if lora is not None}

    def _paths(self) -> list[Path]:
        with suppress(OSError):
            return sorted(p for p in self.path.iterdir() if p.suffix == SUFFIX and _of_name(p))
        return []


def require_name(name: str) -> None:
    """Raise ``UnusableLora`` unless an adapter may be called so."""
    if not _NAME.fullmatch(name):
        raise UnusableLora(
            f"{name[:80]!r} is no name for an adapter",
            "use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter, digit or '_'",
        )


def stored_in(path: Path) -> StoredLora:
    """What the head of ``path`` says; raises ``UnusableLora``."""
    require_name(path.stem)
    try:
        with path.open("rb") as file:
            head = read(file)
    except OSError as error:
        raise UnusableLora(f"{path} cannot be read ({error})", "add it again") from error
    said = head.metadata
    digests = said.get(MADE_BY, ""), said.get(VALUES, "")
    if not all(map(_SHA256.fullmatch, digests)):
        raise UnusableLora(f"{path} was put here by hand", f"zimage loras add {path}")
    return StoredLora(
        name=path.stem,
        path=path,
        sha256=digests[0],
        rank=max((tensor.shape[0] for tensor in _sides(head, "A").values()), default=0),
        elements=sum(tensor.elements for tensor in head.tensors.values()),
        source=said.get(SOURCE, ""),
        shapes=_shapes(head, path),
        values_sha256=digests[1],
    )


def values_digest(lora: StoredLora) -> str:
    """SHA-256 of the values that are in its file now."""
    digest = hashlib.sha256()
    with lora.open() as file:
        read(file)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def put(folder: Path, name: str, data: bytes) -> Path:
    """``data`` as the file of adapter ``name``: whole or not at all, and never over another one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}{SUFFIX}"
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".adding-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        raise UnusableLora(
            f"there is an adapter {name} already", f"zimage loras remove {name}, or use --name"
        ) from None
    finally:
        Path(temporary).unlink()
    return path


def _stored(path: Path) -> StoredLora | None:
    try:
        return stored_in(path)
    except UnusableLora:
        return None


def _of_name(path: Path) -> bool:
    return not path.name.startswith(".")


def _sides(head: Head, side: str) -> dict[str, Tensor]:
    suffix = f".lora_{side}.weight"
    return {n.removesuffix(suffix): t for n, t in head.tensors.items() if n.endswith(suffix)}


def _shapes(head: Head, path: Path) -> dict[str, tuple[int, int]]:
    a, b = _sides(head, "A"), _sides(head, "B")
    if a.keys() != b.keys() or len(a) + len(b) != len(head.tensors):
        raise UnusableLora(f"{path} is not as zimage loras add writes it", "add it again")
    return {module: (a[module].shape[1], b[module].shape[0]) for module in a}


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
