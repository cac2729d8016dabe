"""What was measured of a batch: written by workers, read by commands that never load torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One number of rows at one size (width, height). Seconds are medians; bytes are None without
    a GPU."""

    size: tuple[int, int]
    rows: int
    encode_s: float
    step_s: float
    decode_s: float
    peak_bytes: int | None

    def picture_s(self, steps: int) -> float:
        """Seconds of one picture of a batch like this."""
        return (self.encode_s + steps * self.step_s + self.decode_s) / self.rows
