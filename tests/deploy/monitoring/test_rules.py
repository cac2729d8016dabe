"""The rendered files, judged by Prometheus' own tool."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from deploy.config import ROOT
from deploy.layout import Layout
from tests.deploy.nginx.site import configuration, files

HERE = Path(__file__).parent
CASES = [HERE / "alerts_test.yml", HERE / "alerts_of_hours_test.yml"]


def promtool(*arguments: object) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts(monitoring: Path) -> set[str]:
    return set(re.findall(r"alert: (\w+)", (monitoring / "alerts.yml").read_text()))


def test_prometheus_takes_the_configuration_and_its_rules(monitoring: Path) -> None:
    promtool("check", "config", monitoring / "prometheus.yml")


def test_rules_fire_when_they_should_and_not_otherwise(monitoring: Path) -> None:
    for path in CASES:
        cases = path.read_text().replace("DOCS", str(ROOT / "docs"))
        (monitoring / path.name).write_text(cases)
    promtool("test", "rules", *(monitoring / path.name for path in CASES))


def test_every_rule_has_a_case(monitoring: Path) -> None:
    cases = "".join(path.read_text() for path in CASES)
    assert alerts(monitoring) == set(re.findall(r'alertname="(\w+)"', cases))


def test_a_limit_of_the_file_moves_its_alert(tmp_path: Path) -> None:
    config = configuration(tmp_path, limits={"worker": {"max_queue_wait_s": 30.0}})
    text = files(config, Layout(tmp_path, tmp_path / "run"))["monitoring/alerts.yml"]
    assert "> 15.0" in text
    assert "Above 30 s they are refused" in text


def test_prometheus_asks_every_worker_guard_and_nginx(tmp_path: Path) -> None:
    config = configuration(tmp_path, ops={"address": "::1", "port": 7861})
    text = files(config, Layout(tmp_path, tmp_path / "run"))["monitoring/prometheus.yml"]
    assert text.count('targets: ["[::1]:7861"]') == 5
    assert 'worker: "w3", __metrics_path__: "/workers/w3/metrics"' in text


def test_a_cell_of_its_own_has_nothing_of_clusters(tmp_path: Path) -> None:
    rendered = files(configuration(tmp_path), Layout(tmp_path, tmp_path / "run"))
    of_monitoring = {name: text for name, text in rendered.items() if "monitoring" in name}
    assert not [name for name, text in of_monitoring.items() if "cluster_host" in text]
    assert "zimage-cluster" not in of_monitoring["monitoring/prometheus.yml"]
    assert 'cell: "zimage"' in of_monitoring["monitoring/prometheus.yml"]


def test_panels_of_the_dashboard_do_not_overlap(monitoring: Path) -> None:
    dashboard = json.loads((monitoring / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        cells = _cells(panel["gridPos"])
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def _cells(place: dict[str, Any]) -> set[tuple[int, int]]:
    assert place["x"] + place["w"] <= 24
    across = range(place["x"], place["x"] + place["w"])
    return {(x, y) for x in across for y in range(place["y"], place["y"] + place["h"])}
