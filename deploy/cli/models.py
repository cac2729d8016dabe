"""``zimage models``: what lies here of hubs' models."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from deploy import output
from deploy.cell import Cell, CellError
from deploy.cli.options import AsJson, Config, open_cell
from deploy.rendering.placement import model_base, model_source
from deploy.rollout import model_pull
from worker.models.loading import hub, pulled
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.hub import HubModel, hub_model
from worker.models.loading.pulled import Record

app = typer.Typer(
    name="models", help="Models of hubs: download, list, check, delete.", no_args_is_help=True
)

Source = Annotated[
    str,
    typer.Argument(
        help="owner/name, or modelscope:owner/name. [default: model.source of cluster.toml]"
    ),
]


@app.callback()
def models() -> None:
    """Models of hubs: download, list, check, delete."""


@app.command()
def pull(source: Source = "", config: Config = None) -> None:
    """Download a model, or what is missing of it. Again: takes a newer revision."""
    cell = open_cell(config, create=True)
    model = _of_hub(cell, source)
    cell.layout.create()
    folder = model_pull.pull(cell, model)
    record = pulled.read(model.home(model_pull.environments(cell)))
    assert record is not None
    output.done(
        f"{model.source}: {len(record.files)} files, {decimal(record.bytes)}, each with the "
        f"hash that {record.hub} names"
    )
    output.say(f"  revision {record.revision}")
    output.say(f"  folder   {folder}")
    output.say("  next     zimage up; where the cell runs on it already: zimage restart --rolling")


@app.command(name="list")
def list_models(config: Config = None, as_json: AsJson = False) -> None:
    """Models that were pulled, and which one cluster.toml names."""
    cell = open_cell(config)
    found = list(_pulled(cell))
    if as_json:
        output.as_json([record.model_dump(exclude={"files"}) | {
            "bytes": record.bytes, "files": len(record.files), "folder": str(home / record.folder),
        } for home, record in found])  # fmt: skip
        return
    if not found:
        output.say("no model was pulled yet; zimage models pull OWNER/NAME")
        return
    named = _named(cell)
    shown = output.table("model", "size", "revision", "pulled", "", right=("size",))
    for _, record in found:
        shown.add_row(
            record.source,
            decimal(record.bytes),
            record.revision[:12],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(record.pulled_at)),
            named.get(record.source, ""),
        )
    output.console.print(shown)


@app.command()
def verify(source: Source = "", config: Config = None) -> None:
    """Compare every file with the hash that the hub named. Asks no network."""
    cell = open_cell(config)
    model = _of_hub(cell, source)
    home, record = _record(cell, model)
    wrong = []
    with output.transfer(model.source) as transfer:
        transfer.total, read = record.bytes, 0

        def count(read_bytes: int) -> None:
            nonlocal read
            read += read_bytes
            transfer.show(read)

        for name, file in record.files.items():
            if not pulled.is_genuine(home / record.folder / name, file, count):
                wrong.append(name)
    for name in wrong:
        output.fail(f"{home / record.folder / name} is missing or not what the hub has")
    if wrong:
        raise CellError(
            f"{model.source}: {len(wrong)} of {len(record.files)} files are wrong; "
            f"zimage models pull {model.source} brings them again"
        )
    output.done(f"{model.source}: all {len(record.files)} files are what {record.hub} named")


@app.command()
def remove(
    source: Annotated[str, typer.Argument(help="As zimage models list shows it.")],
    config: Config = None,
) -> None:
    """Delete a model from this machine."""
    cell = open_cell(config)
    model = _of_hub(cell, source)
    if key := _named(cell).get(model.source):
        raise CellError(f"{model.source} is what this cell draws with; name another {key} first")
    home = model.home(model_pull.environments(cell))
    if not home.is_dir():
        raise CellError(f"{model.source} is not here; zimage models list says what is")
    size = model_pull.occupied(home)
    (home / pulled.NAME).unlink(missing_ok=True)  # first: half of it is no model
    shutil.rmtree(home)
    output.done(f"{model.source} is deleted: {decimal(size)}")


def _named(cell: Cell) -> dict[str, str]:
    """Models that cluster.toml names, each with its key."""
    config, named = cell.config, dict[str, str]()
    for k, model in reversed(list(enumerate(config.served))):
        key = f"models[{k}]" if config.several else "model"
        named |= {model_base(model): f"{key}.base", model_source(model): f"{key}.source"}
    return named


def _of_hub(cell: Cell, source: str) -> HubModel:
    named = source or model_source(cell.config.served[0])
    try:
        model = hub_model(named)
    except ModelLoadError as error:
        raise CellError(str(error)) from None
    if model is None:
        raise CellError(
            f"{named} is no model of a hub: give owner/name or modelscope:owner/name"
            + ("" if source else ", or name one in model.source")
        )
    return model


def _record(cell: Cell, model: HubModel) -> tuple[Path, Record]:
    home = model.home(model_pull.environments(cell))
    record = pulled.read(home)
    if record is None:
        raise CellError(f"{model.source} was not pulled; zimage models pull {model.source} does it")
    return home, record


def _pulled(cell: Cell) -> Iterator[tuple[Path, Record]]:
    for name in ("huggingface", "modelscope"):
        cache = hub.cache_of(name, model_pull.environments(cell))
        for path in sorted(cache.rglob(pulled.NAME)) if cache.is_dir() else ():
            if record := pulled.read(path.parent):
                yield path.parent, record
