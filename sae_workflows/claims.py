"""`sae claims`: what an experiment's results say about the claims of the survey and its papers."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from sae_workflows.console import AsJson, Home, fresh_database, home_of, out, show_rows


def claims(
    experiment: Annotated[
        str, typer.Argument(help="Name of an experiment that has results, or its file.")
    ],
    verdict: Annotated[
        list[str] | None,
        typer.Option("--verdict", help="Only this verdict, such as refuted; repeatable."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
):
    """Judge every claim on an experiment's results: supported, refuted, undecided, and why.

    Claims for which the experiment has no SAEs are counted at the end; `--json` lists them too.
    """
    if Path(experiment).is_file():
        from sae_workflows.experiment import load_experiment

        experiment = load_experiment(Path(experiment)).name
    rows = judged_rows(experiment, home_of(home), verdict)
    if as_json:
        show_rows(rows, title="", as_json=True)
        return
    about_nothing = [row["claim"] for row in rows if row["verdict"] == "no data"]
    wants_these = verdict is not None and "no data" in verdict
    shown = [row for row in rows if wants_these or row["verdict"] != "no data"]
    columns = ("claim", "place", "verdict", "effect", "low", "high", "n", "reason")
    show_rows(
        [{column: row[column] for column in columns} for row in shown],
        title=f"{experiment}: claims",
        as_json=False,
    )
    counts = Counter(row["verdict"] for row in rows)
    out.print(", ".join(f"{number} {name}" for name, number in counts.items()), soft_wrap=True)
    if about_nothing and not wants_these:
        out.print(f"no data for: {', '.join(dict.fromkeys(about_nothing))}", soft_wrap=True)


def judged_rows(experiment: str, home: Path, verdicts: list[str] | None) -> list[dict[str, Any]]:
    """One mapping per verdict, in the order of the claims."""
    from sae_lib.claims import evaluate
    from sae_lib.claims.judge import VERDICTS
    from sae_lib.errors import UnknownName

    for one in verdicts or ():
        if one not in VERDICTS:
            raise UnknownName("verdict", one, VERDICTS)
    rows = evaluate(fresh_database(home), experiment)
    return [row._asdict() for row in rows if not verdicts or row.verdict in verdicts]
