"""Releases for proofs: wheels of the present code, good and broken ones, in an installation."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from deploy.config import ROOT
from deploy.rollout import environment, releases
from deploy.rollout.releases import Releases

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table("of_1_2_0", sa.Column("id", sa.Integer, primary_key=True))
    op.add_column("images", sa.Column("of_1_2_0", sa.Text))
"""
SLOW_REVISION = """
import time
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "99999"
down_revision = "9999"


def upgrade() -> None:
    op.create_table("of_1_5_0", sa.Column("id", sa.Integer, primary_key=True))
    Path("{marker}").touch()
    time.sleep(1)
    op.add_column("images", sa.Column("of_1_5_0", sa.Text))
"""
MIGRATES = Path(tempfile.gettempdir()) / f"zc-migrates-{os.getpid()}"
"""There since 1.5.0 has begun to change the database."""
SHARED = Path(sysconfig.get_path("purelib"))


def copy_of_the_code(to: Path) -> None:
    """As much of the checkout as a wheel is made of, without the model that no proof draws."""
    for name in ("worker", "deploy", "loadtest", "web"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    for path in (to / "deploy" / "requirements").glob("*.txt"):
        path.write_text("# All packages are those of the proof.\n", encoding="utf-8")


def wheel(folder: Path, version: str) -> Path:
    """The wheel of the present code, changed as a proof wants ``version``. Its packages are those
    that run the proof, which a ``.pth`` in it leads to."""
    code = folder / f"code-{version}"
    code.mkdir()
    copy_of_the_code(code)
    (code / "shared.pth").write_text(f"{SHARED}\n")
    project = (code / "pyproject.toml").read_text()
    old = next(line for line in project.splitlines() if line.startswith("version = "))
    project = project.replace(old, f'version = "{version}"')
    project += '[tool.hatch.build.targets.wheel.force-include]\n"shared.pth" = "shared.pth"\n'
    (code / "pyproject.toml").write_text(project)
    CHANGES[version](code)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=code, check=True, capture_output=True)
    return folder / f"zimage_cluster-{version}-py3-none-any.whl"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def migrating(code: Path) -> None:
    versions = code / "worker" / "storage" / "migrations" / "versions"
    head = max(path.name[:4] for path in versions.glob("*.py"))
    (versions / "9999_later.py").write_text(REVISION.format(head=head))


def migrating_slowly(code: Path) -> None:
    migrating(code)
    path = code / "worker" / "storage" / "migrations" / "versions" / "99999_slow.py"
    path.write_text(SLOW_REVISION.format(marker=MIGRATES))


def broken_at_import(code: Path) -> None:
    path = code / "worker" / "server.py"
    path.write_text(path.read_text() + "\nraise RuntimeError('broken at import')\n")


def broken_at_warm_up(code: Path) -> None:
    replace(
        code / "worker" / "lifecycle.py",
        '        ticket = engine.submit(DrawRequest("warm-up"',
        '        raise RuntimeError("broken at warm-up")\n'
        '        ticket = engine.submit(DrawRequest("warm-up"',
    )


FIRST, MIGRATING, BROKEN = "1.0.0", "1.2.0", "1.4.0"

CHANGES = {
    FIRST: lambda code: None,
    "1.1.0": lambda code: None,
    MIGRATING: migrating,
    "1.3.0": broken_at_import,
    BROKEN: broken_at_warm_up,
    "1.5.0": migrating_slowly,
}


class Wheels:
    """Each is built when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def be_found_from(self, home: Path) -> None:
        """Let pip of the user with that home find those that are built, and nothing else."""
        conf = home / ".config" / "pip" / "pip.conf"
        conf.parent.mkdir(parents=True)
        conf.write_text(f"[global]\nno-index = true\nfind-links = {self.folder}\n")

    @functools.cache  # noqa: B019 - as long as the proof
    def __getitem__(self, version: str) -> Path:
        return wheel(self.folder, version)


def install(base: Releases, wheel: Path, version: str) -> None:
    environment.make(wheel, base.folder(version))
    base.note(version, releases.sha256(wheel))
    base.switch(base.folder(version))
