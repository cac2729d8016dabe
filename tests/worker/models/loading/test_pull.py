"""Downloads by the hubs' own libraries, from a hub on this machine that behaves as hubs do."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.models.loading.local_hub import COMMIT, MODEL, LocalHub, local_hub
from worker.models.loading import hub, pulled
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.hub import HubModel
from worker.models.loading.sources import TINY

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
HUBS = [HubModel(MODEL), HubModel(MODEL, "modelscope")]
_QUICK = {
    **{f"HF_HUB_{name}_TIMEOUT": "1" for name in ("DOWNLOAD", "ETAG")},
    **{f"MODELSCOPE_{name}_TIMEOUT": "1" for name in ("API", "DOWNLOAD")},
    "MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": "1",
    "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "2",
    "MODELSCOPE_API_MAX_RETRIES": "1",
}
Pull = Callable[..., dict[str, Any]]


@pytest.fixture(params=HUBS, ids=lambda model: model.hub)
def model(request: pytest.FixtureRequest) -> HubModel:
    chosen: HubModel = request.param
    return chosen


@pytest.fixture
def server() -> Iterator[LocalHub]:
    with local_hub(TINY) as started:
        yield started


@pytest.fixture
def environment(server: LocalHub, tmp_path: Path) -> dict[str, str]:
    caches = {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}
    return {
        **caches,
        "HF_ENDPOINT": server.url,
        "MODELSCOPE_ENDPOINT": server.url,
        "MODELSCOPE_HOME": str(tmp_path / "home"),
    }


@pytest.fixture
def pull(environment: dict[str, str]) -> Pull:
    """What a download says last: ``folder``, or ``what`` is wrong and its ``remedy``."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODELSCOPE_"))}

    def pull(model: HubModel, *, before: str = "", timeout_s: float = 60, **more: str) -> Any:
        code = f"{before}\nfrom worker.models.loading import pull; raise SystemExit(pull.main())"
        child = subprocess.run(
            [sys.executable, "-c", code, model.source],
            env={**own, **_QUICK, **environment, **more},
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
        )
        lines = child.stdout.splitlines()
        assert lines, child.stderr
        told = json.loads(lines[-1])
        assert child.returncode == ("folder" not in told), child.stderr
        return told

    return pull


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != pulled.NAME and not path.name.startswith(".")
    }


def test_what_is_pulled_is_found_and_is_what_the_hub_has(
    pull: Pull, server: LocalHub, model: HubModel, environment: dict[str, str]
) -> None:
    folder = Path(pull(model)["folder"])
    server.silent = True
    assert hub.found(model, environment) == folder
    assert files(folder) == files(TINY)
    record = pulled.read(model.home(environment))
    assert record is not None
    assert (record.source, record.hub) == (model.source, server.url)
    assert record.bytes == sum(map(len, files(TINY).values()))


def test_what_is_here_is_not_asked_for_again(pull: Pull, server: LocalHub, model: HubModel) -> None:
    first = pull(model)
    server.asked.clear()
    assert pull(model) == first
    assert server.fetched == []


def test_a_hub_that_sends_slowly_is_waited_for(
    pull: Pull, server: LocalHub, model: HubModel
) -> None:
    server.piece_bytes = 4096
    assert "folder" in pull(model)


def test_a_cut_connection_goes_on_where_it_was_cut(
    pull: Pull, server: LocalHub, model: HubModel, environment: dict[str, str]
) -> None:
    server.cut_once = 11_000_000  # Hugging Face's library writes pieces of 10 MiB
    folder = Path(pull(model)["folder"])
    assert dict(server.ranges).keys() == {WEIGHTS}
    assert files(folder) == files(TINY)


def test_a_hub_that_always_cuts_is_given_up_and_whole_files_are_kept(
    pull: Pull, server: LocalHub, model: HubModel, environment: dict[str, str]
) -> None:
    server.cut_after = 100_000
    told = pull(model)
    assert f"{model.source} cannot be downloaded from {server.url}" in told["what"]
    assert "what came whole is kept" in told["remedy"]
    assert pulled.read(model.home(environment)) is None
    server.cut_after = None
    server.asked.clear()
    assert "folder" in pull(model)
    assert WEIGHTS in server.fetched
    assert "vae/config.json" not in server.fetched


def test_a_silent_hub_is_given_up_and_named(pull: Pull, server: LocalHub, model: HubModel) -> None:
    server.silent = True
    assert f"cannot be downloaded from {server.url}" in pull(model)["what"]


def test_a_hub_that_falls_silent_within_a_file_is_given_up(
    pull: Pull, server: LocalHub, model: HubModel
) -> None:
    server.hush = 50_000
    assert f"cannot be downloaded from {server.url}" in pull(model, timeout_s=120)["what"]


def test_a_file_with_another_hash_is_refused_and_not_kept(
    pull: Pull, server: LocalHub, model: HubModel, environment: dict[str, str]
) -> None:
    server.spoilt = {WEIGHTS}
    assert "folder" not in pull(model)
    home = model.home(environment)
    assert pulled.read(home) is None
    assert list(home.rglob(WEIGHTS)) == []
    size = (TINY / WEIGHTS).stat().st_size
    assert all(path.stat().st_size != size for path in home.rglob("*") if path.is_file())
    with pytest.raises(ModelLoadError, match="zimage models pull"):
        hub.found(model, environment)


def test_a_file_that_was_changed_here_comes_again(
    pull: Pull, server: LocalHub, model: HubModel
) -> None:
    path = Path(pull(model)["folder"]) / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    server.asked.clear()
    pull(model)
    assert path.read_bytes() == content
    assert set(server.fetched) == {WEIGHTS}


def test_a_disk_without_room_is_told_before_anything_large_comes(
    pull: Pull, server: LocalHub, model: HubModel
) -> None:
    told = pull(
        model,
        before="import collections, shutil; Free = collections.namedtuple('Free', 'free')\n"
        "shutil.disk_usage = lambda _: Free(1_000_000)",
    )
    assert "GB are to come, and 0.0 GB are free" in told["what"]
    assert server.fetched == ["model_index.json"]


def test_a_disk_that_fills_up_is_told(pull: Pull, model: HubModel) -> None:
    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    )
    told = pull(model, before=full)
    assert told["what"].startswith("the disk is full")
    assert "it goes on" in told["remedy"]


def test_a_model_that_the_hub_does_not_have_is_named(pull: Pull, server: LocalHub) -> None:
    for other in (HubModel("ours/other"), HubModel("ours/other", "modelscope")):
        told = pull(other)
        assert "ours/other cannot be downloaded" in told["what"]


def test_what_is_no_pipeline_is_refused(pull: Pull, model: HubModel, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(TINY / "vae", folder)
    with local_hub(folder) as server:
        endpoints = {"HF_ENDPOINT": server.url, "MODELSCOPE_ENDPOINT": server.url}
        told = pull(model, **endpoints)
    assert "has no model_index.json" in told["what"]


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("../cluster.toml", "/etc/passwd", "vae/../../x", ""):
        with pytest.raises(ValueError, match="no name"):
            pulled.require_inside(name)


def test_without_its_library_modelscope_is_told_by_the_command_that_installs_it(
    pull: Pull,
) -> None:
    hidden = (
        "from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'modelscope_hub' else find(name)"
    )
    told = pull(HubModel(MODEL, "modelscope"), before=hidden)
    assert told["what"] == "ModelScope's library is not installed"
    assert "-m pip install" in told["remedy"]
    requirements = Path(told["remedy"].split(" -r ")[1])
    assert "modelscope-hub==" in requirements.read_text("utf-8")


def test_only_one_variant_and_format_of_weights_comes(
    pull: Pull, model: HubModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(TINY, tmp_path / "variants")
    for path in list(folder.rglob("*.safetensors")):
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
        shutil.copy(path, path.with_suffix(".bin"))
        path.with_suffix(".onnx").write_bytes(b"x" * 200_000)
    shutil.copytree(TINY / "vae", folder / "vae_old")
    (folder / "poster.png").write_bytes(b"x" * 200_000)
    with local_hub(folder) as server:
        endpoints = {"HF_ENDPOINT": server.url, "MODELSCOPE_ENDPOINT": server.url}
        came = files(Path(pull(model, **endpoints)["folder"]))
    assert came == files(TINY)


def test_the_newest_revision_of_what_others_downloaded_is_found(tmp_path: Path) -> None:
    home = tmp_path / "hub/models--ours--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(COMMIT, "utf-8")
    shutil.copytree(TINY, home / "snapshots" / COMMIT)
    found = hub.found(HubModel(MODEL), {"HF_HOME": str(tmp_path)})
    assert found == home / "snapshots" / COMMIT


@pytest.mark.parametrize(
    "place",
    ["models/ours--tiny-v1.5/snapshots/master", "models/ours/tiny-v1___5",
     "hub/models/ours/tiny-v1___5"],
)  # fmt: skip
def test_what_modelscopes_library_downloaded_is_found_in_each_of_its_layouts(
    tmp_path: Path, place: str
) -> None:
    shutil.copytree(TINY, tmp_path / place)
    model = HubModel("ours/tiny-v1.5", "modelscope")
    assert hub.found(model, {"MODELSCOPE_CACHE": str(tmp_path)}) == tmp_path / place
