"""`zimage bundle`: for machines without a network."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy import output
from deploy.cell import CellError
from deploy.cli.options import Config, open_cell
from deploy.rollout import bundle as bundles
from deploy.rollout import model_pull
from worker.models.loading import hub
from worker.models.loading.files import require_loadable
from worker.models.loading.folder import ModelLoadError


def bundle(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    model: Annotated[
        str, typer.Option("--model", help="With it: a folder, or a model that was pulled.")
    ] = "",
    torch: Annotated[
        Literal["cpu", "cuda"], typer.Option("--torch", help="For which kind of machine.")
    ] = "cuda",
    extra: Annotated[
        list[str] | None, typer.Option("--extra", help="s3, postgres, hopper, …; repeat it.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", help="SSH key that signs; its public half may do.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Nobody can tell whether it was changed.")
    ] = False,
    config: Config = None,
) -> None:
    """Write one file from which a machine without a network starts: scripts/up --bundle FILE."""
    if bool(sign) == unsigned:
        raise typer.BadParameter("name a key with --sign, such as ~/.ssh/id_ed25519; or --unsigned")
    folder = _folder(model, config) if model else None
    path = out.expanduser().absolute()
    if not path.parent.is_dir():
        raise typer.BadParameter(f"--out: there is no folder {path.parent}")
    size = bundles.make(path, torch, extra or (), folder, sign and sign.expanduser())
    output.done(f"{path}: {size / 1e6:,.0f} MB")
    output.say(
        "  next     copy it to the machine, then scripts/up --bundle FILE; docs/air-gapped.md"
    )


def _folder(model: str, config: Config) -> Path:
    try:
        wanted = hub.hub_model(model)
        if wanted is None:
            folder = Path(model).expanduser().resolve()
            require_loadable(folder)
            return folder
        cell = open_cell(config)
        return hub.found(wanted, model_pull.environment(cell.config, cell.layout, wanted))
    except ModelLoadError as error:
        raise CellError(str(error)) from None
