import shutil
from pathlib import Path

import pytest

from worker.models.loading.digest import files_in, of
from worker.models.loading.sources import TINY, digest_of
from worker.settings import Settings

LARGE = 8 << 20


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(TINY, tmp_path / "elsewhere")


def test_a_copy_of_a_model_is_the_same_wherever_it_lies(copy: Path) -> None:
    (copy / ".cache").write_text("x")
    (copy / "preview.png").write_bytes(b"x")
    assert of(files_in(copy)) == of(files_in(TINY))
    assert digest_of(Settings(model=str(copy))) == digest_of(Settings(model="tiny"))


def test_other_settings_or_weights_are_another_model(copy: Path) -> None:
    seen = {of(files_in(copy))}
    with (copy / "model_index.json").open("a") as file:
        file.write(" ")
    seen.add(of(files_in(copy)))
    weights = next(copy.glob("transformer/*.safetensors"))
    values = bytearray(weights.read_bytes())
    weights.write_bytes(values[:-1] + bytes([values[-1] ^ 1]))
    seen.add(of(files_in(copy)))
    assert len(seen) == 3


@pytest.mark.parametrize("place", [0, LARGE - 1])
def test_of_a_large_file_beginning_end_and_size_count(tmp_path: Path, place: int) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(LARGE))
    seen = {of({"x": path})}
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\x01")
    seen.add(of({"x": path}))
    path.write_bytes(bytes(LARGE + 1))
    seen.add(of({"x": path}))
    assert len(seen) == 3


def test_model_without_files_is_what_it_is_called() -> None:
    one, other = (digest_of(Settings(model=f"synthetic:step_ms={ms}")) for ms in (1, 2))
    assert one != other
