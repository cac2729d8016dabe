"""A real Prometheus scrapes a running cell by the rendered configuration."""

import asyncio
import contextlib
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest import faults
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell
from tests.ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("cell")]

# What a cell without a GPU and with the synthetic pipeline has not.
ELSEWHERE = re.compile(r"zimage_(gpu|device_memory|caption|spool)_\w+")


class Prometheus:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=30)

    def ask(self, path: str, **parameters: str) -> Any:
        reply = self._http.get(path, params=parameters)
        assert reply.status_code == 200, (parameters, reply.text)
        return reply.json()["data"]

    def value(self, query: str) -> float | None:
        found = self.ask("/query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[tuple[str, str]]:
        alerts = self.ask("/alerts")["alerts"]
        return {
            (a["labels"]["alertname"], a["labels"].get("worker", ""))
            for a in alerts
            if a["state"] == "firing"
        }

    def targets(self) -> dict[str, str]:
        found = self.ask("/targets")["activeTargets"]
        return {target["scrapeUrl"]: target["health"] for target in found}

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._http.get("/status/config").status_code == 200
        return False

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module")
def prometheus(cell: RunningCell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """As rendered, but asking and judging every second."""
    folder, (port,) = tmp_path_factory.mktemp("prometheus"), free_ports(1)
    for file in cell.layout.monitoring_dir.iterdir():
        text = file.read_text().replace("interval: 15s", "interval: 1s")
        (folder / file.name).write_text(text.replace("timeout: 10s", "timeout: 1s"))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        asyncio.run(until(server.is_ready, 30, "Prometheus"))
        yield server
    finally:
        server.close()
        process.terminate()
        process.wait(timeout=30)


def test_prometheus_reaches_every_worker_guard_and_nginx(
    cell: RunningCell, prometheus: Prometheus
) -> None:
    def healthy() -> bool:
        targets = prometheus.targets()
        return len(targets) == 5 and set(targets.values()) == {"up"}

    asyncio.run(until(healthy, 30, "every target"))
    assert prometheus.value("zimage_pool_members") == 3


@pytest.mark.parametrize("page", ["workers/w1/metrics", "guard/metrics", "nginx/metrics"])
def test_names_and_units_follow_the_conventions(cell: RunningCell, page: str) -> None:
    text = httpx.get(f"http://127.0.0.1:{cell.ops_port}/{page}").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_what_clients_got_is_counted_as_they_saw_it(
    cell: RunningCell, prometheus: Prometheus
) -> None:
    answered = 'zimage_front_requests_total{route="/v1/images/generations", code="200"}'

    async def scenario() -> None:
        await until(lambda: prometheus.value(answered) is not None, 30, "a first scrape")
        before = prometheus.value(answered) or 0.0
        async with cell.traffic() as traffic:
            pass
        drawn = len(traffic.outcomes)
        assert drawn >= 24
        await until(lambda: prometheus.value(answered) == before + drawn, 30, "all are counted")
        by_workers = "sum(zimage_engine_requests_total{outcome='done'})"
        assert (prometheus.value(by_workers) or 0) >= drawn

    asyncio.run(scenario())


def test_every_query_of_the_dashboard_is_answered(
    cell: RunningCell, prometheus: Prometheus
) -> None:
    names = set(prometheus.ask("/label/__name__/values"))
    dashboard = json.loads((cell.layout.monitoring_dir / "dashboard.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    assert len(queries) > 30
    for query in queries:
        asked = query.replace("$__rate_interval", "30s").replace("$cell", "test")
        answer = prometheus.ask("/query", query=asked)["result"]
        metrics = set(re.findall(r"\b(?:zimage|process)_\w+", query))
        # Alarms are there while they are on.
        if not all(ELSEWHERE.fullmatch(m) or m == "zimage_alarm" for m in metrics):
            assert metrics <= names | {m for m in metrics if ELSEWHERE.fullmatch(m)}, query
            assert answer or "ejections" in query, query


def test_every_metric_of_a_rule_is_there(cell: RunningCell, prometheus: Prometheus) -> None:
    names = set(prometheus.ask("/label/__name__/values"))
    groups = prometheus.ask("/rules")["groups"]
    rules = list(itertools.chain.from_iterable(group["rules"] for group in groups))
    assert {rule["health"] for rule in rules} == {"ok"}
    asked = set(re.findall(r"\bzimage_\w+", " ".join(rule["query"] for rule in rules)))
    assert {m for m in asked - names if not ELSEWHERE.fullmatch(m)} <= {"zimage_alarm"}


def test_a_killed_worker_fires_an_alert_that_leads_to_the_runbook(
    cell: RunningCell, prometheus: Prometheus
) -> None:
    async def scenario() -> None:
        assert prometheus.firing() == set()
        async with cell.traffic():
            faults.kill(cell, "w2")
            fault = {("ZimageWorkerFault", "w2")}
            await until(lambda: prometheus.firing() == fault, 30, "the alert")
            await cell.all_open()

    asyncio.run(scenario())
    (alert,) = prometheus.ask("/alerts")["alerts"]
    assert alert["annotations"]["summary"] == "w2 of test was lost"
    reply = httpx.get(alert["annotations"]["runbook_url"])
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert "### worker_fault" in reply.text
    assert Path(alert["annotations"]["runbook"].split(",")[0]).is_file()


def test_the_history_has_what_happened(cell: RunningCell) -> None:
    def history() -> dict[str, Any]:
        return dict(httpx.get(f"http://127.0.0.1:{cell.ops_port}/ops/history.json").json())

    def lane() -> list[str]:
        return [state for _, state in history()["lanes"]["w2"]]

    # It is written every quarter of a minute.
    asyncio.run(until(lambda: lane().count("in") > 1 and lane()[-1] == "in", 40, "back in"))
    columns = {name: n for n, name in enumerate(history()["columns"])}
    drawn = sum(point[columns["images"]] for point in history()["points"])
    answered = sum(point[columns["answered"]] for point in history()["points"])
    # Some ask for two pictures, and the killed worker's last second is not counted.
    assert drawn >= 0.8 * answered > 0
