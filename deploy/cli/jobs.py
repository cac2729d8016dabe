"""``zimage jobs``: many pictures drawn in the background, over HTTP as any other client."""

import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from deploy import output
from deploy.cli import job_client, prompt_files
from deploy.cli.options import AsJson, Config

app = typer.Typer(name="jobs", help="Many pictures, drawn in the background.", no_args_is_help=True)

JobId = Annotated[
    str,
    typer.Argument(help="As `zimage jobs list` shows it, or as few letters.", metavar="JOB"),
]
_SHORT = 8
_COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "paused": "yellow"}


@app.command()
def create(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, or none.")] = None,
    config: Config = None,
    file: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--from", metavar="FILE", help="A prompt a line; - is the input."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="In place of prompts: 'a {red|blue} poster of {product}'.")
    ] = None,
    var: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE,…", help="Of the template; repeatable.")
    ] = None,
    variants: Annotated[int | None, typer.Option(help="Pictures of each prompt.")] = None,
    name: Annotated[str | None, typer.Option(help="Shown in lists.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT")] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture.")] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="png, jpeg, webp")] = None,
    priority: Annotated[str | None, typer.Option(help="batch or interactive")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key makes one job, however often this is run.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Only show the prompts.")] = False,
    stay: Annotated[bool, typer.Option("--watch", "-w", help="Until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a job of PROMPTS, of a file, or of a template."""
    told = [*(prompts or []), *(prompt_files.read(file) if file else ())]
    body = {
        "prompts": told or None,
        "template": template,
        "variables": dict(_variable(text) for text in var) if var else None,
        "variants": variants,
        "name": name,
        "size": size,
        "steps": steps,
        "seed": seed,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "output_format": output_format,
        "priority": priority,
        # So that an attempt whose answer was lost can be repeated.
        "idempotency_key": idempotency_key or uuid.uuid4().hex,
    }
    with job_client.connected(config) as client:
        if preview:
            _show_preview(job_client.call(client, "POST", "jobs/preview", json=body))
            return
        job = job_client.call(client, "POST", "jobs", json=body)
        if as_json:
            output.as_json(job)
        else:
            output.done(f"{job['id']}: {job['total']} pictures{', ' * bool(_end(job))}{_end(job)}")
        if stay:
            _watch(client, job["id"])


@app.command("list")
def list_jobs(
    config: Config = None,
    state: Annotated[str, typer.Option(help="running, paused, … with commas.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
) -> None:
    """Jobs, newest first."""
    with job_client.connected(config) as client:
        found = job_client.call(client, "GET", "jobs", params={"state": state, "limit": limit})
    if as_json:
        output.as_json(found["data"])
    elif found["data"]:
        output.console.print(_table(found["data"]))
    else:
        output.done("no jobs")


@app.command()
def show(job: JobId, config: Config = None, as_json: AsJson = False) -> None:
    """A job, and what went wrong with its items."""
    with job_client.connected(config) as client:
        job = job_client.whole_id(client, job)
        found = job_client.call(client, "GET", f"jobs/{job}")
        failed = job_client.call(
            client, "GET", f"jobs/{job}/items", params={"state": "failed", "limit": 20}
        )
    if as_json:
        output.as_json(found)
        return
    output.console.print(_table([found]))
    asked = ", ".join(f"{k} {v}" for k, v in found["parameters"].items() if v not in ("", None))
    output.say(f"  {asked}")
    for item in failed["data"]:
        output.warn(f"item {item['number']} ({item['prompt'][:60]}): {item['error']['message']}")


@app.command()
def watch(job: JobId, config: Config = None) -> None:
    """Show progress until the job is over. Exit code 0 where all of it is done."""
    with job_client.connected(config) as client:
        _watch(client, job_client.whole_id(client, job))


@app.command()
def download(
    job: JobId,
    config: Config = None,
    to: Annotated[
        Path | None, typer.Option(help="A ZIP file, or a folder to unpack into [default: JOB.zip].")
    ] = None,
) -> None:
    """Fetch the pictures that are done."""
    with job_client.connected(config) as client:
        job = job_client.whole_id(client, job)
        target = to or Path(f"{job}.zip")
        unpack = target.suffix.lower() != ".zip"
        file = target / f".{job}.zip" if unpack else target
        file.parent.mkdir(parents=True, exist_ok=True)
        job_client.fetch_zip(client, job, file)
    with zipfile.ZipFile(file) as zipped:
        names = zipped.namelist()
        if unpack:
            zipped.extractall(target)
            file.unlink()
    if "missing.txt" in names:
        output.warn("some pictures were deleted meanwhile: see missing.txt")
    output.done(f"{len(names) - ('missing.txt' in names)} pictures in {target}")


@app.command()
def pause(job: JobId, config: Config = None) -> None:
    """Stop drawing within a step; `resume` goes on."""
    _steer(config, job, "pause")


@app.command()
def resume(job: JobId, config: Config = None) -> None:
    """Go on with a paused job."""
    _steer(config, job, "resume")


@app.command()
def cancel(job: JobId, config: Config = None) -> None:
    """Draw no more of it, for good; what is done stays."""
    _steer(config, job, "cancel")


@app.command()
def retry(job: JobId, config: Config = None) -> None:
    """Draw its failed items again, and those that were cancelled."""
    _steer(config, job, "retry")


@app.command()
def delete(job: JobId, config: Config = None) -> None:
    """Forget a job; its pictures stay in the gallery."""
    with job_client.connected(config) as client:
        job = job_client.whole_id(client, job)
        job_client.call(client, "DELETE", f"jobs/{job}")
    output.done(f"{job} is forgotten")


def _steer(config: Path | None, job: str, verb: str) -> None:
    with job_client.connected(config) as client:
        job = job_client.whole_id(client, job)
        found = job_client.call(client, "POST", f"jobs/{job}/{verb}")
    output.done(f"{job} is {found['state']}: {_counts(found)}")


# What is shown


def _watch(client: httpx.Client, job: str) -> None:
    found: dict[str, Any] = {}
    with _progress() as progress:
        task = None
        for found in job_client.as_they_change(client, job):
            done = found["total"] - found["counts"]["waiting"] - found["counts"]["running"]
            if progress is None:
                output.say(f"{found['state']}  {done} of {found['total']}  {_counts(found)}")
            elif task is None:
                task = progress.add_task(found["name"] or job, total=found["total"], end="")
            if progress is not None and task is not None:
                progress.update(task, completed=done, end=_end(found) or found["state"])
    told = f"{job} is {found['state']}: {_counts(found)}"
    if found["state"] != "completed":
        output.fail(told)
        raise typer.Exit(1)
    output.done(told)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on a terminal; None elsewhere."""
    if not output.console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn("{task.completed:.0f} of {task.total:.0f}"),
        TextColumn("{task.fields[end]}", markup=False),
    )
    with Progress(*columns, console=output.console) as progress:
        yield progress


def _table(jobs: list[dict[str, Any]]) -> Table:
    numbers = ("done", "failed", "age", "ends in")
    table = output.table("job", "name", "state", *numbers, right=numbers, fold=["name"])
    ids = _short_ids([job["id"] for job in jobs])
    for job, short in zip(jobs, ids, strict=True):
        colour = "yellow" if job.get("held") else _COLOURS.get(job["state"], "cyan")
        state = Text(_state(job), colour)
        done = f"{job['counts']['done']} of {job['total']}"
        failed = str(job["counts"]["failed"] or "–")
        age = output.brief_span(time.time() - job["created_at"])
        ends = job["predicted_finish_at"]
        left = output.brief_span(ends - time.time()) if ends else "–"
        table.add_row(short, job["name"], state, done, failed, age, left)
    return table


def _short_ids(ids: list[str]) -> list[str]:
    """As few letters of each as tell them apart."""
    bare = [job_id.removeprefix("job_") for job_id in ids]
    length = _SHORT
    while len({b[:length] for b in bare}) < len(set(bare)):
        length += 1
    return [b[:length] for b in bare]


def _state(job: dict[str, Any]) -> str:
    """Or why nothing of it is drawn: ``key disabled``."""
    return str(job.get("held") or job["state"]).replace("_", " ")


def _counts(job: dict[str, Any]) -> str:
    return ", ".join(f"{count} {state}" for state, count in job["counts"].items() if count)


def _end(job: dict[str, Any]) -> str:
    ends = job["predicted_finish_at"]
    return f"done in about {output.span(ends - time.time())}" if ends else ""


def _show_preview(found: dict[str, Any]) -> None:
    for prompt in found["prompts"]:
        output.say(prompt)
    more = found["count"] - len(found["prompts"])
    output.done(f"{found['count']} pictures" + (f" ({more} more prompts)" if more else ""))


def _variable(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text}: write NAME=VALUE,VALUE", param_hint="--var")
    return name.strip(), [value.strip() for value in values.split(",")]
