"""From one version to another and back: `zimage upgrade` and `zimage rollback`.

The new version takes the cell over by its own `up`: its checks, its files, worker after worker.
Where that fails, `up` of the version before brings all back, and only what has been seen to work
becomes current. So a command that was killed leaves a cell that the next `zimage up` makes whole.
"""

import re
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from deploy import installation, output, rollout_record
from deploy.cell import CellError
from deploy.config import load
from deploy.host import processes
from deploy.layout import Layout
from deploy.rollout import environment, releases
from deploy.rollout.interrupts import Interrupted
from deploy.rollout.releases import Releases

_END_S = 600.0
"""A command that was asked to end first finishes the restart that it is in."""


def upgrade(wanted: str, config: Path, installed: Releases) -> None:
    """Take the cell of ``config`` to the version ``wanted``, or to the one in the wheel of that
    name. ``CellError``: it runs as before, or what to do."""
    with installed.locked(f"upgrade {wanted}"):
        folder = _made(wanted, installed)
        _go(folder, config, installed, f"upgrade {installed.name(folder)}")
        for version in installed.prune():
            output.say(f"  deleted  {version}, which nothing runs any more")


def rollback(config: Path, installed: Releases) -> None:
    """Take the cell of ``config`` to the version that was current before; ``CellError`` too."""
    with installed.locked("rollback"):
        _go(_before(config, installed), config, installed, "rollback")


def _before(config: Path, installed: Releases) -> Path:
    """Where a rollback leads."""
    half = installed.half_taken()
    if half and not _rolls_back(config):
        output.step(f"the upgrade to {', '.join(half)} was cut short: back to what is current")
        return installed.current
    before = installed.previous
    if before is None or before == installed.current:
        raise CellError("no version before this one is here; zimage upgrade VERSION takes one")
    return before


def _rolls_back(config: Path) -> bool:
    """Whether the last rollout of the cell was a rollback, which this one then goes on with."""
    try:
        record = rollout_record.read(Layout.of(load(config)))
    except rollout_record.NewerSchema:
        return False
    return record is not None and record.holder.command == "rollback"


def _go(folder: Path, config: Path, installed: Releases, command: str) -> None:
    now = installed.current
    new, old = installed.name(folder), installed.name(now)
    if not _running(config):
        output.step(f"{new}: check it; the cell is down and stays so")
        if _zimage(folder, "doctor", config, command):
            raise CellError(f"{new} cannot run here, as it says above; {old} stays current")
        installed.switch(folder)
        output.done(f"{new} is current; start it with: zimage up")
        return
    output.step(f"{new}: check it, then take the cell there, worker after worker")
    if _taken(folder, config, command):
        installed.switch(folder)
        back = "" if folder == now else f"; {old} comes back with: zimage rollback"
        output.done(f"the cell runs {new}{back}")
        return
    if folder == now:
        raise CellError(f"{new} does not start, as it says above; it is what is current")
    if not any("deploy.guard" in command for command in releases.commands_of(folder)):
        raise CellError(f"{new} was refused, as it says above; the cell runs {old} as before")
    output.step(f"{new} failed, as it says above: back to {old}")
    if not _taken(now, config, command):
        raise CellError(f"{old} did not come back either; see zimage status, then: zimage up")
    raise CellError(f"{new} failed; the cell runs {old} again, which stays current")


def _taken(folder: Path, config: Path, command: str) -> bool:
    """Whether `up` of the version in ``folder`` has made the cell run it."""
    try:
        return _zimage(folder, "up", config, command) == 0
    except Interrupted:
        output.warn(f"cut short: zimage {command} goes on, zimage up goes back")
        raise


def _zimage(folder: Path, verb: str, config: Path, command: str) -> int:
    """The exit code of a command of the version in ``folder``. Its waits have deadlines."""
    words = [*installation.command_of(folder), verb, "--config", str(config)]
    # Without us nobody would set the link or go back: it ends in order, and says so.
    bound = processes.bound(signal.SIGTERM)
    environment = installation.as_it_is(command)
    with subprocess.Popen(words, env=environment, preexec_fn=bound) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait(_END_S)
            raise


def _running(config: Path) -> bool:
    return bool(processes.members(Layout.of(load(config)).processes))


def _made(wanted: str, installed: Releases) -> Path:
    """The folder of the release ``wanted``, made now where it is not there."""
    path = Path(wanted)
    if path.suffix == ".whl":
        return _made_of(path, installed)
    if not re.fullmatch(r"\d[\w.!+]*", wanted):
        raise CellError(f"{wanted} is neither a version, such as 1.2.0, nor a wheel (.whl)")
    if installed.find(wanted):
        return installed.folder(wanted)
    output.step(f"{wanted}: fetch its wheel")
    with TemporaryDirectory(prefix="zimage-wheel-") as name:
        return _made_of(environment.fetch(wanted, Path(name)), installed)


def _made_of(wheel: Path, installed: Releases) -> Path:
    version = _version_of(wheel)
    sha256 = _checked(wheel)
    folder = installed.folder(version)
    there = installed.find(version)
    if there and there.sha256 != sha256:
        raise CellError(
            f"{version} is here already and was made of another wheel ({there.sha256[:12]}…); a "
            "version never changes: give this one a number of its own"
        )
    if there is None:
        output.step(f"{version}: make its environment in {folder}; the cell goes on meanwhile")
        environment.make(wheel, folder)
        installed.note(version, sha256)
    return folder


def _version_of(wheel: Path) -> str:
    try:
        name, version, _, _ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        raise CellError(str(error)) from None
    if name != canonicalize_name(installation.NAME):
        raise CellError(f"{wheel.name} is a wheel of {name}, not of {installation.NAME}")
    return str(version)


def _checked(wheel: Path) -> str:
    """Its SHA-256, which is what SHA256SUMS beside it says, where there is one."""
    try:
        found = releases.sha256(wheel)
    except OSError as error:
        raise CellError(f"{wheel} cannot be read: {error.strerror}") from None
    sums = wheel.parent / "SHA256SUMS"
    text = sums.read_text(encoding="utf-8") if sums.exists() else ""
    said = re.findall(r"^(\w{64}) [ *](.+)$", text, re.M)
    wanted = {name: digest for digest, name in said}.get(wheel.name, found)
    if wanted != found:
        raise CellError(f"{wheel} is not what {sums} says: it was changed or cut; copy it again")
    return found
