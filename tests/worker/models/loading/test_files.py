import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.worker.models.conftest import draw, spec
from worker.models.loading.files import files_of, flaws, variant_of
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.sources import TINY, load
from worker.settings import Settings

_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.fixture
def folder(zimage_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(zimage_folder, tmp_path / "model")


@pytest.fixture
def in_shards(small_zimage: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    small_zimage.save_pretrained(folder, max_shard_size="200KB")
    return folder


def cut(path: Path, by: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def stated(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def said(folder: Path) -> list[str]:
    return [f"{flaw.what}: {flaw.remedy}".replace(f"{folder}/", "") for flaw in flaws(folder)]


def as_variant(folder: Path, *parts: str, variant: str = "fp16") -> None:
    """Gives the weights of ``parts`` the names that a variant has."""
    for part in parts:
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(f".{variant}.safetensors"))


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SPOILT: list[tuple[Callable[[Path], Any], str]] = [
    (
        lambda f: (f / WEIGHTS).write_text(_POINTER),
        f"{WEIGHTS} is a pointer of Git LFS, not the file itself: run `git lfs pull`",
    ),
    (
        lambda f: (f / "tokenizer/tokenizer.json").write_text(_POINTER),
        "tokenizer/tokenizer.json is a pointer of Git LFS",
    ),
    (lambda f: (f / "vae/config.json").write_text(_POINTER), "vae/config.json is a pointer"),
    (lambda f: (f / "model_index.json").write_text(_POINTER), "model_index.json is a pointer"),
    (lambda f: cut(f / WEIGHTS), f"{WEIGHTS} is cut or damaged"),
    (lambda f: (f / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is empty"),
    (lambda f: (f / WEIGHTS).unlink(), "transformer has no weights"),
    (lambda f: cut(f / "vae/config.json", 3), "vae/config.json cannot be read"),
    (lambda f: (f / "vae/config.json").unlink(), "vae/config.json is missing"),
    (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "tokenizer has no vocabulary"),
    (lambda f: shutil.rmtree(f / "text_encoder"), "text_encoder is missing, which model_index"),
    (
        lambda f: stated(f / "model_index.json", _class_name="NextYearPipeline"),
        "the pipeline is a NextYearPipeline, which the installed diffusers lacks",
    ),
    (
        lambda f: stated(f / "model_index.json", vae=["diffusers", "NextYearVae"]),
        "vae is a NextYearVae, which the installed diffusers lacks: install a newer diffusers",
    ),
    (
        lambda f: stated(f / "model_index.json", _class_name=["pipeline", "Own"]),
        "asks for code of its own",
    ),
    (
        lambda f: stated(f / "transformer/config.json", quantization_config={"bits": 4}),
        "transformer/config.json: quantization_config names no quant_method",
    ),
    (
        lambda f: stated(
            f / "text_encoder/config.json", quantization_config={"quant_method": "aqlm"}
        ),
        "quantised by aqlm, and aqlm is not installed: install aqlm into .venv, or name a copy",
    ),
    (
        lambda f: stated(
            f / "transformer/config.json", quantization_config={"quant_method": "nextyear"}
        ),
        "quantised by nextyear, which is unknown: name a copy of the model that is not quantised",
    ),
]


@pytest.mark.parametrize(("spoil", "text"), SPOILT, ids=[text[:40] for _, text in SPOILT])
def test_what_cannot_be_loaded_is_said(
    folder: Path, spoil: Callable[[Path], Any], text: str
) -> None:
    assert said(folder) == []
    spoil(folder)
    (line,) = said(folder)
    assert text in line
    with pytest.raises(ModelLoadError):
        load(Settings(model=str(folder)))


def test_the_shipped_model_and_one_in_shards_are_whole(in_shards: Path) -> None:
    assert flaws(TINY) == []
    assert flaws(in_shards) == []
    assert len(list((in_shards / "transformer").glob("*-of-*"))) > 1


def test_missing_and_cut_shards_are_named(in_shards: Path) -> None:
    first, second, *_ = sorted((in_shards / "transformer").glob("*-of-*"))
    first.unlink()
    cut(second)
    missing, damaged = said(in_shards)
    assert "transformer lacks 1 of" in missing
    assert first.name in missing
    assert f"transformer/{second.name} is cut or damaged" in damaged


def test_shards_without_their_index_are_named(in_shards: Path) -> None:
    (index,) = (in_shards / "transformer").glob("*.index.json")
    index.unlink()
    assert "and no index of such files" in said(in_shards)[0]


def test_what_only_loading_can_tell_is_left_to_it(folder: Path) -> None:
    method = {"quant_method": "fp8"}
    stated(folder / "transformer/config.json", quantization_config=method)
    stated(folder / "model_index.json", tokenizer=["transformers", "ByT5Tokenizer"])
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "guider").mkdir()
    (folder / "guider/guider_config.json").write_text("{}", "utf-8")
    stated(folder / "model_index.json", guider=["own", "Guider"])
    assert flaws(folder) == []


def test_a_pipeline_that_is_no_zimage_is_whole(stable_diffusion: Any, tmp_path: Path) -> None:
    """Its parts that are left out, and its classes' other names, are no flaws."""
    stable_diffusion.save_pretrained(tmp_path)
    assert flaws(tmp_path) == []


def test_weights_that_are_there_as_a_variant_only_are_loaded(folder: Path) -> None:
    wanted = draw(load(Settings(model=str(folder))), spec())[0]
    as_variant(folder, "transformer", "text_encoder")
    assert flaws(folder) == []
    assert (draw(load(Settings(model=str(folder))), spec())[0] == wanted).all()


def test_plain_weights_go_before_a_variant(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "transformer/diffusion_pytorch_model.fp16.safetensors")
    assert variant_of(files_of(folder)) is None


def test_of_two_whole_variants_the_better_is_loaded(folder: Path) -> None:
    as_variant(folder, "transformer", variant="fp16")
    fp16 = folder / "transformer/diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(fp16, fp16.with_name("diffusion_pytorch_model.bf16.safetensors"))
    assert variant_of(files_of(folder)) == "bf16"


def test_variants_that_do_not_fit_each_other_are_told(folder: Path) -> None:
    as_variant(folder, "transformer", variant="fp16")
    as_variant(folder, "vae", variant="bf16")
    assert "has only" in said(folder)[0]
    assert "download the variant that you want whole" in said(folder)[0]


def test_a_variant_in_shards_is_loaded(small_zimage: Any, tmp_path: Path) -> None:
    small_zimage.save_pretrained(tmp_path, max_shard_size="200KB", variant="fp16")
    assert flaws(tmp_path) == []
    found = DiffusionPipeline.from_pretrained(
        str(tmp_path), variant=variant_of(files_of(tmp_path)), dtype=torch.float32
    )
    assert type(found).__name__ == "ZImagePipeline"
