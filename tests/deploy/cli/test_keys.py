import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from deploy.cli import keys as commands
from tests import command_line
from tests.postgres import Server
from tests.worker.storage.test_jobs import Store
from worker.storage import job_turns, keys
from worker.storage.database import create_engine, sqlite_url

Zimage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def zimage(tmp_path: Path) -> Zimage:
    """``zimage keys …`` on a cell that nobody has started yet."""
    config = tmp_path / "cluster.toml"
    config.write_text(f'[cell]\nvar_dir = "{tmp_path}/var"\n[listen]\nauth = "keys"\n')

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ZIMAGE_CONFIG": str(config)}
        return command_line.zimage(("keys", *arguments), environment)

    return run


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def version_of(tmp_path: Path) -> int:
    """What the sessions of the only key must know."""
    engine = create_engine(sqlite_url(tmp_path / "var" / "zimage.db"), 5.0)
    with engine.connect() as connection:
        [key] = keys.snapshot(connection).keys
    engine.dispose()
    return key.version


def test_a_key_lives_from_create_to_delete(zimage: Zimage, tmp_path: Path) -> None:
    made = answer(
        zimage("create", "小明", "--images-per-day", "40", "--expires", "2099-12-31", "--json")
    )
    assert made["key"].startswith(keys.PREFIX)
    shown = answer(zimage("show", "小明", "--json"))
    assert (shown["id"], shown["images_per_day"], shown["hint"]) == (
        made["id"],
        40,
        "…" + made["key"][-4:],
    )
    assert shown["expires_at"] == "2100-01-01 00:00 UTC"  # the day named is the last one
    assert "hash" not in shown
    assert (tmp_path / "var" / "key-secret").stat().st_mode & 0o777 == 0o600

    changed = zimage("change", "小明", "--images-per-day", "0", "--concurrency", "3")
    assert changed.returncode == 0, changed.stderr
    assert zimage("disable", made["id"][:12]).returncode == 0  # a beginning is enough
    [listed] = answer(zimage("list", "--json"))
    assert (listed["images_per_day"], listed["concurrency"], listed["disabled"]) == (None, 3, True)
    assert zimage("enable", "小明").returncode == 0
    assert version_of(tmp_path) == 2  # disabling ended its sessions
    signed_out = zimage("sign-out", "小明")
    assert signed_out.returncode == 0
    assert "stays good" in signed_out.stdout
    assert version_of(tmp_path) == 3
    rotated = answer(zimage("rotate", "小明", "--json"))
    assert (rotated["id"], rotated["key"] == made["key"]) == (made["id"], False)
    assert zimage("delete", "小明").returncode == 0
    assert answer(zimage("list", "--json")) == []


def test_misuse_is_named_with_its_remedy(zimage: Zimage, tmp_path: Path) -> None:
    assert "zimage up makes it" in zimage("list").stderr
    assert zimage("create", "ada").returncode == 0
    for arguments, told in (
        (("show", "nobody"), "no key nobody"),
        (("show", "key_"), "no key key_"),
        (("create", "ada"), "there is a key ada already"),
        (("create", "a/b"), "without /"),
        (("create", "b", "--expires", "soon"), "write it as 2027-12-31"),
        (("create", "b", "--role", "king"), "'king' is not one of"),
        (("create", "b", "--concurrency", "-1"), "greater than or equal to 0"),
        (("change", "ada"), "name what to change"),
    ):
        done = zimage(*arguments)
        assert done.returncode in (1, 2)
        assert told in " ".join(done.stderr.split()), done.stderr
    (tmp_path / "var" / "key-secret").unlink()
    lost = zimage("create", "bob")
    assert lost.returncode == 1
    assert "key-secret is lost" in lost.stderr
    assert "restore it from a backup" in lost.stderr
    assert not (tmp_path / "var" / "key-secret").exists()


def test_a_key_whose_limit_is_changed_draws_again_at_once(zimage: Zimage, tmp_path: Path) -> None:
    made = answer(zimage("create", "ada", "--images-per-day", "2", "--json"))
    store = Store(sqlite_url(tmp_path / "var" / "zimage.db"))
    store(job_turns.hold, made["id"], 2e10)
    job = store.create(owner=made["id"])
    assert store.job(job.id).held == "limit"
    assert zimage("change", "ada", "--images-per-day", "9").returncode == 0
    assert store.job(job.id).held == ""
    store.engine.dispose()


def test_a_servers_password_stands_in_its_file_alone(
    zimage: Zimage, tmp_path: Path, postgres: Server
) -> None:
    config, file, password = tmp_path / "cluster.toml", tmp_path / "password", "correct horse 7"
    with postgres.guarded("cell", password) as url:
        told = f'[database]\nurl = "{url}"\npassword_file = "{file}"\n'
        config.write_text(config.read_text() + told)
        file.write_text("wrong\n")
        refused = zimage("create", "ada")
        assert refused.returncode == 1
        assert "authentication failed" in refused.stderr
        assert "let the role of database.url create tables" in refused.stderr
        file.write_text(f"{password}\n")
        assert answer(zimage("create", "ada", "--json"))["name"] == "ada"
        assert [key["name"] for key in answer(zimage("list", "--json"))] == ["ada"]
    files = [path for path in (tmp_path / "var").rglob("*") if path.is_file()]
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    assert not (tmp_path / "var" / "zimage.db").exists()


def test_every_change_of_a_key_is_in_the_audit_log(zimage: Zimage, tmp_path: Path) -> None:
    token = answer(zimage("create", "ada", "--role", "ops", "--json"))["key"]
    changes = [("change", "ada", "--images-per-day", "7"), ("disable", "ada"), ("enable", "ada")]
    rotated = ("rotate", "ada", "--json")
    for words in (*changes, rotated, ("sign-out", "ada"), ("delete", "ada")):
        assert zimage(*words).returncode == 0
    assert zimage("disable", "nobody").returncode == 1
    [path] = (tmp_path / "var" / "audit").iterdir()
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    events = ("created", "changed", "disabled", "enabled", "rotated", "signed_out", "deleted")
    assert [line["event"] for line in lines] == [f"key_{event}" for event in events]
    assert {line["name"] for line in lines} == {"ada"}
    assert (lines[0]["role"], lines[1]["images_per_day"]) == ("ops", 7)
    assert lines[2]["disabled"] is True
    assert "hash" not in text
    assert token not in text


def test_a_key_may_be_allowed_all_some_or_no_adapters(zimage: Zimage) -> None:
    assert answer(zimage("create", "ada", "--json"))["key"]
    for said, stored in (("wash, ink", "ink,wash"), ("none", ""), ("all", None)):
        assert zimage("change", "ada", "--loras", said).returncode == 0
        assert answer(zimage("show", "ada", "--json"))["loras"] == stored
    refused = zimage("change", "ada", "--loras", "../ink")
    assert refused.returncode == 2
    assert "is no name for an adapter" in refused.stderr


def test_every_limit_is_an_option_of_create_and_of_change() -> None:
    group = cast("Any", typer.main.get_command(commands.app))
    limits = {field.name for field in fields(commands.Limits)}
    for name in ("create", "change"):
        assert limits <= {option.name for option in group.commands[name].params}


def said_key(done: subprocess.CompletedProcess[str]) -> str:
    """The key that a command printed for a person."""
    assert done.returncode == 0, done.stdout + done.stderr
    [token] = [word for word in done.stdout.split() if word.startswith(keys.PREFIX)]
    return token


def test_a_first_start_prints_a_key_and_no_later_one_does(zimage: Zimage) -> None:
    token = said_key(zimage("first"))
    again = zimage("first")
    assert (again.returncode, again.stdout) == (0, "")
    [key] = answer(zimage("list", "--json"))
    assert (key["name"], key["hint"]) == ("first", "…" + token[-4:])
    assert zimage("delete", "first").returncode == 0
    assert said_key(zimage("first")) != token  # nobody could draw any more


def test_nobody_gets_a_first_key_where_none_is_asked_for(zimage: Zimage, tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(config.read_text().replace('auth = "keys"', 'auth = "loopback"'))
    done = zimage("first")
    assert (done.returncode, done.stdout) == (0, "")
    assert not (tmp_path / "var").exists()


def test_the_first_key_is_the_one_in_the_file(zimage: Zimage, tmp_path: Path) -> None:
    file = tmp_path / "key"
    hints = []
    for letter in "aab":  # the same one again changes nothing
        file.write_text(letter * 32 + "\n")
        done = zimage("first", "--file", str(file))
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        [key] = answer(zimage("list", "--json"))
        hints.append(key["hint"])
    assert hints == ["…aaaa", "…aaaa", "…bbbb"]
    assert version_of(tmp_path) == 2  # whoever signed in with the one before is signed out
    [log] = (tmp_path / "var" / "audit").iterdir()
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events == ["key_created", "key_rotated"]


@pytest.mark.parametrize("text", ["", "short\n", "a" * 31, "two words " * 4, "ä" * 40])
def test_a_file_without_a_good_key_lets_nobody_in(
    zimage: Zimage, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    done = zimage("first", "--file", str(file))
    assert done.returncode == 1
    assert "openssl rand -hex 32" in done.stderr
    assert "zimage up makes it" in zimage("list").stderr  # nothing was made


def test_a_first_key_from_no_file_is_refused_by_its_name(zimage: Zimage, tmp_path: Path) -> None:
    done = zimage("first", "--file", str(tmp_path / "gone"))
    assert done.returncode == 1
    assert f"{tmp_path}/gone cannot be read" in done.stderr
