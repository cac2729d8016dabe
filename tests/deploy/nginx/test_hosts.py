"""Two floors of real nginxes: a front hands requests to hosts, and a host to its workers."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from deploy.cluster.renewal import reload_if_changed
from tests.deploy.certificates import Authority
from tests.deploy.nginx.cluster import USED, Front, front, host
from tests.deploy.nginx.site import Site
from tests.deploy.nginx.test_bodies import bytes_in_files, bytes_on_disk, children_of
from tests.deploy.nginx.test_keys import begun
from tests.deploy.processes import ask, wait_until
from tests.ports import free_port

FORGED = {
    "X-Request-ID": "f" * 32,
    "X-Request-Start": "1700000000.123",
    "X-Real-IP": "6.6.6.6",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Proto": "https",
    "X-Front": "another",
}
WARM = 16
"""Requests after which each process of a front has asked."""


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Front]:
    open_to_all = {"auth": "none", "port": free_port()}
    with front(tmp_path_factory.mktemp("entry"), authority, listen=open_to_all) as here:
        yield here


def client(site: Site, who: Site, role: str) -> httpx.Client:
    """Of ``site``'s port for fronts, with a certificate of ``who``."""
    layout = who.layout
    tls = ssl.create_default_context(cafile=str(layout.authority_certificate))
    tls.check_hostname = False
    tls.load_cert_chain(layout.cluster_certificate(role), layout.cluster_key(role))
    return httpx.Client(base_url=f"https://{site.config.cluster.address}", verify=tls, timeout=30)


def is_drawing(site: Site) -> bool:
    return bool(ask(site.layout, "w1", "GET", "/readyz").json()["running"])


def accepted(site: Site) -> int:
    """Connections that its nginx has taken, this question's included."""
    status = httpx.get(f"http://127.0.0.1:{site.config.ops.port}/nginx_status").text
    return int(status.splitlines()[2].split()[0])


def test_requests_share_handshakes_however_long_they_draw(entry: Front, a: Site) -> None:
    def round_of(seconds: float) -> None:
        replies = list(pool.map(lambda _: entry.site.draw(seconds=seconds), range(8)))
        assert {reply.status_code for reply in replies} == {200}

    with a.worker("w1"), entry.link("h1", a), ThreadPoolExecutor(8) as pool:
        for seconds in (0.1, 0.1, 0.1, 2.1, 2.1):  # each process of the front asks
            round_of(seconds)
        before = accepted(a)
        round_of(2.1)
        assert accepted(a) - before < 8


def test_a_gate_that_closes_holds_for_the_next_request(entry: Front, a: Site, b: Site) -> None:
    """Connections to its host are kept, and lie behind it."""
    with a.worker("w1"), b.worker("w2"), entry.link("h1", a), entry.link("h2", b):
        assert {entry.site.draw(prompt="x").json()["worker"] for _ in range(8)} == {"w1", "w2"}
        for gate in entry.gates("h1"):
            gate.close()
        assert {entry.site.draw(prompt="x").json()["worker"] for _ in range(8)} == {"w2"}
        assert entry.site.client.get("/v1/models").text == "w2 /v1/models"


def test_nothing_is_lost_when_a_host_closes_what_a_front_keeps(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        for _ in range(WARM):
            entry.site.draw(prompt="x")
        nginx = int(a.layout.nginx_pid.read_text())
        for _ in range(5):
            os.kill(nginx, signal.SIGHUP)
            replies = [entry.site.draw(prompt="x") for _ in range(20)]
            assert {reply.status_code for reply in replies} == {200}


def test_a_spare_link_costs_no_try_with_each_request(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        replies = [entry.site.draw(prompt="x") for _ in range(400)]
    ids = {reply.json()["headers"]["x-request-id"] for reply in replies}
    entry.site.log_of(replies[-1].json()["headers"]["x-request-id"])
    lines = map(json.loads, entry.site.layout.access_log.read_text().splitlines())
    tried = [
        re.findall(r"/(h\d+)\.sock", li["upstream_addr"]) for li in lines if li["request_id"] in ids
    ]
    spare = sum(link not in USED for links in tried for link in links)
    assert spare <= 8 * 20 < len(replies)


def test_the_first_host_that_takes_a_spare_link_is_asked_at_once(entry: Front, a: Site) -> None:
    for _ in range(20):  # nobody is there: by now every spare link is out for a second
        assert entry.site.draw(prompt="x").status_code == 503
    with a.worker("w1"), entry.link("h3", a):
        entry.lead_soonest_to("h3")
        assert entry.site.draw(prompt="x").status_code == 200


def test_front_draws_through_a_host(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        reply = entry.site.draw(prompt="x")
        large = entry.site.draw(prompt="x", bytes=3_000_000)
    assert (reply.status_code, reply.headers["X-Worker"]) == (200, "w1")
    assert len(large.json()["filler"]) == 3_000_000
    assert reply.headers.get_list("X-Content-Type-Options") == ["nosniff"]
    assert "X-Accel-Redirect" not in reply.headers
    assert entry.site.layout.nginx_error_log.read_text() == ""  # of the gates that are closed


def test_a_front_asks_a_host_for_the_key_before_it_takes_a_body(
    authority: Authority, a: Site, tmp_path: Path
) -> None:
    listen = {"port": free_port(), "auth": "keys"}
    with front(tmp_path, authority, listen=listen) as keyed, a.worker("w1"), keyed.link("h1", a):
        path, about = "/v1/images/edits", {"Content-Type": "application/json"}
        told = begun(keyed.site, path, "Content-Length: 8388608")
        assert told.startswith("HTTP/1.1 401 ")
        good = {"Authorization": "Bearer good", **about}
        reply = keyed.site.client.post(path, content=b"x" * 8_000_000, headers=good)
        assert (reply.status_code, reply.json()["asked"]["body"]) == (200, 8_000_000)


def test_only_the_front_says_who_asks_and_since_when(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        reply = entry.site.client.post("/v1/images/generations", json={}, headers=FORGED)
        direct = a.client.post("/v1/images/generations", json={}, headers=FORGED)
    at_the_worker = reply.json()["headers"]
    told = entry.site.log_of(reply.headers.get("X-Request-ID") or at_the_worker["x-request-id"])
    assert at_the_worker["x-request-id"] == told["request_id"] != FORGED["X-Request-ID"]
    assert at_the_worker["x-real-ip"] == "127.0.0.1"
    assert float(at_the_worker["x-request-start"]) > 1_700_000_001
    assert at_the_worker["x-forwarded-proto"] == "http"
    assert at_the_worker["host"] == f"127.0.0.1:{entry.site.config.listen.port}"
    # A host that is used directly believes nobody, as ever.
    assert direct.status_code == 421 or FORGED["X-Request-ID"] not in direct.text
    assert FORGED["X-Front"] not in direct.text


def test_a_host_believes_what_a_front_tells(entry: Front, a: Site) -> None:
    with a.worker("w1"), client(a, entry.site, "front") as as_front:
        reply = as_front.post("/v1/images/generations", json={}, headers=FORGED)
    told = reply.json()["headers"]
    assert told["x-request-id"] == FORGED["X-Request-ID"]
    assert told["x-request-start"] == FORGED["X-Request-Start"]
    assert told["x-front"] == "front"  # as its certificate says
    assert (told["x-real-ip"], told["x-forwarded-for"]) == ("6.6.6.6", "6.6.6.6")
    assert told["x-forwarded-proto"] == "https"
    assert a.log_of(FORGED["X-Request-ID"])["client"] == "6.6.6.6"


def test_nobody_but_a_front_is_served(
    entry: Front, a: Site, authority: Authority, tmp_path: Path
) -> None:
    with a.worker("w1"):
        with client(a, entry.site, "host") as as_host:  # as another host of the cluster has it
            assert as_host.get("/readyz").status_code == 400
        with httpx.Client(verify=False) as stranger:
            url = f"https://{a.config.cluster.address}/readyz"
            assert stranger.get(url).status_code == 400
        with client(a, entry.site, "front") as as_front:
            assert as_front.get("/readyz").status_code == 200
            assert as_front.get("/admin/drain").status_code == 404


def test_revoked_front_is_served_no_more(
    authority: Authority, tmp_path: Path, entry: Front
) -> None:
    with front(tmp_path / "out", authority) as revoked:
        authority.revoke(revoked.site.layout.cluster_certificate("front"))
        with host(tmp_path / "in", authority) as strict, strict.worker("w1"):
            with client(strict, revoked.site, "front") as as_front:
                assert as_front.get("/readyz").status_code == 400
            with client(strict, entry.site, "front") as as_front:
                assert as_front.get("/readyz").status_code == 200


def test_front_gives_nothing_to_who_is_no_host_of_the_cluster(
    entry: Front, b: Site, tmp_path: Path
) -> None:
    with (
        host(tmp_path, Authority()) as stranger,  # of an authority of its own
        stranger.worker("w1"),
        entry.link("h1", stranger),
    ):
        assert entry.site.draw(prompt="x").status_code == 503
        with b.worker("w1"), entry.link("h2", b):
            assert {entry.site.draw(prompt="x").status_code for _ in range(4)} == {200}
        assert not stranger.layout.access_log.read_text().count("generations")


def test_a_link_that_runs_gives_nothing_more_to_a_host_that_was_removed(tmp_path: Path) -> None:
    authority, listen = Authority(), {"auth": "none", "port": free_port()}
    with (
        host(tmp_path / "in", authority) as removed,
        front(tmp_path / "out", authority, listen=listen) as here,
        removed.worker("w1"),
        here.link("h1", removed),
    ):
        assert here.site.draw(prompt="x").status_code == 200
        assert not reload_if_changed(here.site.layout)
        authority.revoke(removed.layout.cluster_certificate("host"))
        authority.equip(here.site.layout)
        assert reload_if_changed(here.site.layout)
        wait_until(lambda: here.site.draw(prompt="x").status_code == 503, "refused")
        assert not reload_if_changed(here.site.layout)


def test_request_of_a_lost_host_is_drawn_by_another_as_the_same(
    entry: Front, a: Site, b: Site
) -> None:
    with a.worker("w1"), entry.link("h1", a), ThreadPoolExecutor() as pool:
        reply = pool.submit(entry.site.draw, prompt="hang w1")
        wait_until(lambda: is_drawing(a), "drawing")
        with b.worker("w2"), entry.link("h2", b):
            for gate in entry.gates("h1"):
                gate.close()
            entry.end_link("h1")
            told = reply.result().json()
    assert told["worker"] == "w2"
    log = entry.site.log_of(told["headers"]["x-request-id"])
    asked = re.findall(
        r"/(h[12])\.sock", log["upstream_addr"]
    )  # and gates of no host, which refuse
    assert (asked[-1], set(asked)) == ("h2", {"h1", "h2"})
    start = float(told["headers"]["x-request-start"])
    assert start <= log["end"] - log["seconds"] + 0.1  # when it came, not when it was repeated


def test_all_hosts_full_tells_the_wait_of_the_one_that_has_room_first(
    entry: Front, a: Site, b: Site
) -> None:
    with every_worker(a), every_worker(b), entry.link("h1", a), entry.link("h2", b):
        for name in ("w1", "w2", "w3"):
            ask(a.layout, name, "POST", "/fake/ready?no=9")
            ask(b.layout, name, "POST", "/fake/ready?no=3")
        for link in ("h1", "h2"):
            entry.gates(link)[0].close()
        assert entry.site.draw(prompt="x").json()["error"]["code"] == "unavailable"
        entry.lead_soonest_to("h2")
        of_a, of_b = asked(a), asked(b)
        for turn, stream in enumerate((False, True, False, True), 1):
            reply = entry.site.draw(prompt="x", stream=stream)
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "3")
            assert reply.json()["error"]["message"] == "not ready"
            wait_until(partial(has_asked, b, of_b + turn), "logged")
        assert asked(a) == of_a
        entry.lead_soonest_to("h1")
        assert entry.site.draw(prompt="x", stream=True).headers["Retry-After"] == "9"
        ask(a.layout, "w1", "POST", "/fake/ready?yes")
        assert entry.site.draw(prompt="x").status_code == 200  # room that no gate tells of yet


def test_reader_hears_the_words_of_a_host_though_spare_gates_are_asked_last(
    entry: Front, a: Site
) -> None:
    with a.worker("w1"), entry.link("h1", a):
        ask(a.layout, "w1", "POST", "/fake/ready?no")
        replies = [entry.site.client.get("/v1/models") for _ in range(4)]
    assert {reply.headers["Retry-After"] for reply in replies} == {"7"}


def asked(site: Site) -> int:
    """Requests for pictures that it has logged, each after its answer."""
    return site.layout.access_log.read_text().count("generations")


def has_asked(site: Site, times: int) -> bool:
    return asked(site) == times


@contextlib.contextmanager
def every_worker(site: Site) -> Iterator[None]:
    with site.worker("w1"), site.worker("w2"), site.worker("w3"):
        yield


def test_reads_go_to_full_hosts_too(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        entry.gates("h1")[0].close()
        assert entry.site.client.get("/v1/models").text == "w1 /v1/models"
        assert entry.site.client.get("/readyz").status_code == 200
    assert entry.site.client.get("/readyz").status_code == 503


def test_front_that_ends_in_order_finishes_what_has_not_come_whole_yet(
    authority: Authority, a: Site, tmp_path: Path
) -> None:
    address, body = ("127.0.0.1", free_port()), b'{"direct": true, "filler": "x"}'
    listen = {"port": address[1], "auth": "none"}
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with (
        front(tmp_path, authority, listen=listen) as leaving,
        a.worker("w1"),
        leaving.link("h1", a),
        socket.create_connection(address, timeout=30) as late,
    ):
        late.sendall(f"{head}Connection: close\r\n\r\n".encode() + body[:9])
        wait_until(lambda: being_answered(leaving.site) == 1, "begun")
        os.kill(int(leaving.site.layout.nginx_pid.read_text()), signal.SIGQUIT)
        wait_until(lambda: refuses(address), "no newcomer is taken")
        late.sendall(body[9:])
        assert late.makefile("rb").read().startswith(b"HTTP/1.1 200 ")


def being_answered(site: Site) -> int:
    """Requests whose head was read, but this question."""
    told = site.ops.get("/nginx_status").text
    return int(told.partition("Writing: ")[2].split()[0]) - 1


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def test_large_body_is_one_file_of_a_front(entry: Front, a: Site) -> None:
    """However many nginxes it passes there."""
    size = 4_000_000
    body = b'{"prompt": "hang w1", "x": "%b"}' % (b"x" * size)
    about = {"Content-Type": "application/json"}
    with a.worker("w1") as worker, entry.link("h1", a) as link, ThreadPoolExecutor() as pool:
        edit = partial(entry.site.client.post, "/v1/images/edits", content=body, headers=about)
        reply = pool.submit(edit)
        wait_until(lambda: is_drawing(a), "drawing")
        held = bytes_on_disk(entry.site) + bytes_in_files(entry.site, children_of(link.pid))
        assert size <= held < 1.1 * size
        worker.kill()
        assert reply.result().status_code == 503


def test_stream_of_a_lost_host_ends_as_a_cut_one(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        asked = {"prompt": "x", "stream": True}
        with entry.site.client.stream("POST", "/v1/images/generations", json=asked) as reply:
            events = reply.iter_text()
            assert next(events) == "event: one\n\n"
            entry.end_link("h1")
            with pytest.raises(httpx.RemoteProtocolError):
                next(events)


def test_stream_passes_both_floors_as_it_comes(entry: Front, a: Site) -> None:
    with a.worker("w1"), entry.link("h1", a):
        asked = {"prompt": "x", "stream": True}
        with entry.site.client.stream("POST", "/v1/images/generations", json=asked) as reply:
            assert next(reply.iter_text()) == "event: one\n\n"
