"""What is run to make a release's environment. tests/cluster/test_versions makes real ones."""

import zipfile
from pathlib import Path

import pytest

from deploy.cell import CellError
from deploy.rollout import environment

TORCH = ("torch-cpu.txt", "torch-cuda.txt")


def wheel(folder: Path, *lists: str) -> Path:
    path = folder / "zimage_cluster-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in lists:
            archive.writestr(f"deploy/requirements/{name}", "# none\n")
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The file names and words of each command."""
    commands: list[list[str]] = []

    def run(command: list[str], timeout_s: float) -> None:
        commands.append([Path(word).name for word in command])

    monkeypatch.setattr(environment, "_run", run)
    monkeypatch.setattr(environment, "_extras", lambda: ["s3.txt", "postgres.txt"])
    return commands


def test_packages_are_put_in_by_two_commands_and_torch_comes_first(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    """Each start of pip takes half a second of CPU, whatever it puts in."""
    made = wheel(tmp_path, *TORCH, "kit.txt", "s3.txt", "postgres.txt")
    environment.make(made, tmp_path / "release")
    lists = [[word for word in command if word.endswith(".txt")] for command in ran]
    venv, torch, others, own, check = lists
    assert (venv, own, check) == ([], [], [])
    assert torch[0] in TORCH
    assert others == ["kit.txt", "s3.txt", "postgres.txt"]
    assert all("--require-hashes" in command for command in ran[1:3])


def test_a_wheel_without_a_list_that_is_needed_puts_none_of_them_in(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    with pytest.raises(CellError, match=r"no deploy/requirements/postgres\.txt"):
        environment.make(wheel(tmp_path, *TORCH, "kit.txt", "s3.txt"), tmp_path / "release")
    assert not [command for command in ran if "s3.txt" in command]
