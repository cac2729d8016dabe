"""Every text of cluster.toml arrives as it is, or is refused before anything starts."""

import json
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from supervisor.options import ServerOptions

from deploy import installation
from deploy.cell import Cell, CellError
from deploy.config import ClusterConfig, ConfigError, parse
from deploy.rendering.certificate import CertificateError
from deploy.rendering.placement import model_source
from deploy.rendering.render import NGINX_DIGEST, sidecars, worker_environment
from deploy.rollout import address_checks
from deploy.rollout.files import check_nginx, write
from worker import code_digest

NASTY = (
    *("a b", "a;b", "a ;b", "a#b", "a #b", "a\u3000;b", ";a", "#a", "a;", "a # b"),
    *("100%", "%(here)s", "%s", "%(ENV_HOME)s", "$HOME", "${a}", "{a}", "{{ a }}", "{% a %}"),
    *(
        "it's",
        "'a",
        "a'",
        '"a"',
        'a"b',
        "a\\",
        "a\\b",
        "\\n",
        "a,b",
        "a=b",
        "a:b",
        "[a]",
        "*",
        "a?b",
    ),
    *(
        "a\nb",
        "a\r\nb",
        "a\rb",
        "a\tb",
        "a\x00b",
        "a\x1bb",
        "\x85",
        " a",
        "a ",
        "人工智能",
        "!`~^&|<>",
    ),
    '"; env A=1; "',
)


def texts(model: type[BaseModel] = ClusterConfig, path: str = "") -> Iterator[str]:
    """Paths of all keys of the file that hold text without a choice."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner:
            yield from texts(inner[0], f"{path}{name}.")
        elif str in kinds or any(str in get_args(kind) for kind in kinds):
            yield path + name


KEYS = (*(key for key in texts() if key != "environment"), "environment.A_VARIABLE")


def with_text(key: str, text: str, tmp_path: Path) -> dict[str, Any]:
    data: dict[str, Any] = {"cell": {"var_dir": str(tmp_path / "var")}}
    section, name = key.split(".")
    in_list = name in ("names", "trusted_proxies")
    data.setdefault(section, {})[name] = [text] if in_list else text
    if section == "tls":
        data["tls"]["self_signed"] = True
    return data


def place(key: str, text: str, tmp_path: Path) -> str:
    """Folders lie in the test's own."""
    if key in ("cell.var_dir", "cell.run_dir"):
        return f"{tmp_path}/x{text}x"
    if key == "database.url":
        return f"sqlite:///{tmp_path}/x{text}x"
    return text


def test_all_texts_are_tried() -> None:
    assert {"model.source", "cell.user", "listen.address", "labels.producer"} <= set(KEYS)
    assert {"nginx.binary", "tls.names", "cell.run_dir", "database.url"} <= set(KEYS)


@pytest.fixture(scope="module", autouse=True)
def _code_read_once() -> Iterator[None]:
    """It stays as it is, and its digests take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_digest, "of", cache(code_digest.of))
        patch.setattr(installation, "packages_digest", cache(installation.packages_digest))
        yield


@pytest.mark.parametrize("key", KEYS)
def test_a_text_arrives_as_it_is_or_is_refused(key: str, tmp_path: Path) -> None:
    taken: set[tuple[str, str]] = set()
    for nasty in NASTY:
        try:
            config = parse(with_text(key, place(key, nasty, tmp_path), tmp_path))
        except ConfigError:
            continue
        cell = Cell(config, tmp_path / "cluster.toml")
        try:
            rendered = cell.render()
        except (CellError, CertificateError):  # no such nginx
            continue
        assert_understood(cell, rendered, taken)


def assert_understood(cell: Cell, rendered: dict[str, str], taken: set[tuple[str, str]]) -> None:
    """By supervisor's own parser and by nginx. ``taken``: the files that nginx has seen."""
    cell.layout.create()
    seen = cell.host.nginx_path, rendered[NGINX_DIGEST]
    is_ours = not any(f.level == "fail" for f in address_checks.ports(cell))
    if is_ours and seen not in taken:  # an address of this machine
        check_nginx(cell, rendered)
        taken.add(seen)
    write(cell.layout.render_dir, rendered)
    options = ServerOptions()
    options.realize(["-c", str(cell.layout.supervisord_conf)])
    programs = {g.name: g.process_configs[0] for g in options.process_group_configs}
    assert set(programs) == {"guard", "nginx", *sidecars(cell.config), *cell.plan.names}
    for worker in cell.plan.workers:
        wanted = worker_environment(cell.config, worker, cell.layout, cell.host)
        assert programs[worker.name].environment == wanted
        told = json.loads(Path(wanted["ZIMAGE_SETTINGS"]).read_text(encoding="utf-8"))
        assert told["model"] == model_source(cell.config.model)
        assert told["labels"]["producer"] == cell.config.labels.producer
    arguments = shlex.split(programs["nginx"].command)
    assert arguments[-3:-1] == [str(cell.layout.var_dir), str(cell.layout.nginx_conf)]
    assert programs["w1"].stdout_logfile == str(cell.layout.log("w1"))


def test_unusual_names_of_models_and_folders_work() -> None:
    source = "/data/C# models; it's 100% (v2)/模型"
    config = parse({"model": {"source": source}, "cell": {"var_dir": "/srv/our cells, 2"}})
    assert config.model.source == source
