"""The index finds what looking at every prompt finds."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from tests.worker.storage.conftest import picture
from worker.storage import gallery, search
from worker.storage.database import create_engine, sqlite_url
from worker.storage.gallery import Wanted
from worker.storage.migrations import SCRIPTS, migrate


@pytest.fixture
def connection(url: str) -> Iterator[sa.Connection]:
    engine = create_engine(url, 1.0)
    with engine.connect() as made:
        yield made
    engine.dispose()


def fill(connection: sa.Connection, *prompts: str) -> None:
    pictures = (picture(f"{k}", prompt=prompt) for k, prompt in enumerate(prompts))
    gallery.insert(connection, *pictures)


def found(connection: sa.Connection, *words: str) -> list[str]:
    return [p.prompt for p in gallery.page(connection, Wanted(words=words, limit=1000))]


@pytest.mark.parametrize(
    ("word", "prompts"),
    [
        ("狐", ["红色的狐狸", "雪地里一只狐"]),
        ("狐狸", ["红色的狐狸"]),
        ("一只", ["雪地里一只狐"]),
        ("红色的", ["红色的狐狸"]),
        ("的狐狸", ["红色的狐狸"]),
        ("猫", []),
        ("ox", ["A Fox"]),
        ("x", ["A Fox"]),
        ("a fox", ["A Fox"]),
        ("FOX", ["A Fox"]),
        ('"q"', ['says "q" OR *']),
        ("or *", ['says "q" OR *']),
        ("'", []),
        ("ß", ["STRASSE"]),
    ],
)
def test_any_part_of_a_prompt_is_found(
    connection: sa.Connection, word: str, prompts: list[str]
) -> None:
    fill(connection, "红色的狐狸", "雪地里一只狐", "A Fox", 'says "q" OR *', "STRASSE")
    assert found(connection, word) == prompts


@pytest.mark.sqlite
@pytest.mark.parametrize("word", ["狐", "红色的", "ox", "or *", "'"])
def test_the_index_knows_any_part_of_a_prompt(connection: sa.Connection, word: str) -> None:
    fill(connection, "红色的狐狸", "A Fox", 'says "q" OR *')
    assert search.candidates(connection, [word]) is not None


def test_an_index_serves_what_looks_into_prompts(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        pytest.skip("it has an index of its own")
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    explain = "EXPLAIN SELECT id FROM images WHERE words LIKE '%%红色的%%'"
    assert "ix_images_words" in str(connection.exec_driver_sql(explain).all())


def test_it_finds_what_looking_at_all_finds(connection: sa.Connection) -> None:
    dice = random.Random(4)
    prompts = ["".join(dice.choices("abc 红色狐\"'%_", k=dice.randint(1, 12))) for _ in range(300)]
    fill(connection, *prompts)
    gallery.delete(connection, [f"img_{k}" for k in range(0, 300, 3)])
    left = [prompt for k, prompt in enumerate(prompts) if k % 3]
    for _ in range(300):
        word = "".join(dice.choices("abc红色狐\"'%_", k=dice.randint(1, 5)))
        other = dice.choice("ab红")
        assert sorted(found(connection, word)) == sorted(p for p in left if word in p)
        both = sorted(p for p in left if word in p and other in p)
        assert sorted(found(connection, word, other)) == both


def test_no_character_breaks_a_search(connection: sa.Connection) -> None:
    fill(connection, "a\0fox", "".join(map(chr, range(1, 128))), "*^:(){}+-\"' NEAR AND OR NOT")
    for code in (*range(0x80), *range(0x80, 0x180, 15), 0x2028, 0x1F98A, 0x10FFFF):
        for word in (chr(code), f"{chr(code)}f", f"a{chr(code)}fox", f'"{chr(code)}"', "NOT"):
            found(connection, word)
    stored = "a\0fox" if connection.dialect.name == "sqlite" else "a\N{REPLACEMENT CHARACTER}fox"
    assert found(connection, "a\0f") == found(connection, "fox") == [stored]
    assert len(found(connection, "near and", "*^:(){}+-\"'")) == 1


@pytest.mark.sqlite
def test_words_of_very_many_pictures_leave_it_to_the_order(
    connection: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST", 2)
    fill(connection, "fox one", "fox two", "fox three")
    assert search.candidates(connection, ["fox"]) is None
    assert search.candidates(connection, ["fox", "one"]) == ["img_0"]
    assert len(found(connection, "fox")) == 3
    monkeypatch.setattr(search, "_MOST_GROUPS", 1)
    assert search.candidates(connection, ["o"]) is None
    assert search.candidates(connection, ["o", "one"]) == ["img_0"]


@pytest.mark.sqlite
def test_nothing_is_left_of_what_is_deleted(connection: sa.Connection) -> None:
    fill(connection, "a fox", "a hill")
    gallery.delete(connection, ["img_0", "img_1"])
    count = sa.text("SELECT count(*) FROM images_terms")
    assert (connection.scalar(count), found(connection, "fox")) == (0, [])
    assert connection.scalar(sa.select(sa.func.count()).select_from(search.numbers)) == 0


def fill_as_then(connection: sa.Connection, *prompts: str) -> None:
    """With the columns that there were."""
    then = sa.Table("images", sa.MetaData(), autoload_with=connection)
    own = {"id": "", "owner": "k", "created_at": 1.0, "seed": 1, "width": 64, "height": 64}
    own |= {"steps": 8, "guidance_scale": 0.0, "negative_prompt": "", "model": "tiny"}
    own |= {"format": "png", "bytes": 10, "favourite": False}
    rows = [
        {**own, "id": f"img_{k}", "prompt": prompt, "words": prompt}
        for k, prompt in enumerate(prompts)
    ]
    connection.execute(then.insert(), rows)


def test_pictures_of_before_are_found_too(tmp_path: Path) -> None:
    path = sqlite_url(tmp_path / "old.db")
    (tmp_path / "old.db").touch()
    engine = create_engine(path, 1.0)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        fill_as_then(connection, "a fox", "a hill")
        assert search.candidates(connection, ["fox"]) is None
    migrate(path)
    with engine.connect() as connection:
        assert search.candidates(connection, ["fox"]) == ["img_0"]
        assert found(connection, "fox") == ["a fox"]
    engine.dispose()
