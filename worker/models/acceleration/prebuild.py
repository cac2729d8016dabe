"""Kernels for a first start, built beside it: in processes, while this one imports and loads.

The compilers behind them hold one session a process, and each of the extra's kernels takes two to
three seconds. What is built goes to the caches on disk, which lock each kernel: a worker that gets
there first builds it, and one that comes second waits and reads it. Whatever goes wrong here, the
worker builds by itself.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from worker.coordination import processes
from worker.models.loading.folder import class_of
from worker.models.versions import versions
from worker.settings import Settings

PARTS = ("attention", "products", "drawing")
"""One process each: the extra's attention, its products, and all that a small drawing needs."""
_MOST_S = 120
_LEAST_CORES = 8
"""With fewer they would take time from the worker's own imports."""
_LEAST_FREE_GIB = 40.0
"""Of the card: a smaller one has no room for a miniature beside the weights."""
_SETTINGS = ("model", "dtype", "kernels", "attention", "products", "graphs", "fp8")
_SHAPES = ((1024, 1), (512, 1), (256, 1))
"""Side and rows: with them every kernel is asked for that depends on how many tokens there are."""
_VOCABULARY = 300  # of the tokenizer of bytes


_claims: list[BinaryIO] = []  # open, and so locked, until this process ends


def begin(settings: Settings, folder: Path | None) -> None:
    """Start to build what ``settings`` need of the model in ``folder`` (None: random weights), on a
    card, where that was not built before and no worker beside this one does it."""
    cores = os.cpu_count() or 1
    if settings.kernels == "off" or cores < _LEAST_CORES or _marker(settings).exists():
        return
    if folder is not None and class_of(folder) != "ZImagePipeline":
        return
    if not _claimed(_marker(settings).with_suffix(".lock")):
        return
    for part in PARTS:
        command = [sys.executable, "-m", "worker.models.acceleration.prebuild", part]
        command += [settings.model_dump_json(), str(folder or "")]
        threading.Thread(target=_run, args=[command], name=f"build {part}", daemon=True).start()


def _claimed(path: Path) -> bool:
    with contextlib.ExitStack() as undo, contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = undo.enter_context(path.open("ab"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        undo.pop_all()
        _claims.append(lock)
        return True
    return False  # another has it, or the disk is full


def _run(command: list[str]) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=_MOST_S)


def done(settings: Settings) -> None:
    """All is built: the next start finds it."""
    path = _marker(settings)
    with contextlib.suppress(OSError):  # a full disk: then the next start looks again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _marker(settings: Settings) -> Path:
    about = {name: getattr(settings, name) for name in _SETTINGS}
    about |= versions("worker.models.zimage.pipeline")
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return settings.var_dir / "cache" / f"built-{digest}"


def main() -> int:
    """``python -m worker.models.acceleration.prebuild PART SETTINGS FOLDER``"""
    part, settings, folder = sys.argv[1:]
    processes.end_with(os.getppid())  # whoever is killed keeps no card by its builder
    signal.alarm(_MOST_S)
    os.nice(5)
    build(part, Settings.model_validate_json(settings), Path(folder) if folder else None)
    return 0


def build(part: str, settings: Settings, folder: Path | None) -> None:
    """Build one of ``PARTS`` here."""
    import torch

    from worker.models.acceleration import optimisations

    device = _device(settings)
    free, _ = torch.cuda.mem_get_info(device)
    plan = optimisations.choose(settings, device)
    if not plan.kernels or free < _LEAST_FREE_GIB * 2**30:
        return
    if part == "drawing":
        _draw(settings, folder, plan, device)
    else:
        optimisations.prove_one(plan, part, device)


def _device(settings: Settings) -> Any:
    import torch

    _, _, index = settings.devices[0].partition("cuda:")
    device = torch.device("cuda", int(index or 0))
    torch.cuda.set_device(device)
    return device


def _draw(settings: Settings, folder: Path | None, plan: Any, device: Any) -> None:
    from worker.models.acceleration.fp8 import shrink_pipeline
    from worker.models.loading.device import dtype_for
    from worker.models.loading.folder import Defaults
    from worker.models.loading.load import adapted
    from worker.models.loading.random_zimage import random_zimage
    from worker.types import DrawSpec, Parameters

    if plan.fp8 == "off":  # the others build those: do not wait for them
        plan = replace(plan, attention="native", products="native")
    pipeline = random_zimage(miniature(folder), device, dtype_for(settings.dtype, device))
    if plan.fp8 != "off":
        shrink_pipeline(pipeline, device, plan.fp8)
    defaults = Defaults("miniature", steps=1, guidance_scale=0.0, size=(1024, 1024))
    stepwise = adapted(pipeline, defaults, settings.max_pixels, replace(plan, graphs=False))
    for side, rows in _SHAPES:
        how = Parameters(side, side, 1)
        samples = stepwise.start([DrawSpec("a boat", seed, how) for seed in range(rows)])
        stepwise.step(samples, lambda _: True)
        stepwise.finish(samples)


def miniature(folder: Path | None) -> Any:
    """The sizes of the model in ``folder`` with one layer of each kind and few words."""
    from worker.models.loading.random_zimage import TURBO, Sizes

    few = {"n_layers": 1, "n_refiner_layers": 1}
    short = {"num_hidden_layers": 2, "vocab_size": _VOCABULARY}
    if folder is None:
        return replace(
            TURBO, transformer=TURBO.transformer | few, text_encoder=TURBO.text_encoder | short
        )
    return Sizes(
        transformer=_config(folder, "transformer") | few,
        vae=_config(folder, "vae"),
        text_encoder=_config(folder, "text_encoder") | short,
    )


def _config(folder: Path, part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_bytes())
    # One entry a layer, which are fewer now; and what only says who wrote the file.
    left_out = {"layer_types", "architectures", "model_type", "max_window_layers", "dtype"}
    left_out |= {"torch_dtype", "transformers_version", "pad_token_id", "eos_token_id"}
    left_out |= {"bos_token_id"}
    return {k: v for k, v in config.items() if k not in left_out and not k.startswith("_")}


if __name__ == "__main__":
    sys.exit(main())
