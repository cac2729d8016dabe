from tinymodel.schedule import Schedule, cosine


def test_ends_after_its_steps() -> None:
    schedule = Schedule(minutes=60, max_steps=2)
    schedule.tick()
    assert (schedule.done, schedule.progress) == (False, 0.5)
    schedule.tick()
    assert schedule.done


def test_resumes_with_the_time_already_spent() -> None:
    schedule = Schedule(minutes=1)
    schedule.resume({"step": 7, "elapsed_s": 59.0})
    assert not schedule.done
    schedule.resume({"step": 7, "elapsed_s": 60.0})
    assert schedule.done


def test_cosine_falls_from_one_to_zero() -> None:
    assert (cosine(0), cosine(1), cosine(2)) == (1.0, 0.0, 0.0)
