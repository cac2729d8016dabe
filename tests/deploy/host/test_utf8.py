import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.config import ROOT
from tests import command_line

_CONFIG = '[cell]\nvar_dir = "{}"\nrun_dir = "{}"\n[labels]\nproducer = "某公司"\n'


@pytest.fixture(scope="module")
def gbk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a terminal whose locale is zh_CN.GBK: GB18030, which has all of that and
    more, takes seconds to make."""
    places = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "zh_CN", "-f", "GBK", str(places / "zh_CN.GBK")]
    if subprocess.run(command, capture_output=True, timeout=60).returncode > 1:  # 1: warnings
        pytest.skip("this machine's glibc has no sources of GBK")
    return {"LC_ALL": "zh_CN.GBK", "LOCPATH": str(places)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "单元.toml"
    text = _CONFIG.format(tmp_path / "数据", tmp_path / "run")
    path.write_text(text, encoding="utf-8")
    return path


def zimage(locale: dict[str, str], *words: str | bytes) -> bytes:
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "PYTHONIOENCODING")}
    command = [sys.executable, "-m", "deploy.cli.app", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**plain, **locale}, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode("gbk", "replace")
    return done.stdout


def test_files_and_folders_are_utf8_and_the_terminal_has_its_own(
    gbk: dict[str, str], config: Path
) -> None:
    to = config.parent / "渲染"
    told = zimage(gbk, "render", "--config", str(config), "--to", str(to)).decode("gbk")
    assert f"files in {to}" in told
    (told_worker,) = to.glob("workers/w1-*.json")
    assert json.loads(told_worker.read_text(encoding="utf-8"))["labels"]["producer"] == "某公司"
    text = (to / "supervisord.conf").read_text(encoding="utf-8")
    assert str(config.parent / "数据") in text


def test_what_is_typed_in_such_a_terminal_is_understood(gbk: dict[str, str], config: Path) -> None:
    options = ("--config", str(config))
    told = zimage(gbk, "keys", "create", "张三".encode("gbk"), *options)
    assert "张三" in told.decode("gbk")
    listed = command_line.zimage(("keys", "list", "--json", *options), os.environ)
    assert [key["name"] for key in json.loads(listed.stdout)] == ["张三"]


def test_a_terminal_that_cannot_show_a_character_stops_nothing(config: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert b"? " in zimage(ascii_only, "render", "--config", str(config), "--check")
