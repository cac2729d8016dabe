"""``zimage up`` on a running cell changes what differs, and nothing else."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from deploy.supervision.supervise import Supervisor
from tests.cluster.conftest import RunningCell, edit
from tests.deploy.processes import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cell"), pytest.mark.long]


def pids(cell: RunningCell) -> dict[str, int]:
    """Process of each program, as supervisord knows it."""
    return {name: program.pid for name, program in Supervisor(cell.layout).states().items()}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_second_up_changes_nothing(cell: RunningCell) -> None:
    before = pids(cell)
    done = cell.zimage("up", "--no-draw")
    assert "nothing to change" in done.stdout
    assert changed(before, pids(cell)) == set()


def test_nginx_change_is_a_reload(cell: RunningCell) -> None:
    before = pids(cell)
    undo = edit(cell, "[nginx]", "[nginx]\nkeepalive_timeout_s = 33.0")
    done = cell.zimage("up", "--no-draw")
    undo()
    assert done.returncode == 0, done.stderr
    assert "conf.d/clients.conf  +1 −1" in done.stdout
    assert "reload nginx" in done.stdout
    assert changed(before, pids(cell)) == set()
    assert cell.zimage("up").returncode == 0


def test_worker_change_rolls_through_the_pool_unseen(cell: RunningCell) -> None:
    async def scenario() -> None:
        before = pids(cell)
        async with cell.traffic():
            undo = edit(cell, "[limits.request]", "[limits.request]\nmax_steps = 44")
            done = await cell.run("up", "--no-draw")
            undo()
        assert done.returncode == 0, done.stderr
        assert changed(before, pids(cell)) == {"w1", "w2", "w3"}
        assert (await cell.run("up", "--no-draw")).returncode == 0

    asyncio.run(scenario())


def test_guard_change_restarts_the_guard_alone(cell: RunningCell) -> None:
    before = pids(cell)
    undo = edit(cell, "[guard]", "[guard]\nsilence_s = 0.7")
    done = cell.zimage("up")
    undo()
    assert done.returncode == 0, done.stderr
    assert changed(before, pids(cell)) == {"guard"}
    assert cell.zimage("up").returncode == 0


def test_workers_are_added_and_removed_unseen(cell: RunningCell) -> None:
    async def scenario() -> None:
        before = pids(cell)
        async with cell.traffic(resends=True):  # nginx is reloaded
            undo = edit(cell, "count = 3", "count = 4")
            more = await cell.run("up", "--no-draw")
            with_fourth = pids(cell)
            undo()
            fewer = await cell.run("up", "--no-draw")
        assert (more.returncode, fewer.returncode) == (0, 0), more.stderr + fewer.stderr
        assert changed(before, with_fourth) == {"w4", "guard"}
        assert pids(cell).keys() == before.keys()
        assert not cell.layout.gate("w4").is_symlink()

    asyncio.run(scenario())


def test_supervisord_is_replaced_while_drawing_goes_on(cell: RunningCell) -> None:
    async def scenario() -> None:
        nginx = cell.layout.nginx_pid.read_text()
        async with cell.traffic():
            undo = edit(cell, "[limits.request]", "[logs]\nmax_mib = 9\n[limits.request]")
            done = await cell.run("up", "--no-draw")
            undo()
        assert done.returncode == 0, done.stderr
        assert "replace it, workers go on meanwhile" in done.stdout
        assert cell.layout.nginx_pid.read_text() == nginx
        assert (await cell.run("up", "--no-draw")).returncode == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("[limits.request]", "[limits.request]\nmax_pixles = 1", 'did you mean "max_pixels"?'),
        ("[nginx]", '[nginx]\nbinary = "no-such-nginx"', 'no "no-such-nginx" here'),
        ("[ops]", '[ops]\naddress = "192.0.2.1"', "is not a loopback address"),
    ],
)
def test_what_does_not_pass_leaves_the_cell_untouched(
    cell: RunningCell, old: str, new: str, why: str
) -> None:
    before = pids(cell)
    undo = edit(cell, old, new)
    done = cell.zimage("up")
    undo()
    assert done.returncode == 1
    assert why in done.stdout + done.stderr
    assert "untouched" in done.stderr or "nothing was touched" in done.stderr
    assert changed(before, pids(cell)) == set()


def test_configuration_that_nginx_refuses_leaves_the_cell_untouched(
    cell: RunningCell, tmp_path: Path
) -> None:
    fussy = tmp_path / "nginx"
    fussy.write_text(
        '#!/bin/sh\ncase "$*" in *-t*) echo "[emerg] no" >&2; exit 1;; esac\n'
        'exec /usr/sbin/nginx "$@"\n'
    )
    fussy.chmod(0o755)
    before = pids(cell)
    undo = edit(cell, "[nginx]", f'[nginx]\nbinary = "{fussy}"')
    done = cell.zimage("up")
    undo()
    assert done.returncode == 1
    assert "nginx refuses the rendered configuration" in done.stderr
    assert "[emerg] no" in done.stderr
    assert "The running cell is untouched." in done.stderr
    assert changed(before, pids(cell)) == set()


def test_reload_that_nginx_refuses_is_told_again_and_again(
    cell: RunningCell, tmp_path: Path
) -> None:
    """As after an upgrade of nginx: the new program takes the files, the running one does not."""
    newer = tmp_path / "nginx"
    newer.write_text('#!/bin/sh\ncase "$*" in *-t*) exit 0;; esac\nexec /usr/sbin/nginx "$@"\n')
    newer.chmod(0o755)
    undo = edit(cell, "[nginx]", f'[nginx]\nbinary = "{newer}"')
    assert cell.zimage("up", "--no-draw").returncode == 0
    before = pids(cell)
    undo_connections = edit(cell, "[nginx]", f"[nginx]\nworker_connections = {10**30}")
    for _ in range(2):
        done = cell.zimage("up", "--no-draw")
        assert done.returncode == 1
        assert "nginx goes on with the configuration of before" in done.stderr
        assert re.search(r"\[emerg\] .* invalid number", done.stderr)
        assert "ready:" not in done.stdout
    undo_connections()
    assert changed(before, pids(cell)) == set()
    assert "nothing to change" in cell.zimage("up", "--no-draw").stdout
    undo()
    assert cell.zimage("up", "--no-draw").returncode == 0


def test_database_that_cannot_be_migrated_leaves_the_cell_untouched(cell: RunningCell) -> None:
    assert cell.layout.database.is_file()
    before = pids(cell)
    broken = cell.config_path.parent / "broken.db"
    broken.write_bytes(b"no database" * 100)
    undo = edit(cell, "[listen]", f'[database]\nurl = "sqlite:///{broken}"\n[listen]')
    done = cell.zimage("up")
    undo()
    assert done.returncode == 1
    assert f"{broken} cannot be migrated: file is not a database" in done.stderr
    assert "The running cell is untouched." in done.stderr
    assert changed(before, pids(cell)) == set()


def test_another_cell_on_the_same_sockets_is_refused(cell: RunningCell) -> None:
    undo = edit(cell, 'name = "test"', 'name = "other"')
    done = cell.zimage("up")
    undo()
    assert done.returncode == 1
    assert 'belongs to a running cell, "test"' in done.stdout


def test_model_that_cannot_be_loaded_leaves_the_cell_untouched(cell: RunningCell) -> None:
    undo = edit(cell, "noise=1", "no_such_option=1")
    done = cell.zimage("up", "--no-draw")
    undo()
    assert done.returncode == 1
    assert "synthetic: unknown option 'no_such_option'" in done.stdout
    assert "The running cell is untouched." in done.stderr
    assert cell.open() == {"w1", "w2", "w3"}


def test_worker_that_does_not_start_is_named_with_its_log(cell: RunningCell) -> None:
    wait_until(cell.is_whole, "whole")  # whoever is out would be first to be restarted
    undo = edit(cell, "noise=1", "load_ms=-1")  # only loading finds that
    done = cell.zimage("up", "--no-draw")
    undo()
    assert done.returncode == 1
    assert "starting w1: w1 failed" in done.stderr
    assert "must be non-negative" in done.stderr
    wait_until(lambda: cell.is_whole(without="w1"), "w2 and w3 open")
    before = pids(cell)
    os.kill(before["w2"], signal.SIGKILL)  # its turn has not come: it goes on as it was
    wait_until(lambda: pids(cell)["w2"] not in (0, before["w2"]), "w2 started again")
    wait_until(lambda: cell.is_whole(without="w1"), "w2 and w3 open")
    assert cell.zimage("up").returncode == 0


def test_hand_drained_worker_stays_out_over_restarts(cell: RunningCell) -> None:
    assert cell.zimage("drain", "w2").returncode == 0
    done = cell.zimage("restart", "--rolling")
    assert done.returncode == 0, done.stderr
    assert cell.open() == {"w1", "w3"}
    assert cell.zimage("undrain", "w2").returncode == 0
    assert cell.open() == {"w1", "w2", "w3"}
