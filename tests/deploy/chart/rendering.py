"""The chart as ``helm template`` renders it, without a helm: its own SDK is a library here."""

import functools
import json
from typing import Any

import helm_python
from helm_python import Chart
from ruamel.yaml import YAML

from deploy.rendering.chart import CHART

Values = dict[str, Any]
Document = dict[str, Any]

RELEASE, NAMESPACE = "zimage", "draw"

PLATFORM: Values = {
    "front": {"enabled": True},
    "cell": {"replicas": 2},
    "database": {"url": "postgresql://zimage@db/zimage", "existingSecret": "database"},
    "objects": {
        "url": "s3://pictures/studio",
        "endpoint": "https://store.example.com",
        "existingSecret": "bucket",
    },
    "cluster": {"existingSecret": "cluster"},
    "keys": {"existingSecret": "keys"},
}


@functools.cache
def chart() -> Chart:
    return Chart.load(CHART)


def merged(*values: Values) -> Values:
    """Later ones win; tables are merged."""
    made: Values = {}
    for each in values:
        for key, value in each.items():
            is_table = isinstance(value, dict) and isinstance(made.get(key), dict)
            made[key] = merged(made[key], value) if is_table else value
    return made


def documents(values: Values | None = None) -> list[Document]:
    """All that is rendered of ``values``."""
    return json.loads(_documents(json.dumps(values or {}, sort_keys=True)))  # type: ignore[no-any-return]


@functools.cache
def _documents(values: str) -> str:
    files = chart().render(json.loads(values), name=RELEASE, namespace=NAMESPACE)
    loader = YAML(typ="safe", pure=True)
    loader.allow_duplicate_keys = False
    texts = (text for name, text in sorted(files.items()) if name.endswith(".yaml"))
    found = [each for text in texts for each in loader.load_all(text) if each]
    return json.dumps(found)


def refusal(values: Values) -> str:
    """What is said of ``values``."""
    try:
        chart().render(values, name=RELEASE, namespace=NAMESPACE)
    except helm_python.HelmError as error:
        return str(error)
    raise AssertionError(f"the chart takes {values}")


def one(found: list[Document], kind: str, name: str) -> Document:
    [only] = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return only


def pod(found: list[Document], role: str) -> Document:
    """The specification of the pods of "cell" or "front"."""
    kind = {"cell": "StatefulSet", "front": "Deployment"}[role]
    made: Document = one(found, kind, f"{RELEASE}-{role}")["spec"]["template"]["spec"]
    return made


def container(spec: Document, name: str = "zimage") -> Document:
    both = [*spec.get("initContainers", ()), *spec["containers"]]
    [only] = [each for each in both if each["name"] == name]
    found: Document = only
    return found


def cluster_toml(found: list[Document], role: str) -> str:
    text: str = one(found, "ConfigMap", f"{RELEASE}-{role}")["data"]["cluster.toml"]
    return text
