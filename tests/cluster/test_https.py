"""HTTPS as people and programs use it: page, SDK, and a certificate renewed while they draw."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import httpx2
import openai
import pytest
from playwright.sync_api import Browser, expect

from deploy.rendering import certificate
from loadtest.traffic import Traffic, check_picture
from tests.cluster.conftest import RunningCell, started
from tests.deploy.rendering.test_certificate import write_pair
from tests.web.conftest import DESKTOP, chromium, complaints, watch

__all__ = ["chromium", "complaints"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
TLS = "[tls]\nself_signed = true\n"


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model="synthetic:step_ms=10", workers=2, more=TLS) as running:
        yield running


def test_up_draws_its_picture_through_https(cell: RunningCell) -> None:
    done = cell.zimage("up")
    assert cell.url.startswith("https://")
    assert f"ready: {cell.url}/" in done.stdout
    assert "first-picture.png" in done.stdout


def test_sdk_draws_and_streams(cell: RunningCell) -> None:
    trust = ssl.create_default_context(cafile=str(cell.layout.certificate))
    with (
        httpx2.Client(verify=trust) as http,
        openai.OpenAI(
            base_url=f"{cell.url}/v1", api_key="unused", max_retries=0, http_client=http
        ) as client,
    ):
        answer = client.images.generate(prompt="in secret", size="256x256")
        assert answer.data is not None
        body = {"prompt": "in secret", "size": "256x256"}
        assert check_picture(answer.data[0].model_dump(), body, synthetic=True) == ""
        stream = client.images.generate(prompt="a stream", size="256x256", stream=True)
        assert "image_generation.completed" in {event.type for event in stream}


def test_certificate_is_renewed_while_everybody_draws(cell: RunningCell, tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "a")
    files = f'[tls]\ncertificate = "{pair["certificate"]}"\nkey = "{pair["key"]}"\n'
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    text = cell.config_path.read_text()
    nginx = cell.layout.nginx_pid.read_text()

    async def scenario() -> Traffic:
        async with Traffic(cell.url, clients=8, verify=anybody) as traffic:
            await traffic.until_served(8)
            cell.config_path.write_text(text.replace(TLS, files))
            changed = await cell.run("up", "--no-draw")
            assert "take on the certificate" in changed.stdout, changed.stderr
            await traffic.until_served(8)
            write_pair(tmp_path / "a")
            renewed = await cell.run("reload")
            assert "new certificate: zimage.test" in renewed.stdout, renewed.stderr
            await traffic.until_served(8)
        return traffic

    traffic = asyncio.run(scenario())
    assert traffic.failures == []
    shown = ssl.get_server_certificate(("127.0.0.1", int(cell.url.rsplit(":", 1)[1])))
    assert shown.encode() == Path(pair["certificate"]).read_bytes()
    assert cell.layout.nginx_pid.read_text() == nginx
    assert "reload nginx" not in cell.zimage("up", "--no-draw").stdout
    cell.config_path.write_text(text)
    assert cell.zimage("up", "--no-draw").returncode == 0


def test_bad_certificate_leaves_the_running_cell_untouched(
    cell: RunningCell, tmp_path: Path
) -> None:
    before = cell.layout.pair.read_bytes()
    pair = {**write_pair(tmp_path / "a"), "key": write_pair(tmp_path / "b")["key"]}
    files = f'[tls]\ncertificate = "{pair["certificate"]}"\nkey = "{pair["key"]}"\n'
    text = cell.config_path.read_text()
    cell.config_path.write_text(text.replace(TLS, files))
    for verb in ("up", "reload"):
        done = cell.zimage(verb)
        assert done.returncode == 1
        assert "not the key of the first certificate" in done.stdout + done.stderr
    cell.config_path.write_text(text)
    assert cell.layout.pair.read_bytes() == before
    trusted = certificate.trusting(cell.layout)
    assert httpx.get(f"{cell.url}/readyz", verify=trusted).status_code == 200


# Last: an open browser keeps asyncio.run from this thread.
@pytest.mark.browser
def test_page_draws_over_http2(chromium: Browser, cell: RunningCell, complaints: list[str]) -> None:
    context = chromium.new_context(ignore_https_errors=True, locale="zh-CN", **DESKTOP)  # type: ignore[arg-type]
    context.set_default_timeout(30_000)
    page = context.new_page()
    watch(page, cell.url, complaints)
    page.goto(cell.url)
    page.locator("#prompt").fill("一座桥")
    page.locator("#draw").click()
    drawn = page.locator("[data-face=picture]").filter(has_text="一座桥")
    expect(drawn).to_have_count(1, timeout=30_000)
    entry = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
    assert page.evaluate(entry) == "h2"
    context.close()
