"""``zimage loras`` from the shell, with the shipped model."""

import getpass
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import command_line
from tests.worker.models.loras import made
from worker.models.loading.sources import TINY
from worker.models.loras.conversion import layers_of_folder

QUERY = "layers.0.attention.to_q"


class Shell:
    def __init__(self, folder: Path, source: str = "tiny") -> None:
        self.path, self.loras = folder / "cluster.toml", folder / "adapters"
        self.path.write_text(
            f'[cell]\nvar_dir = "{folder}/var"\nuser = "{getpass.getuser()}"\n'
            f'[model]\nsource = "{source}"\n[loras]\nfolder = "{self.loras}"\n'
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        asked = ("loras", *words, "--config", str(self.path))
        return command_line.zimage(asked, dict(os.environ))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    layers = layers_of_folder(TINY)
    return made.write(tmp_path / "Ink.safetensors", made.tensors(layers, (QUERY,)), made.kohya)


def test_an_adapter_is_added_listed_checked_and_removed(tmp_path: Path, file: Path) -> None:
    zimage = Shell(tmp_path)
    assert "no adapter was added yet" in zimage("list").stdout
    added = zimage("add", str(file))
    assert added.returncode == 0, added.stderr
    assert "ink: rank 4, 1 layers" in added.stdout
    again = zimage("add", str(file), "--name", "ink")
    assert again.returncode == 1
    assert "there is an adapter ink already" in again.stderr
    [row] = json.loads(zimage("list", "--json").stdout)
    assert (row["name"], row["rank"], row["source"]) == ("ink", 4, "Ink.safetensors")
    assert row["sha256"][:12] in zimage("list").stdout
    assert "1 adapters in" in zimage("check").stdout
    kept = Path(row["path"])
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    spoilt = zimage("check")
    assert spoilt.returncode == 1
    assert "its values are not those that were added" in spoilt.stderr
    assert "ink is deleted" in zimage("remove", "ink").stdout
    assert zimage("remove", "ink").returncode == 1
    assert not kept.exists()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, file: Path) -> None:
    zimage = Shell(tmp_path, "random:z-image-turbo")
    refused = zimage("add", str(file))
    assert refused.returncode == 1
    assert "to_q takes 3840 values and gives 3840" in refused.stderr
    assert "use an adapter for this cell's model" in refused.stderr
    bad = zimage("add", str(file), "--name", "../ink")
    assert "is no name for an adapter" in bad.stderr
    assert not zimage.loras.exists()
