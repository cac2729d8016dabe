import os
import resource
import socket
from pathlib import Path

import pytest

from deploy.cell import Cell
from deploy.config import parse
from deploy.host import machine, private_file
from deploy.rollout import address_checks, checks, device_checks, model_checks
from tests.postgres import Server
from worker.storage import migrations


def cell(tmp_path: Path, **config: object) -> Cell:
    data = {"cell": {"var_dir": str(tmp_path / "var")}, **config}
    return Cell(parse(data), tmp_path / "cluster.toml")


def test_port_of_another_process_is_refused_and_its_owner_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen, _ = address_checks.ports(cell(tmp_path, listen={"port": port}))
    assert (listen.level, listen.subject) == ("fail", f"listen 127.0.0.1:{port}")
    assert f"in use by process {os.getpid()} (" in listen.text
    assert "python" in listen.text
    assert listen.remedy == "stop that process, or set listen.port to a free port"


def test_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    listen, _ = address_checks.ports(
        cell(tmp_path, listen={"address": "192.0.2.1", "auth": "none"})
    )
    assert (listen.level, listen.text) == ("fail", "Cannot assign requested address")


def test_sockets_that_would_not_fit_are_refused(tmp_path: Path) -> None:
    long = {"var_dir": str(tmp_path), "run_dir": "/tmp/" + "x" * 90}
    [finding] = address_checks.sockets(cell(tmp_path, cell=long))
    assert finding.level == "fail"
    assert "longer than 107" in finding.text


def test_missing_nginx_is_refused(tmp_path: Path) -> None:
    [finding] = checks.nginx(cell(tmp_path, nginx={"binary": "no-such-nginx"}))
    assert (finding.level, finding.text) == ("fail", 'no "no-such-nginx" here')


def test_traces_without_their_extra_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(checks.traces(cell(tmp_path))) == []
    traced = cell(tmp_path, traces={"endpoint": "http://127.0.0.1:4318/v1/traces"})
    monkeypatch.setattr(checks, "_is_installed", lambda module: False)
    [finding] = checks.traces(traced)
    assert finding.level == "fail"
    assert ".[otel]" in str(finding.remedy)
    monkeypatch.setattr(checks, "_is_installed", lambda module: True)
    assert [found.level for found in checks.traces(traced)] == ["ok"]


def test_database_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "file_system", lambda _: "nfs4")
    [finding] = checks.database(cell(tmp_path, database={"url": "sqlite:////mnt/a/z.db"}))
    assert finding.level == "fail"
    assert finding.text == "/mnt/a/z.db is on nfs4, where locks do not hold"


def test_a_server_is_asked_before_the_cell_is_touched(postgres: Server, tmp_path: Path) -> None:
    with postgres.database("zimage_checked") as url:
        found = list(checks.database(cell(tmp_path, database={"url": url})))
        assert [finding.level for finding in found] == ["ok"]
        many = [{"device": "cpu", "count": 60}]
        *_, few = checks.database(cell(tmp_path, database={"url": url}, workers=many))
        assert (few.level, few.remedy) == ("warn", "raise max_connections in postgresql.conf")
        migrations.migrate(url)
        with postgres.connect("zimage_checked") as admin:
            admin.execute("DROP EXTENSION pg_trgm CASCADE")
        *_, slow = checks.database(cell(tmp_path, database={"url": url}))
        assert (slow.level, slow.text) == ("warn", "searches must look at every prompt")
        assert "CREATE EXTENSION pg_trgm" in slow.remedy
    [gone] = checks.database(cell(tmp_path, database={"url": url}))
    assert gone.level == "fail"
    assert '"zimage_checked" does not exist' in gone.text


def test_a_password_that_others_may_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    database = {"url": "postgresql://db/zimage", "password_file": str(file)}
    [missing] = checks.database(cell(tmp_path, database=database))
    assert (missing.level, missing.remedy) == ("fail", "mend database.password_file")
    file.write_text("secret")
    file.chmod(0o644)
    [open_to_all] = checks.database(cell(tmp_path, database=database))
    assert (open_to_all.level, open_to_all.remedy) == ("fail", f"chmod 600 {file}")
    monkeypatch.setattr(
        private_file, "SECRETS", tmp_path
    )  # of a container, whose modes others choose
    [tried] = checks.database(cell(tmp_path, database=database))
    assert "may be read by others" not in tried.text


def test_a_server_without_its_client_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_is_installed", lambda module: False)
    [finding] = checks.database(cell(tmp_path, database={"url": "postgresql://db/zimage"}))
    assert (finding.level, finding.text) == ("fail", "psycopg is not installed")
    assert ".[postgres]" in finding.remedy


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    [finding] = model_checks.model(cell(tmp_path, model={"source": str(tmp_path)}))
    assert (finding.level, finding.text) == ("fail", f"{tmp_path} has no model_index.json")


def test_big_model_on_a_small_machine_is_refused(tmp_path: Path) -> None:
    many = [{"device": "cpu", "count": 64}]
    model = {"source": "random:z-image-turbo"}
    [finding] = device_checks.memory(cell(tmp_path, workers=many, model=model))
    assert finding.level == "fail"
    assert "workers need 2752" in finding.text


def test_cell_that_is_down_is_a_warning_with_the_command(tmp_path: Path) -> None:
    [finding] = checks.health(cell(tmp_path))
    assert (finding.level, finding.remedy) == ("warn", "zimage up")


@pytest.mark.parametrize(
    ("gib", "fp8", "remedy"),
    [
        (24.0, "off", None),
        (15.7, "all", None),
        (15.7, "off", 'set model.fp8 = "all", with which it needs 13'),
        (12.0, "all", "choose a smaller model"),
    ],
)
def test_a_card_that_is_too_small_is_told_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, fp8: str, remedy: str | None
) -> None:
    card = machine.Gpu("0", "GPU-a", "A card", gib, gib, "580")
    here = machine.Machine(8, 64.0, 60.0, (card,))
    monkeypatch.setattr(machine, "read", lambda: here)
    model = {"source": "random:z-image-turbo", "fp8": fp8}
    finding = next(device_checks.gpus(cell(tmp_path, model=model)))
    assert finding.level == ("ok" if remedy is None else "fail")
    assert (remedy or "") in finding.remedy


def test_doctor_tells_each_workers_levers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"levers": {"kernels": "off: no GPU", "fp8": "off"}}
    monkeypatch.setattr(checks, "livez", lambda path: given if path.name == "w1.sock" else {})
    workers = [{"device": "cpu", "count": 2}]
    [finding] = checks.optimisations(cell(tmp_path, workers=workers))
    assert (finding.subject, finding.text) == ("w1", "kernels off: no GPU; fp8 off")


@pytest.mark.parametrize(
    ("listen", "level", "told"),
    [
        ({}, "ok", "not always: behind any, set listen.auth"),
        ({"trusted_proxies": ["10.1.0.5"]}, "warn", "whoever 10.1.0.5 lets in draws without a key"),
        ({"auth": "none", "address": "0.0.0.0"}, "warn", "whoever can connect draws"),
    ],
)
def test_doctor_says_who_draws_without_a_key(
    tmp_path: Path, listen: dict[str, object], level: str, told: str
) -> None:
    [finding] = checks.who_may_draw(cell(tmp_path, listen=listen))
    assert finding.level == level
    assert told in finding.text


def test_doctor_has_nothing_to_say_where_keys_are_asked_for(tmp_path: Path) -> None:
    assert list(checks.who_may_draw(cell(tmp_path, listen={"auth": "keys"}))) == []


@pytest.mark.parametrize(("limit", "level"), [(20_000, "ok"), (17_408, "ok"), (4096, "fail")])
def test_too_few_open_files_are_refused_with_what_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, level: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, limit))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    [finding] = checks.open_files(cell(tmp_path))
    assert finding.level == level
    if level == "fail":
        assert finding.text == "4096 at most; nginx needs 17408"
        assert "nginx.worker_connections = 3072" in finding.remedy
        fewer = cell(tmp_path, nginx={"worker_connections": 3072})
        assert [f.level for f in checks.open_files(fewer)] == ["ok"]


def test_a_checkout_that_cannot_be_written_down_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(checks.paths(cell(tmp_path))) == []
    monkeypatch.setattr(checks, "ROOT", tmp_path / "it's; 100%")
    [finding] = checks.paths(cell(tmp_path))
    assert (finding.level, finding.subject) == ("fail", "paths")
