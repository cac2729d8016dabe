import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import ROOT
from deploy.host import processes
from deploy.rollout import model_checks
from tests.deploy.rollout.test_checks import cell
from tests.worker.models.loading.local_hub import COMMIT, MODEL, LocalHub, local_hub
from worker.models.loading import hub as hub_module


def test_a_spoilt_model_is_refused_with_each_flaw(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "tinymodel" / "weights", tmp_path / "model")
    assert [f.level for f in model_checks.model(cell(tmp_path, model={"source": str(folder)}))] == [
        "ok"
    ]
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    (folder / "vae/diffusion_pytorch_model.safetensors").write_text(pointer, "utf-8")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    found = {f.text: f for f in model_checks.model(cell(tmp_path, model={"source": str(folder)}))}
    cut, lfs = sorted(found, key=lambda text: "LFS" in text)
    assert f"{weights} is cut or damaged" in cut
    assert "vae/diffusion_pytorch_model.safetensors is a pointer of Git LFS" in lfs
    assert {f.level for f in found.values()} == {"fail"}


@pytest.mark.parametrize("source", ["tniy", "./gone", "synthetic:speed=9", "/gone"])
def test_a_model_that_no_worker_knows_is_refused(tmp_path: Path, source: str) -> None:
    [finding] = model_checks.model(cell(tmp_path, model={"source": source}))
    assert finding.level == "fail"
    assert finding.remedy


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub(ROOT / "tinymodel" / "weights") as server:
        yield server


def hub_cell(tmp_path: Path, url: str) -> Cell:
    return cell(tmp_path, model={"source": MODEL}, environment={"HF_ENDPOINT": url})


def cached(tmp_path: Path) -> Path:
    """What a download leaves, as far as it is looked at."""
    model = tmp_path / "var/cache/hub/hub/models--ours--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(COMMIT, "utf-8")
    return shutil.copytree(ROOT / "tinymodel" / "weights", model / "snapshots" / COMMIT)


def test_a_model_in_the_cache_needs_no_hub(tmp_path: Path, hub: LocalHub) -> None:
    folder = cached(tmp_path)
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert (finding.level, finding.text) == ("ok", f"{MODEL} in {folder}")
    assert hub.asked == []


def test_a_damaged_file_in_the_cache_comes_again(tmp_path: Path, hub: LocalHub) -> None:
    weights = cached(tmp_path) / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert finding.level == "ok"
    assert "is cut or damaged" in finding.text
    assert finding.text.endswith(f"zimage up downloads it from {hub.url}")


def test_what_no_download_mends_is_refused_without_the_hub(tmp_path: Path, hub: LocalHub) -> None:
    index = cached(tmp_path) / "model_index.json"
    index.write_text(index.read_text("utf-8").replace("ZImagePipeline", "ZImageXPipeline"), "utf-8")
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert finding.level == "fail"
    assert "which the installed diffusers lacks" in finding.text
    assert hub.asked == []


def test_where_up_may_not_download_the_command_is_told(tmp_path: Path, hub: LocalHub) -> None:
    told = {"source": MODEL, "download": False, "mirror": hub.url}
    [finding] = model_checks.model(cell(tmp_path, model=told))
    assert finding.level == "fail"
    assert f"zimage models pull {MODEL}" in finding.remedy
    assert hub.asked == []


def test_the_hub_is_asked_for_what_is_not_here(tmp_path: Path, hub: LocalHub) -> None:
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert finding.level == "ok"
    assert f"{MODEL} is not here yet; zimage up downloads it from {hub.url}" in finding.text
    (cached(tmp_path) / "vae/config.json").unlink()
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert "is not whole here" in finding.text


def test_a_hub_that_does_not_answer_is_a_warning_while_nothing_runs(
    tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.silent = True
    monkeypatch.setattr(hub_module, "ASK_TIMEOUT_S", 0.2)
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert finding.level == "warn"
    assert f"and {hub.url} cannot be asked (ReadTimeout" in finding.text
    monkeypatch.setattr(processes, "members", lambda _: ["a worker"])
    [finding] = model_checks.model(hub_cell(tmp_path, hub.url))
    assert finding.level == "fail"  # a cell that draws is not touched for it


def test_a_model_that_the_hub_does_not_have_is_refused(tmp_path: Path, hub: LocalHub) -> None:
    own = {"HF_ENDPOINT": hub.url}
    [finding] = model_checks.model(cell(tmp_path, model={"source": "ours/other"}, environment=own))
    assert finding.level == "fail"
    assert f"{hub.url} answers 404" in finding.text


def test_a_single_file_and_its_base_are_both_looked_at(tmp_path: Path) -> None:
    weights = ROOT / "tinymodel/weights/transformer/diffusion_pytorch_model.safetensors"
    file = Path(shutil.copy(weights, tmp_path / "poster.safetensors"))
    told = {"source": str(file), "base": "tiny"}
    assert [f.level for f in model_checks.model(cell(tmp_path, model=told))] == ["ok", "ok"]
    file.write_bytes(file.read_bytes()[:-1])
    spoilt, base = model_checks.model(cell(tmp_path, model=told))
    assert (spoilt.level, base.level) == ("fail", "ok")
    assert f"{file} is cut or damaged" in spoilt.text
    [_, gone] = model_checks.model(cell(tmp_path, model=told | {"base": "/gone"}))
    assert gone.level == "fail"
