"""How the tests are shared out among processes that run side by side, and what programs inherit."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

from tests.object_store import ObjectStore, running
from tests.postgres import postgres  # noqa: F401 — a fixture

# A busy machine may stop a process for longer than any example may take.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

CELLS = "tests/cluster/"
PAGE = "tests/web"
"""Its tests share a browser."""
LONG_S = {
    "cell": 200,
    "tests/cluster/test_versions.py": 100,
    "tests/cluster/test_load.py": 90,
    "tests/cluster/test_joined.py": 80,
    "tests/cluster/test_hosts.py": 80,
    "tests/cluster/test_small_pools.py": 80,
    "keyed": 80,
    "slow_cell": 60,
    PAGE: 150,
    "tests/cluster/test_rollouts.py": 60,
    "tests/cluster/test_large_pictures.py": 60,
    "tests/cluster/test_openapi.py": 30,
    "tests/cluster/test_jobs.py": 30,
    "tests/cluster/test_page.py": 20,
    "tests/cluster/test_objects.py": 20,
    "tests/deploy/cluster/test_joining.py": 50,
    "tests/worker/api/test_hostile.py": 40,
    "tests/worker/test_main.py": 40,
    "tests/worker/models/parallel/test_split.py": 35,
    "tests/worker/models/parallel/test_helper.py": 30,
    "tests/worker/api/test_odd_requests.py": 30,
    "tests/worker/jobs/test_runner.py": 30,
    "tests/deploy/host/test_utf8.py": 25,
    "tests/worker/api/middleware/test_access.py": 25,
    "s3": 20,
    "tests/deploy/cluster/test_renewal.py": 20,
    "tests/deploy/cluster/test_welcome.py": 15,
    "tests/deploy/cluster/test_enrolment.py": 15,
    "tests/deploy/nginx/test_limits.py": 20,
    "tests/worker/models/loading/test_hub.py": 15,
    "tests/deploy/cli/test_app.py": 15,
    "tests/worker/test_server.py": 15,
    "tests/tinymodel/test_train.py": 15,
    "tests/tinymodel/test_shipped.py": 15,
}
"""Of groups and files that take long, about so many seconds; the others have many tests or few."""
A_CELL_S = 20
"""What a cell takes at least that is not listed: few tests, each of which waits."""

# Before a conftest imports torch, whose threads turn while they wait for each other, on cores that
# others need.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Programs that tests start die of signals, also where whoever started us ignores some."""
    gc.disable()  # nothing of what is imported now goes away
    # No test asks the world. A client of httpx would read its authorities for every address, also
    # without TLS: 16 ms, as long as most requests take. That of the store takes none for an error.
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("nobody.pem"))
    os.environ.pop("SSL_CERT_DIR", None)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            # Ignored still, but by a handler: those, unlike SIG_IGN, end with an exec.
            signal.signal(number, lambda *_: None)


def pytest_collection_finish() -> None:
    """What the tests import stays: the collector need not look at it again in each of them."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A store that all tests of a process share, each below a prefix of its own."""
    with running(tmp_path_factory.mktemp("store")) as store:
        yield store


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> "Sharing | None":
    return Sharing(config, log) if config.getvalue("dist") == "loadgroup" else None


class Sharing(LoadGroupScheduling):  # type: ignore[misc]  # xdist has no types
    """Files whole, and what has an ``xdist_group`` by that: a cell is started once for it.

    Half of the processes take cells first and the others all else, until theirs is at its end.
    Cells mostly wait, and too many of them beside each other are slow for what they promise; the
    other tests mostly compute. The longest first, so that none is left for the end.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(f"{PAGE}/"):
            return PAGE
        scope = super()._split_scope(nodeid)
        return nodeid.split("::", 1)[0] if scope == nodeid else scope

    def _assign_work_unit(self, node: WorkerController) -> None:
        wants_cells = int(node.gateway.id.removeprefix("gw")) % 2 == 0
        found = max(self.workqueue, key=lambda scope: self._rank(scope, wants_cells))
        self.workqueue.move_to_end(found, last=False)
        super()._assign_work_unit(node)

    def _rank(self, scope: str, wants_cells: bool) -> tuple[bool, int, int]:
        tests = self.workqueue[scope]
        of_cells = next(iter(tests)).startswith(CELLS)
        seconds = LONG_S.get(scope, A_CELL_S if of_cells else 0)
        return of_cells is wants_cells, seconds, len(tests)
