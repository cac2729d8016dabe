import pytest

from loadtest.waiting import until, until_async


def test_it_looks_until_it_holds_and_tells_what_did_not() -> None:
    looks = iter([False, 0, "yes"])
    assert until(lambda: next(looks), 20, "it", pause_s=0.0) >= 0
    with pytest.raises(TimeoutError, match="the end"):
        until(lambda: False, 0.01, "the end")


@pytest.mark.anyio
async def test_an_answer_may_be_awaited() -> None:
    looks = iter([False, True])

    async def asked() -> bool:
        return next(looks)

    assert await until_async(asked, 20, "it") >= 0
    assert await until_async(lambda: True, 20, "it") >= 0
    with pytest.raises(TimeoutError, match="the end"):
        await until_async(lambda: False, 0.01, "the end")
