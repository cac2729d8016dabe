"""``zimage models`` from the shell, with hubs on this machine."""

import getpass
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.config import ROOT
from tests import command_line
from tests.worker.models.loading.local_hub import COMMIT, MODEL, LocalHub, local_hub

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub(ROOT / "tinymodel" / "weights") as server:
        yield server


class Shell:
    def __init__(self, folder: Path, mirror: str, source: str) -> None:
        self.var = folder / "var"
        self.path = folder / "cluster.toml"
        self.home = folder / "home"
        self.home.mkdir()
        self.path.write_text(
            f'[cell]\nvar_dir = "{self.var}"\nuser = "{getpass.getuser()}"\n'
            f'[model]\nsource = "{source}"\nmirror = "{mirror}"\n',
            "utf-8",
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        asked = ("models", *words, "--config", str(self.path))
        return command_line.zimage(asked, {**os.environ, "HOME": str(self.home)})


@pytest.mark.parametrize("source", [MODEL, f"modelscope:{MODEL}"])
def test_a_model_is_pulled_listed_checked_and_deleted(
    tmp_path: Path, hub: LocalHub, source: str
) -> None:
    zimage = Shell(tmp_path, hub.url, source)
    pulled = zimage("pull")
    assert pulled.returncode == 0, pulled.stderr
    assert f"download {source} from {hub.url}" in pulled.stdout
    assert f"{source}: 11 files, 15.8 MB, each with the hash" in pulled.stdout
    assert list(zimage.home.iterdir()) == []  # which may be another user's
    hub.silent = True
    [row] = json.loads(zimage("list", "--json").stdout)
    assert (row["source"], row["files"]) == (source, 11)
    assert "model.source" in zimage("list").stdout
    checked = zimage("verify")
    assert f"all 11 files are what {hub.url} named" in checked.stdout
    weights = Path(row["folder"]) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    spoilt = zimage("verify")
    assert spoilt.returncode == 1
    assert f"{weights} is missing or not what the hub has" in spoilt.stderr
    assert f"zimage models pull {source} brings them again" in spoilt.stderr
    refused = zimage("remove", source)
    assert refused.returncode == 1
    assert "is what this cell draws with" in refused.stderr
    text = zimage.path.read_text("utf-8").replace(f'"{source}"', '"x.safetensors"')
    zimage.path.write_text(f'{text}base = "{source}"\n', "utf-8")
    assert "name another model.base first" in zimage("remove", source).stderr
    zimage.path.write_text(f'[cell]\nvar_dir = "{zimage.var}"\n', "utf-8")
    removed = zimage("remove", source)
    assert removed.returncode == 0, removed.stderr
    assert not weights.exists()
    assert "no model was pulled yet" in zimage("list").stdout


def test_what_is_of_no_hub_is_refused(tmp_path: Path) -> None:
    zimage = Shell(tmp_path, "", "tiny")
    for words in (("pull",), ("pull", "./folder"), ("pull", "modelscope:x"), ("verify",)):
        refused = zimage(*words)
        assert refused.returncode == 1
        assert "owner/name" in refused.stderr
    missing = zimage("remove", f"ours/{COMMIT}")
    assert "is not here; zimage models list says what is" in missing.stderr


def test_a_download_that_fails_says_why_and_that_it_goes_on(tmp_path: Path, hub: LocalHub) -> None:
    hub.cut_after = 100_000
    failed = Shell(tmp_path, hub.url, f"modelscope:{MODEL}")("pull")
    assert failed.returncode == 1
    assert f"modelscope:{MODEL} cannot be downloaded from {hub.url}" in failed.stderr
    assert "what came whole is kept" in failed.stderr
