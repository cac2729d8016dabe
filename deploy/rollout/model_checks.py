"""Whether the model can be loaded, each finding with its remedy."""

from collections.abc import Iterator
from pathlib import Path

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.host import processes
from deploy.layout import under_root
from deploy.rendering.plan import model_source
from worker.models.loading import hub
from worker.models.loading.files import Flaw, flaws
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.sources import is_hub_id, local_folder

_MAX_FLAWS = 5  # of a model's files: a copy that failed can have hundreds


def model(cell: Cell) -> Iterator[Finding]:
    """Whether its files can be loaded, as far as names, sizes and heads of files show."""
    source = model_source(cell.config)
    if "/" in source and under_root(source).exists():
        source = str(under_root(source))  # workers start there
    try:
        folder = local_folder(source)
    except ModelLoadError as error:
        yield Finding("fail", "model", error.what, error.remedy)
        return
    if folder is not None:
        yield from _model_files(folder, flaws(folder))
    elif is_hub_id(source):
        yield from _hub_model(cell, source)
    else:
        yield Finding("ok", "model", source)


def _model_files(folder: Path, found: list[Flaw]) -> Iterator[Finding]:
    if not found:
        yield Finding("ok", "model", str(folder))
    for flaw in found[:_MAX_FLAWS]:
        yield Finding("fail", "model", flaw.what, flaw.remedy)


def _hub_model(cell: Cell, hub_id: str) -> Iterator[Finding]:
    """A copy in the cache that is whole needs no hub. Without it, the hub is asked."""
    environment = {"HF_HOME": str(cell.layout.cache_dir / "hub"), **cell.config.environment}
    folder = hub.cached(hub_id, hub.cache_of(environment))
    wrong = flaws(folder) if folder else []
    if folder and not wrong:
        yield Finding("ok", "model", f"{hub_id} in {folder}")
    elif folder and (damage := hub.damaged(folder, wrong)):
        yield Finding("fail", "model", damage.what, damage.remedy)
    else:
        have = f"is not whole here ({wrong[0].what})" if wrong else "is not here yet"
        yield _hub_answer(cell, f"{hub_id} {have}", hub.ask(hub_id, environment))


def _hub_answer(cell: Cell, text: str, answer: hub.Answer) -> Finding:
    if answer.has_it:
        return Finding("ok", "model", f"{text}; the first start downloads it from {answer.url}")
    # A cell that stands still may wait for its network; one that draws is not touched for it.
    final = answer.says_no or processes.members(cell.layout.processes)
    return Finding(
        "fail" if final else "warn",
        "model",
        f"{text}, and {answer.url} {answer.text}",
        "check model.source, the network, HF_ENDPOINT and HF_TOKEN (in [environment]), "
        "or copy the model here and name its folder",
    )
