from worker.engine.deficit_round_robin import DeficitRoundRobin


def test_a_turn_ends_when_its_seconds_are_used() -> None:
    turns = DeficitRoundRobin()
    assert turns.next(["a", "b"], 1.0) == "a"
    turns.charge("a", 0.6)
    assert turns.next(["a", "b"], 1.0) == "a"
    turns.charge("a", 0.6)
    assert turns.next(["a", "b"], 1.0) == "b"


def test_keys_get_equal_seconds_whatever_their_steps_cost() -> None:
    turns, used = DeficitRoundRobin(), {"cheap": 0.0, "dear": 0.0}
    for _ in range(1000):
        key = turns.next(used, 1.0)
        seconds = 3.0 if key == "dear" else 0.1
        turns.charge(key, seconds)
        used[key] += seconds
    assert abs(used["cheap"] - used["dear"]) < 5.0


def test_who_asks_now_and_then_goes_before_who_floods() -> None:
    turns = DeficitRoundRobin()
    for _ in range(3):
        assert turns.next(["flood"], 1.0) == "flood"
        turns.charge("flood", 1.1)
    assert turns.next(["flood", "rare"], 1.0) == "rare"


def test_asking_in_small_portions_gains_little() -> None:
    turns, used = DeficitRoundRobin(), {"flood": 0.0, "portions": 0.0}
    for moment in range(1000):
        keys = ["flood", "portions"] if moment % 3 else ["flood"]
        key = turns.next(keys, 1.0)
        turns.charge(key, 0.4)
        used[key] += 0.4
    assert used["portions"] < 0.6 * sum(used.values())


def test_a_key_that_left_is_forgotten_when_its_turn_has_passed() -> None:
    turns = DeficitRoundRobin()
    for keys in (["a", "b"], ["b"], ["b"], ["b"], ["b"]):
        key = turns.next(keys, 1.0)
        turns.charge(key, 1.1)
    assert turns.next(["a", "b"], 1.0) == "a"
    assert turns.fresh("a")


def test_keys_that_left_are_not_kept_for_ever() -> None:
    turns = DeficitRoundRobin()
    for k in range(5000):
        turns.charge(turns.next(["stays", f"k{k}"], 1.0), 0.6)
    assert len(turns._credit_s) + len(turns._fresh) < 1100


def test_a_copy_changes_nothing() -> None:
    turns = DeficitRoundRobin()
    turns.next(["a", "b"], 1.0)
    twin = turns.copy()
    twin.charge("a", 2.0)
    assert twin.next(["a", "b"], 1.0) == "b"
    assert turns.next(["a", "b"], 1.0) == "a"
