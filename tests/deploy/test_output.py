"""What others wrote is data to the terminal of whoever runs a command."""

import io
import json
import os
import pty
import re
import select
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from deploy import output
from deploy.finding import Finding
from tests import command_line

EVIL = "a\x1b]0;owned\x07b\x9b31mc\u202ed\u2028e\x7f"
SHOWN = "b\\u009b31mc\\u202ed\\u2028e\\u007f"
MARKUP = "x [/] [bold]y[/bold] [/red :smile:"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(f'[cell]\nvar_dir = "{tmp_path}/var"\nrun_dir = "{tmp_path}/run"\n', "utf-8")
    return path


def zimage(config: Path, *words: str, **environment: str) -> str:
    environment = {**os.environ, "COLUMNS": "300", **environment}
    done = command_line.zimage((*words, "--config", str(config)), environment)
    return done.stdout + done.stderr


def on_a_terminal(config: Path, *words: str) -> str:
    """What a person's terminal gets, colours and all."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "300", "TERM": "xterm-256color"}
    arguments, terminal = (*words, "--config", str(config)), Path(os.ttyname(theirs))
    with command_line.started(arguments, environment, terminal=terminal) as command:
        got = b""
        while True:
            has_ended = not command.runs
            if select.select([ours], [], [], 0.05)[0]:
                got += os.read(ours, 65_536)
            elif has_ended:
                break
    os.close(ours)
    os.close(theirs)
    return got.decode()


def harmless(text: str) -> bool:
    """Nothing but lines, tabs and Rich's own colours."""
    rest = text.replace("\r\n", "\n")
    for colour in (0, 1, 2, "1;31", *range(30, 38)):
        rest = rest.replace(f"\x1b[{colour}m", "")
    return output.plain(rest) == rest


def test_names_of_keys_print_as_they_are(config: Path) -> None:
    """Names are refused with early controls, but not with the later ones and turns of direction."""
    evil = "a\x9b31m\u202eb"
    for name in (MARKUP.replace("/", "|"), "[red]", evil):
        assert "key of" in zimage(config, "keys", "create", name)
    for told in (zimage(config, "keys", "list"), on_a_terminal(config, "keys", "list")):
        assert harmless(told)
        assert MARKUP.replace("/", "|") in told
        assert "a\\u009b31m\\u202eb" in told
    listed = zimage(config, "keys", "list", "--json")
    assert harmless(listed)
    assert {key["name"] for key in json.loads(listed)} >= {"[red]", evil}


def test_tables_are_whole_for_a_pipe(config: Path) -> None:
    name = "a name that people know wherever they are, and far beyond it"
    assert "key of" in zimage(config, "keys", "create", name)
    assert name in zimage(config, "keys", "list", COLUMNS="")


def test_logs_cannot_steer_the_terminal(config: Path) -> None:
    logs = config.parent / "var" / "logs"
    logs.mkdir(parents=True)
    evil = f'{{"at": "2027-01-31T18:00:00+00:00", "referer": "{EVIL}"}}\r\x1b[2Jgone\n'
    (logs / "access.log").write_text(evil, encoding="utf-8")
    for words in (["logs"], ["logs", "--json"]):
        told = on_a_terminal(config, *words, "access")
        assert "a\\u001b]0;owned\\u0007" + SHOWN in told
        assert "\\u001b[2Jgone" in told
        assert harmless(told)


def test_the_end_of_a_log_shows_bytes_that_are_no_text(config: Path) -> None:
    logs = config.parent / "var" / "logs"
    logs.mkdir(parents=True)
    (logs / "w1.log").write_bytes(b"one\ntwo \xff\xfe\nthree")
    told = zimage(config, "logs", "w1", "-n", "2").splitlines()
    assert [line.split("INFO")[1].strip() for line in told] == ["two \ufffd\ufffd", "three"]


class _Jobs(BaseHTTPRequestHandler):
    job: dict[str, Any]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        last = self.path.startswith("/v1/jobs?")
        body = json.dumps({"data": [self.job], "has_more": False} if last else self.job).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def jobs(config: Path) -> Iterator[type[_Jobs]]:
    """Where the cell would answer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Jobs) as server:
        port = server.server_port
        config.write_text(config.read_text("utf-8") + f"[listen]\nport = {port}\n", "utf-8")
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield _Jobs
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", [EVIL, MARKUP])
def test_jobs_are_listed_as_they_are_called(config: Path, jobs: type[_Jobs], name: str) -> None:
    counts = dict.fromkeys(("waiting", "running", "done", "failed", "cancelled"), 0)
    jobs.job = {
        "id": "job_1", "name": name, "state": "running", "created_at": 1.0, "total": 1,
        "counts": counts, "held": None, "predicted_finish_at": None,
    }  # fmt: skip
    told = on_a_terminal(config, "jobs", "list")
    assert harmless(told), told
    assert (MARKUP if name == MARKUP else SHOWN) in told


def test_errors_and_findings_are_data_too(capsys: pytest.CaptureFixture[str]) -> None:
    for say in (output.say, output.step, output.done, output.warn, output.fail):
        say(EVIL + MARKUP)
    output.as_json({EVIL: MARKUP})
    told = capsys.readouterr()
    assert harmless(told.out + told.err)
    assert (told.out + told.err).count(MARKUP) == 6


def test_only_the_mark_of_a_finding_is_coloured(config: Path) -> None:
    told = on_a_terminal(config, "doctor").split("\r\n")
    findings = [line for line in told if re.search("(ok|warn|fail) ", line)]
    assert len(findings) > 5
    for line in findings:
        assert re.match(r"\x1b\[[\d;]+m(ok|warn|fail) +\x1b\[0m[^\x1b]+$", line), line


def test_only_the_mark_of_a_line_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    for name in ("console", "errors"):
        to = Console(file=shown, force_terminal=True, color_system="standard", highlight=False)
        monkeypatch.setattr(output, name, to)
    for say in (output.step, output.done, output.warn, output.fail):
        say("a line")
    assert [line[-10:] for line in shown.getvalue().splitlines()] == ["\x1b[0ma line"] * 4


def test_what_holds_for_all_workers_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding("ok", f"w{k}", "kernels on; graphs on") for k in (1, 2, 3)]
    output.findings([*found, Finding("ok", "w4", "kernels off")])
    assert capsys.readouterr().out.splitlines() == [
        "ok    w1, w2, w3: kernels on; graphs on",
        "ok    w4: kernels off",
    ]


def test_long_findings_go_on_below_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system=None, width=30)
    monkeypatch.setattr(output, "console", console)
    output.findings([Finding("warn", "disk", "little is free at /var/images", "make room there")])
    assert shown.getvalue().splitlines() == [
        "warn  disk: little is free at",
        "      /var/images",
        "      → make room there",
    ]


def test_a_table_of_workers_shows_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    worker = {"name": EVIL, "state": MARKUP, "phase": MARKUP, "device": EVIL}
    state: dict[str, Any] = {
        "alarms": [{"worker": None, "text": EVIL + MARKUP}],
        "cell": {"name": EVIL, "url": "u", "uptime_s": 1, "supervisor": True, "version": EVIL},
        "pool": {"open": 0, "of": 1},
        "stale": False,
        "workers": [{**worker, "last_fault": {"at": 1.0, "what": MARKUP + EVIL}}],
    }
    output.console.print(output.status(state))
    told = capsys.readouterr().out
    assert harmless(told)
    assert MARKUP in told
