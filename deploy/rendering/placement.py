"""Which models share a machine, and how: what each needs, and which devices it gets. Pure."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from deploy.config.schema import ClusterConfig, Model, WorkerGroup
from deploy.host.machine import Gpu
from deploy.layout import under_root

Z_IMAGE_GIB: Mapping[str, float] = {"off": 21.5, "transformer": 16.0, "all": 13.0}
"""Of a GPU, by ``model.fp8``: 19.3 are resident in bf16, and activations come on top."""
SMALL_GIB = 0.8
"""Python, torch and the shipped model."""
_SMALL_GPU_GIB = 2.0
"""The same on a GPU, with its CUDA context."""


def model_source(model: Model) -> str:
    """What a worker is given: folders and files absolute, everything else as written."""
    return _absolute(model.source)


def model_base(model: Model) -> str:
    """The same of ``model.base``."""
    return _absolute(model.base)


def whole_source(model: Model) -> str:
    """The source of all its parts: of a file with the transformer alone, its base."""
    return model_base(model) or model_source(model)


def is_z_image(model: Model) -> bool:
    """Whether it has Z-Image-Turbo's sizes, as far as its source says."""
    source = whole_source(model)
    return source == "random:z-image-turbo" or source.lower().endswith("z-image-turbo")


def gpu_gib(model: Model) -> float | None:
    """What it takes of a GPU; None: nobody has measured it."""
    if is_z_image(model):
        return Z_IMAGE_GIB[model.fp8]
    source = whole_source(model)
    return _SMALL_GPU_GIB if source == "tiny" or source.startswith("synthetic") else None


def _absolute(source: str) -> str:
    is_path = source.startswith(("/", "./", "../", "~")) or source.endswith(".safetensors")
    return str(under_root(source)) if is_path else source


def on_cpu(config: ClusterConfig, workers: int) -> tuple[WorkerGroup, ...]:
    """``workers`` divided evenly among the models, the first ones first; each has one at least."""
    models = config.served
    counts = [len(range(k, workers, len(models))) or 1 for k in range(len(models))]
    return tuple(
        WorkerGroup(device="cpu", count=count, model=model.name)
        for model, count in zip(models, counts, strict=True)
    )


def on_gpus(config: ClusterConfig, gpus: Sequence[Gpu]) -> tuple[WorkerGroup, ...]:
    """A GPU or more for each model; where there are fewer GPUs than models, slices of them.
    ``ValueError`` says which model has no room, with figures."""
    models = config.served
    if len(gpus) < len(models):
        return _sliced(models, gpus)
    shares = _shared_out(models, gpus)
    return tuple(
        WorkerGroup(device=gpu.uuid, model=model.name)
        for gpu in gpus
        for model, own in shares
        if gpu in own
    )


def _shared_out(models: Sequence[Model], gpus: Sequence[Gpu]) -> list[tuple[Model, list[Gpu]]]:
    """Each model's GPUs: in turn, so that none has two more than another. The model that needs most
    chooses first, and the largest, so that a small card goes to a small model."""
    order = sorted(models, key=_need, reverse=True)
    free = sorted(gpus, key=lambda gpu: gpu.memory_gib or float("inf"), reverse=True)
    first, more = free[: len(order)], free[len(order) :]
    shares: list[tuple[Model, list[Gpu]]] = []
    for model, gpu in zip(order, first, strict=True):
        if not _fits(model, gpu):
            raise ValueError(_no_room([model], gpu))
        shares.append((model, [gpu]))
    # In the order of the file from here on: the first model has the first of what is left over.
    shares.sort(key=lambda share: models.index(share[0]))
    for gpu in more:
        fewest = sorted(shares, key=lambda share: len(share[1]))
        own = next((own for model, own in fewest if _fits(model, gpu)), None)
        if own is not None:
            own.append(gpu)
    return shares


def _sliced(models: Sequence[Model], gpus: Sequence[Gpu]) -> tuple[WorkerGroup, ...]:
    """Largest first, each onto the GPU with most room left; what is left is given to those on it
    by what they need."""
    unknown = [model.name for model in models if gpu_gib(model) is None]
    if unknown:
        raise ValueError(
            f"{_gpus(len(gpus))} for {len(models)} models, and nobody has measured how much memory "
            f"{_joined(unknown)} takes; write [[workers]] with model, device and vram_limit_gib"
        )
    on: dict[str, list[Model]] = {gpu.uuid: [] for gpu in gpus}
    for model in sorted(models, key=_need, reverse=True):
        best = max(gpus, key=lambda gpu: gpu.memory_gib - sum(map(_need, on[gpu.uuid])))
        if sum(map(_need, [*on[best.uuid], model])) > best.memory_gib:
            raise ValueError(_no_room([*on[best.uuid], model], best))
        on[best.uuid].append(model)
    return tuple(itertools.chain.from_iterable(_slices(gpu, on[gpu.uuid]) for gpu in gpus))


def _slices(gpu: Gpu, models: Sequence[Model]) -> Iterator[WorkerGroup]:
    if len(models) == 1:
        yield WorkerGroup(device=gpu.uuid, model=models[0].name)
        return
    whole = sum(map(_need, models))
    for model in models:
        limit_gib = int(10 * gpu.memory_gib * _need(model) / whole) / 10  # never above the card's
        yield WorkerGroup(device=gpu.uuid, model=model.name, vram_limit_gib=limit_gib)


def _need(model: Model) -> float:
    """Without figures: a GPU of its own, before those of which we know that they take less."""
    known = gpu_gib(model)
    return float("inf") if known is None else known


def _fits(model: Model, gpu: Gpu) -> bool:
    needs = gpu_gib(model)
    return needs is None or not gpu.memory_gib or needs <= gpu.memory_gib


def _no_room(models: Sequence[Model], gpu: Gpu) -> str:
    needs = " + ".join(f"{_need(model):g} ({model.name})" for model in models)
    return (
        f"{needs} GiB are needed on GPU {gpu.index}, which has {gpu.memory_gib:g} GiB; "
        'delete a model, set its fp8 = "transformer" or "all", or add a GPU'
    )


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count != 1 else ''}"


def _joined(names: Sequence[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)
