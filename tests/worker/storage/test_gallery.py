from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from worker.storage import gallery
from worker.storage.database import create_engine
from worker.storage.gallery import StoredImage, Wanted
from worker.storage.jobs import jobs
from worker.types import Parameters

AT = 1_769_903_000.25
FOX = StoredImage(
    id="a" * 32 + "-0",
    owner="key_1",
    created_at=AT,
    prompt="A red Fox in the snow, 100% Ärmel",
    seed=2**32 - 1,
    parameters=Parameters(256, 128, 8),
    model="tiny",
    format="png",
    bytes=1234,
)


@pytest.fixture
def connection(url: str) -> Iterator[sa.Connection]:
    engine = create_engine(url, 1.0)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def ids(connection: sa.Connection, **wanted: object) -> list[str]:
    return [p.id for p in gallery.page(connection, Wanted(**wanted))]  # type: ignore[arg-type]


def named(name: str, **changes: object) -> StoredImage:
    return replace(FOX, id=f"img_{name}", **changes)  # type: ignore[arg-type]


def test_a_picture_is_found_as_it_was_stored(connection: sa.Connection) -> None:
    gallery.insert(connection, FOX, named("of_a_job", job_id="job_1", job_number=3))
    assert gallery.find(connection, FOX.id) == FOX
    assert gallery.find(connection, "img_of_a_job") == named(
        "of_a_job", job_id="job_1", job_number=3
    )
    assert gallery.find(connection, "img_none") is None
    assert FOX.name == f"2026-01-31/{FOX.id}.png"


def test_a_replay_changes_nothing(connection: sa.Connection) -> None:
    gallery.insert(connection, FOX)
    gallery.mark(connection, FOX.id, favourite=True)
    gallery.insert(connection, FOX, replace(FOX, seed=1), named("new"))
    found = gallery.find(connection, FOX.id)
    assert found is not None
    assert (found.favourite, found.seed) == (True, FOX.seed)
    assert len(ids(connection)) == 2


def test_newest_come_first_and_those_of_one_request_in_order(connection: sa.Connection) -> None:
    young = [named(f"young-{k}", created_at=AT + 1) for k in range(3)]
    gallery.insert(connection, FOX, *reversed(young))
    assert ids(connection) == [*(p.id for p in young), FOX.id]


def test_pages_follow_one_another_without_gap_or_double(connection: sa.Connection) -> None:
    gallery.insert(connection, *(named(f"{k:02}", created_at=AT + k // 3) for k in range(20)))
    everything = ids(connection)
    walked: list[str] = []
    while following := ids(connection, limit=7, after=walked[-1] if walked else None):
        walked += following
    assert walked == everything
    assert len(everything) == 20


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("FOX",), 1),
        (("snow", "red"), 1),
        (("ÄRMEL",), 1),
        (("100%",), 1),
        (("10%",), 0),
        (("_",), 0),
    ],
)
def test_all_words_must_stand_in_the_prompt(
    connection: sa.Connection, words: tuple[str, ...], found: int
) -> None:
    gallery.insert(connection, FOX, named("other", prompt="a green hill"))
    assert len(ids(connection, words=words)) == found


def test_chinese_is_searched_by_its_characters(connection: sa.Connection) -> None:
    gallery.insert(connection, named("zh", prompt="白色背景上的一个大红色圆形"))
    assert ids(connection, words=("红色",)) == ["img_zh"]


def test_seeds_and_names_of_jobs_are_found_as_well(connection: sa.Connection) -> None:
    for id, owner, name in (("job_1", "key_1", "Posters, 春季"), ("job_2", "key_2", "posters")):
        whole = ("created_at", "total", "revision", "width", "height", "steps", "guidance_scale")
        row = dict.fromkeys((*whole, "priority"), 1) | {"id": id, "owner": owner}
        text = ("turn", "digest", "negative_prompt", "output_format", "state")
        row |= {"name": name, "request_id": id} | dict.fromkeys(text, "")
        connection.execute(jobs.insert(), row)
    poster, other = named("poster", job_id="job_1"), named("other", job_id="job_2", owner="key_2")
    gallery.insert(
        connection, FOX, poster, other, named("seven", seed=7, prompt="a 4294967295 fox")
    )
    assert ids(connection, owner="key_1", words=("posters",)) == ["img_poster"]
    assert ids(connection, owner="key_1", words=("春", "fox")) == ["img_poster"]
    assert ids(connection, owner="key_2", words=("poster",)) == ["img_other"]
    assert ids(connection, owner="key_1", words=("#7",)) == ["img_seven"]
    seeded = ids(connection, owner="key_1", words=(str(FOX.seed),))
    assert sorted(seeded) == sorted([FOX.id, "img_poster", "img_seven"])
    assert ids(connection, words=("9" * 200,)) == []


def test_owner_job_and_favourites_narrow_the_page(connection: sa.Connection) -> None:
    gallery.insert(
        connection,
        FOX,
        named("theirs", owner="key_2", favourite=True),
        named("job", job_id="job_1", job_number=0),
    )
    assert ids(connection, owner="key_2") == ["img_theirs"]
    assert ids(connection, job_id="job_1") == ["img_job"]
    assert ids(connection, favourite=True) == ["img_theirs"]
    assert len(ids(connection, favourite=False, owner="key_1")) == 2


def test_deleted_pictures_are_gone(connection: sa.Connection) -> None:
    gallery.insert(connection, FOX, named("other"))
    gallery.delete(connection, [FOX.id])
    assert ids(connection) == ["img_other"]


@pytest.mark.sqlite
def test_a_page_reads_an_index_and_not_the_table(connection: sa.Connection) -> None:
    plan = connection.exec_driver_sql(
        "EXPLAIN QUERY PLAN SELECT * FROM images WHERE owner = 'a' "
        "ORDER BY created_at DESC, id LIMIT 50"
    ).all()
    assert "ix_images_owner_created_at_id" in str(plan)
