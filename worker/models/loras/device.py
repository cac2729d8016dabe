"""Adapters on the device: the last used ones within their room. Imports torch.

What a drawing holds is the open file: an adapter may leave the device between two of its steps and
come back, and a file that is deleted meanwhile is still there for it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO
from weakref import WeakValueDictionary, finalize

import torch

from worker.errors import DrawingFailed
from worker.models.loras.conversion import DTYPES, Pair
from worker.models.loras.folder import StoredLora
from worker.models.loras.head import Head, UnusableLora, read
from worker.models.loras.shelf import LoraShelf
from worker.types import Lora


@dataclass(frozen=True, eq=False)
class OnDevice:
    """One adapter: A and B by module, in the model's dtype. ``key``: the SHA-256 of its file."""

    key: str
    pairs: Mapping[str, Pair]
    bytes: int


@dataclass(eq=False)
class LoraFile:
    """An adapter that some drawing needs, whose values are those that were added."""

    lora: StoredLora
    bytes: int
    head: Head
    file: BinaryIO

    def __post_init__(self) -> None:
        finalize(self, self.file.close)  # once nobody holds this

    def values(self) -> bytearray:
        """All of them."""
        self.file.seek(self.head.bytes)
        return bytearray(self.file.read())


class DeviceLoras:
    """Has ``placed`` what a step needs: at most ``room_bytes`` stay, the least recently used go
    first. Of the thread that draws alone."""

    def __init__(self, shelf: LoraShelf, device: torch.device, dtype: torch.dtype) -> None:
        self.room_bytes = shelf.room_bytes
        self.shelf = shelf
        self._device, self._dtype = device, dtype
        self._files: WeakValueDictionary[str, LoraFile] = WeakValueDictionary()
        self._placed: OrderedDict[str, OnDevice] = OrderedDict()

    def opened(self, asked: Sequence[Lora]) -> tuple[LoraFile, ...]:
        """The files of ``asked``, for a drawing to hold. Raises ``InvalidRequest`` where they are
        not here any more, ``DrawingFailed`` where they are spoilt."""
        self.shelf.require(asked)
        return tuple(self._opened(lora) for lora in asked)

    def placed(self, files: Iterable[LoraFile]) -> dict[LoraFile, OnDevice]:
        """All of them on the device. Together they must have room."""
        wanted = dict.fromkeys(files)
        keys = {file.lora.sha256 for file in wanted}
        found = {}
        for file in wanted:
            key = file.lora.sha256
            if key not in self._placed:
                self._make_room(self.room_bytes - file.bytes, keys)
                self._placed[key] = self._loaded(file, keys)
            self._placed.move_to_end(key)
            found[file] = self._placed[key]
        return found

    @property
    def used_bytes(self) -> int:
        """Of the device."""
        return sum(each.bytes for each in self._placed.values())

    def _opened(self, asked: Lora) -> LoraFile:
        known = self._files.get(asked.sha256)
        if known is None:
            try:
                known = self._checked(self.shelf.named(asked.name))
            except UnusableLora as error:
                raise DrawingFailed(f"Adapter {asked.name} cannot be used: {error}.") from error
            self._files[asked.sha256] = known
        return known

    def _checked(self, lora: StoredLora) -> LoraFile:
        file = lora.open()
        try:
            head = read(file)
        except UnusableLora:
            file.close()
            raise
        opened = LoraFile(lora, self.shelf.bytes_of(lora), head, file)
        if hashlib.sha256(opened.values()).hexdigest() != lora.values_sha256:
            raise UnusableLora("its values are not those that were added", "add it again")
        return opened

    def _make_room(self, most_bytes: int, keep: Iterable[str]) -> None:
        for key in [key for key in self._placed if key not in keep]:
            if self.used_bytes <= most_bytes:
                break
            del self._placed[key]

    def _loaded(self, file: LoraFile, keep: Iterable[str]) -> OnDevice:
        try:
            return self._on_device(file)
        except torch.OutOfMemoryError:
            pass  # outside, for the exception holds memory
        self._make_room(0, keep)
        return self._on_device(file)

    def _on_device(self, file: LoraFile) -> OnDevice:
        values = file.values()

        def tensor(name: str) -> torch.Tensor:
            about = file.head.tensors[name]
            plain = torch.frombuffer(
                values, dtype=DTYPES[about.dtype], count=about.elements, offset=about.begin
            )
            return plain.view(about.shape).to(self._device, self._dtype)

        pairs = {
            module: Pair(tensor(f"{module}.lora_A.weight"), tensor(f"{module}.lora_B.weight"))
            for module in file.lora.shapes
        }
        return OnDevice(file.lora.sha256, pairs, file.bytes)
