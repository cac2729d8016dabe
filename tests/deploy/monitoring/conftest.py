from pathlib import Path
from typing import Any

import pytest

from deploy.layout import Layout
from tests.deploy.nginx.site import configuration, files

CLUSTER: dict[str, dict[str, Any]] = {
    "cluster": {"name": "studio", "host": "a", "address": "10.0.0.7:7862"},
    "database": {"url": "postgresql://zimage@db1/zimage"},
    "objects": {"url": "s3://pictures", "endpoint": "http://10.0.0.9:9", "credentials_file": "k"},
}


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of rendered files, of a host of a cluster with the default ports: it has all that
    a cell of its own has."""
    folder = tmp_path_factory.mktemp("monitoring")
    config = configuration(folder, ops={"port": 7861}, **CLUSTER)
    layout = Layout(folder, folder / "run")
    layout.cluster_dir.mkdir()
    front = layout.cluster_certificate("front"), layout.cluster_key("front")
    for path in (layout.authority_certificate, *front):
        path.touch()  # promtool looks whether they are there
    for name, text in files(config, layout).items():
        if name.startswith("monitoring/"):
            (folder / Path(name).name).write_text(text)
    return folder
