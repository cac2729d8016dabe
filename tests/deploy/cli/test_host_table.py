import io
import re
from dataclasses import asdict

import pytest

from deploy import output
from deploy.cli import host_table
from tests.deploy.cluster.cells import NOW, front, host
from worker.storage.hosts import Host

HOSTS = [
    host("gpu-1", role="both", address="10.0.0.101:7862", queued=12, running=8, state="busy"),
    host("gpu-2", address="10.0.0.102:7862", skew_s=-2.31, wait_s=0.4, ready=1),
    host("gpu-3", state="draining", wanted="out", wanted_reason="new cards (anna)"),
    host("gpu-4", lost_at=NOW - 45, at=NOW - 47),
    host("gpu-5", at=NOW - 4000),
    host("gone", wanted="removed", at=NOW - 3600),
    host("stubborn", wanted="removed"),
    front("front-2"),
]


def shown(hosts: list[Host], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    text = io.StringIO()
    console = output._Console(file=text, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr(output, "console", console)
    console.print(host_table.shown("studio", [asdict(host) for host in hosts], NOW, width))
    return text.getvalue()


def test_a_host_is_what_it_says_unless_it_says_nothing() -> None:
    states = {each.id: host_table.state_of(asdict(each), NOW) for each in HOSTS}
    assert states == {
        "gpu-1": "busy",
        "gpu-2": "ready",
        "gpu-3": "draining",
        "gpu-4": "lost",
        "gpu-5": "silent",
        "gone": "removed",
        "stubborn": "removed",
        "front-2": "ready",
    }
    drawing = [each.id for each in HOSTS if host_table.takes_requests(asdict(each), NOW)]
    assert drawing == ["gpu-1", "gpu-2"]


def test_a_line_says_what_draws_and_notes_what_a_person_should_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = shown(HOSTS, 120, monkeypatch)
    assert "studio  5 hosts, 2 fronts  workers 3 of 10  zimage 1.0.0" in text
    notes = re.findall(r"^  ([\w-]+) +(is|no|writes|was|its) (.+?) *$", text, re.M)
    told = {name: f"{verb} {rest}" for name, verb, rest in notes}
    assert told["gpu-3"].startswith("is wanted out since")
    assert told["gpu-3"].endswith("new cards (anna)")
    assert told["gpu-4"] == "no front hears it, last row 47 s ago"
    assert told["gpu-5"].startswith("writes nothing")
    assert told["stubborn"].startswith("was removed and still writes")
    assert "gone" not in text


def test_a_wrong_clock_and_an_upgrade_that_failed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"upgrade": {"state": "failed", "version": "1.2.0"}}
    hosts = [host("a", skew_s=300.0), host("b", skew_s=-2.0), host("c", facts=failed)]
    text = shown(hosts, 100, monkeypatch)
    assert "a  its clock is ahead of the database's" in text
    assert "b  its clock is behind the database's" in text
    assert "c  did not take 1.2.0: var/logs/upgrade.log there says why" in text
    assert "did not take" not in shown([host("c", facts=failed, version="1.2.0")], 100, monkeypatch)


def test_it_fits_a_narrow_terminal_without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = (shown(HOSTS, width, monkeypatch) for width in (120, 80))
    assert "10.0.0.101:7862" in wide
    assert "10.0.0.101:7862" not in narrow
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 80
    for head in ("host", "role", "state", "workers", "queue", "wait", "skew", "version"):
        assert head in narrow


def test_it_is_whole_for_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(output, "console", output._console())
    hosts = [asdict(host) for host in [*HOSTS, host("x" * 60, address="10.0.0.109:7862")]]
    output.console.print(host_table.shown("studio", hosts, NOW, output.console.width))
    told = capsys.readouterr().out
    assert "x" * 60 in told
    assert "10.0.0.109:7862" in told
    assert max(map(len, told.splitlines())) < 200


def test_two_machines_of_one_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown([host("a", facts={"twin": True})], 80, monkeypatch)
    assert "a  two machines write under this name" in text


def test_versions_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [host("a"), host("b"), host("c", version="1.1.0")]
    assert "versions differ: 1.0.0, 1.1.0" in shown(hosts, 80, monkeypatch)


def test_what_hosts_have_otherwise_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = ({"serves": [{"name": "turbo", "digest": digest}]} for digest in "xy")
    text = shown([host("a", facts=one), host("b", facts=other)], 200, monkeypatch)
    assert re.search(r"all +model turbo is another one on each of: a; b: have the same", text)


def test_what_each_host_serves_is_told_where_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (
        {"serves": [{"name": name, "digest": "d"} for name in names]}
        for names in (("turbo", "third"), ("photo", "third"))
    )
    text = shown([host("a", facts=one), host("b", facts=other)], 100, monkeypatch)
    assert re.findall(r"^  (\w) +serves (.+?) *$", text, re.M) == [
        ("a", "turbo, third"),
        ("b", "photo, third"),
    ]
    same = shown([host("a", facts=one), host("b", facts=one)], 100, monkeypatch)
    assert "serves" not in same
