"""What of the chart in ``deploy/chart`` is the kit's own, written anew by ``python -m
deploy.rendering.chart``: rules and dashboards as a cell renders them, its version, and which
sections and keys of ``cluster.toml`` its values may have. A test holds them equal."""

import json
from collections.abc import Mapping
from typing import Any

from deploy import installation
from deploy.config import ROOT, ClusterConfig, parse
from deploy.host.machine import Machine
from deploy.layout import Layout
from deploy.rendering.dashboard import dashboard
from deploy.rendering.plan import plan
from deploy.rendering.render import Host, render

CHART = ROOT / "deploy" / "chart"
SCHEMA = "values.schema.json"

_IMAGE_ROOT = "/opt/zimage"
_CONFIG = {
    "cell": {"var_dir": "/var/lib/zimage", "run_dir": "/run/zimage/cell"},
    "listen": {"address": "0.0.0.0", "auth": "keys"},
    "database": {"url": "postgresql://zimage@db/zimage"},
    "objects": {
        "url": "s3://bucket/prefix",
        "endpoint": "https://store",
        "credentials_file": "/run/secrets/zimage/bucket-credentials",
    },
    "cluster": {"name": "zimage", "host": "host", "address": "host:7862", "role": "both"},
}
"""With the rules of hosts and fronts, which say nothing where there are none."""

_OF_THE_CHART = {
    "cell": ("var_dir", "run_dir", "user"),
    "listen": ("port",),
    "tls": ("certificate", "key", "self_signed", "http_port", "names"),
    "ops": ("address",),
    "objects": ("url", "endpoint", "credentials_file"),
    "front": ("virtual_address", "interface", "virtual_router_id"),
    "database": (),
    "cluster": (),
}
"""What the chart says itself, by section; without keys: all of it."""


def generated() -> dict[str, str]:
    """Text by path relative to ``CHART``."""
    return {
        "Chart.yaml": _chart((CHART / "Chart.yaml").read_text(encoding="utf-8")),
        SCHEMA: _schema(json.loads((CHART / SCHEMA).read_text(encoding="utf-8"))),
        "files/rules.yaml": _rules(),
        "files/dashboard.json": dashboard(),
        "files/dashboard-platform.json": dashboard(cluster=True),
    }


def _chart(text: str) -> str:
    version = installation.version()
    # Helm wants a hyphen before what makes a version one of development.
    told = {"version": version.replace(".dev", "-dev"), "appVersion": version}
    lines = (line.partition(":")[0] for line in text.splitlines())
    rest = text.splitlines()
    return "".join(
        f"{key}: {told[key]}\n" if key in told else f"{line}\n"
        for key, line in zip(lines, rest, strict=True)
    )


def _rules() -> str:
    config = parse(_CONFIG, ROOT / "cluster.toml")
    machine = Machine(cores=1, memory_gib=16.0, available_gib=16.0, gpus=())
    host = Host(
        nginx_path="nginx",
        nginx_version=(1, 22, 0),
        cores=machine.cores,
        python="python",
        user="zimage",
        home="/var/lib/zimage",
        worker_code="",
        guard_code="",
        lasting_python="python",
        packages="",
    )
    files = render(config, plan(config, machine), Layout.of(config), host)
    text = files["monitoring/alerts.yml"].replace(str(ROOT), _IMAGE_ROOT)
    return text[text.index("groups:") :]


def _schema(whole: dict[str, Any]) -> str:
    """``whole`` with what ``config`` may have as it is now; the rest is written by hand."""
    told: dict[str, Any] = _bare(ClusterConfig.model_json_schema())
    definitions = told.pop("$defs")
    for section, keys in _OF_THE_CHART.items():
        table = definitions[told["properties"][section]["$ref"].rpartition("/")[2]]
        for key in keys:
            del table["properties"][key]
        if not keys:
            del told["properties"][section]
    whole["$defs"] = definitions
    whole["properties"]["config"] = told
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _bare(schema: Any) -> Any:
    """Without what only people read. Names of properties are no keywords."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: {name: _bare(each) for name, each in value.items()}
        if key in ("properties", "$defs")
        else _bare(value)
        for key, value in schema.items()
        if key not in ("title", "description", "default")
    }


def main() -> None:
    for name, text in generated().items():
        path = CHART / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
