import json
from pathlib import Path
from typing import Any

import pytest

from worker.models.loading.folder import Defaults, ModelLoadError, class_of, defaults_of_folder

FALLBACK = Defaults("folder", steps=28, guidance_scale=4.0, size=None)


def write(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_the_class_is_what_the_index_says(tmp_path: Path) -> None:
    write(tmp_path, "model_index.json", {"_class_name": "ZImagePipeline"})
    assert class_of(tmp_path) == "ZImagePipeline"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "has no model_index.json: name a folder in diffusers' layout"),
        ("{", "cannot be read .*: copy the model again"),
        ("[]", "is no JSON object: copy the model again"),
        ({}, r"asks for code of its own \(None\)"),
        ({"_class_name": ["pipeline", "Own"]}, "code of its own .*: such code is never run"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, index: Any, message: str) -> None:
    if index is not None:
        write(tmp_path, "model_index.json", index)
    with pytest.raises(ModelLoadError, match=message):
        class_of(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="gone does not exist: check `model`"):
        class_of(tmp_path / "gone")


def test_a_folder_states_its_defaults(tmp_path: Path) -> None:
    stated = {"id": "ours", "steps": 8, "guidance_scale": 0.0, "size": [256, 128]}
    write(tmp_path, "zimage.json", stated)
    assert defaults_of_folder(tmp_path, FALLBACK) == Defaults("ours", 8, 0.0, (256, 128))


def test_what_is_not_stated_falls_back(tmp_path: Path) -> None:
    write(tmp_path, "zimage.json", {"steps": 8})
    assert defaults_of_folder(tmp_path, FALLBACK) == Defaults("folder", 8, 4.0, None)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"step": 8}, "zimage.json: step: Extra inputs are not permitted"),
        ({"steps": 0}, "zimage.json: steps: Input should be greater than or equal to 1"),
        ({"size": [0, 64]}, "zimage.json: size.0: Input should be greater than or equal to 16"),
    ],
)
def test_wrong_statements_are_refused(tmp_path: Path, stated: Any, message: str) -> None:
    write(tmp_path, "zimage.json", stated)
    with pytest.raises(ModelLoadError, match=message):
        defaults_of_folder(tmp_path, FALLBACK)
