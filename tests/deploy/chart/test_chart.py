"""The chart: what its values make is what Kubernetes takes, and what the kit reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helm_python import lint
from ruamel.yaml import YAML

from deploy.cell import Cell
from deploy.config import load
from deploy.rendering.chart import CHART, generated
from deploy.rollout.down import end_timeout_s
from tests.deploy.chart.rendering import (
    PLATFORM,
    Document,
    Values,
    cluster_toml,
    container,
    documents,
    merged,
    one,
    pod,
    refusal,
)
from tests.deploy.chart.validation import VERSIONS, problems

BEHIND_PROXY: Values = {"config": {"listen": {"trusted_proxies": ["10.244.0.0/16"]}}}
GPU: Values = {
    "cell": {
        "gpus": 8,
        "runtimeClassName": "nvidia",
        "sharedMemory": "1Gi",
        "resources": {"limits": {"memory": "256Gi"}},
        "persistence": {"storageClass": "fast", "size": "1Ti"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "nodeSelector": {"card": "h200"},
        "extraVolumes": [{"name": "model", "hostPath": {"path": "/models"}}],
        "extraVolumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": True}],
    },
    "config": {"model": {"source": "/models/z-image-turbo"}},
}
CERT_MANAGER: Values = {
    "tls": {"certManager": {"issuer": {"name": "letsencrypt"}, "names": ["draw.example.com"]}}
}
INGRESS: Values = merged(
    BEHIND_PROXY,
    {"ingress": {"enabled": True, "host": "draw.example.com", "annotations": {"a/b": "c"}}},
)
GATEWAY: Values = merged(
    BEHIND_PROXY,
    {
        "gateway": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["draw.example.com"],
        }
    },
)
MONITORING: Values = {"monitoring": {"enabled": True, "serviceMonitor": {"labels": {"a": "b"}}}}
PAIR: Values = {"tls": {"existingSecret": "pair"}, "service": {"type": "LoadBalancer", "port": 443}}
LONE_SHARED: Values = {name: PLATFORM[name] for name in ("database", "objects", "keys")} | {
    "cell": {"persistence": {"enabled": False}}
}

MATRIX: dict[str, Values] = {
    "default": {},
    "GPUs": GPU,
    "alone with a database and a bucket": LONE_SHARED,
    "platform": PLATFORM,
    "platform of GPUs": merged(PLATFORM, GPU, {"imagePullSecrets": [{"name": "registry"}]}),
    "Ingress": INGRESS,
    "platform behind an Ingress, cert-manager": merged(PLATFORM, INGRESS, CERT_MANAGER),
    "platform behind a Gateway": merged(PLATFORM, GATEWAY),
    "certificate of a Secret": PAIR,
    "platform, cert-manager, watched": merged(PLATFORM, CERT_MANAGER, MONITORING),
    "watched": MONITORING,
}


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_kubernetes_of_three_versions_takes_all_that_is_rendered(values: Values) -> None:
    found = documents(values)
    assert [
        said for each in found for version in VERSIONS for said in problems(each, version)
    ] == []


def test_what_kubernetes_does_not_know_is_an_error_in_these_tests() -> None:
    [service, *_] = [each for each in documents() if each["kind"] == "Service"]
    wrong = merged(service, {"spec": {"prots": []}})
    for version in VERSIONS:
        [said] = problems(wrong, version)
        assert "prots" in said
    [monitor, *_] = [each for each in documents(MONITORING) if each["kind"] == "ServiceMonitor"]
    assert problems(merged(monitor, {"spec": {"endpoint": []}}), VERSIONS[0])


def test_helm_finds_nothing_to_complain_of() -> None:
    said = lint(CHART, strict=True)
    assert [each["error"] for each in said["messages"]] == ["icon is recommended"]


# Values


def test_default_values_are_those_that_the_schema_knows() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))

    def names(values: Any, table: dict[str, Any], at: str = "") -> list[str]:
        known = table.get("properties", {})
        if not isinstance(values, dict) or not known:
            return []
        unsaid = [f"{at}{name}" for name in known if name not in values and name != "global"]
        return unsaid + [
            each for name in values for each in names(values[name], known[name], f"{at}{name}.")
        ]

    found = names({**read(CHART / "values.yaml"), "config": ""}, schema)
    assert found == ["cell.resources.limits", "cell.resources.claims",
                     "front.resources.limits", "front.resources.claims"]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cel": {}}, "'cel' not allowed"),
        ({"cell": {"gpu": 1}}, "at '/cell': additional properties 'gpu' not allowed"),
        ({"cell": {"gpus": "two"}}, "at '/cell/gpus': got string, want integer"),
        ({"cell": {"sharedMemory": "lots"}}, "at '/cell/sharedMemory'"),
        ({"config": {"modl": {}}}, "at '/config': additional properties 'modl' not allowed"),
        ({"config": {"model": {"sorce": ""}}}, "at '/config/model': additional properties 'sorce'"),
        ({"config": {"limits": {"request": {"max_steps": "8"}}}}, "/request/max_steps': got str"),
        ({"config": {"listen": {"port": 80}}}, "at '/config/listen': additional properties 'port'"),
        ({"config": {"database": {}}}, "at '/config': additional properties 'database'"),
        ({"config": {"workers": [{"device": "cpu", "count": 0}]}}, "/config/workers/0/count"),
        ({"database": {"url": "postgresql://u:secret@db/z"}}, "at '/database/url'"),
        ({"objects": {"url": "https://bucket"}}, "at '/objects/url'"),
        ({"cluster": {"name": "My Studio"}}, "at '/cluster/name'"),
        ({"service": {"type": "Public"}}, "at '/service/type'"),
        ({"monitoring": {"serviceMonitor": {"interval": "often"}}}, "/serviceMonitor/interval"),
        ({"cell": {"replicas": 2}}, "cell.replicas: several cells need a front"),
        ({"front": {"enabled": True}}, "cluster.existingSecret: missing beside front.enabled"),
        (merged(PLATFORM, {"database": {"url": ""}}), "database.url: missing beside front.enabled"),
        ({"objects": {"url": "s3://b/p"}}, "objects.endpoint: missing beside objects.url"),
        (merged(PAIR, CERT_MANAGER), "tls.existingSecret: there is tls.certManager.issuer as well"),
        ({"tls": {"certManager": {"issuer": {"name": "a"}}}}, "tls.certManager.names: missing"),
        ({"ingress": {"enabled": True}}, "ingress.host: missing beside ingress.enabled"),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs: missing beside gateway.enabled"),
        (merged(INGRESS, {"config": {"listen": {"trusted_proxies": []}}}),
         "config.listen.trusted_proxies: name the network"),
    ],
)  # fmt: skip
def test_unknown_and_wrong_values_are_refused_by_name(values: Values, said: str) -> None:
    assert said in refusal(values)


# cluster.toml


def toml_of(values: Values, role: str, tmp_path: Path) -> Cell:
    text = cluster_toml(documents(values), role)
    path = tmp_path / "cluster.toml"
    path.write_text(text.replace("POD_NAME", "host-0").replace("POD_ADDRESS", "10.1.2.3"), "utf-8")
    return Cell(load(path), path)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_the_kit_takes_every_cluster_toml(values: Values, tmp_path: Path) -> None:
    for role in ("cell", "front") if values.get("front") else ("cell",):
        own = toml_of(values, role, tmp_path).config
        assert own.listen.auth == "keys"
        assert own.cluster.on is bool(values.get("front"))


def test_sections_of_values_become_those_of_the_file(tmp_path: Path) -> None:
    said: Values = {
        "workers": [{"device": "cpu", "count": 2, "threads": 1}],
        "model": {"source": "tiny", "steps": 8, "guidance_scale": 0.5},
        "limits": {"request": {"max_steps": 12}, "worker": {"max_queue_wait_s": 33.5}},
        "environment": {"HF_ENDPOINT": "https://mirror.example.com/<a>&b"},
        "listen": {"allowed_origins": ["https://chat.example.com"]},
        "nginx": {"worker_connections": 16777216},
    }
    own = toml_of({"config": said}, "cell", tmp_path).config
    assert (own.model.steps, own.model.guidance_scale) == (8, 0.5)
    assert own.limits.request.max_steps == 12
    assert own.limits.worker.max_queue_wait_s == 33.5
    assert own.environment == said["environment"]
    assert own.listen.allowed_origins == ["https://chat.example.com"]
    assert own.nginx.worker_connections == 16777216
    assert [(group.device, group.count) for group in own.workers] == [("cpu", 2)]  # type: ignore[union-attr]


# Pods


def every_container(found: list[Document]) -> list[tuple[Document, Document]]:
    specs = [pod(found, "cell"), pod(found, "front")]
    job = one(found, "CronJob", "zimage-renewal")["spec"]["jobTemplate"]
    specs.append(job["spec"]["template"]["spec"])
    return [(s, c) for s in specs for c in (*s.get("initContainers", ()), *s["containers"])]


def test_no_container_is_root_or_writes_to_its_root() -> None:
    for spec, each in every_container(documents(merged(PLATFORM, MONITORING, PAIR))):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 7860
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {volume["name"] for volume in spec["volumes"]} | {"state"}
        assert {mount["name"] for mount in each["volumeMounts"]} <= mounted


def test_no_secret_stands_in_what_is_rendered() -> None:
    found = documents(merged(PLATFORM, MONITORING, PAIR))
    assert "Secret" not in {each["kind"] for each in found}
    [secrets] = [v for v in pod(found, "cell")["volumes"] if v["name"] == "secrets"]
    files = [source["secret"]["items"][0]["path"] for source in secrets["projected"]["sources"]]
    assert files == ["zimage-key", "database-password", "bucket-credentials"]


def test_the_authority_is_seen_by_what_enrols_and_signs_alone() -> None:
    found = every_container(documents(merged(PLATFORM, MONITORING)))
    seen = {
        each["name"]
        for _, each in found
        if any(mount["name"] == "authority" for mount in each["volumeMounts"])
    }
    assert seen == {"enrol", "sign"}


@pytest.mark.parametrize("drain_s", [120, 33.5, 600])
def test_a_pod_is_given_longer_than_its_drain(drain_s: float, tmp_path: Path) -> None:
    values: Values = {"config": {"timeouts": {"drain_timeout_s": drain_s}}, "preStopSeconds": 20}
    spec = pod(documents(values), "cell")
    takes_s = end_timeout_s(toml_of(values, "cell", tmp_path))
    assert spec["terminationGracePeriodSeconds"] >= takes_s + 20


def test_probes_say_what_the_states_of_a_cell_mean() -> None:
    own = container(pod(documents(), "cell"))
    assert own["startupProbe"]["httpGet"]["path"] == "/readyz"  # loading is not dead
    assert own["startupProbe"]["periodSeconds"] * own["startupProbe"]["failureThreshold"] == 1200
    assert own["readinessProbe"]["httpGet"]["path"] == "/readyz"  # ready and busy; not draining
    assert own["livenessProbe"]["httpGet"]["path"] == "/healthz"  # the guard mends workers
    front = container(pod(documents(PLATFORM), "front"))
    assert front["startupProbe"]["httpGet"]["path"] == "/healthz"  # hosts may come later
    assert front["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_start_has_as_long_as_the_cell_itself_waits() -> None:
    own = container(pod(documents({"config": {"timeouts": {"up_timeout_s": 3600}}}), "cell"))
    assert own["startupProbe"]["failureThreshold"] * own["startupProbe"]["periodSeconds"] == 3600


def test_pods_that_have_the_certificate_are_asked_by_https() -> None:
    found = documents(merged(PLATFORM, PAIR))
    front, cell = (container(pod(found, role)) for role in ("front", "cell"))
    assert front["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert cell["readinessProbe"]["httpGet"]["scheme"] == "HTTP"
    assert {"name": "ZIMAGE_RELOAD_S", "value": "3600"} in front["env"]
    [port] = one(found, "Service", "zimage")["spec"]["ports"]
    assert (port["name"], port["port"]) == ("https", 443)


def test_behind_an_ingress_the_certificate_is_the_ingress_own() -> None:
    found = documents(merged(PLATFORM, INGRESS, CERT_MANAGER))
    [tls] = one(found, "Ingress", "zimage")["spec"]["tls"]
    assert tls == {"hosts": ["draw.example.com"], "secretName": "zimage-tls"}
    assert one(found, "Certificate", "zimage")["spec"]["secretName"] == "zimage-tls"
    front = container(pod(found, "front"))
    assert front["readinessProbe"]["httpGet"]["scheme"] == "HTTP"


def test_behind_a_gateway_pods_speak_as_its_route_does() -> None:
    found = documents(merged(PLATFORM, GATEWAY, CERT_MANAGER))
    front = container(pod(found, "front"))
    assert front["readinessProbe"]["httpGet"]["scheme"] == "HTTP"
    assert "[tls]" not in cluster_toml(found, "front")
    assert one(found, "Certificate", "zimage")["spec"]["dnsNames"] == ["draw.example.com"]


def test_gpus_are_asked_for_by_value() -> None:
    limits = container(pod(documents(GPU), "cell"))["resources"]["limits"]
    assert limits == {"memory": "256Gi", "nvidia.com/gpu": 8}
    own = container(pod(documents(), "cell"))
    assert "limits" not in own["resources"]
    # An image with CUDA would be given all cards by NVIDIA's runtime.
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in own["env"]


def test_a_change_of_settings_starts_pods_anew() -> None:
    def digest(values: Values) -> str:
        [own] = [each for each in documents(values) if each["kind"] == "StatefulSet"]
        found: str = own["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return found

    assert digest({}) == digest(MONITORING)
    assert digest({}) != digest({"config": {"model": {"steps": 8}}})


def test_every_selector_finds_its_pods_and_no_others() -> None:
    found = documents(merged(PLATFORM, MONITORING))
    pods = {
        role: one(found, kind, f"zimage-{role}")["spec"]["template"]["metadata"]["labels"]
        for role, kind in (("cell", "StatefulSet"), ("front", "Deployment"))
    }

    def chosen(labels: dict[str, str]) -> list[str]:
        return [role for role, own in pods.items() if labels.items() <= own.items()]

    for role, kind in (("cell", "StatefulSet"), ("front", "Deployment")):
        assert chosen(one(found, kind, f"zimage-{role}")["spec"]["selector"]["matchLabels"]) == [
            role
        ]
        budget = one(found, "PodDisruptionBudget", f"zimage-{role}")["spec"]
        assert chosen(budget["selector"]["matchLabels"]) == [role]
        service = one(found, "Service", f"zimage-{role}")
        assert chosen(service["spec"]["selector"]) == [role]
        monitor = one(found, "ServiceMonitor", f"zimage-{role}")["spec"]["selector"]["matchLabels"]
        assert monitor.items() <= service["metadata"]["labels"].items()
    assert chosen(one(found, "Service", "zimage")["spec"]["selector"]) == ["front"]
    assert not monitor.items() <= one(found, "Service", "zimage")["metadata"]["labels"].items()


# Monitoring


def test_what_is_generated_of_the_kit_is_as_the_kit_is_now() -> None:
    old = [name for name, text in generated().items() if (CHART / name).read_text("utf-8") != text]
    assert old == [], "write them anew: .venv/bin/python -m deploy.rendering.chart"


def test_rules_and_dashboard_are_the_kits(tmp_path: Path) -> None:
    found = documents(merged(PLATFORM, MONITORING))
    rules = one(found, "PrometheusRule", "zimage")["spec"]["groups"]
    assert rules == read(CHART / "files" / "rules.yaml")["groups"]
    named = {rule["alert"] for rule in rules[0]["rules"]}
    assert {"ZimagePoolEmpty", "ZimageHostLost", "ZimageVersionMix"} <= named
    assert not re.search(
        r"(?<!/opt/zimage)/docs/runbook", json.dumps(rules).replace("/ops/docs", "")
    )
    [text] = one(found, "ConfigMap", "zimage-dashboard")["data"].values()
    assert (
        text.rstrip() == (CHART / "files" / "dashboard-platform.json").read_text("utf-8").rstrip()
    )


def test_prometheus_finds_every_program_with_the_labels_of_the_rules() -> None:
    found = documents(merged(PLATFORM, GPU, MONITORING))
    told = set()
    for endpoint in one(found, "ServiceMonitor", "zimage-cell")["spec"]["endpoints"]:
        labels = {each["targetLabel"]: each.get("replacement") for each in endpoint["relabelings"]}
        assert "cell" in labels
        told.add((labels["job"], labels.get("worker"), endpoint["path"]))
    workers = {("zimage-workers", f"w{n}", f"/workers/w{n}/metrics") for n in range(1, 9)}
    assert told == workers | {
        ("zimage-guard", None, "/guard/metrics"),
        ("zimage-nginx", None, "/nginx/metrics"),
        ("zimage-cluster", None, "/hosts/metrics"),
    }
