import subprocess
import sys
from collections.abc import Iterator

import pytest

from deploy.guard import link_program
from deploy.host import processes
from deploy.layout import Layout
from tests.deploy.processes import running, wait_until


@pytest.fixture
def process(layout: Layout) -> Iterator[subprocess.Popen[bytes]]:
    """Not an nginx: what tells a link is the file that its command names."""
    layout.links_dir.mkdir()
    program = "import time; time.sleep(600)"
    command = [sys.executable, "-c", program, str(layout.link_conf("h1"))]
    with running(command, layout.log("link-h1")) as process:
        conf = layout.link_conf("h1").name
        wait_until(lambda: conf in command_of(process.pid), "there by its name")
        yield process


def command_of(pid: int) -> str:
    found = processes.read(pid)
    return found.command if found is not None else ""


def test_a_link_is_ended_by_supervisors_word_or_its_own(
    layout: Layout, process: subprocess.Popen[bytes]
) -> None:
    (layout.links_dir / "h1.pid").write_text(f"{process.pid}\n")
    assert link_program.end(layout, "h1", 0)
    assert process.wait(10) == -9
    assert not link_program.end(layout, "h1", process.pid)


def test_a_number_that_another_process_has_by_now_ends_nobody(
    layout: Layout, process: subprocess.Popen[bytes]
) -> None:
    assert not link_program.end(layout, "h2", process.pid)
    assert process.poll() is None
    assert link_program.end(layout, "h1", process.pid)


@pytest.mark.parametrize(
    "address", ["", "a", "a:0", "10.0.0.7:7862; }", "10.0.0.7:7862\n", "unix:/tmp/x:1", "$host:1"]
)
def test_what_is_no_address_gets_into_no_configuration(layout: Layout, address: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        link_program.configuration(layout, "h1", address)


def test_a_host_may_have_a_name_or_an_address(layout: Layout) -> None:
    for address in ("gpu-1.lan:7862", "[fd00::7]:1"):
        text = link_program.configuration(layout, "h1", address)
        assert f"server {address} max_fails=0;" in text
