"""A file that somebody brings becomes an adapter of the folder. Imports torch."""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from worker.models.loras import head as heads
from worker.models.loras.conversion import Layers, Pair, converted
from worker.models.loras.folder import MADE_BY, SOURCE, VALUES, StoredLora, put, stored_in
from worker.models.loras.head import UnusableLora

_PICKLES = {".pt", ".pth", ".bin", ".ckpt"}


def add(
    path: Path,
    name: str,
    folder: Path,
    layers: Layers | None,
    most_elements: int = heads.MAX_ELEMENTS,
) -> StoredLora:
    """Read ``path``, whatever trainer wrote it, and keep it in ``folder`` as ``name``. ``layers``:
    of the model that it is for, None: any; ``most_elements``: what workers have room for. Raises
    ``UnusableLora``, and leaves nothing then."""
    data, head = _read(path)
    elements = sum(tensor.elements for tensor in head.tensors.values())
    if elements > most_elements:
        raise UnusableLora(
            f"it has {elements:,} values, and workers have room for {most_elements:,}",
            "raise loras.device_gib, or use one of a smaller rank",
        )
    pairs = converted(head, data[head.bytes :], layers)
    if not pairs:
        raise UnusableLora("there is nothing of a LoRA in it", "name a LoRA's .safetensors file")
    about = {MADE_BY: hashlib.sha256(data).hexdigest(), SOURCE: _plain(path.name)}
    return stored_in(put(folder, name, _written(pairs, about)))


def _read(path: Path) -> tuple[bytes, heads.Head]:
    """All of it, once its size and its head are known to be within bounds."""
    if path.suffix in _PICKLES:
        raise UnusableLora("it holds pickled code, which is never run", "use a .safetensors file")
    try:
        # A pipe must not be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnusableLora("it is no file", "name a .safetensors file")
            if status.st_size > heads.MAX_FILE_BYTES:
                most = f"{heads.MAX_FILE_BYTES >> 20} MiB are read"
                raise UnusableLora(f"it has {status.st_size >> 20} MiB, and {most}", "use another")
            head = heads.read(file)
            file.seek(0)
            return file.read(status.st_size), head
    except OSError as error:
        raise UnusableLora(f"it cannot be read ({error})", "name a .safetensors file") from error


def _plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:200]


def _written(pairs: Mapping[str, Pair], about: Mapping[str, str]) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    for module, (a, b) in pairs.items():
        tensors[f"{module}.lora_A.weight"] = a.contiguous().clone()
        tensors[f"{module}.lora_B.weight"] = b.contiguous().clone()
    plain = save(tensors)
    values = plain[8 + int.from_bytes(plain[:8], "little") :]
    digest = hashlib.sha256(values).hexdigest()
    return save(tensors, {**about, VALUES: digest})
