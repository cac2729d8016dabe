import json
from pathlib import Path

from deploy.rollout.proxy_checks import proxies
from tests.deploy.rollout.test_checks import cell

PAGE = "https://draw.example.com"


def test_doctor_tells_of_proxies_and_pages_that_the_log_has(tmp_path: Path) -> None:
    here = cell(tmp_path)
    here.layout.logs_dir.mkdir(parents=True)
    line = {"unnamed_proxy": "10.1.0.5", "refused_origin": ""}
    lines = [line, line, {**line, "refused_origin": PAGE}, {"refused_origin": "null"}, [], 3]
    text = "cut off\n" + "".join(json.dumps(each) + "\n" for each in lines)
    here.layout.access_log.write_text(text)
    proxy, page = proxies(here)
    assert (proxy.level, page.level) == ("warn", "warn")
    assert "10.1.0.5 (3 ×), which listen.trusted_proxies does not name" in proxy.text
    assert f"{PAGE} (1 ×) were refused" in page.text
    assert "listen.public_url" in str(page.remedy)


def test_doctor_says_nothing_of_proxies_where_there_is_none(tmp_path: Path) -> None:
    assert list(proxies(cell(tmp_path))) == []
    [found] = proxies(cell(tmp_path, listen={"public_url": PAGE, "trusted_proxies": ["10.1.0.5"]}))
    assert (found.level, found.text) == ("ok", f"10.1.0.5; people come by {PAGE}/")
