"""Which user root becomes, and what root gives away. As root only: nobody else may."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config import ROOT, ClusterConfig, parse
from deploy.host import account, processes
from deploy.host.account import AccountError
from deploy.layout import MARK, Layout

ME = pwd.getpwuid(os.getuid())
NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")


def config(var_dir: Path, **cell: str) -> ClusterConfig:
    return parse({"cell": {"var_dir": str(var_dir), **cell}})


def choose(config: ClusterConfig) -> int:
    choice = account._choose(config, ROOT / "deploy" / "cluster.toml", create=False)
    return choice.account.pw_uid if choice.account else 0


def test_a_state_directory_that_is_missing_is_made_for_the_user_of_the_cell(tmp_path: Path) -> None:
    var_dir = tmp_path / "cell" / "var"
    account._hand_over(var_dir, ME, create=False)
    assert var_dir.stat().st_uid == ME.pw_uid
    assert var_dir.stat().st_mode & 0o777 == 0o700


def test_only_up_takes_over_a_state_directory_that_is_there(tmp_path: Path) -> None:
    account._hand_over(tmp_path, NOBODY, create=False)
    assert tmp_path.stat().st_uid == ME.pw_uid


@as_root
def test_empty_folder_is_given_away(tmp_path: Path) -> None:
    account._hand_over(tmp_path, NOBODY, create=True)
    assert tmp_path.stat().st_uid == NOBODY.pw_uid


@as_root
def test_folder_of_other_things_keeps_its_owners(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    os.chown(tmp_path / "theirs", 1234, 1234)
    with pytest.raises(AccountError, match="holds other things than a cell; name a folder"):
        account._hand_over(tmp_path, NOBODY, create=True)
    assert (tmp_path.stat().st_uid, (tmp_path / "theirs").stat().st_uid) == (0, 1234)


@as_root
def test_mark_that_somebody_else_made_is_none(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    os.chown(tmp_path / MARK, 1234, 1234)
    with pytest.raises(AccountError, match="other things"):
        account._hand_over(tmp_path, NOBODY, create=True)


@as_root
def test_cell_of_roots_is_given_away_and_nothing_beside_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    layout = Layout(tmp_path / "var", tmp_path / "var" / "run")
    layout.create()
    (layout.state_dir / "link").symlink_to(outside)
    (layout.state_dir / "second name").hardlink_to(outside / "file")
    account._hand_over(layout.var_dir, NOBODY, create=True)
    for path in (layout.var_dir, layout.state_dir, layout.var_dir / MARK):
        assert path.stat().st_uid == NOBODY.pw_uid
    assert (layout.state_dir / "link").lstat().st_uid == NOBODY.pw_uid
    assert (outside.stat().st_uid, (outside / "file").stat().st_uid) == (0, 0)


def test_folder_that_was_not_empty_gets_no_mark(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    for _ in range(2):
        Layout(tmp_path, tmp_path / "run").create()
    assert not (tmp_path / MARK).exists()


@as_root
def test_record_of_a_process_of_roots_makes_nobody_root(tmp_path: Path) -> None:
    """The service user writes this file: it might name any process of root's."""
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    processes.record(layout.processes, os.getpid())
    assert processes.leader(layout.processes) is not None
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    assert choose(config(tmp_path)) == NOBODY.pw_uid


@as_root
def test_cell_that_root_runs_stays_roots(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    tmp_path.chmod(0o700)
    processes.record(layout.processes, os.getpid())
    assert choose(config(tmp_path, user="nobody")) == 0
    layout.processes.chmod(0o666)  # anybody may have written it
    with pytest.raises(AccountError, match=r'cell\.user: "nobody" cannot'):
        choose(config(tmp_path, user="nobody"))


@as_root
def test_user_of_a_cell_is_not_changed_unawares(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY.pw_uid, NOBODY.pw_gid)
    with pytest.raises(AccountError, match="belongs to nobody; end the cell and chown -R root:"):
        choose(config(tmp_path, user="root"))
    with pytest.raises(AccountError, match="holds other things than a cell"):
        choose(config(tmp_path))
    assert choose(config(tmp_path, user="nobody")) == NOBODY.pw_uid


@as_root
def test_link_of_somebody_elses_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    link = tmp_path / "var"
    link.symlink_to(tmp_path / "roots")
    account._hand_over(link, NOBODY, create=True)  # root made the link
    assert (tmp_path / "roots").stat().st_uid == NOBODY.pw_uid
    os.chown(link, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    with pytest.raises(AccountError, match="no folder that root would use"):
        choose(config(link))


@as_root
def test_root_becomes_the_owner_for_good(tmp_path: Path) -> None:
    Layout(tmp_path, tmp_path / "run").create()
    for path in (tmp_path, tmp_path / MARK):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    program = (
        "import os, sys; from pathlib import Path; from deploy import config; "
        "from deploy.host import account\n"
        "from worker.coordination.processes import ends_with\n"
        "parsed = config.parse({'cell': {'var_dir': sys.argv[1]}})\n"
        "account.settle(parsed, Path('x'), create=True)\n"
        "print(os.getresuid(), os.getresgid(), os.getgroups(), ends_with())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=processes.bound(signal.SIGTERM),
    )
    uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
    assert done.stdout == f"{(uid,) * 3} {(gid,) * 3} {[gid]} {signal.SIGTERM.value}\n"


def test_a_user_without_a_name_runs_a_cell_of_its_own(tmp_path: Path) -> None:
    """As in a container: `docker run --user 12345`."""
    if os.getuid() != 0:
        pytest.skip("only root becomes another user")
    text = (
        "import os, sys; from deploy.config import parse; from deploy.host import account\n"
        "os.setuid(54321)\n"
        "account.settle(parse({'cell': {'user': sys.argv[1]}}), None, create=True)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", text, user],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for user in ("", "zimage")
    ]
    assert told[0].returncode == 0, told[0].stderr
    assert 'cell.user: "zimage" is not you (54321)' in told[1].stderr
