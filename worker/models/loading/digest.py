"""What tells one model's files from another's, without reading tens of gigabytes.

Small files count whole. Of large ones size, beginning, end and what lies between at even distances
do: another training changes nearly all values, and another copy of the same model none.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from worker.models.loading.files import files_of, needed, parts_of

_PIECES, _PIECE_BYTES = 64, 16 << 10


def files_in(folder: Path) -> dict[str, Path]:
    """Those that a pipeline loads, by their names within ``folder``."""
    return {name: folder / name for name in needed(files_of(folder), parts_of(folder))}


def of(files: Mapping[str, Path], name: str = "") -> str:
    """Of what ``files`` hold now, and of ``name``; ``OSError`` where one cannot be read."""
    digest = hashlib.sha256(name.encode())
    for each in sorted(files):
        size = files[each].stat().st_size
        digest.update(f"\0{each}\0{size}\0".encode())
        with files[each].open("rb") as file:
            for place in _places(size):
                file.seek(place)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()[:16]


def _places(size: int) -> range | list[int]:
    """Where pieces begin."""
    if size <= _PIECES * _PIECE_BYTES:
        return range(0, size, _PIECE_BYTES)
    last = size - _PIECE_BYTES
    return [last * k // (_PIECES - 1) for k in range(_PIECES)]
