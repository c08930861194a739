"""`sae variants`: the rows of the survey's table, and what they came to in an experiment."""

from typing import Annotated

import typer

from sae_workflows.console import AsJson, Home, fresh_database, home_of, show_rows


def variants(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Name of an experiment that has results, such as survey-table1."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Every row of the survey's table; with an experiment, its numbers over seeds.

    Numbers are means over seeds with halves of 95 % intervals (Student's t).
    """
    from sae_lib.report import survey

    if experiment is None:
        if markdown:
            typer.echo(survey.declared_table())
        else:
            show_rows(survey.declared(), title="variants", as_json=as_json)
        return
    database = fresh_database(home_of(home))
    if markdown:
        typer.echo(survey.measured_table(database, experiment))
        return
    rows = survey.measured(database, experiment)
    shown = rows if as_json else survey.readable(rows)
    show_rows(shown, title=f"{experiment}: variants", as_json=as_json)
