from pathlib import Path

import pytest

from deploy.layout import Layout
from tests.deploy.nginx.site import configuration, files


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of rendered files, of a cell with the default ports."""
    folder = tmp_path_factory.mktemp("monitoring")
    config = configuration(folder, ops={"port": 7861})
    for name, text in files(config, Layout(folder, folder / "run")).items():
        if name.startswith("monitoring/"):
            (folder / Path(name).name).write_text(text)
    return folder
