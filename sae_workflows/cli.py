"""The command line: run, validate, list, show, sql, report, doctor, world."""

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sae_lib.errors import SaeError
from sae_workflows.home import memo_file, sae_home

EXIT_BAD_INPUT = 2

app = typer.Typer(
    name="sae",
    help="Sparse-autoencoder experiments on language models, from one file to a database.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
world_app = typer.Typer(help="The bundled world: sample, train, report.", no_args_is_help=True)
app.add_typer(world_app, name="world")
formal_app = typer.Typer(help="Formal languages: sample, report, train.", no_args_is_help=True)
world_app.add_typer(formal_app, name="formal")

out = Console()
err = Console(stderr=True)

LEADERS = """
select site, variant, round(l0, 1) as l0, fvu, delta_lm_loss, loss_recovered, dead_share
from leaderboard where experiment = ? order by site, variant
"""

NARROWEST_COLUMN = 7
"""Characters; a table with narrower columns cannot be read."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of artefacts and results; default $SAE_HOME or ./.sae."),
]
Device = Annotated[str, typer.Option("--device", help="Torch device: cpu, cuda, cuda:1, mps.")]
Language = Annotated[str, typer.Argument(help="dyck, expr or pcfg-english.")]
Experiment = Annotated[
    Path, typer.Argument(help="Experiment file, or the name of a bundled experiment.")
]


class Listed(StrEnum):
    """What `sae list` can list."""

    variants = "variants"
    objectives = "objectives"
    metrics = "metrics"
    explainers = "explainers"
    applications = "applications"
    formats = "formats"
    experiments = "experiments"
    models = "models"
    checks = "checks"
    saes = "saes"


def main() -> None:
    """Entry point: an error a user can fix is one paragraph and exit code 2."""
    try:
        code = app(standalone_mode=False)  # the code of typer.Exit comes back as a value
    except SaeError as error:
        err.print(Panel(Text(str(error)), title="cannot go on", title_align="left", style="red"))
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        err.print("Stopped. What was finished is kept; run the same command to go on.")
        sys.exit(130)
    except Exception as error:  # typer raises its own copies of click's exceptions in this mode
        if hasattr(error, "format_message") and hasattr(error, "show"):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            sys.exit(EXIT_BAD_INPUT)
        if type(error).__name__ == "Abort":
            sys.exit(1)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def home_of(given: Path | None) -> Path:
    return given.resolve() if given else sae_home()


def show_rows(rows: Sequence[Mapping[str, Any]], *, title: str, as_json: bool) -> None:
    """A table for people, or JSON for programs."""
    if as_json:
        out.print_json(json.dumps(list(rows), default=str))
        return
    if not rows:
        out.print(f"{title}: none.")
        return
    if len(rows[0]) * NARROWEST_COLUMN > out.width:
        _show_records(rows, title)
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in rows[0]:
        is_number = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    out.print(table)


def _show_records(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Rows one below the other, where the terminal is too narrow for their columns."""
    if title:
        out.print(Text(title, style="bold"))
    width = max(map(len, rows[0]))
    for row in rows:
        out.rule(style="dim")
        for column, value in row.items():
            out.print(Text(f"{column:>{width}}  ", style="dim") + Text(_cell(value)))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


@app.command()
def run(experiment: Experiment, home: Home = None, device: Device = "cpu", as_json: AsJson = False):
    """Build everything the experiment asks for that does not exist yet."""
    from assets.progress import watched_by
    from sae_workflows.display import Display
    from sae_workflows.experiment import load_experiment
    from sae_workflows.headless import run_study

    folder = home_of(home)
    study = load_experiment(experiment, memo=memo_file(folder))
    display = Display(err)
    with display, watched_by(display):
        results = run_study(study, folder, device=device, on_stage=display.stage)
    rows = [result._asdict() for result in results]
    database, page = folder / "results.duckdb", folder / "reports" / f"{study.name}.html"
    if as_json:
        summary = {"stages": rows, "database": str(database), "report": str(page)}
        out.print_json(json.dumps(summary))
        return
    if not any(result.built for result in results):
        out.print(f"Nothing to do: everything {study.name} asks for exists already.")
    else:
        shown = [{**row, "seconds": round(row["seconds"], 1)} for row in rows]
        show_rows(shown, title=f"{study.name}: built and found", as_json=False)
        _show_leaders(database, study.name)
    out.print(f"report:   {page}", soft_wrap=True)
    out.print(f"database: {database}", soft_wrap=True)


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
    from sae_workflows.experiment import load_experiment

    folder = home_of(home)
    study = load_experiment(experiment, memo=memo_file(folder))
    store = ArtifactStore(folder)
    rows = []
    for site, variant in study.cells():
        train = study.resolved_train(variant, study.width(site))
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
    from sae_lib.warehouse.publish import is_stale, publish
    from sae_lib.warehouse.query import describe
    from sae_lib.warehouse.query import query as ask

    folder = home_of(home)
    warehouse, database = folder / "warehouse", folder / "results.duckdb"
    if warehouse.is_dir() and is_stale(warehouse, database):
        publish(warehouse, database, None)
    frame = describe(database) if query.strip() == ".tables" else ask(database, query)
    show_rows(frame.to_dicts(), title="", as_json=as_json)


@app.command()
def report(experiment: Experiment, home: Home = None):
    """Write the study's HTML page again from the results, and say where it is."""
    from assets.reports import write_report
    from assets.store import Store
    from sae_workflows.experiment import load_experiment

    folder = home_of(home)
    study = load_experiment(experiment, memo=memo_file(folder))
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


@world_app.command("sample")
def world_sample(
    documents: Annotated[int, typer.Option(help="How many documents.")] = 5,
    kind: Annotated[str, typer.Option(help="One kind of document only.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Exchanges in the form of a chat.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
    as_json: AsJson = False,
):
    """Documents of the world, with the concepts that are active in them."""
    from sae_workflows.world import sample_rows

    rows = sample_rows(documents, seed, kind=kind, chat=chat)
    if as_json:
        show_rows(rows, title="documents", as_json=True)
        return
    for row in rows:
        labels = Text(f" {row['labels']}", style="dim")
        out.print(Text(f"{row['document']} {row['kind']}", style="bold") + labels)
        out.print(Text(row["text"]))
        out.print(Text(", ".join(row["concepts"]), style="cyan"))
        out.print()


@world_app.command("concepts")
def world_concepts(home: Home = None, as_json: AsJson = False):
    """The inventory of concepts, with their frequencies; rows of the table `concepts`."""
    from assets.store import Store
    from assets.world import concept_rows, land_concepts

    rows = concept_rows()
    land_concepts(Store(home=str(home_of(home))), rows)
    show_rows(rows, title=f"{len(rows)} concepts", as_json=as_json)


@world_app.command("tasks")
def world_tasks(as_json: AsJson = False):
    """The labelled sets of the world: what is in them and what they are for."""
    from sae_workflows.world import task_rows

    show_rows(task_rows(), title="labelled sets", as_json=as_json)


@world_app.command("export")
def world_export(
    name: Annotated[str, typer.Argument(help="A set that `sae world tasks` lists.")],
    file: Annotated[Path, typer.Argument(help="Where to: .jsonl, .parquet or .csv.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    num: Annotated[int, typer.Option(help="Rows at most.")] = 1000,
):
    """Write rows of a labelled set into a file that any tool reads."""
    from sae_workflows.world import export

    out.print(f"{export(name, split, num, file)} rows in {file}", soft_wrap=True)


ModelName = Annotated[str, typer.Option(help="world, world-chat, or a folder with a model.")]


@world_app.command("report")
def world_report(
    model: ModelName = "world",
    documents: Annotated[
        int, typer.Option(help="Held-out documents; a fifth as many of each kind and task.")
    ] = 1000,
    parts: Annotated[bool, typer.Option("--parts", help="Show break-downs of tasks too.")] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """What a model learned: loss against the floor, accuracies; rows of the table `abilities`."""
    from assets.store import Store
    from assets.world import land_abilities

    rows = land_abilities(Store(home=str(home_of(home))), model, documents)
    if as_json:
        show_rows(rows, title=model, as_json=True)
        return
    losses = {"loss", "floor", "excess"}
    kinds = {row["part"]: {"kind": row["part"]} for row in rows if row["what"] in losses}
    for row in rows:
        if row["what"] in losses:
            kinds[row["part"]] |= {row["what"]: round(row["value"], 3), "documents": row["n"]}
    show_rows(list(kinds.values()), title=f"{model}: nats per predicted token", as_json=False)
    shown = [
        {
            "what": row["what"],
            "part": row["part"],
            "value": round(row["value"], 3),
            "goal": row["goal"],
            "n": row["n"],
            "unit": row["unit"],
        }
        for row in rows
        if row["what"] not in losses and (parts or row["part"] == "all")
    ]
    show_rows(shown, title=f"{model}: what it can do", as_json=False)
    missed = [row for row in rows if row["reached"] is False]
    for row in missed:
        out.print(f"missed: {row['what']} ({row['part']}) {row['value']:.3f}, goal {row['goal']}")


@world_app.command("probes")
def world_probes(
    model: ModelName = "world",
    tokens: Annotated[int, typer.Option(help="Words to fit on, and as many to score.")] = 150_000,
    least: Annotated[float, typer.Option(help="Show concepts below this area only.")] = 0.95,
    home: Home = None,
    as_json: AsJson = False,
):
    """How well concepts can be read off the residual stream; rows of `concept_probes`."""
    from assets.store import Store
    from assets.world import land_probes
    from sae_workflows.display import Display

    with Display(err) as display:
        show = display.task("probing", "layers")
        rows = land_probes(Store(home=str(home_of(home))), model, tokens, show)
    if as_json:
        show_rows(rows, title=model, as_json=True)
        return
    scored = [row for row in rows if row["auc"] is not None]
    for scope in ("token", "context"):
        some = [row for row in scored if row["scope"] == scope]
        good = sum(row["auc"] >= least for row in some)
        out.print(f"{scope}: {good} of {len(some)} concepts have AUC >= {least}")
    out.print(f"too rare to be scored: {len(rows) - len(scored)}")
    below = sorted((row for row in scored if row["auc"] < least), key=lambda row: row["auc"])
    shown = [
        {key: row[key] for key in ("concept", "scope", "site", "num_true")}
        | {"auc": round(row["auc"], 3)}
        for row in below
    ]
    show_rows(shown, title=f"concepts below {least}", as_json=False)


@world_app.command("coverage")
def world_coverage(
    experiment: Annotated[str, typer.Argument(help="Experiment that applied `concepts`.")],
    home: Home = None,
    as_json: AsJson = False,
):
    """Share of true concepts that have a latent of their own: by SAE, layer and frequency."""
    from sae_lib.errors import MissingFile
    from sae_lib.warehouse.publish import is_stale, publish
    from sae_workflows.world import coverage_rows

    folder = home_of(home)
    warehouse, database = folder / "warehouse", folder / "results.duckdb"
    if warehouse.is_dir() and is_stale(warehouse, database):
        publish(warehouse, database, None)
    if not database.exists():
        raise MissingFile("there are no results yet; `sae run` an experiment", file=database)
    rows = coverage_rows(database, experiment)
    show_rows(rows, title=f"{experiment}: coverage of concepts", as_json=as_json)


@world_app.command("train")
def world_train(
    folder: Annotated[Path, typer.Argument(help="Where the model is written.")],
    recipe: Annotated[str, typer.Option(help="world or world-chat.")] = "world",
    start: Annotated[
        Path | None, typer.Option(help="Folder of the model that world-chat begins with.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Training tokens; 0: as the recipe says.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 2,
):
    """Train a language model of the world again; a killed training resumes."""
    from sae_workflows.display import Display
    from sae_workflows.world import train

    with Display(err) as display:
        train(
            folder,
            recipe=recipe,
            start=start,
            tokens=tokens,
            seed=seed,
            threads=threads,
            show=display.task("training", "steps"),
        )


@formal_app.command("sample")
def formal_sample(
    language: Language,
    strings: Annotated[int, typer.Option(help="How many strings.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the language.")] = 0,
    as_json: AsJson = False,
):
    """Strings of a formal language, with what is true at each token."""
    from sae_workflows.formal import sample_rows

    rows = sample_rows(language, strings, seed)
    if as_json:
        show_rows(rows, title="strings", as_json=True)
        return
    for row in rows:
        out.print(Text(f"{row['string']} ({row['nats']:.1f} nats)", style="bold"))
        out.print(Text(row["text"]))
        for name, values in row["measures"].items():
            out.print(Text(f"{name}: {' '.join(map(str, values))}", style="cyan"))
        out.print()


@formal_app.command("report")
def formal_report(
    language: Annotated[str | None, typer.Argument(help="One language; all if left out.")] = None,
    strings: Annotated[int, typer.Option(help="Test strings.")] = 1000,
    home: Home = None,
    as_json: AsJson = False,
):
    """What the bundled models learned: loss against the exact floor; rows of `abilities`."""
    from assets.store import Store
    from assets.world import land_formal
    from sae_lib.synthetic.formal.languages import LANGUAGES

    store = Store(home=str(home_of(home)))
    rows = []
    for name in LANGUAGES if language is None else [language]:
        rows += [{"language": name, **row} for row in land_formal(store, name, strings)]
    keys = ("language", "what", "value", "goal", "n", "unit", "description")
    shown = rows if as_json else [{key: row[key] for key in keys} for row in rows]
    show_rows(shown, title="formal languages", as_json=as_json)


@formal_app.command("train")
def formal_train(
    language: Language,
    folder: Annotated[Path, typer.Argument(help="Where the model is written.")],
    tokens: Annotated[int, typer.Option(help="Training tokens.")] = 10_240_000,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
):
    """Train a small GPT-2 on a formal language; a killed training resumes."""
    from sae_workflows.display import Display
    from sae_workflows.formal import train

    with Display(err) as display:
        train(
            language,
            folder,
            tokens=tokens,
            seed=seed,
            threads=threads,
            show=display.task("training", "steps"),
        )


@world_app.command("page")
def world_page(
    file: Annotated[Path, typer.Argument(help="The page to write.")] = Path("world.html"),
    documents: Annotated[int, typer.Option(help="Documents per kind.")] = 3,
    home: Home = None,
):
    """Write a page on the world: documents, concepts, and what the models learned."""
    from assets.store import Store
    from assets.world import write_page

    out.print(str(write_page(Store(home=str(home_of(home))), file, documents)), soft_wrap=True)


if __name__ == "__main__":
    main()
