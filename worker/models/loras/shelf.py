"""The adapters that a loaded model can draw with, as they are in the folder now."""

from collections.abc import Mapping, Sequence

from worker.errors import InvalidRequest, UnknownLora
from worker.models.loras.folder import LoraFolder, StoredLora
from worker.types import Lora

MAX_LORAS = 4
"""Of one drawing."""
MAX_SCALE = 4.0
"""Either way: below 0, an adapter takes away what it has learnt."""
_MIB = 1 << 20


class LoraShelf:
    """``layers``: inputs and outputs of the model's layers; None: any adapter fits. A drawing's
    adapters may have ``room_bytes``, of values of ``value_bytes`` each. From any thread."""

    def __init__(
        self,
        folder: LoraFolder,
        layers: Mapping[str, tuple[int, int]] | None = None,
        room_bytes: int = 1 << 30,
        value_bytes: int = 2,
    ) -> None:
        self._folder = folder
        self._layers = layers
        self.room_bytes = room_bytes
        self._value_bytes = value_bytes
        self._fitting: dict[tuple[str, str], bool] = {}

    def of_model(self, layers: Mapping[str, tuple[int, int]], value_bytes: int) -> "LoraShelf":
        """The same folder and room, for a model that is loaded now."""
        return LoraShelf(self._folder, layers, self.room_bytes, value_bytes)

    @property
    def stored_bytes(self) -> int:
        """What all of them would take, and at most the room."""
        return min(self.room_bytes, sum(map(self.bytes_of, self.all().values())))

    def all(self) -> dict[str, StoredLora]:
        """Those that fit the model, by name."""
        return {name: lora for name, lora in self._folder.all().items() if self._fits(lora)}

    def named(self, name: str) -> StoredLora:
        """Raises ``UnknownLora``."""
        lora = self._folder.all().get(name)
        if lora is None or not self._fits(lora):
            raise UnknownLora(name)
        return lora

    def bytes_of(self, lora: StoredLora) -> int:
        """What it takes of the device."""
        return lora.elements * self._value_bytes

    def require(self, loras: Sequence[Lora]) -> None:
        """Raise ``InvalidRequest`` unless each is here, is the same file, and all have room."""
        needed = 0
        for lora in loras:
            stored = self.named(lora.name)
            if stored.sha256 != lora.sha256:
                raise InvalidRequest(
                    f"lora: {lora.name} is another file here now (SHA-256 {stored.sha256[:12]}…, "
                    f"asked for {lora.sha256[:12]}…): leave sha256 out to take it.",
                    param="lora",
                )
            needed += self.bytes_of(stored)
        if needed > self.room_bytes:
            raise InvalidRequest(
                f"lora: together they take {needed // _MIB} MiB, and {self.room_bytes // _MIB} "
                "MiB are kept for adapters: use fewer.",
                param="lora",
            )

    def _fits(self, lora: StoredLora) -> bool:
        layers = self._layers
        if layers is None:
            return True
        key = lora.sha256, lora.values_sha256  # hundreds of layers are compared once
        if key not in self._fitting:
            self._fitting[key] = all(layers.get(n) == shape for n, shape in lora.shapes.items())
        return self._fitting[key]
