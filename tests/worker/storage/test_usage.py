from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from worker.storage import usage
from worker.storage.database import create_engine
from worker.storage.usage import REQUEST, Entry

AT = 1_800_000_000.0  # 2027-01-15
PICTURE = Entry("r1", 0, "image", AT, "key_a", "tiny", 512, 256, 1.048576, 0.5)
DONE = Entry("r1", REQUEST, "done", AT, "key_a", "tiny", 512, 256, queue_seconds=2.0)


@pytest.fixture
def connection(url: str) -> Iterator[sa.Connection]:
    engine = create_engine(url, 1.0)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def total(connection: sa.Connection) -> dict[str, float]:
    [row] = usage.report(connection, "model")
    return {name: value for name, value in row.items() if name != "model" and value}


def test_a_request_and_its_pictures_are_summed_up(connection: sa.Connection) -> None:
    usage.apply(connection, [PICTURE, replace(PICTURE, image_index=1), DONE])
    assert total(connection) == {
        "requests": 1,
        "images": 2,
        "megapixel_steps": 2.097,
        "gpu_seconds": 1.0,
        "queue_seconds": 2.0,
    }


def test_nothing_counts_twice_in_one_batch_or_many(connection: sa.Connection) -> None:
    usage.apply(connection, [PICTURE, PICTURE, DONE, DONE])
    before = total(connection)
    usage.apply(connection, [DONE, PICTURE])
    usage.apply(connection, [replace(PICTURE, gpu_seconds=9.0)])
    assert total(connection) == before
    assert before["images"] == before["requests"] == 1


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_of_one_request_the_best_outcome_counts(
    connection: sa.Connection, order: tuple[int, ...], apart: bool
) -> None:
    outcomes = [replace(DONE, outcome="refused"), replace(DONE, outcome="failed"), DONE]
    batch = [outcomes[i] for i in order]
    for part in [[one] for one in batch] if apart else [batch]:
        usage.apply(connection, part)
    found = total(connection)
    assert found["requests"] == 1
    assert "refusals" not in found
    assert "failures" not in found


def test_reports_are_by_key_day_and_model(connection: sa.Connection) -> None:
    later = replace(PICTURE, request_id="r2", at=AT + 86_400, owner="key_b", width=64)
    usage.apply(connection, [PICTURE, DONE, later, replace(later, model="big", request_id="r3")])
    assert [(r["key"], r["images"]) for r in usage.report(connection, "key")] == [
        ("key_a", 1),
        ("key_b", 2),
    ]
    assert [(r["day"], r["images"]) for r in usage.report(connection, "day")] == [
        ("2027-01-15", 1),
        ("2027-01-16", 2),
    ]
    assert [r["model"] for r in usage.report(connection, "model")] == ["big", "tiny"]
    assert usage.report(connection, "day", until="2027-01-15", owner="key_b") == []
    [one] = usage.report(connection, "day", since="2027-01-16", owner="key_b")
    assert one["images"] == 2
    assert usage.images_on(connection, "key_b", "2027-01-16") == 2
    assert usage.images_on(connection, "nobody", "2027-01-16") == 0


def test_what_is_old_is_forgotten_and_sums_stay_longer(connection: sa.Connection) -> None:
    usage.apply(connection, [PICTURE, DONE])
    assert usage.prune(connection, AT + 1, "2027-01-15") == 2
    assert total(connection)["images"] == 1
    assert usage.prune(connection, AT + 1, "2027-01-16") == 1
    assert usage.report(connection, "day") == []


@pytest.mark.parametrize("text", ["", "2027-1-1", "2027-02-30", "20270101", "2027-01-01 ", "x"])
def test_what_is_no_day_is_told(text: str) -> None:
    assert not usage.is_day(text)
    assert usage.is_day("2028-02-29")
