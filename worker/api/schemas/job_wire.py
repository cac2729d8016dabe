"""What the jobs API accepts, and jobs and items as it shows them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from worker.api.schemas import edit_wire, synonyms, wire
from worker.api.schemas.edit_wire import ImageId, MaskId, Position
from worker.api.schemas.fields import bad, bounded, json_object, kind_of, text_of
from worker.api.schemas.forms import Once, Schema, names_of
from worker.api.schemas.wire import Asked
from worker.bounds import MAX_JOB_CHARS
from worker.errors import ZimageError
from worker.jobs.template import MAX_VARIABLE_CHARS, Bounds, expand
from worker.models.base import ModelInfo
from worker.models.prompt_limit import refuse
from worker.settings import Settings
from worker.storage.jobs import MAX_ITEMS, JobSpec
from worker.types import FIELDS
from worker.uploads.named import Named
from worker.uploads.sources import Fit, Placing, check_mask, corner

_OF_A_PICTURE = {"mask", "fit", "position", *edit_wire.EDITS}
MAX_NAME_CHARS = 200
MAX_VARIABLES = 20
PRIORITY_NAMES = {int(value): name for name, value in wire.PRIORITIES.items()}

Texts = Annotated[Any, WithJsonSchema({})]
"""What only a whole job shows to be right: ``schema`` says as much as can be said."""


class JobForm(Asked):
    """What a job may say."""

    said: ClassVar[tuple[str, ...]] = tuple(
        name for name in (*wire.SAID, *edit_wire.EDITS) if FIELDS[name].about.jobs
    )

    name: str = Field("", max_length=MAX_NAME_CHARS)
    prompts: Texts = None
    template: Texts = None
    variables: Texts = None
    variants: int = Field(1, ge=1, le=MAX_ITEMS)
    urgency: Literal["interactive", "batch"] = Field("batch", alias="priority")
    idempotency_key: str | None = Field(None, max_length=200)
    image: ImageId = ""
    mask: MaskId = ""
    fit: Fit = "cover"
    position: Position = None


@Once
def _form(settings: Settings, info: ModelInfo) -> type[JobForm]:
    return wire.form_of(JobForm, settings, info, {})


KNOWN = tuple(sorted({*names_of(JobForm), *JobForm.said}))


def parse(
    body: bytes,
    settings: Settings,
    info: ModelInfo,
    default_seed: int,
    check: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> JobSpec:
    """Check ``body``; may take some 0.1 s for the largest jobs, so call it from a thread. ``check``
    comes before all else."""
    values = json_object(body)
    check(values)
    said = synonyms.translated(values, KNOWN)
    try:
        asked = _form(settings, info).read(said.values)
        wire.check_compression(asked)
        _check_picture(asked)
        prompts = _prompts(asked, settings)
        _require_read_whole(prompts, asked.prompts is not None, info)
    except ZimageError as error:
        said.rename(error)
        raise
    return JobSpec(
        name=asked.name,
        prompts=_with_variants(asked.variants, prompts),
        first_seed=default_seed if asked.seed is None else asked.seed,
        parameters=asked.parameters,
        output_format=asked.output_format,
        quality=asked.compression,
        priority=asked.priority,
        idempotency_key=asked.idempotency_key,
        digest=_digest(said.values),
        **_picture(asked),
    )


def _check_picture(asked: JobForm) -> None:
    if not asked.image:
        for name in sorted(_OF_A_PICTURE & asked.model_fields_set):
            bad(name, "it belongs to a picture: add image, or leave it out")
        return
    edit_wire.check_fit(asked.fit, asked.position, sized="size" in asked.model_fields_set)


def _picture(asked: JobForm) -> dict[str, Any]:
    """What a ``JobSpec`` says of the picture to go on from."""
    if not asked.image:
        return {}
    at = asked.position
    return {
        "image": asked.image,
        "mask": asked.mask or None,
        "fit": asked.fit,
        "position": None if at is None else f"{at[0]},{at[1]}",
        "undecided": frozenset({"size", "strength"} - asked.model_fields_set),
    }


def drawn_from(
    wish: JobSpec, image: Named, mask: Named | None, settings: Settings, info: ModelInfo
) -> JobSpec:
    """``wish`` with what its pictures decide. Raises ``InvalidRequest`` where they do not fit."""
    if mask is not None:
        check_mask(mask.size, image.size)
    how = wish.parameters
    if "size" in wish.undecided:
        width, height = edit_wire.size_for(image.size, settings, info)
        how = replace(how, width=width, height=height)
    if wish.fit == "extend":
        corner(image.size, how.size, Placing.of_row(wish.fit, wish.position, how.size).position)
    whole = mask is None and wish.fit == "cover" and not image.transparent
    if "strength" in wish.undecided and whole:
        how = replace(how, strength=edit_wire.STRENGTH)
    return replace(wish, parameters=how)


def _prompts(asked: JobForm, settings: Settings) -> list[str]:
    """What ``prompts`` or ``template`` ask for, without variants."""
    named = [each for each in (asked.prompts, asked.template) if each is not None]
    if len(named) != 1:
        what = "missing" if not named else "given beside template"
        code = "missing_required_parameter" if not named else "invalid_value"
        bad("prompts", f"{what}: give either a list of prompts or a template", code)
    if asked.template is not None:
        template = wire.one_prompt("template", asked.template, settings)
        most = settings.max_prompt_chars
        table = _variables(asked.variables, most)
        prompts = expand(template, table, Bounds(MAX_ITEMS, most, MAX_JOB_CHARS))
        _require_words(prompts)
        return prompts
    if asked.variables is not None:
        bad("variables", "they belong to a template: use template in place of prompts")
    given = _list("prompts", asked.prompts)
    return [wire.one_prompt(each, prompt, settings) for each, prompt in _numbered("prompts", given)]


def _require_words(prompts: list[str]) -> None:
    for k, prompt in enumerate(prompts):
        if not prompt.strip():
            bad("template", f"prompt {k + 1} that it makes is empty")


def _require_read_whole(prompts: list[str], given: bool, info: ModelInfo) -> None:
    """Some together: ten thousand of 400 characters take one or two seconds of a thread."""
    found = info.prompt_limit.too_long(prompts) if info.prompt_limit else ()
    for place, complaint in found:
        if given:
            refuse(f"prompts[{place}]", complaint)
        refuse("template", complaint, f"prompt {place + 1} that it makes has ")


def _variables(table: object, max_chars: int) -> dict[str, list[str]]:
    if table is None:
        return {}
    if not isinstance(table, dict):
        bad("variables", f"must be an object of lists, not {kind_of(table)}", "invalid_type")
    if len(table) > MAX_VARIABLES:
        bad("variables", f"{len(table)} of them; at most {MAX_VARIABLES} are read")
    return {name: _values(name, values, max_chars) for name, values in table.items()}


def _values(name: str, values: object, max_chars: int) -> list[str]:
    # It may be anything, half a surrogate pair too: what is no name is shown in ASCII.
    param = "variables." + name[:40].encode("ascii", "backslashreplace").decode()
    if not name.isidentifier():
        bad(param, "is no name: use letters, digits and _")
    if len(name) > MAX_VARIABLE_CHARS:
        bad(param, f"{len(name)} characters; a name has at most {MAX_VARIABLE_CHARS}: shorten it")
    param = f"variables.{name}"
    return [
        bounded(each, text_of(each, value), max_chars)
        for each, value in _numbered(param, _list(param, values))
    ]


def _numbered(param: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{param}[{k}]", value) for k, value in enumerate(values))


def _list(param: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        bad(param, f"must be a list, not {kind_of(value)}", "invalid_type")
    if not value:
        bad(param, "the list is empty: give at least one text")
    if len(value) > MAX_ITEMS:
        bad(param, f"{len(value)} of them; at most {MAX_ITEMS} are read: send several jobs")
    return value


def _with_variants(variants: int, prompts: list[str]) -> tuple[str, ...]:
    if variants * len(prompts) > MAX_ITEMS:
        bad(
            "variants",
            f"{len(prompts)} prompts × {variants} variants are {variants * len(prompts)} pictures; "
            f"a job may have {MAX_ITEMS}: send several jobs",
        )
    return tuple(prompt for prompt in prompts for _ in range(variants))


def _digest(values: Mapping[str, Any]) -> str:
    """Of everything that was asked: the same for a resubmission only."""
    asked = json.dumps({k: v for k, v in values.items() if v is not None}, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


@Once
def schema(settings: Settings, info: ModelInfo) -> Schema:
    """What ``parse`` takes, as JSON Schema, but for what only a whole template shows."""
    known = _form(settings, info).schema_of()
    prompt = wire.prompt_schema(settings, info)
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ITEMS}
    value = {"type": "string", "maxLength": settings.max_prompt_chars}
    list_, null = {"type": "array"}, {"type": "null"}
    said = synonyms.schema(known["properties"], KNOWN)
    return {
        **known,
        "anyOf": [
            {
                "required": ["prompts"],
                "properties": {"prompts": list_, "template": null, "variables": null},
            },
            {"required": ["template"], "properties": {"prompts": null, "template": prompt}},
        ],
        "properties": {
            **said,
            "prompts": {**texts, "type": ["array", "null"], "items": prompt},
            "template": {**prompt, "type": ["string", "null"]},
            "variables": {
                "type": ["object", "null"],
                "maxProperties": MAX_VARIABLES,
                "propertyNames": {
                    "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
                    "maxLength": MAX_VARIABLE_CHARS,
                },
                "additionalProperties": {**texts, "items": value},
            },
        },
    }
