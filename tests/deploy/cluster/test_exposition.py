"""What Prometheus reads of hosts, read as it reads it."""

from prometheus_client.parser import text_string_to_metric_families

from deploy.cluster.exposition import metrics, targets
from tests.deploy.cluster.cells import NOW, front, host


def samples(text: str, name: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels["host"]: sample.value for sample in found}


def test_every_host_but_removed_ones_is_counted() -> None:
    rows = [
        host("a", ready=2, skew_s=-0.5),
        host("b", lost_at=NOW - 9, at=NOW - 10),
        host("gone", wanted="removed"),
        front("f"),
    ]
    text = metrics(rows, NOW, 77.0)
    assert samples(text, "zimage_cluster_host_ready") == {"a": 2, "b": 2, "f": 0}
    assert samples(text, "zimage_cluster_host_lost") == {"a": 0, "b": 1, "f": 0}
    assert samples(text, "zimage_cluster_host_silent_seconds")["b"] == 10
    assert samples(text, "zimage_cluster_host_skew_seconds")["a"] == -0.5
    assert "zimage_cluster_written_timestamp_seconds 77.0" in text


def test_what_differs_between_hosts_is_counted() -> None:
    serves = [{"name": "turbo", "digest": "d"}]
    same, other = ({"serves": serves, "loras": loras} for loras in ({"night": "n"}, {}))
    rows = [host("a", facts=same), host("b", facts=same)]
    name = "zimage_cluster_models_differ"
    assert f"{name}{{" not in metrics(rows, NOW, 77.0)
    text = metrics([*rows, host("c", facts=other)], NOW, 77.0)
    assert f'{name}{{kind="adapter",name="night"}} 1.0' in text


def test_prometheus_finds_guard_and_workers_of_the_other_hosts() -> None:
    rows = [
        host("a", facts={"workers": ["w1"]}),
        host("b", address="10.0.0.8:7862", facts={"workers": ["w1", "w2"]}),
        host("gone", wanted="removed"),
        front("f"),
    ]
    found = targets(rows, "a")
    assert {target["targets"][0] for target in found} == {"10.0.0.8:7862"}
    labels = [target["labels"] for target in found]
    assert [each["__metrics_path__"] for each in labels] == [
        "/guard/metrics",
        "/workers/w1/metrics",
        "/workers/w2/metrics",
    ]
    assert labels[2] == {
        "cell": "b",
        "job": "zimage-workers",
        "worker": "w2",
        "__metrics_path__": "/workers/w2/metrics",
    }
