"""What a power cut leaves is right: proved by the order of system calls."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRAW_ONE = """
import asyncio, sys
from pathlib import Path
from tests.worker.conftest import ready, serving
from tests.worker.jobs.conftest import over, settings_of
from tests.worker.storage.test_jobs import Store

async def main(home):
    settings = settings_of(home)
    store = Store(settings.database_url)
    async with serving(settings) as (service, _):
        await ready(service)
        await over(store, store.create(prompts=("a",)))

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_picture_is_on_the_disk_before_its_row(home: Path) -> None:
    trace = home / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,pwrite64"
    strace = ["strace", "-f", "-y", "-s", "64", "-e", calls, "-o", str(trace)]
    command = [*strace, sys.executable, "-c", DRAW_ONE, str(home)]
    subprocess.run(command, check=True, timeout=120)
    lines = trace.read_text(errors="replace").splitlines()
    picture = next(k for k, line in enumerate(lines) if ".img_" in line and "write" in line)
    steps = [
        r"write\(\d+<[^>]*/images/[^>]*/\.img_",  # the bytes
        r"fsync\(\d+<[^>]*/images/[^>]*/\.img_",  # are on the disk
        r'rename.*"[^"]*/\.img_.*".*"[^"]*/img_',  # before they get their name,
        r"fsync\(\d+<[^>]*/images/\d{4}-\d\d-\d\d>",  # and so is the name
        r"pwrite64\(\d+<[^>]*/zimage\.db-wal>",  # Then comes the row,
        r"f(data)?sync\(\d+<[^>]*/zimage\.db-wal>",  # on the disk as well.
    ]
    at = picture
    for step in steps:
        found = next((k for k in range(at, len(lines)) if re.search(step, lines[k])), None)
        assert found is not None, f"no {step} after line {at}: {lines[at]}"
        at = found
    # Nothing of the row was written while the picture was on its way.
    named = next(k for k, line in enumerate(lines) if re.search(steps[3], line))
    assert not [line for line in lines[picture:named] if "pwrite64" in line and "-wal>" in line]
