"""On the CPU: the same threads and files; only pages are not locked."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.worker.models.conftest import DEFAULTS, close, draw, spec
from worker.models.loading import read_ahead
from worker.models.loading.load import load
from worker.models.loading.sources import load as load_source
from worker.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is read ahead for any device, which has room for its weights once."""
    monkeypatch.setattr(read_ahead, "begin", lambda *about: read_ahead.ReadAhead(*about))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 1 << 31))


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "transformer").glob("*.safetensors"))


def in_shards(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="100KB")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return folder


def test_every_weight_is_read_out_of_all_files_in_pieces(
    small_zimage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_PIECE_BYTES", 1000)
    files = files_of(in_shards(small_zimage, tmp_path / "shards"))
    found = read_ahead.read(files, CPU, torch.float32)
    wanted = small_zimage.transformer.state_dict()
    assert len(files) > 1
    assert found is not None
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_tensors_of_any_shape_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    wanted = {"a": torch.rand(shape), "b": torch.rand(7)}
    save_file(wanted, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_ahead.read([tmp_path / "x.safetensors"], CPU, torch.float32)
    assert found is not None
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_weights_of_another_type_are_left_to_the_libraries(zimage_folder: Path) -> None:
    assert read_ahead.read(files_of(zimage_folder), CPU, torch.bfloat16) is None


def test_a_weight_that_two_files_have_is_left_to_the_libraries(zimage_folder: Path) -> None:
    assert read_ahead.read(files_of(zimage_folder) * 2, CPU, torch.float32) is None


@pytest.mark.usefixtures("as_on_a_card")
def test_what_was_read_ahead_draws_the_same(zimage_folder: Path) -> None:
    settings = Settings(model=str(zimage_folder))
    ahead = read_ahead.ReadAhead(zimage_folder, settings, 0)
    drawn = draw(load(zimage_folder, DEFAULTS, settings, ahead=ahead), spec())
    assert ahead.take() is None  # it was taken
    assert close(drawn[0], draw(load(zimage_folder, DEFAULTS, settings), spec())[0])


@pytest.mark.usefixtures("as_on_a_card")
def test_a_start_takes_what_was_read_ahead(
    zimage_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    take = read_ahead.ReadAhead.take

    def noted(self: read_ahead.ReadAhead) -> object:
        taken.append(take(self))
        return taken[-1]

    monkeypatch.setattr(read_ahead.ReadAhead, "take", noted)
    load_source(Settings(model=str(zimage_folder)))
    weights = read_ahead.read(files_of(zimage_folder), CPU, torch.float32)
    assert weights is not None
    assert [each.keys() for each in taken if isinstance(each, dict)] == [weights.keys()]


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize(("fp8", "fits"), [("off", True), ("all", False)])
def test_what_becomes_smaller_is_read_ahead_where_it_has_room_twice(
    zimage_folder: Path, monkeypatch: pytest.MonkeyPatch, fp8: str, fits: bool
) -> None:
    size = sum(path.stat().st_size for path in files_of(zimage_folder))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (size * 3 // 2, size * 2))
    settings = Settings.model_validate({"model": str(zimage_folder), "fp8": fp8})
    assert (read_ahead.ReadAhead(zimage_folder, settings, 0).take() is not None) == fits


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_that_is_cut_off_is_the_libraries_to_complain_of(
    zimage_folder: Path, tmp_path: Path, keep: int
) -> None:
    folder = shutil.copytree(zimage_folder, tmp_path / "cut")
    (path,) = files_of(folder)
    path.write_bytes(path.read_bytes()[:keep])
    assert read_ahead.ReadAhead(folder, Settings(model=str(folder)), 0).take() is None


def test_other_models_and_the_cpu_are_not_read_ahead(zimage_folder: Path) -> None:
    assert read_ahead.begin(zimage_folder, Settings(device="cpu")) is None
    assert read_ahead.begin(None, Settings(device="cuda:0")) is None
