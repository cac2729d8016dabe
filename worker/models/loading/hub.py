"""Models of hubs: what a source names there, and where it lies on this machine.

A start asks no hub, which may be silent: ``worker.models.loading.pull`` downloads, and nothing else
does. This module imports no library of a hub.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker.models.loading import pulled
from worker.models.loading.files import Flaw, flaws
from worker.models.loading.folder import ModelLoadError

ASK_TIMEOUT_S = 5.0
"""How long a person waits for ``doctor`` to learn that the hub is silent."""

_PREFIX = "modelscope:"
_ID = re.compile(r"[\w-]+/[\w.-]+")
_ENDPOINTS = {
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
}
_TOKENS = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}


@dataclass(frozen=True)
class HubModel:
    """``id``: ``owner/name`` at ``hub``."""

    id: str
    hub: Literal["huggingface", "modelscope"] = "huggingface"

    @property
    def source(self) -> str:
        """As ``model.source`` names it."""
        return self.id if self.hub == "huggingface" else f"{_PREFIX}{self.id}"

    @property
    def endpoint_variable(self) -> str:
        """What tells the hub's library of a mirror."""
        return _ENDPOINTS[self.hub][0]

    def endpoint(self, environment: Mapping[str, str]) -> str:
        """The hub that a process with that environment asks."""
        variable, usual = _ENDPOINTS[self.hub]
        return (environment.get(variable) or usual).rstrip("/")

    def home(self, environment: Mapping[str, str]) -> Path:
        """The model's own folder in the cache of a process with that environment. It holds all
        that was downloaded of it."""
        cache = cache_of(self.hub, environment)
        if self.hub == "huggingface":
            return cache / f"models--{self.id.replace('/', '--')}"
        owner, name = self.id.split("/")
        new = cache / "models" / f"{owner}--{name}"
        # So the library wrote it before its version 1.38, below the cache or its "hub".
        old = f"models/{owner}/{name.replace('.', '___')}"
        places = (new, cache / old, cache / "hub" / old)
        return next((place for place in places if place.is_dir()), new)


def cache_of(hub: str, environment: Mapping[str, str]) -> Path:
    """Where a process with that environment keeps the models of ``hub``."""
    if hub == "modelscope":
        path = environment.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"
    else:
        home = environment.get("HF_HOME") or "~/.cache/huggingface"
        path = environment.get("HF_HUB_CACHE") or str(Path(home) / "hub")
    return Path(os.path.expandvars(path)).expanduser()


def hub_model(source: str) -> HubModel | None:
    """What ``source`` names at a hub, if it names no folder; ``ModelLoadError`` for a name that
    no hub has."""
    if source.startswith(_PREFIX):
        id = source.removeprefix(_PREFIX)
        if not _ID.fullmatch(id):
            remedy = f"write it as {_PREFIX}owner/name"
            raise ModelLoadError(f"model {source!r} names no model of ModelScope", remedy)
        return HubModel(id, "modelscope")
    is_id = _ID.fullmatch(source) and not Path(source).expanduser().exists()
    return HubModel(source) if is_id else None


@dataclass(frozen=True)
class Copy:
    """Of a model on this machine, whole or not; ``record``: None where others brought it."""

    folder: Path
    record: pulled.Record | None

    def flaws(self) -> Iterator[Flaw]:
        """What keeps it from being loaded, and files that should be there. Reads a few kB."""
        yield from flaws(self.folder)
        for name in pulled.unfit(self.folder, self.record) if self.record else ():
            yield Flaw(f"{self.folder / name} is missing or cut", missing=True)


def copy_of(model: HubModel, environment: Mapping[str, str]) -> Copy | None:
    """What was downloaded last; None: nothing was."""
    home = model.home(environment)
    record = pulled.read(home)
    if record is not None:
        return Copy(home / record.folder, record)
    folder = _newest(model, home)
    return Copy(folder, None) if folder and (folder / "model_index.json").exists() else None


def _newest(model: HubModel, home: Path) -> Path | None:
    """Where the hub's own library would find it without a network."""
    if model.hub == "modelscope":
        snapshot = home / "snapshots" / "master"
        return snapshot if snapshot.is_dir() else home
    try:
        return home / "snapshots" / (home / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None


def found(model: HubModel, environment: Mapping[str, str]) -> Path:
    """Folder of ``model`` on this machine; ``ModelLoadError`` says what brings it here."""
    there = copy_of(model, environment)
    remedy = f"zimage models pull {model.source} downloads it; a start never does"
    if there is None:
        home = model.home(environment)
        raise ModelLoadError(f"{model.source} is not here, in {home}", remedy)
    for flaw in there.flaws():
        if not flaw.is_of_copy:
            raise ModelLoadError(flaw.what, flaw.remedy)
        raise ModelLoadError(f"{model.source} is not whole here: {flaw.what}", remedy)
    return there.folder


@dataclass(frozen=True)
class Answer:
    """Of the hub at ``url`` to the question for one model: ``text`` says why it is no "yes"."""

    url: str
    has_it: bool = False
    says_no: bool = False
    text: str = ""


def ask(model: HubModel, environment: Mapping[str, str]) -> Answer:
    """Whether a process with that environment could download ``model``. Downloads nothing."""
    import httpx

    url = model.endpoint(environment)
    if environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Answer(url, says_no=True, text="must not be asked: HF_HUB_OFFLINE is set")
    token = environment.get(_TOKENS[model.hub], "").strip()
    path = f"api/models/{model.id}" if model.hub == "huggingface" else f"api/v1/models/{model.id}"
    try:
        answer = httpx.get(
            f"{url}/{path}",
            headers={"Authorization": f"Bearer {token}"} if token else {},
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
