from loadtest.bench.rooms import CARRYING, Profile, count


def test_a_stay_ends_where_another_room_is_called() -> None:
    profile = Profile()
    profile.calls["loop"] = [("api", "a"), ("api", "b"), ("storage", "c"), ("api", "d")]
    profile.calls["encoder-0"] = [("api", "e")]
    assert count(profile) == "4 stays, 2 of them returns"
    assert count(profile, CARRYING) == "2 stays, 1 of them returns"
