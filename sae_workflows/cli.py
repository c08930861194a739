"""The command line: run, curves, claims, variants, validate, list, show, sql, report, world, ..."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.text import Text

from assets.lineage import trained_elsewhere
from sae_lib.errors import SaeError
from sae_workflows.claims import claims
from sae_workflows.console import AsJson, Home, err, fresh_database, home_of, out, show_rows
from sae_workflows.curves import curves
from sae_workflows.dashboard_cli import dashboard
from sae_workflows.export_cli import export_app, table2
from sae_workflows.gc_cli import gc
from sae_workflows.home import study_at
from sae_workflows.remote_cli import pull, push
from sae_workflows.status import check_patterns, status
from sae_workflows.ui_cli import ui
from sae_workflows.variants import variants
from sae_workflows.world_cli import world_app

EXIT_BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="sae",
    help="Sparse-autoencoder experiments on language models, from one file to a database.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(world_app, name="world")
app.command()(curves)
app.command()(claims)
app.command()(variants)
app.command()(dashboard)
app.command()(status)
app.command()(gc)
app.command()(push)
app.command()(pull)
app.command()(table2)
app.command()(ui)
app.add_typer(export_app, name="export")

LEADERS = """
select site, variant, round(l0, 1) as l0, fvu, delta_lm_loss, loss_recovered, dead_share
from leaderboard where experiment = ? order by site, variant
"""

UNFINISHED = """
select site, variant, status, reason, steps
from saes where experiment = ? and status <> 'complete' order by site, variant
"""

Device = Annotated[str, typer.Option("--device", help="Torch device: cpu, cuda, cuda:1, mps.")]
Experiment = Annotated[
    Path, typer.Argument(help="Experiment file, or the name of a bundled experiment.")
]


class Listed(StrEnum):
    """What `sae list` can list."""

    variants = "variants"
    presets = "presets"
    objectives = "objectives"
    metrics = "metrics"
    explainers = "explainers"
    applications = "applications"
    formats = "formats"
    experiments = "experiments"
    models = "models"
    checks = "checks"
    costs = "costs"
    saes = "saes"


def main() -> None:
    """Entry point: an error a user can fix is one paragraph and exit code 2."""
    try:
        code = app(standalone_mode=False)  # the code of typer.Exit comes back as a value
    except SaeError as error:
        err.print(Panel(Text(str(error)), title="cannot go on", title_align="left", style="red"))
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:  # typer raises its own copies of click's exceptions in this mode
        if hasattr(error, "format_message") and hasattr(error, "show"):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            sys.exit(EXIT_BAD_INPUT)
        if type(error).__name__ == "Abort":
            sys.exit(1)
        raise
    if code == INTERRUPTED:  # typer makes this of Ctrl-C
        err.print("Stopped. What was finished is kept; run the same command to go on.")
    sys.exit(code if isinstance(code, int) else 0)


@app.command()
def run(
    experiment: Experiment,
    select: Annotated[
        str | None,
        typer.Option(
            "--select", help="Stages, such as metrics, 'metrics+', '+saes', 'saes or tokens'."
        ),
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="Only this site, or pattern; repeatable.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", help="Only this variant, or pattern; repeatable."),
    ] = None,
    only_stale: Annotated[
        bool, typer.Option("--only-stale", help="Bring up to date what exists; build nothing new.")
    ] = False,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Train SAEs anew that belong to an earlier version of the model."
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that share the sites of a stage.")
    ] = 1,
    home: Home = None,
    device: Device = "cpu",
    as_json: AsJson = False,
):
    """Build everything the experiment asks for that does not exist yet, or is out of date."""
    from assets.progress import watched_by
    from sae_workflows.definitions import build
    from sae_workflows.display import Display
    from sae_workflows.headless import run_study, stages
    from sae_workflows.home import outline_of
    from sae_workflows.selection import Wanted, selected_stages

    folder = home_of(home)
    study = study_at(folder, experiment)
    study = study.anew if retrain else study
    selected = None
    if select is not None:
        outline = outline_of(study)
        selected = selected_stages(select, outline, build([outline], folder), stages(study))
    wanted = Wanted(selected, only_stale, tuple(site or ()), tuple(variant or ()))
    check_patterns(study, wanted)
    kept = {} if retrain else trained_elsewhere(study)
    if kept:
        text = (
            f"{len(kept)} of {len(study.cells())} SAEs belong to an earlier version of the model. "
            "They are kept and measured on the present one; --retrain trains them anew."
        )
        err.print(Text(text, style="yellow"), soft_wrap=True)
    display = Display(err)
    with display, watched_by(display):
        results = run_study(
            study, folder, device=device, wanted=wanted, workers=workers, on_stage=display.stage
        )
    rows = [result._asdict() for result in results]
    database, page = folder / "results.duckdb", folder / "reports" / f"{study.name}.html"
    fresh_database(folder)
    has_results = database.is_file()
    unfinished = _unfinished(database, study.name) if has_results else []
    if as_json:
        summary = {
            "stages": rows,
            "unfinished": unfinished,
            "database": str(database),
            "report": str(page),
        }
        out.print_json(json.dumps(summary))
        return
    if not any(result.built for result in results):
        out.print(f"Nothing to do: everything {study.name} asks for exists already.")
    else:
        shown = [{**row, "seconds": round(row["seconds"], 1)} for row in rows]
        show_rows(shown, title=f"{study.name}: built and found", as_json=False)
        if has_results:
            _show_leaders(database, study.name)
    for row in unfinished:
        text = (
            f"{row['site']} {row['variant']} {row['status']}: {row['reason']}. With these settings "
            "it would do so again, so it is left alone; change them, such as lr or clip_norm."
        )
        err.print(Text(text, style="yellow"), soft_wrap=True)
    if page.is_file():
        out.print(f"report:   {page}", soft_wrap=True)
    if has_results:
        out.print(f"database: {database}", soft_wrap=True)


def _unfinished(database: Path, experiment: str) -> list[dict[str, Any]]:
    """SAEs whose training stopped before its time."""
    from sae_lib.warehouse.query import query

    return query(database, UNFINISHED, [experiment]).to_dicts()


def _show_leaders(database: Path, experiment: str) -> None:
    from sae_lib.warehouse.query import query

    leaders = query(database, LEADERS, [experiment])
    show_rows(leaders.to_dicts(), title="leaderboard", as_json=False)


@app.command()
def validate(
    experiment: Annotated[Path | None, typer.Argument(help="Experiment file or name.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Check an experiment file and show what it comes to, without computing anything."""
    if schema:
        from sae_workflows.schema import experiment_schema

        typer.echo(json.dumps(experiment_schema(), indent=2))
        return
    if experiment is None:
        raise typer.BadParameter("name an experiment file, or ask for --schema")
    from sae_lib.artifacts import ArtifactStore

    folder = home_of(home)
    study = study_at(folder, experiment)
    store = ArtifactStore(folder)
    rows = []
    for site, variant in study.cells():
        train = study.resolved_train(variant, site)
        rows.append(
            {
                "site": site,
                "variant": variant.id,
                "d_in": study.width(site),
                "lr": train.lr,
                "steps": train.steps,
                "dead_after_tokens": train.dead_after_tokens,
                "trained": store.exists(study.sae(site, variant)),
            }
        )
    show_rows(rows, title=f"{study.name} is valid: {len(rows)} SAEs", as_json=as_json)


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    home: Home = None,
    as_json: AsJson = False,
):
    """List what the registries and the store hold."""
    from sae_workflows import listing

    rows = listing.rows(what.value, home_of(home))
    show_rows(rows, title=what.value, as_json=as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="SAE (hash or name), experiment, or member.")],
    home: Home = None,
    as_json: AsJson = False,
):
    """Everything known about one SAE, experiment, variant, metric, explainer or application."""
    from sae_workflows import listing

    found = listing.one(name, home_of(home))
    if as_json:
        out.print_json(json.dumps(found, default=str))
        return
    for key, value in found.items():
        text = json.dumps(value, indent=2, default=str) if isinstance(value, dict | list) else value
        out.print(Text(f"{key}: ", style="bold") + Text(str(text)))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="SQL; '.tables' describes tables and columns.")],
    home: Home = None,
    as_json: AsJson = False,
):
    """Ask the results database a question; it is brought up to date first."""
    from sae_lib.warehouse.query import describe
    from sae_lib.warehouse.query import query as ask

    database = fresh_database(home_of(home))
    frame = describe(database) if query.strip() == ".tables" else ask(database, query)
    show_rows(frame.to_dicts(), title="", as_json=as_json)


@app.command()
def report(experiment: Experiment, home: Home = None):
    """Write the study's HTML page again from the results, and say where it is."""
    from assets.reports import write_report
    from assets.store import Store

    folder = home_of(home)
    study = study_at(folder, experiment)
    fresh_database(folder)
    out.print(str(write_report(study, Store(home=str(folder)))), soft_wrap=True)


@app.command("home")
def home_(
    dagster: Annotated[bool, typer.Option("--dagster", help="Dagster's folder inside it.")] = False,
    home: Home = None,
):
    """Say where artefacts and results are kept."""
    from sae_workflows.home import dagster_home

    folder = home_of(home)
    out.print(str(dagster_home(folder) if dagster else folder), soft_wrap=True)


@app.command()
def doctor(
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read and compare all stored tensors as well.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Check the installation, the machine and the store; exit code 1 when something is wrong."""
    from sae_workflows.checkup import checkup

    rows = checkup(home_of(home), checksums=checksums)
    show_rows([row._asdict() for row in rows], title="doctor", as_json=as_json)
    if any(row.verdict == "wrong" for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
