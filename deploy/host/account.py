"""Which user a cell runs as: whoever typed the command, or for root a service user.

Root drops to that user before it touches the cell, so one user owns everything of it. Until then
root trusts nothing that this user, or anybody else, can write: neither what stands in the state
directory nor what its names lead to.
"""

import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.config import ROOT, ClusterConfig
from deploy.host import processes
from deploy.layout import MARK, Layout, under_root
from worker.coordination.processes import end_with, ends_with

DEFAULT_USER = "zimage"
USERADD_OPTIONS = ("--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin")


class AccountError(Exception):
    """The cell cannot run as the user that it should; the message ends in the remedy."""


@dataclass(frozen=True)
class Choice:
    """``account`` None: stay who we are. ``warning`` says why root stays root."""

    account: pwd.struct_passwd | None = None
    warning: str = ""


def settle(config: ClusterConfig, config_path: Path, *, create: bool) -> str:
    """Become the cell's user; what a person should be warned of, or "".

    ``create``: make the service user and hand it the state directory, as ``up`` does. One that is
    missing is made for the user in any case, for it may not make one beside root's files.
    """
    if os.getuid() != 0:
        _refuse_other_user(config.cell.user)
        return ""
    choice = _choose(config, config_path, create=create)
    if choice.account is not None:
        _hand_over(under_root(config.cell.var_dir), choice.account, create=create)
        if create:
            Layout.of(config).make_short_link()  # in /run, where that user may make none
        _become(choice.account)
    return choice.warning


def _refuse_other_user(user: str) -> None:
    if not user:  # a container may run as a number that has no name
        return
    try:
        me = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        me = str(os.getuid())
    if user != me:
        raise AccountError(f'cell.user: "{user}" is not you ({me}); run this as {user} or as root')


def _choose(config: ClusterConfig, config_path: Path, *, create: bool) -> Choice:
    with _opened(under_root(config.cell.var_dir)) as folder:
        if folder is not None and os.fstat(folder).st_uid != 0:
            return Choice(_keeper(folder, config))
    if _runs_as_root(config):
        return Choice()
    name = config.cell.user or DEFAULT_USER
    if name == "root":
        return Choice()
    account = _find(name) or (_create(name) if create else None)
    obstacle = (
        "cannot be created here" if account is None else _obstacle(account, config, config_path)
    )
    if not obstacle:
        return Choice(account)
    if config.cell.user:
        raise AccountError(f'cell.user: "{name}" {obstacle}; mend that, or set cell.user = "root"')
    return Choice(
        warning=f"running as root: the service user {name} {obstacle}. Remedy: move the checkout "
        'to where every user may enter, such as /srv, or set cell.user = "root" to accept it.'
    )


@contextmanager
def _opened(var_dir: Path) -> Iterator[int | None]:
    """The folder itself, whatever its name leads to later; None where there is none.

    A link is followed only where root made it.
    """
    if var_dir.is_symlink() and var_dir.lstat().st_uid == 0:
        var_dir = var_dir.resolve()
    try:
        folder = os.open(var_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        text = f"cell.var_dir: {var_dir} is no folder that root would use: {error.strerror}"
        raise AccountError(f"{text}; name the folder itself") from None
    try:
        yield folder
    finally:
        os.close(folder)


def _keeper(folder: int, config: ClusterConfig) -> pwd.struct_passwd:
    """Whose the state directory is: a cell keeps its user, whatever a new one would get."""
    wanted, var_dir = config.cell.user, config.cell.var_dir
    uid = os.fstat(folder).st_uid
    try:
        owner = pwd.getpwuid(uid)
    except KeyError:
        raise AccountError(f"cell.var_dir: {var_dir} belongs to {uid}, who is no user") from None
    if wanted and wanted != owner.pw_name:
        raise AccountError(
            f'cell.user: "{wanted}", but {var_dir} belongs to {owner.pw_name}; end the cell and '
            f'chown -R {wanted}: {var_dir}, or set cell.user = "{owner.pw_name}"'
        )
    if owner.pw_name not in {wanted, DEFAULT_USER} and not _marked(folder):
        raise AccountError(_no_cell(var_dir, owner.pw_name))
    return owner


def _runs_as_root(config: ClusterConfig) -> bool:
    """Whether a cell of root's runs, as far as files say it that only root can have written."""
    layout = Layout.of(config)
    for path in (layout.var_dir, layout.processes.parent, layout.processes):
        try:
            status = path.lstat()
        except OSError:
            return False
        if status.st_uid != 0 or stat.S_ISLNK(status.st_mode) or _others_write(status):
            return False
    return processes.leader(layout.processes) is not None


def _others_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _marked(folder: int) -> bool:
    """Whether the folder's owner has made it a cell's."""
    try:
        mark = os.stat(MARK, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(mark.st_mode) and mark.st_uid == os.fstat(folder).st_uid


def _no_cell(var_dir: str | Path, owner: str) -> str:
    return (
        f"cell.var_dir: {var_dir} belongs to {owner} and holds other things than a cell; "
        "name a folder that is new or empty, such as a new one in there"
    )


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _create(name: str) -> pwd.struct_passwd | None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin")
    if useradd is None:
        return None
    command = [useradd, *USERADD_OPTIONS, name]
    made = subprocess.run(command, capture_output=True, check=False, timeout=30)
    return _find(name) if made.returncode == 0 else None


def _obstacle(account: pwd.struct_passwd, config: ClusterConfig, config_path: Path) -> str:
    """Why ``account`` cannot run the cell, or ""."""
    for path in (ROOT / "deploy" / "cluster.toml", config_path):
        if not _can(account, "-r", path):
            return f"cannot read {path}"
    if not _runs_python(account):
        return f"cannot run {sys.executable}"
    var_dir = under_root(config.cell.var_dir)
    parent = next(p for p in var_dir.parents if p.exists())
    return "" if _can(account, "-x", parent) else f"cannot enter {parent}"


def _can(account: pwd.struct_passwd, test: str, path: Path) -> bool:
    return _run_as(account, ["/usr/bin/test", test, str(path)])


def _runs_python(account: pwd.struct_passwd) -> bool:
    return _run_as(account, [sys.executable, "-c", "import supervisor"])


def _run_as(account: pwd.struct_passwd, command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=_groups(account),
            cwd="/",
            capture_output=True,
            check=False,
            timeout=30,
        )
    except OSError:
        return False
    return done.returncode == 0


def _groups(account: pwd.struct_passwd) -> list[int]:
    return os.getgrouplist(account.pw_name, account.pw_gid)


def _hand_over(var_dir: Path, account: pwd.struct_passwd, *, create: bool) -> None:
    """Give ``account`` the state directory: a new or empty one, or the one of a cell of root's."""
    if not create and var_dir.exists():
        return  # perhaps somebody else's, which only `up` may take over
    var_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(var_dir) as folder:
        assert folder is not None
        status = os.fstat(folder)
        if status.st_uid == account.pw_uid:
            return
        ours = _marked(folder) and not _others_write(status)
        with os.scandir(folder) as entries:
            empty = not any(entries)
        if not ours and not empty:
            raise AccountError(_no_cell(var_dir, pwd.getpwuid(status.st_uid).pw_name))
        for _, folders, files, within in os.fwalk(dir_fd=folder, topdown=False):
            for name in (*folders, *files):
                _give(name, within, status, account)
        os.fchown(folder, account.pw_uid, account.pw_gid)


def _give(name: str, within: int, top: os.stat_result, account: pwd.struct_passwd) -> None:
    found = os.stat(name, dir_fd=within, follow_symlinks=False)
    # Not what is mounted there, and no second name of a file elsewhere.
    linked = found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode)
    if found.st_dev == top.st_dev and found.st_uid == top.st_uid and not linked:
        os.chown(name, account.pw_uid, account.pw_gid, dir_fd=within, follow_symlinks=False)


def _become(account: pwd.struct_passwd) -> None:
    bond, parent = ends_with(), os.getppid()
    os.setgroups(_groups(account))
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    if bond and not end_with(parent, bond):
        os.kill(os.getpid(), bond)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
