"""The commands of typer, one file each, and a line of help for those that start without it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from steadyolo.cli import demo, doctor, export, plan, resume, runs, store, train
from steadyolo.cli.main import LIGHT, Light

app = typer.Typer(
    name="steadyolo",
    help="YOLO training that survives, and serving that starts warm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(name="train", context_settings={"ignore_unknown_options": True}, epilog=train.settings_help())(train.train)
app.command(name="resume", context_settings={"ignore_unknown_options": True})(resume.resume)
app.command(name="plan", context_settings={"ignore_unknown_options": True})(plan.plan)
app.command(name="export")(export.export)
app.command(name="demo")(demo.demo)
app.command(name="doctor")(doctor.doctor)
app.add_typer(runs.runs_app, name="runs")
app.add_typer(store.store_app, name="store")


def _listed(name: str, light: Light) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        light.run([*context.args])

    run.__doc__ = light.help
    return run


for _name, _light in LIGHT.items():
    app.command(
        name=_name,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_listed(_name, _light))
