"""Whether memory and GPUs of this machine are enough for its workers, each finding with its
remedy."""

import re
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.host import machine, processes
from deploy.rendering.placement import SMALL_GIB, Z_IMAGE_GIB, is_z_image
from deploy.rendering.plan import WorkerPlan

_HOST_GIB_OF_GPU_WORKER = 4.0


def memory(cell: Cell) -> Iterator[Finding]:
    workers = cell.plan.workers
    need_gib = sum(_host_gib(cell, worker, d) for worker in workers for d in worker.devices)
    has = cell.machine
    text = f"{has.memory_gib:.0f} GiB, {has.available_gib:.0f} free; workers need {need_gib:.0f}"
    running = bool(processes.members(cell.layout.processes))
    remedy = "plan fewer workers, choose a smaller model, or add memory"
    if need_gib > has.memory_gib:
        yield Finding("fail", "memory", text, remedy)
    elif need_gib > has.available_gib and not running:
        yield Finding("warn", "memory", text, remedy)
    else:
        yield Finding("ok", "memory", text)


def gpus(cell: Cell) -> Iterator[Finding]:
    planned = [w for w in cell.plan.workers if w.devices[0] != "cpu"]
    if not cell.plan.workers:
        return
    for worker in planned:
        for device in worker.devices:
            yield from _vram(cell, device, worker)
    if planned:
        yield _torch_build()
    else:
        names = ", ".join(g.name for g in cell.machine.gpus) or "none"
        yield Finding("ok", "gpu", f"{names}; all workers are on the CPU")


def _host_gib(cell: Cell, worker: WorkerPlan, device: str) -> float:
    model = cell.config.model_of(worker.model)
    if device != "cpu":
        return _HOST_GIB_OF_GPU_WORKER
    if not is_z_image(model):
        return SMALL_GIB
    return Z_IMAGE_GIB["off"] * (1 if "16" in model.dtype else 2)


def _vram(cell: Cell, device: str, worker: WorkerPlan) -> Iterator[Finding]:
    gpu = next(g for g in cell.machine.gpus if g.uuid == device)
    model = cell.config.model_of(worker.model)
    has_gib = worker.vram_limit_gib or gpu.memory_gib
    text = f"{worker.name} on {gpu.name} ({gpu.index}): {has_gib:g} GiB, driver {gpu.driver}"
    if has_gib and is_z_image(model) and has_gib < Z_IMAGE_GIB[model.fp8]:
        yield Finding("fail", "gpu", text, _more_room(model.fp8, has_gib))
    else:
        yield Finding("ok", "gpu", text)


def _more_room(fp8: str, has_gib: float) -> str:
    smaller = next((part for part, gib in Z_IMAGE_GIB.items() if gib <= has_gib), None)
    room = f"Z-Image-Turbo needs {Z_IMAGE_GIB[fp8]:g} GiB: raise vram_limit_gib, lower count"
    if smaller is None:
        return f"{room} or choose a smaller model"
    return f'{room} or set model.fp8 = "{smaller}", with which it needs {Z_IMAGE_GIB[smaller]:g}'


def _torch_build() -> Finding:
    """Whether the installed torch can use the driver; read from files, torch is not imported."""
    version, cuda = _torch_versions()
    if not cuda:
        remedy = "install a CUDA build of torch in .venv, or plan CPU workers"
        return Finding("fail", "torch", f"{version or 'none'} cannot use a GPU", remedy)
    driver = _driver_cuda()
    text = f"{version} for CUDA {cuda}, driver up to {driver or 'unknown'}"
    if driver and int(driver.split(".")[0]) < int(cuda.split(".")[0]):
        return Finding("fail", "torch", text, "update the NVIDIA driver, or use an older torch")
    return Finding("ok", "torch", text)


def _torch_versions() -> tuple[str, str]:
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "", ""
    text = (Path(spec.origin).parent / "version.py").read_text()
    cuda = re.search(r"^cuda[^=]*= '([\d.]+)'", text, re.M)
    return metadata.version("torch"), cuda[1] if cuda else ""


def _driver_cuda() -> str:
    found = re.search(r"CUDA Version:\s*([\d.]+)", machine.output_of("nvidia-smi"))
    return found[1] if found else ""
