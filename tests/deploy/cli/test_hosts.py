"""``zimage hosts`` with a real PostgreSQL and the program of each host."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests import command_line
from tests.deploy.cluster import cells
from tests.deploy.cluster.standing import machine, upgrade_command
from tests.deploy.processes import PATIENCE_S, wait_until
from tests.postgres import Server
from tests.worker.databases import away
from tests.worker.storage.test_jobs import Store
from worker.storage import hosts
from worker.storage.hosts import Host
from worker.storage.migrations import migrate

Zimage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    with postgres.database("zimage_cli_hosts") as url:
        migrate(url)
        yield url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


@pytest.fixture
def config(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(
        f'[cell]\nvar_dir = "{tmp_path}/var"\n[database]\nurl = "{url.replace("+psycopg", "")}"\n'
        '[objects]\nurl = "s3://bucket"\nendpoint = "http://127.0.0.1:9"\ncredentials_file = "k"\n'
        '[cluster]\nname = "studio"\nhost = "a"\naddress = "127.0.0.1:7862"\n'
    )
    return path


@pytest.fixture
def zimage(config: Path) -> Zimage:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line.zimage((*arguments, "--config", str(config)), os.environ)

    return run


def row(store: Store, id: str) -> Host:
    return {host.id: host for host in store(hosts.read_all)}[id]


def begin(config: Path, *arguments: str) -> AbstractContextManager[command_line.Command]:
    return command_line.started((*arguments, "--config", str(config)), os.environ)


def test_a_host_is_drained_once_it_has_finished_and_let_in_again(
    zimage: Zimage, config: Path, store: Store, tmp_path: Path, url: str
) -> None:
    with machine(tmp_path, "a", url) as guard, machine(tmp_path, "b", url):
        guard.workers = [cells.worker(running=1)]
        wait_until(lambda: row(store, "a").state == "busy", "busy")
        with begin(config, "hosts", "drain", "a", "--reason", "new cards") as draining:
            wait_until(lambda: row(store, "a").state == "draining", "draining")
            assert draining.runs  # it waits for the drawing
            guard.workers = [cells.worker()]
            code, told = draining.wait(PATIENCE_S), draining.said() + draining.complained()
        assert code == 0, told
        assert "a: draining, 1 left" in told
        assert "a is drained" in told
        shown = zimage("hosts")
        assert shown.returncode == 0, shown.stderr  # b draws
        assert "a  is wanted out since" in shown.stdout
        assert "new cards" in shown.stdout
        assert zimage("hosts", "drain", "a").returncode == 0  # again
        last = zimage("hosts", "drain", "b")
        assert last.returncode == 1
        assert "b is the last host that draws" in last.stderr
        assert zimage("hosts", "undrain", "a").returncode == 0
        assert row(store, "a").state == "ready"
        again = zimage("status", "--hosts", "--json")
        told_hosts = {host["id"]: host for host in json.loads(again.stdout)["hosts"]}
        assert (told_hosts["a"]["state"], told_hosts["a"]["wanted"]) == ("ready", "in")


def test_a_host_takes_requests_once_a_front_sends_some(
    zimage: Zimage, store: Store, tmp_path: Path, url: str
) -> None:
    def hears(*, open: bool) -> list[dict[str, Any]]:
        return [{"id": "a", "silent_s": 0.1, "open": open}]

    with machine(tmp_path, "a", url), machine(tmp_path, "f", url, role="front") as front:
        front.hosts = hears(open=False)
        wait_until(lambda: "hears" in row(store, "f").facts, "heard")
        early = zimage("hosts", "undrain", "a", "--timeout", "0")
        assert "a is not taking requests after 0 s" in early.stderr
        front.hosts = hears(open=True)
        assert zimage("hosts", "undrain", "a").returncode == 0


def test_a_host_that_does_not_finish_stays_wanted_out(
    zimage: Zimage, store: Store, tmp_path: Path, url: str
) -> None:
    with machine(tmp_path, "a", url) as guard, machine(tmp_path, "b", url):
        guard.workers = [cells.worker(running=2)]
        wait_until(lambda: row(store, "a").running == 2, "busy")
        done = zimage("hosts", "drain", "a", "--timeout", "0")
        assert done.returncode == 1
        assert "a is not drained after 0 s" in done.stderr
        assert row(store, "a").wanted == "out"


def test_a_removed_host_is_not_of_the_cluster_any_more(
    zimage: Zimage, store: Store, tmp_path: Path, url: str
) -> None:
    with machine(tmp_path, "a", url), machine(tmp_path, "b", url):
        for _ in range(2):
            done = zimage("hosts", "remove", "b")
            assert done.returncode == 0, done.stderr
        assert row(store, "b").wanted == "removed"
        still = re.compile("b +was removed and still writes")
        wait_until(lambda: still.search(zimage("hosts").stdout), "it has written since")
        assert zimage("hosts", "undrain", "b").returncode == 1


def test_a_host_that_says_nothing_is_not_waited_for(
    zimage: Zimage, store: Store, tmp_path: Path, url: str
) -> None:
    with machine(tmp_path, "a", url):
        said = vars(cells.host("b"))
        gone = hosts.HostReport(**{n: said[n] for n in hosts.HostReport.__dataclass_fields__})
        store(hosts.write, gone, 1.0)
        drained = zimage("hosts", "drain", "b")
        assert drained.returncode == 1
        assert "b says nothing any more" in drained.stderr
        removed = zimage("hosts", "remove", "b")
        assert removed.returncode == 0, removed.stderr
        assert "is not waited for" in removed.stderr
        assert "a:7862" in (shown := zimage("hosts").stdout)
        assert "b:7862" not in shown


def test_hosts_are_shown_as_last_listed_while_the_database_is_away(
    zimage: Zimage, tmp_path: Path, url: str
) -> None:
    with machine(tmp_path, "a", url):
        listed = (tmp_path / "a" / "hosts.json").read_text()
    state = tmp_path / "var" / "state"
    state.mkdir(parents=True)
    (tmp_path / "var" / ".zimage-cell").touch()
    (state / "hosts.json").write_text(listed)
    with away(url):
        shown = zimage("hosts")
        drained = zimage("hosts", "drain", "a")
    assert "as of " in shown.stderr
    assert "a:7862" in shown.stdout
    assert (shown.returncode, drained.returncode) == (0, 1)


def test_hosts_take_another_version_one_after_the_other_until_one_fails(
    zimage: Zimage, store: Store, tmp_path: Path, url: str
) -> None:
    own = {name: upgrade_command(tmp_path, name, "refuse") for name in "ab"}
    own["a"] = upgrade_command(tmp_path, "a")
    (tmp_path / "refuse").touch()
    with (
        machine(tmp_path, "a", url, upgrade_command=own["a"]),
        machine(tmp_path, "b", url, upgrade_command=own["b"]),
    ):
        failed = zimage("hosts", "upgrade", "1.1.0")
        assert failed.returncode == 1, failed.stdout
        assert "b did not take 1.1.0: 1.1.0 was refused" in failed.stderr
        assert [(row(store, n).version, row(store, n).wanted) for n in "ab"] == [
            ("1.1.0", "in"),
            ("1.0.0", "in"),
        ]
        (tmp_path / "refuse").unlink()
        done = zimage("hosts", "upgrade", "1.1.0")
        assert done.returncode == 0, done.stderr
        assert {row(store, name).version for name in "ab"} == {"1.1.0"}
        assert {row(store, name).wanted for name in "ab"} == {"in"}
    assert (tmp_path / "order").read_text().split() == ["a", "b"]


def test_a_wheel_is_not_handed_to_other_hosts(zimage: Zimage) -> None:
    done = zimage("hosts", "upgrade", "zimage_cluster-1.1.0-py3-none-any.whl")
    assert done.returncode == 2
    assert "is no version" in done.stderr


def test_a_machine_of_no_cluster_has_no_hosts(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(f'[cell]\nvar_dir = "{tmp_path}/var"\n')
    done = command_line.zimage(("hosts", "--config", str(path)), os.environ)
    assert done.returncode == 1
    assert "belongs to no cluster" in done.stderr


def test_the_configuration_may_be_named_before_the_verb(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(f'[cell]\nvar_dir = "{tmp_path}/var"\n')
    done = command_line.zimage(("hosts", "--config", str(path), "drain", "a"), os.environ)
    assert str(path) in done.stderr
