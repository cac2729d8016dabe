"""The runbooks have an entry for everything that can ring, in both languages."""

import re
from pathlib import Path

import pytest

from deploy.config import ROOT

RUNBOOKS = [ROOT / "docs" / name for name in ("runbook.md", "runbook.zh-CN.md")]


def entries(runbook: Path) -> list[str]:
    """Headings of alarms, which their links name."""
    return re.findall(r"^### ([a-z_]+)$", runbook.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.name)
def test_every_alert_links_to_an_entry_and_every_entry_has_an_alert(
    runbook: Path, monitoring: Path
) -> None:
    linked = re.findall(r"runbook\.md#(\w+)", (monitoring / "alerts.yml").read_text())
    assert sorted(linked) == sorted(entries(runbook))


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.name)
def test_every_alarm_of_the_guard_has_an_entry(runbook: Path) -> None:
    guard = ROOT / "deploy" / "guard"
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(guard.glob("*.py")))
    raised = set(re.findall(r'journal\.(?:set|alarm)\(\s*"(\w+)"', source))
    assert len(raised) >= 6
    assert raised <= set(entries(runbook))


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.name)
def test_links_inside_lead_somewhere(runbook: Path) -> None:
    text = runbook.read_text(encoding="utf-8")
    headings = {_anchor(line) for line in re.findall(r"^#+ (.+)$", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda path: path.name)
def test_settings_that_it_names_are_there(runbook: Path) -> None:
    manual = (ROOT / "deploy" / "cluster.toml").read_text()
    sections = "limits|timeouts|auth|gallery|guard|nginx|logs|database|listen|model"
    for section, key in re.findall(rf"`({sections})\.(\w+)`", runbook.read_text(encoding="utf-8")):
        if key not in {"log", "md"}:
            block = manual.split(f"\n[{section}]", 1)[1].split("\n[", 1)[0]
            assert re.search(rf"^{key} = ", block, re.M), f"{section}.{key}"


def _anchor(heading: str) -> str:
    """As Markdown's readers make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
