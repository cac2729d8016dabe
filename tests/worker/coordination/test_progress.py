import asyncio
from pathlib import Path

import pytest

from worker.coordination.progress import ProgressReader, ProgressWriter

pytestmark = pytest.mark.anyio


async def test_a_disk_that_was_full_has_the_newest_though_no_step_follows(tmp_path: Path) -> None:
    folder = tmp_path / "run"  # not there yet: nothing can be written
    writer = ProgressWriter(folder / "w1.steps")
    writer._retry_s = 0.01
    for step in range(1, 4):
        writer.set("lease", step, 8)
    await writer.flush()
    assert writer._away
    writer.set("lease", 4, 8)
    folder.mkdir()
    assert writer._writing is not None
    await asyncio.wait_for(writer._writing, 60)
    assert await ProgressReader(folder).read() == {"lease": (4, 8)}
