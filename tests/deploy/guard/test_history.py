from pathlib import Path

from deploy.guard.history import COLUMNS, KEPT_CHANGES, KEPT_POINTS, UNKNOWN, History


def states(history: History, worker: str) -> list[str]:
    return [state for _, state in history.dump()["lanes"][worker]]


def test_a_lane_has_the_changes_alone(tmp_path: Path) -> None:
    history = History(tmp_path / "history.json", ["w1", "w2"])
    for state in ("loading", "in", "in", "dead", "in"):
        history.enter("w1", state)
    assert states(history, "w1") == ["loading", "in", "dead", "in"]
    assert states(history, "w2") == []


def test_it_is_bounded(tmp_path: Path) -> None:
    history = History(tmp_path / "history.json", ["w1"])
    for n in range(KEPT_POINTS + 10):
        history.add({"at": float(n)})
        history.enter("w1", ("in", "dead")[n % 2])
    dumped = history.dump()
    assert len(dumped["points"]) == KEPT_POINTS
    assert len(dumped["lanes"]["w1"]) == KEPT_CHANGES
    assert dumped["points"][0][0] == 10.0
    history.save(dumped)
    assert (tmp_path / "history.json").stat().st_size < 200_000


def test_the_next_guard_goes_on_with_it_and_does_not_guess(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    history = History(path, ["w1", "gone"])
    history.enter("w1", "in")
    history.enter("gone", "in")
    history.add({"at": 5e9, "images": 3.0})
    history.save(history.dump())
    successor = History(path, ["w1", "new"])
    successor.enter("w1", "in")
    assert states(successor, "w1") == ["in", UNKNOWN, "in"]
    assert set(successor.dump()["lanes"]) == {"w1", "new"}
    assert successor.dump()["points"] == [[5e9, 3.0, *[None] * (len(COLUMNS) - 2)]]


def test_what_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    for text in ("", "[]", '{"columns": ["at"], "points": [], "lanes": {}}', '{"columns": 1}'):
        (tmp_path / "history.json").write_text(text)
        assert History(tmp_path / "history.json", ["w1"]).dump()["points"] == []
