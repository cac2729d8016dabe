"""Which user a cell runs as: whoever typed the command, or for root a service user.

Root drops to that user before it touches the cell, so one user owns everything of it.
"""

import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy import processes
from deploy.config import ROOT, ClusterConfig
from deploy.layout import Layout, under_root

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
        _become(choice.account)
    return choice.warning


def _refuse_other_user(user: str) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    if user and user != me:
        raise AccountError(f'cell.user: "{user}" is not you ({me}); run this as {user} or as root')


def _choose(config: ClusterConfig, config_path: Path, *, create: bool) -> Choice:
    if (owner := _owner_of_running(config)) is not None:
        return Choice(None if owner.pw_uid == 0 else owner)
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


def _owner_of_running(config: ClusterConfig) -> pwd.struct_passwd | None:
    # A running cell keeps its user, whatever would be chosen for a new one.
    leader = processes.leader(Layout.of(config).processes)
    if leader is None:
        return None
    return pwd.getpwuid(Path(f"/proc/{leader.pid}").stat().st_uid)


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
    if not create and var_dir.exists():
        return  # perhaps somebody else's, which only `up` may take over
    var_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if var_dir.stat().st_uid == account.pw_uid:
        return
    for path in (var_dir, *var_dir.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _become(account: pwd.struct_passwd) -> None:
    os.setgroups(_groups(account))
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
