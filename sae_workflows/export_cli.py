"""The commands `sae export ...`, and `sae table2`: results in the form of other people's tables."""

from pathlib import Path
from typing import Annotated

import typer

from sae_workflows.console import AsJson, Home, err, fresh_database, home_of, out, show_rows

export_app = typer.Typer(help="Write results as other tools read them.", no_args_is_help=True)


@export_app.callback()
def export_() -> None:
    """Write results as other tools read them."""


@export_app.command("saebench")
def export_saebench(
    experiment: Annotated[str, typer.Argument(help="Name of an experiment that has results.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that the files are written to.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", help="One eval type, such as core; repeatable.")
    ] = None,
    reference_scaling: Annotated[
        bool,
        typer.Option(
            "--reference-scaling",
            help="Numbers on the scale of SAEBench 0.6, its errors included: mse divided by the "
            "tokens of a batch, its explained variance, -1 where there is no number.",
        ),
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """One JSON file per SAE and eval type, in the layout of SAEBench."""
    from sae_lib.report import saebench

    eval_types = only or list(saebench.LAYOUTS)
    exported = saebench.export(
        published(home), experiment, to, eval_types=eval_types, reference_scaling=reference_scaling
    )
    left_out: dict[tuple[str, str], list[str]] = {}
    for note in exported.notes:
        left_out.setdefault((note.eval_type, note.reason), []).append(f"{note.site} {note.variant}")
    notes = [
        {"eval type": kind, "left out for": saes if as_json else len(saes), "because": reason}
        for (kind, reason), saes in left_out.items()
    ]
    if as_json:
        rows = [{"files": [str(file) for file in exported.files], "left_out": notes}]
        show_rows(rows, title="", as_json=True)
        return
    out.print(f"{len(exported.files)} files in {to}", soft_wrap=True)
    for note in notes:
        saes = "SAE" if note["left out for"] == 1 else "SAEs"
        err.print(
            f"no {note['eval type']} of {note['left out for']} {saes}: {note['because']}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


@export_app.command("neuronpedia")
def export_neuronpedia(
    sae: Annotated[
        list[str],
        typer.Argument(
            metavar="SAE", help="Hash or name of an SAE, its variant, or: EXPERIMENT SITE VARIANT."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder that the files are written to.")],
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Which of several experiments.")
    ] = None,
    site: Annotated[str | None, typer.Option("--site", help="Which of several sites.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Latents per file.")] = 128,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Decoder rows as well; large files.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Latents of one SAE as JSON, in the form that Neuronpedia and SAEDashboard exchange."""
    from sae_lib.report import neuronpedia
    from sae_lib.report.dashboard import Published, find_cell

    database = fresh_database(home_of(home))
    cell = find_cell(database, sae, experiment=experiment, site=site)
    exported = neuronpedia.export(Published(database, cell), to, batch=batch, vectors=vectors)
    if as_json:
        files = [str(file) for file in exported.files]
        rows = [{"files": files, "latents": exported.num_latents, "null": exported.nulls}]
        show_rows(rows, title="", as_json=True)
        return
    out.print(
        f"{exported.num_latents:,} latents in {len(exported.files)} files in {to}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if exported.nulls:
        err.print(f"null for every latent: {', '.join(exported.nulls)}", soft_wrap=True)


def table2(
    experiment: Annotated[
        str | None, typer.Argument(help="Name of an experiment that has results.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """The survey's Table 2, as published or for the SAEs of an experiment.

    A number in brackets is the published one of the same SAE; with a star it is not comparable.
    """
    from sae_lib.report import survey_table2

    if experiment is None:
        rows = survey_table2.published_table()
    else:
        rows = survey_table2.readable(survey_table2.measured(published(home), experiment))
    if markdown:
        typer.echo(survey_table2.markdown_table(rows))
    else:
        show_rows(rows, title=experiment or survey_table2.SOURCE, as_json=as_json)
    if experiment is None and not as_json:
        typer.echo("\n* not comparable. Known against these numbers:\n")
        for caveat in survey_table2.caveats():
            typer.echo(f"- {caveat}")


def published(home: Path | None) -> Path:
    """The database, brought up to date and with the published numbers in it."""
    from sae_lib.errors import MissingFile
    from sae_lib.report.survey_table2 import TABLE, land
    from sae_lib.warehouse.write import partition_path

    folder = home_of(home)
    warehouse, database = folder / "warehouse", folder / "results.duckdb"
    if not warehouse.is_dir() and not database.exists():
        raise MissingFile("there are no results yet; `sae run` an experiment.", file=database)
    if warehouse.is_dir() and not partition_path(warehouse, TABLE, {}).is_file():
        land(warehouse)
    return fresh_database(folder)
