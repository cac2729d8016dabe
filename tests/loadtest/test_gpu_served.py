from loadtest.gpu.served import rate


def test_a_rate_does_not_depend_on_where_a_batch_falls() -> None:
    """Two pictures every 1.6 s, from any moment on and with any moment as the end."""
    ends = [1.6 * batch + 0.01 * place for batch in range(12) for place in range(2)]
    for first, last in ((0, 24), (2, 24), (0, 22), (2, 22)):
        assert round(rate(ends[first:last]), 2) == 1.25


def test_too_few_pictures_have_no_rate() -> None:
    assert rate([]) == 0.0
    assert rate([1.0, 1.5]) == 0.0
