"""``zimage loras``: the adapters that requests may name."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from deploy import output
from deploy.cell import Cell, CellError
from deploy.cli.options import AsJson, Config, open_cell
from deploy.config.schema import Model
from deploy.rendering.placement import model_base, model_source
from deploy.rollout import model_pull
from deploy.rollout.lora_checks import folder_of
from worker.bounds import GIB
from worker.models.loading import hub
from worker.models.loading.folder import ModelLoadError, class_of
from worker.models.loading.hub import hub_model
from worker.models.loading.single_file import is_single_file
from worker.models.loading.sources import RANDOM, local_folder
from worker.models.loras import folder as folders
from worker.models.loras.folder import StoredLora
from worker.models.loras.head import UnusableLora

if TYPE_CHECKING:
    from worker.models.loras.conversion import Layers

app = typer.Typer(
    name="loras",
    help="Adapters that requests may name: add, list, check, remove.",
    no_args_is_help=True,
)

_ADAPTED = "ZImagePipeline"
_BYTES = 2  # of a value on a GPU

Name = Annotated[str, typer.Argument(help="As zimage loras list shows it.")]


@app.callback()
def loras() -> None:
    """Adapters that requests may name: add, list, check, remove."""


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A LoRA as .safetensors, of whatever trainer.")],
    name: Annotated[
        str, typer.Option(help="What requests call it. [default: the file's name]")
    ] = "",
    config: Config = None,
) -> None:
    """Check an adapter against this cell's model and keep it. Workers know it at once."""
    path = file.expanduser().absolute()
    name = name or path.stem.lower()
    cell = open_cell(config, create=True)
    try:
        folders.require_name(name)
        added = _added(cell, path, name)
    except UnusableLora as error:
        raise CellError(f"{file}: {error}") from None
    output.done(
        f"{added.name}: rank {added.rank}, {len(added.shapes)} layers, "
        f"{decimal(added.elements * _BYTES)} on a GPU"
    )
    output.say(f"  SHA-256  {added.sha256}")
    output.say(f'  next     "lora": [{{"name": "{added.name}", "scale": 1.0}}] in a request')


@app.command(name="list")
def list_loras(config: Config = None, as_json: AsJson = False) -> None:
    """Adapters that requests may name."""
    folder = folder_of(open_cell(config))
    found = list(folder.all().values())
    if as_json:
        output.as_json([_told(lora) for lora in found])
        return
    for file, why in folder.problems().items():
        output.warn(f"{file}: {why}")
    if not found:
        output.say("no adapter was added yet; zimage loras add FILE")
        return
    shown = output.table("name", "rank", "layers", "on a GPU", "SHA-256", "file", right=("rank",))
    for lora in found:
        shown.add_row(
            lora.name,
            str(lora.rank),
            str(len(lora.shapes)),
            decimal(lora.elements * _BYTES),
            lora.sha256[:12],
            lora.source,
        )
    output.console.print(shown)


@app.command()
def check(config: Config = None) -> None:
    """Compare each adapter with its hash, and with the layers of this cell's models."""
    cell = open_cell(config)
    folder = folder_of(cell)
    problems, layers = folder.problems(), list["Layers | None"]()
    if found := folder.all():
        layers = _layers(cell)
    for lora in found.values():
        if why := _wrong(lora, layers):
            problems[lora.path.name] = why
    for file, why in problems.items():
        output.fail(f"{file}: {why}")
    if problems:
        raise CellError(f"{len(problems)} of the files in {folder.path} cannot be used")
    output.done(
        f"{len(found)} adapters in {folder.path} are what was added, and fit {_fitted(cell)}"
    )


@app.command()
def remove(name: Name, config: Config = None) -> None:
    """Delete an adapter. Items of jobs that name it fail from now on, and say so."""
    folder = folder_of(open_cell(config))
    lora = folder.all().get(name)
    if lora is None:
        raise CellError(f"no adapter {name}; zimage loras list says what is here")
    lora.path.unlink()
    output.done(f"{name} is deleted")


def _added(cell: Cell, path: Path, name: str) -> StoredLora:
    folder = folder_of(cell)
    if len(folder.all()) >= folders.MAX_LORAS:
        raise UnusableLora(
            f"there are {folders.MAX_LORAS} adapters", "zimage loras remove what nobody uses"
        )
    layers = _layers(cell)
    from worker.models.loras import adding  # torch, which no other verb here needs

    if cell.layout.var_dir in folder.path.parents:
        cell.layout.create()
    most = int(cell.config.loras.device_gib * GIB) // _BYTES
    for other in layers[:-1]:
        with suppress(UnusableLora):
            return adding.add(path, name, folder.path, other, most)
    return adding.add(path, name, folder.path, layers[-1], most)


def _fitted(cell: Cell) -> str:
    return "one of the models" if cell.config.several else "the model"


def _wrong(lora: StoredLora, layers: "list[Layers | None]") -> UnusableLora | None:
    try:
        if layers and None not in layers:
            _require_fits_one(lora, layers)
        if folders.values_digest(lora) != lora.values_sha256:
            return UnusableLora("its values are not those that were added", "add it again")
    except UnusableLora as error:
        return error
    return None


def _require_fits_one(lora: StoredLora, layers: "list[Layers | None]") -> None:
    """Raise ``UnusableLora`` where no model has its layers: what the last one says."""
    from worker.models.loras.conversion import require_fits

    for k, own in enumerate(layers, start=1):
        try:
            return require_fits(lora.shapes, own) if own is not None else None
        except UnusableLora:
            if k == len(layers):
                raise
    return None


def _layers(cell: Cell) -> "list[Layers | None]":
    """Of each model of this cell that takes adapters; None where any adapter will do."""
    found, refusals = list["Layers | None"](), list[CellError]()
    for model in cell.config.served:
        try:
            found.append(_layers_of(cell, model))
        except CellError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _layers_of(cell: Cell, asked: Model) -> "Layers | None":
    source = model_source(asked)
    if is_single_file(source):
        source = model_base(asked)
    try:
        model = hub_model(source)
        folder = hub.found(model, model_pull.environments(cell)) if model else local_folder(source)
        if folder is None and source != RANDOM:
            return None  # synthetic
        if folder is not None and class_of(folder) != _ADAPTED:
            raise CellError(f"{source} is no Z-Image, and only that takes adapters here")
    except ModelLoadError as error:
        raise CellError(str(error)) from None
    from worker.models.loras.conversion import layers_of_folder

    return layers_of_folder(folder)


def _told(lora: StoredLora) -> dict[str, Any]:
    return {
        "name": lora.name,
        "sha256": lora.sha256,
        "rank": lora.rank,
        "layers": len(lora.shapes),
        "device_bytes": lora.elements * _BYTES,
        "source": lora.source,
        "path": str(lora.path),
    }
