"""Cleaners of old files, against folders that are a cell's."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from deploy.guard.keeping import Keeping
from deploy.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    link = tmp_path / "short"
    layout = Layout(tmp_path / "var", link / "run", short_link=link)
    layout.create()
    return layout


def test_short_name_is_made_again(layout: Layout) -> None:
    assert layout.short_link is not None
    layout.short_link.unlink()
    Keeping(layout).again()
    assert layout.run_dir.is_dir()
    assert layout.run_dir.resolve() == layout.var_dir / "run"


def test_everything_is_made_young_and_nothing_is_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (layout.run_dir / "link").symlink_to(tmp_path / "elsewhere")
    old = (layout.run_dir / "w1.lock", layout.run_dir / "slots" / "key.1")
    old[1].parent.mkdir()
    for path in old:
        path.touch()
    for path in (*old, tmp_path / "elsewhere"):
        os.utime(path, (1, 1))
    Keeping(layout).touch()
    assert all(time.time() - path.stat().st_mtime < 60 for path in old)
    assert (tmp_path / "elsewhere").stat().st_mtime == 1


def test_folders_are_locked_against_cleaners(layout: Layout) -> None:
    keeping = Keeping(layout)
    keeping.lock()
    for directory in (layout.var_dir, layout.run_dir):
        folder = os.open(directory, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as systemd-tmpfiles does it
        os.close(folder)


def test_systemd_tmpfiles_passes_over_it(layout: Layout, tmp_path: Path) -> None:
    cleaner = shutil.which("systemd-tmpfiles")
    if cleaner is None:
        pytest.skip("no systemd-tmpfiles here (Debian: apt-get install systemd)")
    beside = tmp_path / "beside"
    beside.touch()
    (layout.run_dir / "w1.lock").touch()
    keeping = Keeping(layout)
    keeping.lock()
    rules = tmp_path.with_suffix(".conf")
    rules.write_text(f"d {tmp_path} - - - 1s\n")
    end = time.monotonic() + 30
    while beside.exists() and time.monotonic() < end:  # until it is old enough
        subprocess.run([cleaner, "--clean", str(rules)], check=False, timeout=30)
    assert not beside.exists()
    assert (layout.var_dir / "run" / "w1.lock").exists()
