"""Versions of all that draws: what was built or measured with others is not used."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "diffusers", "transformers", "triton", "flash-attn-4", "quack-kernels")


def versions() -> dict[str, Any]:
    """Of the libraries and of the code that draws."""
    return {"libraries": {name: _version(name) for name in _LIBRARIES}, "pipelines": _code()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code() -> str:
    """Digest of the code that draws."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
