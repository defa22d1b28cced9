"""The console command `fdfa`."""

from __future__ import annotations

import click

from fdfa_cli import maintain, output, results, run, tuning
from fdfa_cli.shared import Commands

# \b keeps click from breaking the lines anew.
EPILOG = """\b
For completion with the tab key add to ~/.bashrc (zsh and fish likewise):
  eval "$(_FDFA_COMPLETE=bash_source fdfa)"
"""


@click.group(
    cls=Commands,
    epilog=EPILOG,
    subcommand_metavar="COMMAND [ARGUMENTS]",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
@click.version_option(package_name="fdfa")
def main(debug: bool) -> None:
    """Measure how noisy and how biased gradients without backpropagation are."""


for _command in (
    run.train,
    run.sweep,
    run.data,
    run.list_,
    results.analyse,
    results.record,
    results.cost,
    tuning.tuned,
    results.power,
    output.figures,
    output.report,
    maintain.check,
    maintain.doctor,
    maintain.audit,
    maintain.verify,
    maintain.reference,
    maintain.readme,
    maintain.previews,
):
    main.add_command(_command)
