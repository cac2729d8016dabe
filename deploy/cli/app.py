"""``zimage``: the verbs of an operator. Exit code 0 done, 1 failed, 2 misuse."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deploy import installation
from deploy.cli import (
    alarms,
    backups,
    bundles,
    cell,
    chaos,
    cluster,
    configuration,
    database,
    hosts,
    images,
    jobs,
    keys,
    logs,
    loras,
    models,
    status,
    usage,
    versions,
    workers,
)
from deploy.cli.failures import run
from deploy.host.utf8 import speak_utf8
from deploy.rollout import interrupts

VERBS: dict[str, tuple[typer.Typer | Callable[..., None], ...]] = {
    "Run a cell": (cell.up, cell.down, workers.restart, workers.drain, workers.undrain),
    "Look": (status.status, hosts.app, logs.logs, status.doctor, workers.trace),
    "Use it": (keys.app, jobs.app, usage.usage),
    "Configure": (configuration.plan, configuration.render, configuration.reload,
                  configuration.systemd, workers.calibrate),
    "Keep": (backups.backup, backups.restore, images.app, models.app, loras.app, database.app,
             bundles.bundle, versions.upgrade, versions.rollback),
    "Prove": (chaos.chaos, alarms.app),
    "Several hosts": (cluster.app,),
}  # fmt: skip
"""All commands, in the sections and the order that `zimage --help` has."""


class _Sections(TyperGroup):
    """Whole first sentences, in sections, where click would have one list of cut ones."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        width = max(map(len, self.commands))
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None
            row = (name.ljust(width), command.get_short_help_str(limit=200))
            sections.setdefault(getattr(command, "rich_help_panel", ""), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=_Sections,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for _section, _verbs in VERBS.items():
    for _verb in _verbs:
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb, rich_help_panel=_section)
        else:
            app.command(rich_help_panel=_section)(_verb)


@app.callback()
def zimage(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=versions.show_version, help="Show the version."
        ),
    ] = False,
) -> None:
    """Run a cell: GPU workers behind nginx, kept alive by supervisord and a guard."""


def main() -> None:
    """Entry point: turns what may go wrong into one clear message and an exit code."""
    installation.hand_over(sys.argv[1:])
    speak_utf8()
    os.umask(0o077)  # logs, state and what programs inherit: this user's alone
    interrupts.install()
    sys.exit(run(app))


if __name__ == "__main__":
    main()
