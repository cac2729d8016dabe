"""A host of its own runs and loads what it did before there were clusters, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.config import ROOT
from deploy.supervision.supervise import Supervisor
from tests.cluster.conftest import RunningCell

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PROGRAMS = ["guard", "nginx", "w1", "w2", "w3"]
PROCESSES = [
    "-m deploy.guard",
    "-m deploy.supervision.nginx_program",
    "-m supervisor.supervisord",
    "-m worker",
    "-m worker",
    "-m worker",
    "nginx: master process",
    "nginx: worker process",
]
RENDERED = """
    conf.d/clients.conf conf.d/configuration.conf conf.d/error-pages.conf conf.d/errors.conf
    conf.d/headers.conf conf.d/let-in.conf conf.d/limited.conf conf.d/limits.conf
    conf.d/locations.conf conf.d/log.conf conf.d/objects.conf conf.d/ops.conf conf.d/page.conf
    conf.d/picture.conf conf.d/pool.conf conf.d/proxy.conf conf.d/tls.conf conf.d/types.conf
    guard.json monitoring/alerts.yml monitoring/dashboard.json monitoring/prometheus.yml
    nginx.conf supervisord.conf workers/w1 workers/w2 workers/w3
"""
EXTRAS = ("psycopg", "obstore")


@pytest.fixture(scope="module")
def processes(cell: RunningCell) -> list[psutil.Process]:
    leader = psutil.Process(int(cell.layout.supervisor_pid.read_text()))
    return [leader, *leader.children(recursive=True)]


def kind(process: psutil.Process) -> str:
    words = [word for word in process.cmdline() if word != "-P"]
    if words[0].startswith("nginx:"):
        return " ".join(" ".join(words).split()[:3])
    return " ".join(words[1:3])


def test_processes_are_these(cell: RunningCell, processes: list[psutil.Process]) -> None:
    assert sorted(Supervisor(cell.layout).states()) == PROGRAMS
    found = sorted(map(kind, processes))
    workers = found.count("nginx: worker process")  # one a core
    assert workers >= 1
    assert sorted(set(found)) == sorted(set(PROCESSES))
    assert [what for what in found if what != "nginx: worker process"] == PROCESSES[:-1]


def test_only_the_two_ports_that_are_configured_are_listened_on(
    cell: RunningCell, processes: list[psutil.Process]
) -> None:
    ports = {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {int(cell.url.rsplit(":", 1)[1].rstrip("/")), cell.ops_port}


def test_no_process_has_loaded_what_only_clusters_need(processes: list[psutil.Process]) -> None:
    """Both clients are installed here, and each is a shared library once it is imported."""
    import obstore
    import psycopg

    assert obstore.__file__
    assert psycopg.pq.__impl__ == "binary"
    own = {Path(mapped.path).as_posix() for mapped in psutil.Process().memory_maps()}
    assert all(any(f"/{extra}" in path for path in own) for extra in EXTRAS)  # it would be seen
    for process in processes:
        for mapped in process.memory_maps():
            assert not any(f"/{extra}" in mapped.path for extra in EXTRAS), (process, mapped.path)


def test_rendered_files_are_these(cell: RunningCell) -> None:
    folder = cell.layout.render_dir
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert sorted(
        f"workers/{name.name.partition('-')[0]}" if name.parts[0] == "workers" else str(name)
        for name in names
    ) == sorted(RENDERED.split())


@pytest.mark.parametrize("verb", ["status", "doctor", "keys list", "usage", "plan", "backup FILE"])
def test_commands_load_nothing_of_it_either(cell: RunningCell, tmp_path: Path, verb: str) -> None:
    words = verb.replace("FILE", str(tmp_path / "cell.tar")).split()
    code = (
        f"import atexit, runpy, sys; sys.argv = ['zimage', *{words!r}]\n"
        f"atexit.register(lambda: print('LOADED', sorted({set(EXTRAS)!r} & sys.modules.keys())))\n"
        "runpy.run_module('deploy.cli.app', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "ZIMAGE_CONFIG": str(cell.config_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_nothing_of_a_cluster_is_left_on_the_disk(cell: RunningCell) -> None:
    assert not cell.layout.cluster_dir.exists()
    assert not (cell.layout.var_dir / "spool").exists()
    assert "cluster" not in cell.zimage("doctor").stdout
