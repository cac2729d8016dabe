import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "deploy" / "requirements"


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[]", requirement)[0].lower().replace("_", "-")


def test_everything_that_is_installed_has_an_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *groups["test"], *groups["load"]]
    wanted += [each for extra in extras.values() for each in extra]
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = {_name(w) for w in wanted if isinstance(w, str)}  # not {"include-group": …}
    assert names <= {_name(line) for line in lines}


def test_what_a_release_installs_has_all_that_the_kit_names() -> None:
    """``scripts/lock`` was run after the last change of dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {path.stem: path.read_text("utf-8") for path in LISTS.glob("*.txt")}
    locked = {name: set(re.findall(r"^([\w.-]+)==", text, re.M)) for name, text in lists.items()}
    always = locked["kit"] | locked["torch-cuda"]
    assert {_name(wanted) for wanted in project["dependencies"]} <= always
    for extra, wanted in project["optional-dependencies"].items():
        assert {_name(each) for each in wanted} <= always | locked[extra]
