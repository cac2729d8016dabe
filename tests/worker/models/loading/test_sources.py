import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline

from tests.worker.models.conftest import CPU, close, draw, spec
from worker.models.base import Pipeline
from worker.models.loading import hub, sources
from worker.models.loading import load as loading
from worker.models.loading.folder import Defaults, ModelLoadError
from worker.models.loading.random_zimage import TURBO
from worker.models.loading.sources import TINY, defaults_of, load
from worker.models.synthetic import SyntheticPipeline
from worker.models.whole import WholeCall
from worker.models.zimage.pipeline import ZImageStepwise
from worker.settings import Settings


@pytest.fixture(scope="session")
def diffusion_folder(stable_diffusion: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "diffusion"
    stable_diffusion.save_pretrained(folder)
    return folder


@pytest.fixture
def stated_folder(zimage_folder: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(zimage_folder, tmp_path / "stated")
    stated = {"id": "ours", "steps": 3, "guidance_scale": 1.5, "size": [96, 64]}
    (folder / "zimage.json").write_text(json.dumps(stated))
    return folder


@pytest.mark.parametrize(
    ("folder", "id"),
    [
        ("models--Tongyi-MAI--Z-Image-Turbo/snapshots/04cc4abb7c5069926f75c9bfde9ef43d49423021",
         "Tongyi-MAI/Z-Image-Turbo"),
        ("posters/2026-11-30", "posters"),
        ("posters/v2.1", "posters"),
        ("posters", "posters"),
    ],
)  # fmt: skip
def test_a_folder_is_called_after_the_model_not_its_version(
    zimage_folder: Path, tmp_path: Path, folder: str, id: str
) -> None:
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(zimage_folder, tmp_path / folder)
    assert defaults_of(str(tmp_path / folder)).id == id


def loaded(model: Path | str, **settings: Any) -> Pipeline:
    return load(Settings(model=str(model), **settings))


def test_tiny_draws_what_diffusers_draws() -> None:
    pipeline = loaded("tiny")
    wanted = spec("a large red circle on a white background", width=128, height=96, seed=3)
    image = ZImagePipeline.from_pretrained(str(TINY), dtype=torch.float32)(
        wanted.prompt,
        width=128,
        height=96,
        num_inference_steps=4,
        guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    specs = [wanted, spec("一个蓝色的星形", width=128, height=96)]
    assert close(draw(pipeline, *specs)[0], np.asarray(image))
    assert (pipeline.info.default_steps, pipeline.info.default_size) == (8, (256, 256))


def test_a_zimage_folder_steps_singly(zimage_folder: Path, small_zimage: Any) -> None:
    pipeline = loaded(zimage_folder)
    assert isinstance(pipeline, ZImageStepwise)
    again = loading.adapted(small_zimage, defaults_of(str(zimage_folder)), 1 << 20)
    assert close(draw(pipeline, spec())[0], draw(again, spec())[0])


def test_another_folder_runs_in_whole_calls(diffusion_folder: Path) -> None:
    pipeline = loaded(diffusion_folder)
    assert isinstance(pipeline, WholeCall)
    assert draw(pipeline, spec())[0].shape == (64, 64, 3)


def test_a_copy_of_turbo_has_turbos_defaults(zimage_folder: Path) -> None:
    assert defaults_of(str(zimage_folder)) == Defaults("small", 8, 0.0, (1024, 1024))


def test_another_zimage_has_its_class_defaults(zimage_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(zimage_folder, tmp_path / "base")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 6.0}')
    assert defaults_of(str(folder)) == Defaults("base", 50, 5.0, None)


def test_a_class_states_its_defaults(diffusion_folder: Path) -> None:
    assert defaults_of(str(diffusion_folder)) == Defaults("diffusion", 50, 7.5, None)


def test_a_folder_states_its_own_defaults(stated_folder: Path) -> None:
    info = loaded(stated_folder).info
    assert (info.id, info.default_steps, info.default_size) == ("ours", 3, (96, 64))
    assert info.default_guidance_scale == 1.5


def test_settings_win_over_the_models_defaults(stated_folder: Path) -> None:
    info = loaded(stated_folder, steps=5, guidance_scale=0.0, max_pixels=64 * 64).info
    assert (info.default_steps, info.default_guidance_scale) == (5, 0.0)
    assert info.default_size == (64, 48)


def test_the_models_dtype_can_be_set(zimage_folder: Path) -> None:
    pipeline = loaded(zimage_folder, dtype="bfloat16")
    assert pipeline.info.dtype == "bfloat16"
    assert draw(pipeline, spec())[0].std() > 0


@pytest.mark.parametrize(
    ("source", "defaults"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", Defaults("Tongyi-MAI/Z-Image-Turbo", 8, 0.0, (1024, 1024))),
        ("random:z-image-turbo", Defaults("random-z-image-turbo", 8, 0.0, (1024, 1024))),
        ("someone/something", Defaults("someone/something", 28, 4.0, None)),
        ("synthetic:step_ms=1", Defaults("synthetic", 8, 0.0, (256, 256))),
    ],
)
def test_defaults_are_known_without_loading(source: str, defaults: Defaults) -> None:
    assert defaults_of(source) == defaults


@pytest.mark.parametrize(
    "source", ["Tongyi-MAI/Z-Image-Turbo", "modelscope:Tongyi-MAI/Z-Image-Turbo"]
)
def test_a_hub_model_is_loaded_from_where_it_was_downloaded(
    zimage_folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(hub, "found", lambda *_: zimage_folder)
    info = loaded(source).info
    assert (info.id, info.default_size) == ("Tongyi-MAI/Z-Image-Turbo", (1024, 1024))


def test_random_weights_have_turbos_defaults(
    small_zimage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []

    def build(*arguments: Any) -> Any:
        built.append(arguments)
        return small_zimage

    monkeypatch.setattr(loading, "random_zimage", build)
    info = loaded("random:z-image-turbo").info
    assert built[0][:2] == (TURBO, CPU)
    assert (info.default_steps, info.default_size) == (8, (1024, 1024))


def test_synthetic_needs_no_torch() -> None:
    code = (
        "import sys; from worker.models.loading.sources import load; "
        "from worker.settings import Settings; load(Settings(model='synthetic:')); "
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_synthetic_options_reach_it() -> None:
    pipeline = loaded("synthetic:step_ms=1")
    assert isinstance(pipeline, SyntheticPipeline)
    assert pipeline.options["step_ms"] == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("big", "model 'big' is unknown: give tiny, a folder"),
        ("random:flux", "model 'random:flux' is unknown"),
        ("./gone", "gone does not exist: check `model`"),
        ("/gone/for/ever", "/gone/for/ever does not exist: check `model`"),
        ("synthetic:speed=9", "unknown option 'speed'; known: step_ms"),
        ("synthetic:step_ms=fast", "synthetic:step_ms=fast.*could not convert"),
    ],
)
def test_wrong_sources_are_refused_by_load_and_by_defaults(source: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        loaded(source)
    with pytest.raises(ModelLoadError, match=message):
        defaults_of(source)


def test_a_class_that_diffusers_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NextYearPipeline"}')
    with pytest.raises(ModelLoadError, match="has no NextYearPipeline: install a newer diffusers"):
        loaded(tmp_path)


def test_a_missing_tiny_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TINY", tmp_path / "weights")
    with pytest.raises(ModelLoadError, match="weights does not exist"):
        loaded("tiny")
