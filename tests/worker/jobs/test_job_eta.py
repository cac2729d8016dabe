import pytest

from worker.jobs.job_eta import predict
from worker.storage.jobs import ITEM_STATES, Job
from worker.types import Parameters


def job(name: str, turn: str, waiting: int, priority: int = 1) -> Job:
    counts = {**dict.fromkeys(ITEM_STATES, 0), "waiting": waiting}
    return Job(
        id=name,
        owner=turn,
        turn=turn,
        name="",
        state="running",
        priority=priority,
        created_at=float(name[-1]),
        finished_at=None,
        total=waiting,
        revision=0,
        parameters=Parameters(64, 64, 1),
        output_format="png",
        counts=counts,
    )


@pytest.mark.parametrize(
    ("running", "workers", "ends"),
    [
        ([], 2, {}),
        ([job("j1", "a", 10)], 2, {"j1": 5}),
        ([job("j1", "a", 10), job("j2", "a", 10)], 1, {"j1": 10, "j2": 20}),
        ([job("j1", "a", 10), job("j2", "b", 4)], 1, {"j1": 14, "j2": 8}),
        (
            [job("j1", "a", 10), job("j2", "a", 2), job("j3", "b", 4)],
            2,
            {"j1": 7, "j2": 8, "j3": 4},
        ),
        ([job("j1", "a", 10), job("j2", "b", 4, priority=0)], 1, {"j1": 14, "j2": 4}),
    ],
)
def test_turns_share_the_workers(running: list[Job], workers: int, ends: dict[str, float]) -> None:
    assert predict(running, lambda _: 1.0, workers, now=0.0) == pytest.approx(ends)
