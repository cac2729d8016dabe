import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, ZImagePipeline

from tests.worker.models.conftest import DEFAULTS
from worker.models.loading import load as loading
from worker.models.loading.device import claim_device, dtype_for, memory_fraction
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.load import adapted, load
from worker.models.memory import GIB
from worker.models.whole import WholeCall
from worker.models.zimage.pipeline import ZImageStepwise
from worker.settings import Settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("scheduler", ["heun", "stochastic"])
def test_a_scheduler_with_other_steps_runs_in_whole_calls(
    small_zimage: Any, scheduler: str
) -> None:
    plain = small_zimage.scheduler
    other = (
        FlowMatchHeunDiscreteScheduler()
        if scheduler == "heun"
        else type(plain).from_config(plain.config, stochastic_sampling=True)
    )
    pipeline = ZImagePipeline(**small_zimage.components | {"scheduler": other})
    assert isinstance(adapted(pipeline, DEFAULTS, 1 << 20), WholeCall)
    assert isinstance(adapted(small_zimage, DEFAULTS, 1 << 20), ZImageStepwise)


def test_the_default_size_fits_max_pixels(small_zimage: Any) -> None:
    assert adapted(small_zimage, DEFAULTS, 32 * 32).info.default_size == (32, 32)


def test_a_model_without_size_says_its_own(stable_diffusion: Any) -> None:
    sizeless = type(DEFAULTS)("sd", steps=28, guidance_scale=4.0, size=None)
    assert adapted(stable_diffusion, sizeless, 1 << 20).info.default_size == (64, 64)


def test_auto_is_float32_on_the_cpu_and_bfloat16_on_a_gpu() -> None:
    assert dtype_for("auto", CPU) == torch.float32
    assert dtype_for("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert dtype_for("float16", CPU) == torch.float16


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "GPU-", "1"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="is unknown: give cpu, cuda:N, GPU-… or MIG-…"):
        claim_device(name)


@pytest.mark.parametrize("name", ["cuda:1", "cuda", "GPU-8a6c1d", "MIG-8a6c-1d/1/0"])
def test_without_cuda_a_gpu_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelLoadError, match=r"CUDA is not available .* set device to cpu"):
        claim_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelLoadError, match="device cuda:2: only 2 visible: see nvidia-smi"):
        claim_device("cuda:2")


def test_the_memory_limit_includes_the_context() -> None:
    assert memory_fraction(41.0, 80 * GIB) == 0.5


@pytest.mark.parametrize("limit_gib", [1.0, 90.0])
def test_a_limit_that_no_card_has_is_refused(limit_gib: float) -> None:
    with pytest.raises(ModelLoadError, match="does not suit a card of 80"):
        memory_fraction(limit_gib, 80 * GIB)


def test_a_folder_without_weights_is_refused(zimage_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(zimage_folder, tmp_path / "broken")
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"broken cannot be loaded .* copy or download it"):
        load(broken, DEFAULTS, Settings(model=str(broken)))


def test_a_model_too_large_for_the_device_is_refused(
    zimage_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(loading, "_from_folder", full)
    with pytest.raises(ModelLoadError, match="does not fit into the memory of cpu: raise vram"):
        load(zimage_folder, DEFAULTS, Settings(model="small"))
