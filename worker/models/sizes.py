"""Sizes that a model can draw."""

from worker.errors import InvalidRequest
from worker.models.base import ModelInfo
from worker.types import DrawSpec


def check_sides(spec: DrawSpec, info: ModelInfo, max_side: int | None = None) -> None:
    """Raise ``InvalidRequest`` unless both sides suit the model."""
    for name, side in (("width", spec.parameters.width), ("height", spec.parameters.height)):
        if side % info.side_multiple:
            raise InvalidRequest(
                f"{name} {side} is not a multiple of {info.side_multiple}; "
                f"try {max(info.min_side, round(side / info.side_multiple) * info.side_multiple)}.",
                param="size",
            )
        if side < info.min_side:
            raise InvalidRequest(f"{name} {side} is under {info.min_side}.", param="size")
        if max_side is not None and side > max_side:
            raise InvalidRequest(f"{name} {side} is over {max_side}.", param="size")


def fitted(size: tuple[int, int], max_pixels: int, multiple: int) -> tuple[int, int]:
    """``size`` (width, height), shrunk in proportion where it is over ``max_pixels``."""
    width, height = size
    scale = min(1.0, (max_pixels / (width * height)) ** 0.5)
    return _floor(width * scale, multiple), _floor(height * scale, multiple)


def _floor(side: float, multiple: int) -> int:
    return max(multiple, int(side) // multiple * multiple)
