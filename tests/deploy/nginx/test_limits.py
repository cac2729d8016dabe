"""Rates and connections of one client address."""

from pathlib import Path

from tests.deploy.nginx.site import site


def test_a_runaway_client_is_told_to_slow_down(tmp_path: Path) -> None:
    limits = {"max_requests_per_s_per_address": 1, "max_connections_per_address": 0}
    with site(tmp_path, nginx=limits) as front, front.worker("w1"):
        replies = [front.client.get("/v1/models") for _ in range(5)]
    # Two seconds' worth may come at once, and the first is on time.
    assert [reply.status_code for reply in replies[:3]] == [200] * 3
    refused = replies[-1]
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 120


def test_the_page_is_never_limited(tmp_path: Path) -> None:
    limits = {"max_requests_per_s_per_address": 1, "max_connections_per_address": 1}
    with site(tmp_path, nginx=limits) as front:
        assert {front.client.get("/healthz").status_code for _ in range(20)} == {200}
