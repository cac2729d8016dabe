from pathlib import Path

import pytest

from loadtest import report, run_file, slo
from loadtest.chaos import Injected
from loadtest.observer import Sample, Span
from loadtest.record import Record, Result, write
from loadtest.run_file import Mark, Part, Run
from loadtest.slo import Bound


def finished(folder: Path, *, failed: int = 0, p95_s: float = 1.0) -> Path:
    """A run of 10 s with two parts, a fault and a change."""
    folder.mkdir()
    for second in range(10):
        result: Result = "failed" if second < failed else "ok"
        error = "<b>HTTP 500</b>" if second < failed else ""
        write(
            folder / "requests.jsonl",
            Record(
                100.0 + second,
                "Program",
                "draw",
                1.0,
                result,
                200,
                "w1",
                0.1,
                0.9,
                1,
                0,
                "id",
                error,
            ),
        )
    measured = {
        "requests": 10.0,
        "failed": float(failed),
        "refused": 0.0,
        "p95_s": p95_s,
        "pictures_per_s": 1.0,
        "faults": 1.0,
    }
    part = Part(
        "one", 100.0, 105.0, {"pictures_per_s": 1.0, "p50_s": 1.0, "p95_s": 1.0, "p99_s": 1.0}
    )
    run = Run(
        scenario="failover",
        started=100.0,
        ended=110.0,
        about={"cell": "test"},
        objectives=slo.judge({"failed": Bound(max=0)}, measured),
        measured=measured,
        parts=[part, part],
        marks=[Mark(103.0, "rolling restart", 106.0)],
        faults=[Injected(102.0, "kill", "w1", 0.08, 2.5)],
        lanes={"w1": [Span("in", 100.0, 102.0), Span("dead", 102.0, 104.0)]},
        queue=[(101.0, 3), (109.0, 0)],
        resources={"w1": [Sample(100.0 + t, 80.0, 9, 4) for t in range(8)]},
        temporary_files=[(101.0, 0)],
    )
    run_file.save(folder, run)
    return folder


def test_page_says_the_verdict_first_and_needs_nothing_else(tmp_path: Path) -> None:
    page = report.write(finished(tmp_path / "run")).read_text()
    assert "10 requests, 0 failed, under 1 faults. Every objective is met." in page
    assert page.index("Passed") < page.index("<svg")
    assert "http://" not in page
    assert "https://" not in page


def test_replies_that_were_cut_are_told_beside_the_failed(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    run, _ = run_file.load(folder)
    run.measured["cut"] = 2.0
    run_file.save(folder, run)
    assert "under 1 faults, 2 replies cut by the one" in report.write(folder).read_text()


def test_missed_objective_is_named_with_its_distance(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", failed=2)
    page = report.write(folder).read_text()
    assert "failed 2 missed ≤ 0 by 2" in page
    assert "&lt;b&gt;HTTP 500" in page
    assert "# failover: failed" in (folder / "report.md").read_text()


def test_summary_lists_what_users_saw_of_each_fault(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    report.write(folder)
    summary = (folder / "report.md").read_text()
    assert "| 0:02 | kill | w1 | no error, longest wait 1.0 s | 0.08 s | 2.50 s |" in summary


def test_two_runs_are_compared_figure_by_figure(tmp_path: Path) -> None:
    before, after = finished(tmp_path / "a"), finished(tmp_path / "b", p95_s=1.5)
    page = report.compare(before, after)
    assert page.parent == after
    assert "p95 1.00 s → 1.50 s" in page.read_text()
    assert "| Latency, p95 | 1.00 s | 1.50 s | +50 % |" in (after / "compare.md").read_text()


def test_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run, records = run_file.load(finished(tmp_path / "run"))
    assert len(records) == 10
    assert run.faults[0].healed
    assert run.passed


def test_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"run\.json"):
        run_file.load(tmp_path)


def test_faults_of_some_runs_make_one_table(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, failed=failed) for name, failed in (("a", 0), ("b", 10))]
    table = report.fault_table(runs).splitlines()
    assert table[2:] == ["| `kill` | 4 failed, longest wait 1.0 s | 0.08 s | 2.50 s |"]
