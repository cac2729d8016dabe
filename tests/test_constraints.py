import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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
