import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Sequence

import anyio
import pytest

from tests.worker.databases import locked
from tests.worker.storage.conftest import picture
from worker.errors import StorageFailed
from worker.storage import gallery, gallery_writer
from worker.storage.database import Database
from worker.storage.gallery import Wanted
from worker.storage.gallery_writer import GalleryWriter
from worker.storage.images import ImageStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def lost() -> list[int]:
    return []


@pytest.fixture
async def keeping(
    store: ImageStore, database: Database, lost: list[int]
) -> AsyncIterator[GalleryWriter]:
    made = GalleryWriter(store, database, lost.append)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def rows(database: Database) -> list[str]:
    return [p.id for p in await database.read(lambda c: gallery.page(c, Wanted()))]


async def test_file_and_row_are_there_when_it_is_idle(
    keeping: GalleryWriter, store: ImageStore, database: Database, lost: list[int]
) -> None:
    fox = picture("fox")
    keeping.keep(fox, b"file")
    await keeping.close(5)
    assert store.path(fox.name).read_bytes() == b"file"
    assert (await rows(database), lost) == (["img_fox"], [])


async def test_a_stored_file_needs_its_row_only(
    keeping: GalleryWriter, store: ImageStore, database: Database
) -> None:
    store.save(picture("fox").name, b"file")
    keeping.keep(picture("fox"), None)
    await keeping.close(5)
    assert await rows(database) == ["img_fox"]


async def test_rows_wait_for_a_locked_database(
    keeping: GalleryWriter, database: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_writer, "_PAUSE_S", 0.05)
    with locked(url):
        for k in range(3):
            keeping.keep(picture(str(k)), b"file")
        await anyio.sleep(0.5)
        assert await rows(database) == []
    await keeping.close(5)
    assert sorted(await rows(database)) == ["img_0", "img_1", "img_2"]


async def test_a_row_that_cannot_be_stored_loses_no_other(
    keeping: GalleryWriter, database: Database, lost: list[int]
) -> None:
    for k in range(9):
        keeping.keep(picture(str(k)), b"file")
    keeping.keep(picture("bad", prompt="\ud800"), b"file")
    keeping.keep(picture("large", seed=1 << 70), b"file")
    await keeping.close(5)
    assert sorted(await rows(database)) == [f"img_{k}" for k in range(9)]
    assert sum(lost) == 2


async def test_a_file_that_fails_in_an_unknown_way_loses_no_other(
    keeping: GalleryWriter, database: Database, store: ImageStore, lost: list[int]
) -> None:
    keeping.keep(picture("a"), b"file")
    keeping.keep(picture("b"), "not bytes")  # type: ignore[arg-type]
    keeping.keep(picture("c"), b"file")
    await keeping.close(5)
    assert (sorted(await rows(database)), sum(lost)) == (["img_a", "img_c"], 1)


async def test_a_full_disk_loses_pictures_and_says_how_many(
    keeping: GalleryWriter,
    database: Database,
    lost: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    keeping.keep(picture("a"), b"file")
    keeping.keep(picture("b"), b"file")
    await keeping.close(5)
    assert (await rows(database), sum(lost)) == ([], 2)


async def test_what_fits_a_nearly_full_disk_is_kept(
    keeping: GalleryWriter,
    store: ImageStore,
    database: Database,
    lost: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = store.save_all

    def room_for_few(pictures: Sequence[tuple[str, bytes]]) -> None:
        if sum(len(data) for _, data in pictures) > 10:
            raise StorageFailed("full", param="response_format")
        save(pictures)

    monkeypatch.setattr(store, "save_all", room_for_few)
    for name, size in (("a", 8), ("b", 20), ("c", 8)):
        keeping.keep(picture(name), b"x" * size)
    await keeping.close(5)
    assert (sorted(await rows(database)), sum(lost)) == (["img_a", "img_c"], 1)


async def test_many_pictures_share_their_way_to_disk_and_database(
    keeping: GalleryWriter, store: ImageStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, sizes = store.save_all, list[int]()

    def counted(pictures: Sequence[tuple[str, bytes]]) -> None:
        sizes.append(len(pictures))
        save(pictures)

    monkeypatch.setattr(store, "save_all", counted)
    for k in range(50):
        keeping.keep(picture(str(k)), b"x")
        await anyio.sleep(0.002)
    await keeping.close(5)
    assert len(await rows(database)) == sum(sizes) == 50
    assert len(sizes) < 10


async def test_a_disk_that_stands_still_holds_up_nobody_and_no_more_than_its_share(
    keeping: GalleryWriter,
    store: ImageStore,
    database: Database,
    lost: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, save = threading.Event(), store.save_all
    monkeypatch.setattr(gallery_writer, "MAX_WAITING_BYTES", 20)
    monkeypatch.setattr(store, "save_all", lambda pictures: (go.wait(20), save(pictures)))
    for k in range(5):
        keeping.keep(picture(str(k)), b"12345678")
        await anyio.sleep(0.01)
    assert lost == [1, 1, 1]
    go.set()
    await keeping.close(5)
    assert await rows(database) == ["img_0", "img_1"]


async def test_the_end_waits_for_a_while_only(
    keeping: GalleryWriter, store: ImageStore, lost: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(store, "save_all", lambda pictures: go.wait(20))
    keeping.keep(picture("a"), b"x")
    await keeping.close(0.05)
    go.set()
    assert len(lost) == 1


async def test_the_more_come_the_longer_others_are_waited_for(
    keeping: GalleryWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, paused = list[float](), asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        paused.set()

    monkeypatch.setattr(keeping, "_pause", pause)
    for pictures in (1, 3, 50):
        for k in range(pictures):
            keeping.keep(picture(f"{pictures}-{k}"), b"x")
        await asyncio.wait_for(paused.wait(), 20)
        paused.clear()
    assert pauses == pytest.approx([0.2, 0.6, 1.0])


async def test_the_end_pauses_for_nobody(
    keeping: GalleryWriter,
    database: Database,
    lost: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gallery_writer, "_COALESCE_S", 3600.0)
    monkeypatch.setattr(gallery_writer, "_MAX_COALESCE_S", 3600.0)
    keeping.keep(picture("a"), b"x")
    await asyncio.wait_for(keeping._idle.wait(), 20)
    keeping.keep(picture("b"), b"x")
    await keeping.close(20)
    assert (sorted(await rows(database)), lost) == (["img_a", "img_b"], [])
