"""``zimage images move`` from the shell, with a real store."""

import getpass
import os
import subprocess
from pathlib import Path

import pytest

from tests import command_line
from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY
from worker.storage.bucket import Bucket
from worker.storage.images import ImageStore

pytestmark = pytest.mark.xdist_group("s3")

NAMES = [f"{DAY}/img_{k}.png" for k in range(3)]


class Shell:
    """A cell that is down, with three pictures in its folder."""

    def __init__(self, folder: Path, store: ObjectStore, prefix: str) -> None:
        self.path, self._folder, self._store = folder / "cluster.toml", folder, store
        self.objects = store.objects(prefix)
        self.images = ImageStore(folder / "var" / "images")
        self.images.save_all([(name, name.encode()) for name in NAMES])
        self.write()

    def write(self, **changes: object) -> None:
        values = {**self.objects.model_dump(), **changes}
        self.path.write_text(
            f'[cell]\nvar_dir = "{self._folder}/var"\nuser = "{getpass.getuser()}"\n[objects]\n'
            + "".join(f"{key} = {value!r}\n" for key, value in values.items())
        )

    def move(self, *options: str) -> subprocess.CompletedProcess[str]:
        asked = ("images", "move", *options, "--config", str(self.path))
        return command_line.zimage(asked, os.environ)


@pytest.fixture
def shell(tmp_path: Path, object_store: ObjectStore, request: pytest.FixtureRequest) -> Shell:
    return Shell(tmp_path, object_store, f"shell/{request.node.name}")


def test_pictures_move_into_the_bucket_and_back(shell: Shell) -> None:
    done = shell.move()
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "moved 3 of 3 files, 0.00 GiB; every copy has the SHA-256" in done.stdout
    bucket = Bucket(shell.objects)
    assert sorted(file.name for file in bucket.files()) == NAMES
    assert shell.images.files() == []
    again = shell.move()
    assert (again.returncode, "moved 0 of 0 files" in again.stdout) == (0, True)
    back = shell.move("--back")
    assert (back.returncode, back.stderr) == (0, ""), back.stderr
    assert [shell.images.read(name).decode() for name in NAMES] == NAMES
    assert list(bucket.files()) == []


def test_a_copy_that_differs_fails_the_move_and_is_named(shell: Shell) -> None:
    Bucket(shell.objects).put(NAMES[1], b"another")
    done = shell.move()
    assert done.returncode == 1
    assert f"differs  {NAMES[1]}: it stays in" in done.stdout
    assert "moved 2 of 3 files" in done.stderr
    assert [file.name for file in shell.images.files()] == [NAMES[1]]


def test_a_store_that_is_away_is_told_and_nothing_is_lost(shell: Shell) -> None:
    shell.write(endpoint=f"http://127.0.0.1:{free_port()}")
    done = shell.move()
    assert done.returncode == 1
    assert "error sending request; the same command again goes on" in done.stderr
    assert len(shell.images.files()) == 3


def test_without_a_bucket_there_is_nowhere_to_move(shell: Shell) -> None:
    shell.write(url="", endpoint="", credentials_file="")
    done = shell.move()
    assert done.returncode == 1
    assert "set objects.url first, then zimage up" in done.stderr
