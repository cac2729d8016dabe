"""Kubernetes' own schemas, strict ones: a field that it does not know is an error.

Of kinds that are no part of Kubernetes, ``schemas`` has what is mandatory and what the chart uses;
each says where it comes from."""

import functools
import importlib.resources
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

VERSIONS = ("1.27.0", "1.32.0", "1.37.0")
"""The oldest that Chart.yaml takes, the newest that there are schemas of, and one between."""

_OWN = Path(__file__).with_name("schemas")
_THEIRS = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"


def problems(document: dict[str, Any], version: str) -> list[str]:
    """What Kubernetes ``version`` would not take."""
    kind = f"{document['kind']} {document['metadata']['name']}"
    found = _validator(document["apiVersion"], document["kind"], version).iter_errors(document)
    return [f"{kind} {error.json_path}: {error.message}" for error in found]


@functools.cache
def _validator(api: str, kind: str, version: str) -> Draft202012Validator:
    group, _, number = api.rpartition("/")
    own = _OWN / f"{kind.lower()}.json"
    if own.exists():
        schema = json.loads(own.read_text("utf-8"))
        assert schema["properties"]["apiVersion"] == {"const": api}
        return Draft202012Validator(schema)
    parts = (kind.lower(), group.partition(".")[0], number)
    name = "-".join(filter(None, parts))
    text = (_THEIRS / f"v{version}-local-strict" / f"{name}.json").read_text("utf-8")
    return Draft202012Validator(json.loads(text), registry=_definitions(version))


@functools.cache
def _definitions(version: str) -> "Registry[Any]":
    text = (_THEIRS / f"v{version}-local-strict" / "_definitions.json").read_text("utf-8")
    resource: Resource[Any] = Resource.from_contents(json.loads(text))
    return resource @ Registry()
