"""The head of a ``.safetensors`` file: names, types and shapes, read within bounds before values.

https://huggingface.co/docs/safetensors: eight bytes of length, so much JSON, the values.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import orjson

MAX_HEAD_BYTES = 4 << 20
MAX_TENSORS = 8192
MAX_RANK = 256
MAX_ELEMENTS = 1 << 28
"""Of one adapter, all tensors together: rank 100 for every layer of Z-Image."""
MAX_FILE_BYTES = MAX_HEAD_BYTES + 4 * MAX_ELEMENTS
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4}
_VALUES = re.compile(r"(\.|_)lora(_|\.)([AB]|up|down)(\.[a-z0-9_]+)?\.weight$|(^|\.)alpha$")
_OTHER_KINDS = (
    (re.compile(r"dora_scale|lora_magnitude"), "a DoRA"),
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.hada_"), "a LoHa"),
    (re.compile(r"\.oft_|\.boft_"), "an OFT"),
    (re.compile(r"^(text_encoder|lora_te)"), "an adapter of a text encoder"),
    (re.compile(r"\.diff(_b)?$"), "one with whole weights in it"),
)


class UnusableLora(Exception):
    """Why a file is no adapter to draw with, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy


@dataclass(frozen=True)
class Tensor:
    """What the head says of one."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Head:
    """``bytes``: where the values begin; ``metadata`` is what the file's maker wrote into it."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    bytes: int


_COPY = "copy or download it again"


def read(file: BinaryIO) -> Head:
    """The head of ``file``, which is open at its beginning, checked against the bounds above and
    against the file's size; raises ``UnusableLora``."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise UnusableLora("it is no whole .safetensors file", _COPY)
    if length > MAX_HEAD_BYTES:
        raise UnusableLora(
            f"its head has {length} bytes, and {MAX_HEAD_BYTES} are read", "it is no adapter"
        )
    head = _parsed(file.read(length), 8 + length)
    _check(head, size)
    return head


def _parsed(text: bytes, begin: int) -> Head:
    try:
        said = orjson.loads(text)
        metadata = said.pop("__metadata__", {})
        tensors = {
            name: Tensor(about["dtype"], tuple(about["shape"]), *about["data_offsets"])
            for name, about in said.items()
        }
        whole = all(
            type(number) is int and number >= 0
            for tensor in tensors.values()
            for number in (*tensor.shape, tensor.begin, tensor.end)
        )
        if not (whole and all(isinstance(text, str) for text in metadata.values())):
            raise ValueError("a number is none")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnusableLora("its head is no safetensors head", _COPY) from error
    return Head(tensors, metadata, begin)


def _check(head: Head, size: int) -> None:
    tensors = head.tensors
    if len(tensors) > MAX_TENSORS:
        raise UnusableLora(
            f"it has {len(tensors)} tensors, and {MAX_TENSORS} are read", "it is no adapter"
        )
    elements = sum(tensor.elements for tensor in tensors.values())
    if elements > MAX_ELEMENTS:
        raise UnusableLora(
            f"it has {elements:,} values, and {MAX_ELEMENTS:,} are read",
            "use one of a smaller rank",
        )
    for name, tensor in tensors.items():
        _check_tensor(name[:200], tensor, size - head.bytes)
    if not any(len(tensor.shape) == 2 for tensor in tensors.values()):
        raise UnusableLora("there is nothing of a LoRA in it", "name a LoRA's .safetensors file")


def _check_tensor(name: str, tensor: Tensor, room: int) -> None:
    for pattern, kind in _OTHER_KINDS:
        if pattern.search(name):
            raise UnusableLora(f"it is {kind} ({name})", "only LoRAs of the transformer are used")
    if not _VALUES.search(name):
        raise UnusableLora(f"{name} is nothing of a LoRA", "name a LoRA's .safetensors file")
    if tensor.dtype not in _ITEM_BYTES:
        raise UnusableLora(
            f"{name} is {tensor.dtype[:20]}", "use a copy in F32, F16 or BF16 (save it again so)"
        )
    length = tensor.end - tensor.begin
    if length != tensor.elements * _ITEM_BYTES[tensor.dtype] or tensor.end > room:
        raise UnusableLora(f"{name} does not lie where its head says", _COPY)
    if tensor.elements == 1 and len(tensor.shape) < 2:
        return  # an alpha
    if len(tensor.shape) != 2:
        raise UnusableLora(
            f"{name} has {len(tensor.shape)} dimensions", "only LoRAs of linear layers are used"
        )
    if min(tensor.shape) < 1 or min(tensor.shape) > MAX_RANK:
        raise UnusableLora(
            f"{name} has rank {min(tensor.shape)}, and 1 to {MAX_RANK} are used",
            "use one of a smaller rank",
        )
