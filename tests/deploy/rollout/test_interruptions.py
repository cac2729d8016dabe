"""Whatever ends a command, and wherever: somebody draws all the while, and the next ``up`` makes
the cell what the file says. The commands are the real ones, the cell a model."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy.rollout import operation
from tests.deploy.rollout.model_cell import ModelCell, run

NAMES = ("w1", "w2", "w3")
NEVER = 10_000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # hundreds of small files each

versions = st.sampled_from(["v1", "v2", "broken"])
plans = st.integers(1, 3).flatmap(
    lambda count: st.fixed_dictionaries(dict.fromkeys(NAMES[:count], versions))
)
ends = st.tuples(st.integers(1, 120), st.sampled_from(["killed", "asked to end"]))
commands = st.lists(st.tuples(st.one_of(st.none(), plans), ends), min_size=1, max_size=3)


def drawing(cell: ModelCell) -> dict[str, str]:
    """Version of each worker that draws."""
    programs = cell.model["programs"]
    return {n: programs[n][1] for n in cell.model["nginx"] if n in programs and cell._draws(n)}


@pytest.fixture(scope="module", autouse=True)
def no_network() -> None:
    """Imports that the first command would make anew in each child."""
    import sqlalchemy  # noqa: F401


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(commands)
@example([({"w1": "v2"}, (40, "killed"))])
@example([({"w1": "v2", "w2": "v2"}, (25, "asked to end")), (None, (30, "killed"))])
def test_next_up_makes_good_what_was_interrupted_and_somebody_draws_all_the_while(
    interrupted: list[tuple[dict[str, str] | None, tuple[int, str]]],
) -> None:
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        _check(ModelCell(folder, dict.fromkeys(NAMES, "v1")), interrupted)
    finally:
        shutil.rmtree(folder)


def _check(
    cell: ModelCell, interrupted: list[tuple[dict[str, str] | None, tuple[int, str]]]
) -> None:
    cell.begin()
    alone = False
    for plan, (calls, how) in interrupted:
        # At least one that stays must be able to start: else nobody could draw, whoever rolls.
        cell.wanted = {**plan, "w1": "v2"} if plan else cell.wanted
        alone |= sum(version != "broken" for version in cell.wanted.values()) < 2
        words = ["up"] if plan else ["restart", *cell.wanted]
        run(cell, words, calls, how)
        cell.heal()
        assert list(cell.layout.drained_dir.iterdir()) == []
        assert drawing(cell), "the guard has let somebody in"
    cell.wanted = dict.fromkeys(cell.wanted, "v2")
    assert run(cell, ["up"], NEVER, "killed") == 0
    cell.heal()
    assert drawing(cell) == cell.wanted
    record = operation.last(cell)  # type: ignore[arg-type]
    assert record is not None
    assert record.outcome == "done"
    assert run(cell, ["up"], NEVER, "killed") == 0
    assert alone or not cell.model["nobody"], "another could have drawn"


def test_every_call_of_a_rollout_may_be_its_last() -> None:
    """Scaled down and changed, killed at its first call, its second, and so on to its end."""
    for calls in range(1, NEVER):
        folder = Path(tempfile.mkdtemp(dir=MEMORY))
        try:
            cell = ModelCell(folder, dict.fromkeys(NAMES, "v1"))
            cell.begin()
            cell.wanted = {"w1": "v2", "w2": "v2"}
            code = run(cell, ["up"], calls, "killed")
            cell.heal()
            assert list(cell.layout.drained_dir.iterdir()) == [], calls
            assert run(cell, ["up"], NEVER, "killed") == 0, calls
            cell.heal()
            assert drawing(cell) == cell.wanted, calls
            assert not cell.model["nobody"], calls
        finally:
            shutil.rmtree(folder)
        if code == 0:
            return
