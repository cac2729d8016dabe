"""What the jobs API accepts, and jobs and items as it shows them."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from worker.api.schemas import synonyms, wire
from worker.api.schemas.fields import (
    Fields,
    bad,
    bounded,
    json_object,
    kind_of,
    refuse_unknown,
    text_of,
)
from worker.bounds import MAX_JOB_CHARS
from worker.jobs.template import MAX_VARIABLE_CHARS, Bounds, expand
from worker.models.base import ModelInfo
from worker.models.prompt_limit import refuse
from worker.settings import Settings
from worker.storage.jobs import MAX_ITEMS, JobSpec
from worker.types import Parameters

MAX_NAME_CHARS = 200
MAX_VARIABLES = 20
PRIORITY_NAMES = {int(value): name for name, value in wire.PRIORITIES.items()}

KNOWN = (
    "guidance_scale",
    "idempotency_key",
    "model",
    "name",
    "negative_prompt",
    "output_compression",
    "output_format",
    "priority",
    "prompts",
    "seed",
    "size",
    "steps",
    "template",
    "variables",
    "variants",
)


def parse(body: bytes, settings: Settings, info: ModelInfo, default_seed: int) -> JobSpec:
    """Check ``body``; may take some 0.1 s for the largest jobs, so call it from a thread."""
    said = synonyms.translated(json_object(body), KNOWN)
    with said.named():
        return _read(Fields(said.values), settings, info, default_seed)


def _read(fields: Fields, settings: Settings, info: ModelInfo, default_seed: int) -> JobSpec:
    refuse_unknown(fields, KNOWN)
    wire.check_model(fields, settings, info)
    size = wire.size_of(fields, settings, info)
    output_format = fields.choice("output_format", "png", wire.FORMATS)
    wire.check_compression(fields, output_format)
    seed = fields.optional_whole("seed", 0, wire.MAX_SEED)
    prompts = prompts_of(fields, settings)
    _require_read_whole(prompts, "prompts" in fields.values, info)
    return JobSpec(
        name=fields.prompt("name", "", MAX_NAME_CHARS),
        prompts=_with_variants(fields, prompts),
        first_seed=default_seed if seed is None else seed,
        parameters=Parameters(
            *size,
            steps=wire.steps_of(fields, settings, info),
            guidance_scale=wire.guidance_of(fields, settings, info),
            negative_prompt=wire.negative_of(fields, settings, info),
        ),
        output_format=output_format,
        quality=fields.optional_whole("output_compression", 0, 100),
        priority=wire.PRIORITIES[fields.choice("priority", "batch", tuple(wire.PRIORITIES))],
        idempotency_key=_idempotency_key(fields),
        digest=_digest(fields),
    )


def prompts_of(fields: Fields, settings: Settings) -> list[str]:
    """The prompts that ``prompts`` or ``template`` ask for, without variants."""
    named = [name for name in ("prompts", "template") if fields.values.get(name) is not None]
    if len(named) != 1:
        what = "missing" if not named else "given beside template"
        code = "missing_required_parameter" if not named else "invalid_value"
        bad("prompts", f"{what}: give either a list of prompts or a template", code)
    if named == ["template"]:
        template = wire.one_prompt("template", fields.values["template"], settings)
        most = settings.max_prompt_chars
        table = _variables(fields, most)
        prompts = expand(template, table, Bounds(MAX_ITEMS, most, MAX_JOB_CHARS))
        _require_words(prompts)
        return prompts
    if fields.values.get("variables") is not None:
        bad("variables", "they belong to a template: use template in place of prompts")
    given = _list("prompts", fields.values["prompts"])
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


def _variables(fields: Fields, max_chars: int) -> dict[str, list[str]]:
    table = fields.values.get("variables")
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


def _with_variants(fields: Fields, prompts: list[str]) -> tuple[str, ...]:
    variants = fields.whole("variants", 1, 1, MAX_ITEMS)
    if variants * len(prompts) > MAX_ITEMS:
        bad(
            "variants",
            f"{len(prompts)} prompts × {variants} variants are {variants * len(prompts)} pictures; "
            f"a job may have {MAX_ITEMS}: send several jobs",
        )
    return tuple(prompt for prompt in prompts for _ in range(variants))


def _idempotency_key(fields: Fields) -> str | None:
    key = fields.values.get("idempotency_key")
    return (
        None if key is None else bounded("idempotency_key", fields.text("idempotency_key", ""), 200)
    )


def _digest(fields: Fields) -> str:
    """Of everything that was asked: the same for a resubmission only."""
    asked = json.dumps({k: v for k, v in fields.values.items() if v is not None}, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def schema(settings: Settings, info: ModelInfo) -> dict[str, Any]:
    """What ``parse`` takes, as JSON Schema, but for what only a whole template shows."""
    shared = wire.schema(settings, info)["properties"]
    prompt = shared["prompt"]["anyOf"][0]
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ITEMS}
    value = {"type": "string", "maxLength": settings.max_prompt_chars}
    variants = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_ITEMS}
    list_, null = {"type": "array"}, {"type": "null"}
    kept = {name: shared[name] for name in (*KNOWN, *synonyms.of(KNOWN)) if name in shared}
    return {
        "type": "object",
        "additionalProperties": False,
        "anyOf": [
            {
                "required": ["prompts"],
                "properties": {"prompts": list_, "template": null, "variables": null},
            },
            {"required": ["template"], "properties": {"prompts": null, "template": prompt}},
        ],
        "properties": {
            **kept,
            "name": {"type": ["string", "null"], "maxLength": MAX_NAME_CHARS},
            "idempotency_key": {"type": ["string", "null"], "maxLength": 200},
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
            "variants": variants,
        },
    }
