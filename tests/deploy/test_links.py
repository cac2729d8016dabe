import json
import time
from pathlib import Path

import pytest

from deploy import links
from deploy.layout import Layout
from deploy.links import GONE_AFTER_S, Link


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, tmp_path / "run")


def test_links_are_read_as_they_were_written(layout: Layout) -> None:
    assert links.read(layout) == {}
    held = {"h1": Link("a", "10.0.0.7:7862", 8), "h3": Link("b", "10.0.0.8:7862", 4, 12.5)}
    links.write(layout, held)
    assert links.read(layout) == held


def test_a_host_that_is_out_for_long_has_no_place_in_the_next_rendering(layout: Layout) -> None:
    now = time.time()
    of_out = {"h2": now - GONE_AFTER_S - 1, "h3": now - GONE_AFTER_S + 30}
    held = {name: Link(name, "10.0.0.7:7862", 8, since) for name, since in of_out.items()}
    links.write(layout, {"h1": Link("a", "10.0.0.9:7862", 4), **held})
    assert links.in_use(layout) == {"h1": 4, "h3": 8}


@pytest.mark.parametrize("text", ["", "[1]", '{"h1": {"host": "a"}}', '{"h1": 3}', "\x00"])
def test_a_file_that_is_none_of_ours_holds_no_links(layout: Layout, text: str) -> None:
    layout.links_dir.mkdir()
    layout.links_json.write_text(text)
    assert links.read(layout) == {}


A, B = "a" * 10, "b" * 10


def know(layout: Layout, **pools: object) -> None:
    """Hosts as ``membership`` lists them, each with the link of its name."""
    hosts = [{"id": name, "facts": {"pools": each}} for name, each in pools.items()]
    layout.hosts_json.parent.mkdir(parents=True, exist_ok=True)
    layout.hosts_json.write_text(json.dumps({"at": 1.0, "hosts": hosts}))
    links.write(layout, {name: Link(name, "10.0.0.7:7862", 8) for name in pools})


def test_pools_of_models_are_told_where_hosts_have_other_ones(layout: Layout) -> None:
    assert links.serves(layout, ["h1"]) == {}
    know(layout, h1=[A], h2=[B, A], h3=[B])
    assert links.serves(layout, ["h1", "h2"]) == {"h1": (A,), "h2": (A, B)}
    know(layout, h1=[A, B], h2=[B, A], h3=[B])
    assert links.serves(layout, ["h1", "h2"]) == {}


def test_a_host_that_does_not_say_what_it_has_is_no_reason_for_pools(layout: Layout) -> None:
    """One of an older version, or that has not loaded yet."""
    know(layout, h1=[A], h2=None, h3=["x; }"])
    assert links.serves(layout, ["h1", "h2", "h3"]) == {}
    layout.hosts_json.write_text("[]")
    assert links.serves(layout, ["h1"]) == {}


def test_hosts_without_a_link_wait_for_one(layout: Layout) -> None:
    assert links.waiting(layout) == 0
    links.write(layout, {"h1": Link("a", "10.0.0.9:7862", 4)})
    hosts = [
        {"id": "a", "role": "host", "wanted": "in"},
        {"id": "b", "role": "host", "wanted": "in"},
        {"id": "c", "role": "both", "wanted": "out"},
        {"id": "d", "role": "front", "wanted": "in"},
        {"id": "e", "role": "host", "wanted": "removed"},
    ]
    layout.hosts_json.parent.mkdir(parents=True, exist_ok=True)
    layout.hosts_json.write_text(json.dumps({"at": 1.0, "hosts": hosts}))
    assert links.waiting(layout) == 2
