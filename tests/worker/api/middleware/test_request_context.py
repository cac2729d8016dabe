"""When a request came, by the clock of the machine that handles it."""

import json
import time
from pathlib import Path

import pytest

from worker.api.middleware.request_context import read_context
from worker.coordination.host_clocks import HostClocks
from worker.timers import Timers

AGE_S = 7.0


def arrived_s_ago(clocks: HostClocks, by_the_front: float) -> float:
    headers = {b"x-request-start": f"{by_the_front:.3f}".encode(), b"x-front": b"f1"}
    return time.time() - read_context(headers, Timers(), clocks).arrived_at


@pytest.mark.parametrize("host_s", [-300.0, 0.0, 300.0])
@pytest.mark.parametrize("front_s", [-300.0, 0.0, 300.0])
def test_age_of_a_request_is_right_on_hosts_whose_clocks_are_not(
    tmp_path: Path, host_s: float, front_s: float
) -> None:
    path = tmp_path / "hosts.json"
    told = [{"id": "gpu1", "skew_s": host_s}, {"id": "f1", "skew_s": front_s}]
    path.write_text(json.dumps({"hosts": told}))
    came = time.time() - host_s + front_s - AGE_S
    assert arrived_s_ago(HostClocks(path, "gpu1"), came) == pytest.approx(AGE_S, abs=1.0)
