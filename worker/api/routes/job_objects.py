"""Jobs and their items as the API shows them, and the schemas of these objects."""

from typing import Any

import sqlalchemy as sa

from worker.api.routes import gallery
from worker.api.schemas import job_wire, shown
from worker.api.schemas.openapi import Schema, ref
from worker.coordination.cell_models import CellModels
from worker.coordination.progress import Steps
from worker.errors import NotFound
from worker.storage import gallery as pictures
from worker.storage.gallery import StoredImage
from worker.storage.job_items import Item
from worker.storage.jobs import ITEM_STATES, JOB_STATES, Job

MAX_ITEMS = 500
"""Of a page, or of what a stream takes at once."""
MAX_CHARS = 1 << 18
"""Of their prompts: readers may be slow."""


MODEL_MISSING = "model_missing"
"""``held`` of a job whose model the cell has no more."""


def describe(job: Job, ends: dict[str, float], models: CellModels) -> dict[str, Any]:
    """The ``job`` object of the API; ``ends`` predicts when running ones are done."""
    held = f"key_{job.held}" if job.held else None
    if held is None and not models.is_served(job.model):
        held = MODEL_MISSING
    # What is predicted may be a second old, and nobody knows when a held job goes on.
    end = ends.get(job.id) if job.state == "running" and not held else None
    return {
        "id": job.id,
        "object": "job",
        "name": job.name,
        "model": job.model,
        "state": job.state,
        "held": held if not job.over else None,
        "created_at": round(job.created_at, 3),
        "finished_at": None if job.finished_at is None else round(job.finished_at, 3),
        "total": job.total,
        "counts": job.counts,
        "predicted_finish_at": None if end is None else round(end, 1),
        "priority": job_wire.PRIORITY_NAMES[job.priority],
        "revision": job.revision,
        "parameters": {
            **shown.as_asked(job.parameters),
            "output_format": job.output_format,
            **_picture(job),
        },
    }


def _picture(job: Job) -> dict[str, Any]:
    """What its items go on from, and how, as its request may say it."""
    if job.image is None:
        return {}
    how = {"strength": job.parameters.strength, "fit": job.fit}
    others = {"mask": job.mask, "position": job.position}
    said = {name: value for name, value in others.items() if value is not None}
    return {"image": job.image, **said, **how}


_HELD = "disabled", "expired", "deleted", "limit"


def describe_item(
    item: Item, job: Job, images: dict[str, StoredImage], steps: Steps, root: str
) -> dict[str, Any]:
    """One item; ``steps`` says how far those under way are. Paths begin with ``root``."""
    image = images.get(item.image_id or "")
    error = {"code": item.error_code, "message": item.error_message}
    done = job.parameters.steps if item.state == "done" else 0
    return {
        "number": item.number,
        "prompt": item.prompt,
        "seed": item.seed,
        "state": item.state,
        "step": steps.get(item.lease or "", (done, 0))[0],
        "steps": job.parameters.steps,
        "error": None if item.error_code is None else error,
        "image": None if image is None else gallery.describe(image, root),
    }


def few(found: list[Item], limit: int) -> tuple[list[Item], bool]:
    """At most ``limit`` of ``found``, fewer where prompts are long, and whether it has more."""
    chars = 0
    for k, item in enumerate(found[:limit]):
        chars += len(item.prompt)
        if k and chars > MAX_CHARS:
            return found[:k], True
    return found[:limit], len(found) > limit


def pictures_of(connection: sa.Connection, items: list[Item]) -> dict[str, StoredImage]:
    """Their pictures by id."""
    ids = [item.image_id for item in items if item.image_id]
    return {image.id: image for image in pictures.named(connection, ids)}


def missing(job_id: str) -> NotFound:
    """There is none, as far as the caller may know."""
    return NotFound(f"There is no job {job_id[:60]!r} of yours.")


def schemas() -> dict[str, Schema]:
    """Of what ``describe`` and ``describe_item`` give."""
    text, whole, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    when, optional_text = {"type": ["number", "null"]}, {"type": ["string", "null"]}
    parameters = object_of(**shown.JOBS, output_format=text)
    picture = {**dict.fromkeys(("image", "mask", "fit", "position"), text), "strength": number}
    parameters["properties"] |= picture
    job = object_of(
        id=text,
        object={"const": "job"},
        name=text,
        model=optional_text,
        state={"enum": list(JOB_STATES)},
        held={"enum": [*(f"key_{why}" for why in _HELD), MODEL_MISSING, None]},
        created_at=number,
        finished_at=when,
        total=whole,
        counts=object_of(**dict.fromkeys(ITEM_STATES, whole)),
        predicted_finish_at=when,
        priority=text,
        revision=whole,
        parameters=parameters,
    )
    item = object_of(
        number=whole,
        prompt=text,
        seed=whole,
        state={"enum": list(ITEM_STATES)},
        step=whole,
        steps=whole,
        error={"anyOf": [object_of(code=text, message=optional_text), {"type": "null"}]},
        image={"anyOf": [ref("Image"), {"type": "null"}]},
    )
    return {"Job": job, "Item": item}


def object_of(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has all of ``properties``."""
    return {"type": "object", "required": list(properties), "properties": properties}
