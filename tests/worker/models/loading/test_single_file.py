import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.models.conftest import CPU, SMALL, draw, spec
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.random_zimage import random_zimage
from worker.models.loading.sources import TINY, load
from worker.settings import Settings

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same sizes, with a transformer of other weights than ``zimage_folder`` has."""
    folder = tmp_path_factory.mktemp("models") / "base"
    random_zimage(SMALL, CPU, torch.float32, seed=7).save_pretrained(folder)
    return folder


@pytest.fixture
def file(zimage_folder: Path, base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(zimage_folder / TRANSFORMER, tmp_path / "poster.safetensors"))


def as_its_authors_have_it(weights: Weights) -> Weights:
    """Z-Image's own names, as files for ComfyUI have them, too."""
    names = {
        "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
        ".attention.to_out.0.weight": ".attention.out.weight",
        ".attention.norm_k.weight": ".attention.k_norm.weight",
        ".attention.norm_q.weight": ".attention.q_norm.weight",
    }
    told: Weights = {}
    for name, weight in weights.items():
        if ".attention.to_q." in name:
            parts = [weights[name.replace("to_q", f"to_{each}")] for each in "qkv"]
            told[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            told[name] = weight
    return {f"model.diffusion_model.{name}": weight for name, weight in told.items()}


def drawn(model: Path, base: Path | None = None) -> Any:
    pipeline = load(Settings(model=str(model), base=str(base or "")))
    return pipeline.info.id, draw(pipeline, spec("a red star"))[0]


@pytest.mark.parametrize("form", [dict, as_its_authors_have_it])
def test_the_transformer_comes_from_the_file_and_all_else_from_the_base(
    file: Path, base: Path, zimage_folder: Path, form: Callable[[Weights], Weights], tmp_path: Path
) -> None:
    save_file(form(load_file(file)), file)
    whole = shutil.copytree(base, tmp_path / "whole")
    shutil.copy(zimage_folder / TRANSFORMER, whole / TRANSFORMER)
    id, picture = drawn(file, base)
    assert id == "poster"
    assert np.array_equal(picture, drawn(whole)[1])
    assert not np.array_equal(picture, drawn(base)[1])


def test_the_unet_of_other_pipelines_comes_from_the_file(
    stable_diffusion: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    stable_diffusion.save_pretrained(base)
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    file = Path(shutil.copy(weights, tmp_path / "poster.safetensors"))
    expected = drawn(base)[1]
    save_file({name: torch.zeros_like(each) for name, each in load_file(weights).items()}, weights)
    assert not np.array_equal(drawn(base)[1], expected)
    assert np.array_equal(drawn(file, base)[1], expected)


def renamed(beginning: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{beginning}{name}": each for name, each in weights.items()}


def with_one_more(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: torch.ones(1)}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            with_one_more("layers.0.attention.qkv.scale_weight"),
            "scaled to 8 bits in a way of their",
        ),
        (with_one_more("scaled_fp8"), 'model.fp8 = "transformer" makes 8 bits of it here'),
        (with_one_more("first_stage_model.decoder.conv_in.weight"), "is a whole checkpoint"),
        (renamed("lora_unet_"), "is an adapter"),
        (lambda weights: dict(list(weights.items())[:-3]), "is no ZImageTransformer2DModel of the"),
        (
            lambda weights: (
                weights
                | {
                    n.replace("layers.0", "layers.9"): w.clone()
                    for n, w in weights.items()
                    if n.startswith("layers.0")
                }
            ),
            "of the sizes that .* has: name in model.base the model that it was made from",
        ),
    ],
)
def test_a_file_that_cannot_be_drawn_with_is_refused(
    file: Path, base: Path, form: Callable[[Weights], Weights], said: str
) -> None:
    save_file(form(load_file(file)), file)
    with pytest.raises(ModelLoadError, match=said):
        drawn(file, base)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.safetensors", "does not exist"),
        ("poster.ckpt", "pickled code, which is never run: name a .safetensors"),
        ("poster.gguf", "GGUF is not read here"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, base: Path, name: str, said: str
) -> None:
    if name != "gone.safetensors":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=said):
        drawn(tmp_path / name, base)


def test_a_cut_file_is_refused(file: Path, base: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelLoadError, match="is cut or damaged"):
        drawn(file, base)


def test_a_file_without_a_base_is_refused(file: Path) -> None:
    with pytest.raises(ModelLoadError, match="name in base the model that it was made from"):
        drawn(file)


def test_a_base_of_other_sizes_is_refused(file: Path) -> None:
    with pytest.raises(ModelLoadError, match="of the sizes that"):
        drawn(file, TINY)
