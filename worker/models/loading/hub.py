"""Models of the Hugging Face hub: from the local cache, and from the network only where they must.

A start must not depend on a hub that is silent: what is whole in the cache is loaded without
asking, and every call that does go out has a deadline.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from worker import log
from worker.models.loading.files import Flaw, flaws, variant_of
from worker.models.loading.folder import ModelLoadError

TIMEOUT_S = 10.0
"""How long a call of a start waits for an answer, and for the next bytes of one. For files
``HF_HUB_ETAG_TIMEOUT`` and ``HF_HUB_DOWNLOAD_TIMEOUT`` (10 s each) say it, as everywhere."""

ASK_TIMEOUT_S = 5.0
"""How long a person waits for ``doctor`` to learn that the hub is silent."""


def cached(hub_id: str, cache_dir: Path | None = None) -> Path | None:
    """Folder of the revision that was downloaded last, whole or not; None: there is none.
    ``cache_dir``: where the hub's models lie, if not where this process's environment says."""
    from huggingface_hub import try_to_load_from_cache  # 0.3 s: only where it is needed

    found = try_to_load_from_cache(hub_id, "model_index.json", cache_dir=cache_dir)
    return Path(found).parent if isinstance(found, str) else None


def cache_of(environment: Mapping[str, str]) -> Path:
    """Where a process with that environment keeps the hub's models."""
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    path = environment.get("HF_HUB_CACHE") or str(Path(home) / "hub")
    return Path(os.path.expandvars(path)).expanduser()


@dataclass(frozen=True)
class Answer:
    """Of the hub at ``url`` to the question for one model: ``text`` says why it is no "yes"."""

    url: str
    has_it: bool = False
    says_no: bool = False
    text: str = ""


def ask(hub_id: str, environment: Mapping[str, str]) -> Answer:
    """Whether a process with that environment could download ``hub_id``. Downloads nothing."""
    import httpx

    url = environment.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Answer(url, says_no=True, text="must not be asked: HF_HUB_OFFLINE is set")
    token = environment.get("HF_TOKEN", "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(
            f"{url}/api/models/{hub_id}",
            headers=headers,
            timeout=ASK_TIMEOUT_S,
            follow_redirects=True,
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return Answer(url, text=f"cannot be asked ({type(error).__name__}: {_first_line(error)})")
    return Answer(
        url,
        has_it=answer.is_success,
        says_no=answer.status_code in (401, 403, 404),
        text=f"answers {answer.status_code} {answer.reason_phrase}".strip(),
    )


def _proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """The one that a process with that environment would take."""
    given = {name.lower(): value for name, value in environment.items() if value}
    parts = urlsplit(url)
    if proxy_bypass_environment(parts.netloc, {"no": given.get("no_proxy", "")}):
        return None
    return given.get(f"{parts.scheme}_proxy") or given.get("all_proxy")


def fetch(hub_id: str) -> Path:
    """Folder of ``hub_id`` in the local cache, downloaded where it is not whole.

    The network is asked only for what is missing, so a newer revision does not come by itself.
    Raises ``ModelLoadError`` when a download is needed and the hub does not answer in time.
    """
    folder = cached(hub_id)
    wrong = flaws(folder) if folder else []
    if folder and (damage := damaged(folder, wrong)):
        raise ModelLoadError(damage.what, damage.remedy)
    if folder and not wrong and _is_all_there(hub_id):
        log.event("model found in the cache", model=hub_id, revision=folder.name)
        return folder
    try:
        return _download(hub_id)
    except ModelLoadError:
        raise  # what came is no model that can be loaded
    except Exception as error:
        why = f"{type(error).__name__}: {_first_line(error)}"
        if folder and not wrong:
            log.event("the hub cannot be asked: using the cache", model=hub_id, why=why)
            return folder
        missing = f"; of the copy in the cache, {wrong[0].what}" if wrong else ""
        raise ModelLoadError(
            f"{hub_id} cannot be downloaded from {_endpoint()} ({why}){missing}",
            "check its name, the network, HF_ENDPOINT and HF_TOKEN, "
            "or copy the model here and name its folder",
        ) from error


def damaged(folder: Path, wrong: Iterable[Flaw]) -> Flaw | None:
    """What no download mends: the hub's library takes a file that is there for whole."""
    bad = next((flaw for flaw in wrong if not flaw.missing), None)
    return bad and Flaw(bad.what, f"delete {folder.parents[1]}: the next start downloads it again")


def _is_all_there(hub_id: str) -> bool:
    """Whether all files are here that the hub listed when it was asked last. Without such a list,
    as in a copy of an older cache, what ``flaws`` sees must do."""
    from diffusers import DiffusionPipeline

    try:
        with _offline():  # the hub's library would ask for things of its own
            DiffusionPipeline.download(hub_id, local_files_only=True)
    except Exception as error:
        log.event("the cache is not whole", model=hub_id, why=_first_line(error))
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """What ``HF_HUB_OFFLINE=1`` does, for a while: it is read when the library is imported."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _download(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import model_info, set_client_factory

    set_client_factory(_client)
    # First of all, and once: with a silent hub diffusers would ask three times.
    names = [file.rfilename for file in model_info(hub_id, timeout=TIMEOUT_S).siblings or ()]
    folder = Path(DiffusionPipeline.download(hub_id, variant=variant_of(names)))
    for flaw in flaws(folder):
        raise ModelLoadError(flaw.what, flaw.remedy)
    return folder


def _client() -> Any:
    """The hub library's own client, which waits for ever where a call names no time."""
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.event_hooks["request"].append(_set_deadline)
    return client


def _set_deadline(request: Any) -> None:
    timeouts = request.extensions.get("timeout", {})
    names = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {name: timeouts.get(name) or TIMEOUT_S for name in names}


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
