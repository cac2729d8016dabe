import getpass
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import installation
from deploy.cli import workers
from deploy.cli.app import VERBS
from deploy.config import ROOT
from deploy.rollout import roll
from tests import command_line
from tests.ports import free_port


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    port = free_port()
    path.write_text(
        f'[cell]\nvar_dir = "{tmp_path}/var"\nuser = "{getpass.getuser()}"\n'
        f"[listen]\nport = {port}\n[ops]\nport = {free_port()}\n"
        '[model]\nsource = "synthetic:"\n'
    )
    return path


def zimage(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_line.zimage((*arguments, "--config", str(config)), os.environ)


@pytest.mark.parametrize(
    "verb",
    [
        "frobnicate",
        "drain",
        "drain w9",
        "up --soon",
        "chaos kil",
        "chaos",
        "restart --all w1",
    ],
)
def test_misuse_ends_with_2_and_says_how(config: Path, verb: str) -> None:
    done = zimage(config, *verb.split())
    assert done.returncode == 2
    assert "Usage:" in done.stderr


def test_wrong_configuration_ends_with_1_and_every_problem(config: Path) -> None:
    config.write_text('[listen]\nport = "x"\nadress = ""\n', encoding="utf-8")
    done = zimage(config, "up")
    assert done.returncode == 1
    assert "is wrong; nothing was touched" in done.stderr
    assert '  listen.adress: unknown key; did you mean "address"?' in done.stderr.splitlines()


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_has_every_command_whole_in_sections(config: Path, word: str) -> None:
    told = command_line.zimage((word,), {**os.environ, "COLUMNS": "80"}).stdout
    assert "..." not in told.split("Options:")[1]
    titles = re.findall(r"^([A-Z][\w ]+):$", told, re.M)
    assert titles == ["Options", *VERBS]
    assert told.index("\nRun a cell:") < told.index("  restart ") < told.index("\nLook:")


def test_status_of_nothing_ends_with_1(config: Path) -> None:
    done = zimage(config, "status", "--json")
    assert done.returncode == 1
    cell = json.loads(done.stdout)["cell"]
    assert cell["running"] is False
    assert cell["version"] == installation.version()


def test_down_of_nothing_is_harmless(config: Path) -> None:
    done = zimage(config, "down")
    assert (done.returncode, done.stdout) == (0, "✓ nothing runs\n")


def test_plan_is_json_for_programs(config: Path) -> None:
    done = zimage(config, "plan", "--json")
    assert [worker["name"] for worker in json.loads(done.stdout)] == ["w1", "w2", "w3"]


def test_nginx_takes_the_rendered_default(config: Path) -> None:
    done = zimage(config, "render", "--check")
    assert done.returncode == 0, done.stderr
    assert "takes the rendered configuration" in done.stdout


def test_commands_never_import_torch(config: Path) -> None:
    code = (
        "import deploy.cli.app, sys; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_what_few_commands_need_is_loaded_by_those_alone() -> None:
    late = {"obstore", "sqlalchemy", "alembic", "loadtest", "requests"}
    code = f"import sys, deploy.cli.app; print(sorted({late!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_chaos_lists_what_it_can_break(config: Path) -> None:
    said = zimage(config, "chaos", "--list").stdout
    assert "SIGKILL of a worker" in said
    assert "nginx-reloaded" in said


def test_nothing_is_broken_of_a_cell_that_is_not_whole(config: Path) -> None:
    done = zimage(config, "chaos", "nginx-reloaded")
    assert done.returncode == 1
    assert "not whole" in done.stderr


@pytest.mark.parametrize(
    ("at_once", "rolling", "way"),
    [
        (False, False, "restart"),
        (False, True, "restart"),
        (True, False, "restart_at_once"),
    ],
)
def test_restart_is_rolling_unless_all_are_asked_for(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_once: bool,
    rolling: bool,
    way: str,
) -> None:
    went: list[tuple[str, list[str]]] = []
    for name in ("restart", "restart_at_once"):
        monkeypatch.setattr(
            roll, name, lambda _, names, name=name: went.append((name, list(names)))
        )
    workers.restart(config=config, at_once=at_once, rolling=rolling)
    assert went == [(way, ["w1", "w2", "w3"])]
    said = capsys.readouterr().out
    assert ("stop w1, w2, w3 at once" in said) is (way == "restart_at_once")
