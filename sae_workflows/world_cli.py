"""The commands `sae world ...`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sae_workflows.console import AsJson, Home, err, home_of, out, show_rows

world_app = typer.Typer(help="The bundled world: texts, sets, models.", no_args_is_help=True)
formal_app = typer.Typer(help="Formal languages: sample, report, train.", no_args_is_help=True)
world_app.add_typer(formal_app, name="formal")

Language = Annotated[str, typer.Argument(help="dyck, expr or pcfg-english.")]


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


@world_app.command("words")
def world_words(model: ModelName = "world", home: Home = None, as_json: AsJson = False):
    """Are concepts directions of the word vectors, or lists of words; rows of `word_geometry`."""
    from assets.store import Store
    from assets.world import land_words

    rows = land_words(Store(home=str(home_of(home))), model)
    shown = rows if as_json else [
        row | {key: round(row[key], 3) for key in ("value", "control")} for row in rows
    ]  # fmt: skip
    show_rows(shown, title=f"{model}: word vectors", as_json=as_json)


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


@world_app.command("planted")
def world_planted(
    bags: Annotated[int, typer.Option(help="Bags of 20 activations.", min=2)] = 500,
    absorbed: Annotated[
        float, typer.Option(help="Share of children that absorb their parent.", min=0, max=1)
    ] = 0.4,
    overcomplete: Annotated[
        bool, typer.Option(help="256 features in 64 dimensions instead of 64 orthonormal ones.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the planted activations.", min=0)] = 0,
    as_json: AsJson = False,
):
    """Metrics of an oracle and of broken SAEs, beside the values known in advance."""
    from sae_workflows.display import Display
    from sae_workflows.world import planted_rows

    with Display(err) as display:
        rows = planted_rows(
            seed=seed,
            overcomplete=overcomplete,
            absorbed=absorbed,
            num_bags=bags,
            wide=not as_json,
            show=display.task("planted", "tokens"),
        )
    show_rows(rows, title="planted: measured (known in advance)", as_json=as_json)


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
