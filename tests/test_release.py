"""A release is what its version, its CHANGELOG and its tag say, and the same bytes again."""

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from helm_python import Chart

from deploy.rollout import environment

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "1700000000"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = _script()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_version_changelog_and_tag_of_this_commit_agree() -> None:
    shallow = not (ROOT / ".git").exists()
    points = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
    done = "" if shallow else subprocess.run(points, capture_output=True, text=True).stdout
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert release.disagreements(VERSION, changelog, done.split()) == []


@pytest.mark.parametrize(
    ("version", "section", "tags", "wrong"),
    [
        ("0.2.0.dev0", "Unreleased", [], 0),
        ("0.2.0", "0.2.0 (2027-01-04)", ["v0.2.0"], 0),
        ("0.2.0", "0.2.0", ["shown-to-friends"], 0),
        ("0.2.0", "Unreleased", [], 1),
        ("0.2.0.dev0", "0.2.0", [], 1),
        ("0.2.0", "0.2.0", ["v0.1.0"], 1),
        ("0.2.0.dev0", "Unreleased", ["v0.2.0"], 1),
    ],
)
def test_disagreements_are_found(version: str, section: str, tags: list[str], wrong: int) -> None:
    changelog = f"# Changelog\n\n## {section}\n\n### Added\n\n## 0.1.0\n"
    assert len(release.disagreements(version, changelog, tags)) == wrong


def _source(to: Path) -> Path:
    """What git would take, in a folder of its own."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/images/")):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)  # with the time of now
    return to


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """What two builds in two folders gave."""
    folder = tmp_path_factory.mktemp("builds")
    return [
        release.build(_source(folder / str(i) / "code"), folder / str(i) / "dist", EPOCH)
        for i in range(2)
    ]


def test_two_builds_give_the_same_bytes(built: list[list[Path]]) -> None:
    first, second = built
    assert [path.name for path in first] == [path.name for path in second]
    assert {"".join(path.suffixes[-1:]) for path in first} == {".whl", ".gz"}
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_wheel_has_all_that_runs_a_cell(built: list[list[Path]]) -> None:
    wheel = next(path for path in built[0] if path.suffix == ".whl")
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "worker",
        "deploy",
        "loadtest",
        "tinymodel",
        "web",
    ]
    wanted = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert set(wanted) - there == set()
    assert {"docs/runbook.md", "docs/runbook.zh-CN.md"} <= there
    assert not any(name.startswith(("tests/", "scripts/", ".venv")) for name in there)


def test_the_chart_is_one_file_that_helm_takes_and_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = release.chart(ROOT, tmp_path, EPOCH)
    assert release.chart(ROOT, tmp_path / "again", EPOCH).read_bytes() == first.read_bytes()
    with Chart.load(first) as chart:
        assert chart.metadata["appVersion"] == VERSION
        assert chart.metadata["version"] in first.name
        assert "StatefulSet" in chart.render(name="zimage")["zimage/templates/cell.yaml"]


def test_bill_of_materials_names_each_package_with_hashes(tmp_path: Path) -> None:
    bill = json.loads(release.bill_of_materials(ROOT, tmp_path / "bom.json", EPOCH).read_text())
    assert bill["bomFormat"] == "CycloneDX"
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("zimage-cluster", VERSION)
    parts = {part["name"].lower(): part for part in bill["components"]}
    assert {"torch", "uvicorn", "starlette", "pip"} <= parts.keys()
    assert parts["uvicorn"]["version"] in (ROOT / "constraints.txt").read_text()


def _locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by package."""
    text = (ROOT / "deploy" / "requirements" / name).read_text()
    blocks = re.findall(r"^([\w.-]+)==([\w.+]+)((?:.*\\\n)*.*)$", text, re.M)
    return {
        package.lower(): (version, re.findall(r"--hash=sha256:\w{64}", rest))
        for package, version, rest in blocks
    }


@pytest.mark.parametrize(
    "name",
    [
        "kit.txt",
        "torch-cpu.txt",
        "torch-cuda.txt",
        "hopper.txt",
        "otel.txt",
        "postgres.txt",
        "s3.txt",
    ],
)
def test_everything_that_a_release_installs_has_its_hash(name: str) -> None:
    locked = _locked(name)
    assert locked
    assert all(hashes for _, hashes in locked.values())
    pins = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().split("\n")[1:-1]
    )
    differ = {p for p, (v, _) in locked.items() if pins.get(p, v) != v.split("+")[0]}
    assert differ == set(), "run scripts/lock"


def test_every_extra_comes_along_with_an_upgrade() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {f"{name}.txt" for name in project["optional-dependencies"]}
    assert extras == environment._EXTRAS.keys()
    assert all((ROOT / "deploy" / "requirements" / name).exists() for name in extras)


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_a_release_installs_all_that_the_kit_needs(build: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\s<>=!~\[]", line)[0].lower() for line in project["dependencies"]}
    locked = _locked("kit.txt").keys() | _locked(f"torch-{build}.txt").keys()
    assert wanted - locked == set(), "run scripts/lock"


def test_revisions_of_a_released_version_do_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    monkeypatch.setattr(release, "ROOT", tmp_path)
    folder = tmp_path / release.REVISIONS
    folder.mkdir(parents=True)
    (folder / "0001.py").write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "v1.0.0")
    (folder / "0002.py").write_text("two")
    git("add", ".")
    assert release.changed_revisions("v1.0.0") == []
    (folder / "0001.py").write_text("one, changed")
    assert release.changed_revisions("v1.0.0") == [f"{release.REVISIONS}/0001.py"]
