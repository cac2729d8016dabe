from worker.coordination.heartbeat import Phase
from worker.engine.state import Activity


def test_a_call_is_stuck_after_its_allowance() -> None:
    step = Activity(Phase.STEP, since=100.0, allowance_s=5.0)
    assert not step.stuck(now=104.9)
    assert step.stuck(now=105.1)


def test_an_idle_thread_is_stuck_where_it_is_not_heard_within_its_allowance() -> None:
    assert not Activity(Phase.IDLE, since=0.0, allowance_s=3.0).stuck(now=2.9)
    assert Activity(Phase.IDLE, since=0.0, allowance_s=3.0).stuck(now=3.1)
