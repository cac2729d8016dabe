"""Versions of all that draws: what was built or measured with others is not used.

Of our own code counts what a pipeline draws with: its own module or folder, and ``SHARED``. So a
new pipeline, or a new field of a request, voids no table that was measured with another. What
loads a model does not count: what it decides (dtype, optimisations, architecture) is told by
``ModelInfo``, and so by the table itself.
"""

import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "diffusers", "transformers", "triton", "flash-attn-4", "quack-kernels")
FOLDER = Path(__file__).parent
SHARED = (
    "acceleration",
    "base.py",
    "faults.py",
    "loras",
    "memory.py",
    "parallel",
    "prompt_limit.py",
    "sizes.py",
    "tokens.py",
)
"""What pipelines have in common, below ``FOLDER``."""
UNCOUNTED = ("__init__.py", "loading", "versions.py")
"""What draws nothing."""


def versions(pipeline: str) -> dict[str, Any]:
    """Of the libraries, and of the code that the class of module ``pipeline`` draws with."""
    return {"libraries": {name: _version(name) for name in _LIBRARIES}, "pipelines": code(pipeline)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code(pipeline: str, folder: Path = FOLDER) -> str:
    """Digest of the code that the class of module ``pipeline`` draws with."""
    digest = hashlib.sha256()
    for path in counted(pipeline, folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def counted(pipeline: str, folder: Path = FOLDER) -> list[Path]:
    """The files below ``folder`` that count for the class of module ``pipeline``."""
    inside = pipeline.removeprefix("worker.models.")
    own = inside.partition(".")[0] if inside != pipeline else ""
    names = (*SHARED, *((own, f"{own}.py") if own else ()))
    return sorted({file for name in names for file in _sources(folder / name)})


def _sources(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from path.rglob("*.py")
    elif path.is_file():
        yield path
