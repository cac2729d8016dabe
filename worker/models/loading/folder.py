"""What a diffusers folder says of itself, read without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ModelLoadError(Exception):
    """The model cannot be loaded: what is wrong, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.what = what
        self.remedy = remedy


@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say. ``size`` (width, height); None: ask the model."""

    id: str
    steps: int
    guidance_scale: float
    size: tuple[int, int] | None


_Side = Annotated[int, Field(ge=16)]


class _Stated(BaseModel):
    """``zimage.json``, by which a folder states its own defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = Field(None, min_length=1)
    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    size: tuple[_Side, _Side] | None = None


def class_of(folder: Path) -> str:
    """Name of the pipeline's class; raises ``ModelLoadError`` for what is no diffusers folder."""
    if not folder.is_dir():
        raise ModelLoadError(f"model folder {folder} does not exist", "check `model`")
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelLoadError(
            f"{folder} has no model_index.json",
            "name a folder in diffusers' layout, as DiffusionPipeline.save_pretrained writes it",
        )
    name = _json(index).get("_class_name")
    if not isinstance(name, str):
        raise ModelLoadError(
            f"{index} asks for code of its own ({name})",
            "such code is never run; use a pipeline that is part of diffusers",
        )
    return name


def defaults_of_folder(folder: Path, fallback: Defaults) -> Defaults:
    """``fallback``, and above it what ``zimage.json`` states."""
    path = folder / "zimage.json"
    if not path.is_file():
        return fallback
    try:
        stated = _Stated.model_validate(_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ModelLoadError(f"{path}: {field}: {first['msg']}", "correct or remove it") from error
    return Defaults(**vars(fallback) | stated.model_dump(exclude_none=True))


def scheduler_shift(folder: Path) -> float | None:
    """``shift`` of the scheduler's configuration, if it has one."""
    path = folder / "scheduler" / "scheduler_config.json"
    shift = _json(path).get("shift") if path.is_file() else None
    return shift if isinstance(shift, int | float) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error})", "copy the model again") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is no JSON object", "copy the model again")
    return value
