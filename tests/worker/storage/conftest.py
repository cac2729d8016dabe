"""A database and a folder of pictures, as a worker finds them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from worker.storage.database import Database
from worker.storage.gallery import StoredImage
from worker.storage.images import ImageStore
from worker.types import Parameters

DAY = "2026-01-31"
AT = 1_769_903_000.0


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = Database(url, timeout_s=0.3)
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def picture(name: str, created_at: float = AT, bytes: int = 10, **more: object) -> StoredImage:
    """A row for ``img_<name>``."""
    values = {"owner": "everyone", "prompt": name, "seed": 1}
    drawn = {"parameters": Parameters(64, 64, 8), "model": "tiny", "format": "png"}
    fields = {**values, **drawn, **more}
    return StoredImage(f"img_{name}", created_at=created_at, bytes=bytes, **fields)  # type: ignore[arg-type]
