import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from tests.worker.storage.conftest import picture
from tests.worker.storage.test_jobs import Store
from worker.storage import gallery, retention
from worker.storage.database import Database
from worker.storage.gallery import StoredImage, Wanted
from worker.storage.images import ImageStore, thumbnail_of
from worker.storage.retention import Retention, Sweeper, _take, fair_share

pytestmark = pytest.mark.anyio

WIDE = Retention(keep_s=1000.0, keep_bytes=1000, favourites_bytes=500, link_s=100.0)


class Swept:
    """Pictures in place, then a sweep."""

    def __init__(self, store: ImageStore, database: Database, lock: Path) -> None:
        self.store, self.database, self.lock = store, database, lock

    async def holding(self, *pictures: StoredImage) -> "Swept":
        for one in pictures:
            self.store.save(one.name, b"x" * one.bytes)
            self.store.save(thumbnail_of(one.name), b"x", durable=False)
        await self.database.run(lambda c: gallery.insert(c, *pictures))
        return self

    def stray(self, name: str, age_s: float = 0, bytes: int = 1) -> None:
        self.store.save(name, b"x" * bytes)
        at = time.time() - age_s
        os.utime(self.store.path(name), (at, at))

    async def sweep(self, retention: Retention = WIDE, gallery: bool = True) -> int:
        sweeper = Sweeper(self.store, self.database, retention, self.lock, gallery)
        return await sweeper.sweep()

    async def left(self) -> list[str]:
        """Rows and their files agree, and this is their names."""
        rows = await self.database.read(lambda c: gallery.page(c, Wanted()))
        files = {file.id for file in self.store.files()}
        assert files == {row.id for row in rows}
        return [row.prompt for row in rows]


@pytest.fixture
def swept(store: ImageStore, database: Database, tmp_path: Path) -> Swept:
    return Swept(store, database, tmp_path / "lock")


def aged(name: str, age_s: float, bytes: int = 10, **more: object) -> StoredImage:
    return picture(name, time.time() - age_s, bytes, **more)


async def test_old_pictures_go_and_favourites_stay(swept: Swept) -> None:
    await swept.holding(aged("new", 10), aged("old", 1100), aged("loved", 1200, favourite=True))
    assert await swept.sweep() == 1
    assert await swept.left() == ["new", "loved"]


async def test_the_oldest_go_when_there_are_too_many(swept: Swept) -> None:
    await swept.holding(*(aged(str(k), k, bytes=300) for k in range(6)))
    assert await swept.sweep() == 3
    assert await swept.left() == ["0", "1", "2"]


async def test_favourites_are_spared_up_to_their_bound(swept: Swept) -> None:
    loved = [aged(f"loved {k}", 50 + k, bytes=200, favourite=True) for k in range(4)]
    await swept.holding(aged("new", 0, bytes=300), *loved)
    assert await swept.sweep() == 1
    assert await swept.left() == ["new", "loved 0", "loved 1", "loved 2"]
    assert await swept.sweep(replace(WIDE, keep_bytes=700)) == 1
    assert await swept.left() == ["new", "loved 0", "loved 1"]
    assert await swept.sweep(replace(WIDE, keep_bytes=500)) == 1
    assert await swept.left() == ["loved 0", "loved 1"]


async def test_nobodys_favourites_go_for_those_of_others(swept: Swept) -> None:
    mine = [aged(f"mine {k}", 500 + k, bytes=100, favourite=True, owner="key_a") for k in range(2)]
    many = [aged(f"b {k}", 50 + k, bytes=100, favourite=True, owner="key_b") for k in range(8)]
    await swept.holding(*mine, *many)
    assert await swept.sweep(replace(WIDE, keep_bytes=500)) == 5
    assert await swept.left() == ["b 0", "b 1", "b 2", "mine 0", "mine 1"]


async def test_nobodys_pictures_go_for_those_of_others(swept: Swept) -> None:
    mine = [aged(f"mine {k}", 500 + k, bytes=100, owner="key_a") for k in range(2)]
    many = [aged(f"b {k}", 50 + k, bytes=100, owner="key_b") for k in range(12)]
    await swept.holding(*mine, *many)
    assert await swept.sweep() == 4
    assert await swept.left() == [f"b {k}" for k in range(8)] + ["mine 0", "mine 1"]


async def test_favourites_within_their_bound_stay_before_others(swept: Swept) -> None:
    loved = [aged(f"a {k}", k, bytes=100, favourite=True, owner="key_a") for k in range(5)]
    await swept.holding(*loved, aged("b", 1, bytes=100, owner="key_b"))
    assert await swept.sweep(replace(WIDE, keep_bytes=500)) == 1
    assert await swept.left() == [f"a {k}" for k in range(5)]


@pytest.mark.parametrize(
    ("wanted", "room", "share"),
    [
        ([], 10, 10),
        ([3, 4], 10, 10),
        ([10, 10], 10, 5),
        ([1, 10, 10], 10, 4),
        ([1, 2, 30], 10, 7),
        ([20], 10, 10),
    ],
)
def test_shares_are_as_large_as_they_can_be(wanted: list[int], room: int, share: int) -> None:
    assert fair_share(wanted, room) == share


async def test_files_behind_links_go_with_their_links(swept: Swept) -> None:
    await swept.holding(aged("kept", 500))
    swept.stray("2026-01-31/img_link.png", age_s=101)
    swept.stray("2026-01-31/img_young.png", age_s=20)
    assert await swept.sweep() == 1
    assert swept.store.holds("2026-01-31/img_young.png")
    assert not swept.store.holds("2026-01-31/img_link.png")


async def test_what_a_dead_worker_left_half_written_goes(swept: Swept) -> None:
    swept.stray("2026-01-31/.img_half.png.123-4", age_s=601)
    swept.stray("2026-01-31/.img_half.png.123-5", age_s=5)
    assert await swept.sweep(replace(WIDE, link_s=3600)) == 1


async def test_pictures_that_a_lost_database_does_not_know_stay(swept: Swept) -> None:
    for k in range(3):
        swept.stray(f"2026-01-30/img_a{k}.png", age_s=100_000)
        swept.stray(f"2026-01-31/img_b{k}.png", age_s=1000)
    years = replace(WIDE, keep_s=1e6)
    assert await swept.sweep(years) == 0
    assert await swept.sweep(replace(years, keep_bytes=4)) == 2  # and never more than fits
    assert await swept.sweep(gallery=False) == 4


async def test_days_of_a_backup_stay_and_older_leftovers_go(swept: Swept) -> None:
    """Rows end where the backup was made; before, a few files were left over."""
    old, then = ([f"{day}/img_{day}-{k}.png" for k in range(4)] for day in ("a", "b"))
    for name in old:
        swept.stray(name, age_s=300_000)
    for name in then:
        swept.stray(name, age_s=200_000)
    swept.stray("c/img_c.png", age_s=1000)  # of today
    known = [aged(f"a-{k}", 300_000) for k in range(3)]
    await swept.database.run(lambda c: gallery.insert(c, *known))
    assert await swept.sweep(replace(WIDE, keep_s=1e6)) == 1
    assert {file.day for file in swept.store.files()} == {"a", "b", "c"}
    assert not swept.store.path(old[3]).exists()


async def test_one_old_leftover_stops_nothing(swept: Swept) -> None:
    await swept.holding(*(aged(f"day {k}", 100_000 + k) for k in range(3)))
    for one in swept.store.files():
        os.utime(swept.store.path(one.name), (time.time() - 100_000,) * 2)
    swept.stray(f"{swept.store.files()[0].day}/img_old.png", age_s=100_000)
    for k in range(51):
        swept.stray(f"2026-01-31/img_{k}.png", age_s=101 + k, bytes=100)
    assert await swept.sweep(replace(WIDE, keep_s=1e6, keep_bytes=10_000)) == 52
    assert len(await swept.left()) == 3


async def test_a_file_that_cannot_be_deleted_keeps_no_other(swept: Swept) -> None:
    await swept.holding(aged("a", 5000), aged("b", 5001))
    first = max(swept.store.files(), key=lambda file: file.name)
    path = swept.store.path(first.name)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        await swept.sweep()
    assert not any(file.bytes for file in swept.store.files())


async def test_without_a_gallery_the_size_bounds_the_files(swept: Swept) -> None:
    for k in range(4):
        swept.stray(f"2026-01-31/img_{k}.png", age_s=k, bytes=400)
    assert await swept.sweep(gallery=False) == 2
    assert swept.store.holds("2026-01-31/img_1.png")
    assert not swept.store.holds("2026-01-31/img_2.png")


async def test_one_worker_sweeps_at_a_time(swept: Swept) -> None:
    await swept.holding(aged("old", 5000))
    held = _take(swept.lock)
    assert held is not None
    with held:
        assert await swept.sweep() == 0
    assert await swept.sweep() == 1


def test_hosts_that_sweep_at_once_delete_no_more_than_is_too_much(
    url: str, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Store(url, 0.3), Store(url, 0.3)
    one(gallery.insert, *(picture(str(k), time.time() - 20 + k) for k in range(12)))
    limits = replace(WIDE, keep_bytes=60)
    sweeper = Sweeper(store, None, limits, tmp_path / "lock", gallery=True)  # type: ignore[arg-type]
    compute = retention.fair_share

    def meanwhile(wanted: Sequence[int], room: int) -> int:
        """Between what one has counted and what it takes, the other would do all of it."""
        monkeypatch.setattr(retention, "fair_share", compute)
        with suppress(DBAPIError):  # it waits, in vain here
            other(sweeper._forget)
        return compute(wanted, room)

    monkeypatch.setattr(retention, "fair_share", meanwhile)
    one(sweeper._forget)
    while other(sweeper._forget):
        pass
    assert len(one(gallery.page, Wanted())) == 6
    for each in (one, other):
        each.engine.dispose()


async def test_a_host_whose_clock_is_a_day_ahead_deletes_nothing(
    shared_url: str, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, database = time.time, Database(shared_url, timeout_s=3.0)
    swept = await Swept(store, database, tmp_path / "lock").holding(aged("young", 10))
    swept.stray("2026/01/31/img_stray.png", age_s=10)
    monkeypatch.setattr(time, "time", lambda: right() + 86_400)
    assert await swept.sweep() == 0
    database.close()
