"""Whether the model can be loaded, each finding with its remedy."""

from collections.abc import Iterator
from pathlib import Path

from deploy.cell import Cell
from deploy.config.schema import Model
from deploy.finding import Finding
from deploy.host import processes
from deploy.layout import under_root
from deploy.rendering.placement import model_base, model_source
from deploy.rollout import model_pull
from worker.models.loading import hub
from worker.models.loading.files import Flaw, flaws
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.hub import HubModel, hub_model
from worker.models.loading.single_file import flaws_of_file, is_single_file
from worker.models.loading.sources import local_folder

_MAX_FLAWS = 5  # of a model's files: a copy that failed can have hundreds


def model(cell: Cell) -> Iterator[Finding]:
    """Whether the files of each can be loaded, as far as names, sizes and heads of files show."""
    for each in cell.config.served:
        source = model_source(each)
        if is_single_file(source):
            yield from _model_files(Path(source), list(flaws_of_file(Path(source))))
            source = model_base(each)
        yield from _whole_model(cell, each, source)


def _whole_model(cell: Cell, model: Model, source: str) -> Iterator[Finding]:
    if "/" in source and under_root(source).exists():
        source = str(under_root(source))  # workers start there
    try:
        folder, wanted = local_folder(source), hub_model(source)
    except ModelLoadError as error:
        yield Finding("fail", "model", error.what, error.remedy)
        return
    if folder is not None:
        yield from _model_files(folder, flaws(folder))
    elif wanted:
        yield from _hub_model(cell, model, wanted)
    else:
        yield Finding("ok", "model", source)


def _model_files(folder: Path, found: list[Flaw]) -> Iterator[Finding]:
    if not found:
        yield Finding("ok", "model", str(folder))
    for flaw in found[:_MAX_FLAWS]:
        yield Finding("fail", "model", flaw.what, flaw.remedy)


def _hub_model(cell: Cell, asked: Model, model: HubModel) -> Iterator[Finding]:
    """A copy that is whole needs no hub. Without it, the hub is asked."""
    environment = model_pull.environment(cell.config, cell.layout, model)
    there = hub.copy_of(model, environment)
    wrong = list(there.flaws()) if there else []
    if there and not wrong:
        yield Finding("ok", "model", f"{model.source} in {there.folder}")
        return
    if lasting := [flaw for flaw in wrong if not flaw.is_of_copy]:
        yield from _model_files(model.home(environment), lasting)
        return
    have = f"is not whole here ({wrong[0].what})" if wrong else "is not here yet"
    text, pull = f"{model.source} {have}", f"zimage models pull {model.source}"
    if not asked.download:
        remedy = f"{pull} downloads it; zimage up may not, for model.download is false"
        yield Finding("fail", "model", text, remedy)
        return
    yield _hub_answer(cell, text, pull, hub.ask(model, environment))


def _hub_answer(cell: Cell, text: str, pull: str, answer: hub.Answer) -> Finding:
    if answer.has_it:
        return Finding("ok", "model", f"{text}; zimage up downloads it from {answer.url}")
    # A cell that stands still may wait for its network; one that draws is not touched for it.
    final = answer.says_no or processes.members(cell.layout.processes)
    return Finding(
        "fail" if final else "warn",
        "model",
        f"{text}, and {answer.url} {answer.text}",
        f"check model.source, the network, model.mirror and the token, then {pull}; "
        "or copy the model here and name its folder",
    )
