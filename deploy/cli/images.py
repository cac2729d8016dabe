"""``zimage images``: where pictures lie."""

import time
from typing import Annotated

import typer

from deploy import output
from deploy.cell import CellError
from deploy.cli.options import Config, open_cell
from deploy.layout import objects_of
from deploy.rollout import bucket_checks
from worker.errors import ObjectsAway, StorageFailed
from worker.storage.bucket_images import BucketImages
from worker.storage.image_move import Moved, into_bucket, into_folder

app = typer.Typer(name="images", help="Where stored pictures lie.", no_args_is_help=True)

_TELL_EVERY_S = 5.0


@app.callback()
def images() -> None:
    """Where stored pictures lie."""


@app.command()
def move(
    config: Config = None,
    back: Annotated[
        bool, typer.Option("--back", help="Out of the bucket into the folder.")
    ] = False,
) -> None:
    """Move all pictures of the folder into the bucket. The cell may run; again, it goes on."""
    cell = open_cell(config)
    objects = objects_of(cell.config)
    if not objects.on:
        raise CellError("pictures are in a folder: set objects.url first, then zimage up")
    bad = [found for found in bucket_checks.before_up(cell) if found.level == "fail"]
    if bad:
        raise CellError(f"{bad[0].text}; {bad[0].remedy}")
    kept = BucketImages.of(objects, cell.layout.var_dir)
    folder = str(cell.layout.images_dir)
    source, target = (objects.url, folder) if back else (folder, objects.url)
    output.step(f"move pictures from {source} to {target}, each compared with its copy")
    try:
        moved = (into_folder if back else into_bucket)(kept, _Told())
    except (ObjectsAway, StorageFailed) as error:
        why = error.why if isinstance(error, ObjectsAway) else "there is no room in the folder"
        raise CellError(f"{why}; the same command again goes on where this one ended") from None
    _show(moved, source, target)


class _Told:
    """Says from time to time how far it is."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + _TELL_EVERY_S

    def __call__(self, moved: Moved) -> None:
        if time.monotonic() > self._next_at:
            self._next_at = time.monotonic() + _TELL_EVERY_S
            output.say(f"  {moved.done:,} of {moved.of:,} files, {moved.bytes / 2**30:.2f} GiB")


def _show(moved: Moved, source: str, target: str) -> None:
    for name in moved.damaged[:20]:
        output.say(f"  differs  {name}: it stays in {source}")
    gone = f"; {moved.gone:,} were deleted meanwhile" if moved.gone else ""
    text = f"{moved.files:,} of {moved.of:,} files, {moved.bytes / 2**30:.2f} GiB{gone}"
    if moved.damaged:
        raise CellError(f"moved {text}; {len(moved.damaged):,} differ from what is in {target}")
    output.done(f"moved {text}; every copy has the SHA-256 of what it was made of")
