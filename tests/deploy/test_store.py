import time
from pathlib import Path
from typing import Any

import pytest

from deploy import store
from deploy.cell import Cell
from deploy.config import ClusterConfig
from deploy.layout import Layout
from worker.accounts.tokens import is_operator

KEYS, CLUSTER = b"k" * 32, b"c" * 32
IN_CLUSTER: dict[str, Any] = {
    "cluster": {"name": "studio", "host": "a", "address": "10.0.0.7:7862"},
    "database": {"url": "postgresql://zimage@db1/zimage"},
    "objects": {"url": "s3://bucket", "endpoint": "http://10.0.0.9:9", "credentials_file": "s3"},
}


@pytest.mark.parametrize(("more", "secret"), [({}, KEYS), (IN_CLUSTER, CLUSTER)])
def test_commands_get_in_by_what_removed_hosts_do_not_know(
    tmp_path: Path, more: dict[str, Any], secret: bytes
) -> None:
    told = {"listen": {"auth": "keys"}, "cell": {"var_dir": str(tmp_path)}, **more}
    config = ClusterConfig.model_validate(told)
    layout = Layout.of(config)
    layout.cluster_secret.parent.mkdir()
    layout.cluster_secret.write_bytes(CLUSTER)
    layout.key_secret.write_bytes(KEYS)
    cell = Cell(config, tmp_path / "cluster.toml")
    token = store.operator_headers(cell)["Authorization"].removeprefix("Bearer ")
    assert is_operator(secret, token, time.time())
