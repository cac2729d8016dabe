"""What `zimage doctor` says of the servers of a database, against real ones."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import parse
from deploy.finding import Finding
from deploy.rollout import address_checks, database_checks
from tests.deploy.processes import wait_until
from tests.postgres import Pair, Server, running_pair
from worker.storage.migrations import migrate


def found(tmp_path: Path, url: str) -> list[Finding]:
    data = {"cell": {"var_dir": str(tmp_path / "var")}, "database": {"url": url}}
    return list(database_checks.doctor(Cell(parse(data), tmp_path / "cluster.toml")))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as made:
        yield made


def test_without_a_server_there_is_nothing_to_say(tmp_path: Path) -> None:
    data = {"cell": {"var_dir": str(tmp_path / "var")}}
    assert list(database_checks.doctor(Cell(parse(data), tmp_path / "cluster.toml"))) == []


def test_one_server_that_can_be_used(postgres: Server, tmp_path: Path) -> None:
    with postgres.database("zimage_looked_at") as url:
        migrate(url)
        server, replication = found(tmp_path, url)
    assert (server.level, server.subject) == ("ok", f"database {postgres.folder}")
    assert server.text == "may be written to; its clock is right"
    assert (replication.level, replication.text) == (
        "ok",
        "no standby: what is lost with it comes out of the backup",
    )


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(5, "its clock is 5.0 s ahead of this machine's"), (-3600, "3600.0 s behind this machine's")],
)
def test_a_clock_that_is_off_is_an_error_with_its_remedy(
    postgres: Server, tmp_path: Path, seconds: int, told: str
) -> None:
    with postgres.database("zimage_skewed") as url:
        with postgres.connect("zimage_skewed") as admin:
            admin.execute("CREATE SCHEMA skewed")
            admin.execute(
                "CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
                f"'SELECT pg_catalog.clock_timestamp() + interval ''{seconds} s'''"
            )
            path = "skewed, public, pg_catalog"
            admin.execute(f"ALTER DATABASE zimage_skewed SET search_path = {path}")
        [clock, *_] = found(tmp_path, url)
    assert clock.level == "fail"
    assert told in clock.text.replace("3599.9", "3600.0")
    assert "chrony or systemd-timesyncd" in clock.remedy


def test_rights_that_a_role_lacks_are_named(postgres: Server, tmp_path: Path) -> None:
    with postgres.database("zimage_rights") as url:
        migrate(url)
        with postgres.connect("zimage_rights") as admin:
            admin.execute("CREATE ROLE reader LOGIN")
            admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader")
            admin.execute("REVOKE DELETE ON images FROM reader")
        _, makes, lacks, _ = found(tmp_path, url.replace("zimage@", "reader@"))
        with postgres.connect("zimage_rights") as admin:
            admin.execute("DROP OWNED BY reader")
            admin.execute("DROP ROLE reader")
    assert (makes.level, lacks.level) == ("fail", "fail")
    assert "reader may make no tables in" in makes.text
    assert makes.remedy.startswith("GRANT CREATE, USAGE ON SCHEMA public TO reader")
    assert lacks.text == "reader may not delete images"


def test_a_standby_is_seen_and_one_that_is_lost_is_an_error(pair: Pair, tmp_path: Path) -> None:
    a, b = f"database {pair.primary.folder}", f"database {pair.standby.folder}"
    first, second, replication = found(tmp_path, pair.url)
    assert (first.subject, second.subject) == (a, b)
    assert second.text == "a standby that follows; its clock is right"
    assert (replication.level, replication.text) == ("ok", "walreceiver sync")

    with pair.primary.connect() as admin:
        admin.execute("SET synchronous_commit = local")
        admin.execute("CREATE ROLE plain LOGIN")
    hidden = found(tmp_path, pair.url.replace("zimage@", "plain@"))[-1]
    assert (hidden.level, hidden.remedy) == ("ok", "to see them: GRANT pg_monitor to it")

    pair.standby.stop()
    with pair.primary.connect() as admin:
        asked = "SELECT count(*) FROM pg_stat_replication"
        wait_until(lambda: admin.execute(asked).fetchone() == (0,), "the standby is missed")
    first, second, replication = found(tmp_path, pair.url)
    assert (first.level, second.level, replication.level) == ("ok", "warn", "fail")
    assert "nobody can go there when one is lost" in second.remedy
    assert replication.text == "no synchronous standby (*) follows: every change waits for one"
    pair.standby.start()


def test_only_standbys_are_an_error_and_name_the_remedy(pair: Pair, tmp_path: Path) -> None:
    url = f"postgresql://zimage@/postgres?host={pair.standby.folder}"
    standby, none = found(tmp_path, url)
    assert (standby.level, none.level) == ("ok", "fail")
    assert none.text == "none of its servers may be written to"
    assert "promote a standby" in none.remedy


def test_a_port_for_fronts_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        data = {
            "cell": {"var_dir": str(tmp_path / "var")},
            "cluster": {"name": "studio", "address": f"10.9.9.9:{port}"},
            "database": {"url": "postgresql://zimage@db/zimage"},
            "objects": {
                "url": "s3://pictures/studio",
                "endpoint": "http://127.0.0.1:1",
                "credentials_file": "credentials",
            },
            "listen": {"auth": "keys"},
        }
        *_, fronts = address_checks.ports(Cell(parse(data), tmp_path / "cluster.toml"))
    assert (fronts.level, fronts.subject) == ("fail", f"cluster.address 0.0.0.0:{port}")
    assert fronts.remedy == "stop that process, or set cluster.address to a free port"
