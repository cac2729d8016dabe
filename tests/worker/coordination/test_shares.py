import pytest

from worker.coordination.shares import Shares
from worker.errors import LimitReached, Overloaded


def test_one_owner_never_takes_what_is_left_for_others() -> None:
    shares = Shares("streams of jobs", 3, 2)
    backs = [shares.take("key_a") for _ in range(2)]
    with pytest.raises(LimitReached, match="You have 2 streams of jobs under way"):
        shares.take("key_a")
    backs.append(shares.take("key_b"))
    with pytest.raises(Overloaded):
        shares.take("key_c")
    for give_back in backs:
        give_back()
    assert not shares._held
    shares.take("key_a")
