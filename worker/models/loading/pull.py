"""Downloads a model of a hub: ``python -m worker.models.loading.pull SOURCE``.

The hubs' own libraries do it: they go on where a connection was cut, and what came whole is not
asked for again. Beside them stand what they leave out: room on the disk is looked for first, every
file is compared with the hash that the hub names, what is wrong is not kept, and a record of all of
it says that the model is here.

A process of its own: these libraries read their environment when they are imported. Whoever
started it is told what happens, in lines of JSON on standard output: ``{"bytes": n, "need": m}``
once, ``{"checked": n}`` while it reads; last ``{"folder": …}`` or ``{"what": …, "remedy": …}``.
"""

import contextlib
import errno
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from worker.models.loading import pulled
from worker.models.loading.files import needed, parts_of, require_loadable
from worker.models.loading.folder import ModelLoadError, class_of
from worker.models.loading.hub import HubModel, hub_model
from worker.models.loading.pulled import File, Record

TIMEOUT_S = 10.0
"""How long a call waits for an answer, and for the next bytes of one, where the library or its
variables (``HF_HUB_DOWNLOAD_TIMEOUT``, …) do not say otherwise."""

MARGIN_BYTES = 1 << 28
"""What is left free of the disk."""

_INDEX = "model_index.json"
_REQUIREMENTS = Path(__file__).parents[3] / "deploy" / "requirements" / "modelscope.txt"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MODELSCOPE = {
    "MODELSCOPE_API_TIMEOUT": "10",
    "MODELSCOPE_DOWNLOAD_TIMEOUT": "10",
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": "86400",  # of one file, which can have 10 GB
}


class Listing(NamedTuple):
    revision: str
    files: dict[str, File]


class Hub(Protocol):
    """A library that downloads into ``folder``."""

    def listing(self) -> Listing: ...
    def folder(self, revision: str) -> Path: ...
    def download(self, revision: str, files: Mapping[str, File]) -> None: ...


class HuggingFace:
    def __init__(self, model: HubModel) -> None:
        from huggingface_hub import set_client_factory

        set_client_factory(_client)
        self._model = model

    def listing(self) -> Listing:
        from huggingface_hub import model_info

        info = model_info(self._model.id, files_metadata=True, timeout=TIMEOUT_S)
        files = {}
        for file in info.siblings or ():
            sha256 = file.lfs.sha256 if file.lfs else ""
            git = "" if file.lfs else file.blob_id or ""
            files[file.rfilename] = File(size=file.size or 0, sha256=sha256, git_sha1=git)
        return Listing(info.sha or "main", files)

    def folder(self, revision: str) -> Path:
        return self._model.home(os.environ) / "snapshots" / revision

    def download(self, revision: str, files: Mapping[str, File]) -> None:
        from huggingface_hub import snapshot_download

        names = [glob.escape(name) for name in files]
        cache = self._model.home(os.environ).parent
        snapshot_download(
            self._model.id, revision=revision, cache_dir=cache, allow_patterns=names, max_workers=4
        )


class ModelScope:
    def __init__(self, model: HubModel) -> None:
        for name, value in _MODELSCOPE.items():
            os.environ.setdefault(name, value)
        if util.find_spec("modelscope_hub") is None:
            raise ModelLoadError(
                "ModelScope's library is not installed",
                f"{sys.executable} -m pip install -r {_REQUIREMENTS}",
            )
        from modelscope_hub import HubApi

        self._model = model
        self._api: Any = HubApi(endpoint=HubApi().resolve_endpoint_for_read(model.id))

    def listing(self) -> Listing:
        found = self._api.list_repo_files(self._model.id, "model")
        files = {file.path: file for file in found if file.type != "tree"}
        return Listing(
            "master",
            {name: File(size=file.size, sha256=file.sha256 or "") for name, file in files.items()},
        )

    def folder(self, revision: str) -> Path:
        home = self._model.home(os.environ)
        is_old = home.is_dir() and "--" not in home.name
        return home if is_old else home / "snapshots" / revision

    def download(self, revision: str, files: Mapping[str, File]) -> None:
        listed = [
            {"Path": name, "Size": file.size, "Sha256": file.sha256 or None}
            for name, file in files.items()
        ]
        self._api.download_repo(
            self._model.id,
            "model",
            revision=revision,
            local_dir=self.folder(revision),
            file_list=listed,
        )


def pull(model: HubModel) -> Path:
    """The folder of ``model``, all of it as the hub says; ``ModelLoadError`` says what is wrong."""
    try:
        hub = HuggingFace(model) if model.hub == "huggingface" else ModelScope(model)
        return _pulled(model, hub)
    except ModelLoadError:
        raise
    except Exception as error:
        raise _told(model, _root(error)) from error


def _pulled(model: HubModel, hub: Hub) -> Path:
    listing = hub.listing()
    for name in listing.files:
        pulled.require_inside(name)
    folder = hub.folder(listing.revision)
    home = model.home(os.environ)
    if _INDEX not in listing.files:
        raise ModelLoadError(
            f"{model.source} has no {_INDEX}: it is not in diffusers' layout",
            "name another model; a single .safetensors file: download it, then name the file",
        )
    _bring(hub, listing.revision, folder, {_INDEX: listing.files[_INDEX]})
    class_of(folder)
    names = needed(listing.files, parts_of(folder))
    files = {name: listing.files[name] for name in names}
    missing = _missing(folder, files)
    need = sum(file.size for file in missing.values())
    _tell(bytes=sum(file.size for file in files.values()), need=need)
    _require_room(home, need)
    _bring(hub, listing.revision, folder, missing)
    require_loadable(folder)
    record = Record(
        source=model.source,
        hub=model.endpoint(os.environ),
        revision=listing.revision,
        pulled_at=time.time(),
        folder=str(folder.relative_to(home)),
        files=files,
    )
    pulled.write(home, record)
    return folder


def _missing(folder: Path, files: Mapping[str, File]) -> dict[str, File]:
    """What is not there. What is there and wrong goes: libraries would take it for whole."""
    missing = {}
    for name, file in files.items():
        if not _genuine(folder / name, file):
            drop(folder / name)
            missing[name] = file
    return missing


def _bring(hub: Hub, revision: str, folder: Path, files: Mapping[str, File]) -> None:
    if not files:
        return
    hub.download(revision, files)
    wrong = [name for name, file in files.items() if not _genuine(folder / name, file)]
    for name in wrong:
        drop(folder / name)
    if wrong:
        raise ModelLoadError(
            f"{len(wrong)} of the files that came are not what the hub says of them, such as "
            f"{wrong[0]}; they were deleted",
            "pull again; if it stays so, a mirror or proxy on the way changes files: name another",
        )


def _genuine(path: Path, file: File) -> bool:
    return pulled.is_genuine(path, file, lambda count: _tell(checked=count))


def drop(path: Path) -> None:
    """Delete the file, and what a link in a snapshot leads to."""
    if path.is_symlink():
        path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _require_room(home: Path, need: int) -> None:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if need and need + MARGIN_BYTES > free:
        raise ModelLoadError(
            f"{need / 1e9:.1f} GB are to come, and {free / 1e9:.1f} GB are free in {place}",
            "make room, or put caches elsewhere by [environment] HF_HOME or MODELSCOPE_CACHE",
        )


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


def _told(model: HubModel, error: BaseException) -> ModelLoadError:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return ModelLoadError(
            f"the disk is full: {error}", "make room (df -h), then pull again: it goes on"
        )
    why = f"{type(error).__name__}: {_first_line(error)}"
    return ModelLoadError(
        f"{model.source} cannot be downloaded from {model.endpoint(os.environ)} ({why})",
        "check its name, the network, model.mirror and the token; what came whole is kept",
    )


def _root(error: BaseException) -> BaseException:
    """What was at the bottom of it: of several files' errors, the first."""
    failed = getattr(error, "failed_files", None)
    if isinstance(failed, dict) and failed:
        return _root(next(iter(failed.values())))
    cause = error.__cause__
    return cause if isinstance(cause, OSError) and cause.errno in _NO_ROOM else error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _tell(**what: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.__stdout__.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is for our lines alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def main() -> int:
    model = hub_model(sys.argv[1])
    if model is None:
        _tell(what=f"{sys.argv[1]} is of no hub", remedy="name owner/name or modelscope:owner/name")
        return 1
    try:
        with _quiet():
            folder = pull(model)
    except ModelLoadError as error:
        _tell(what=error.what, remedy=error.remedy)
        return 1
    _tell(folder=str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
