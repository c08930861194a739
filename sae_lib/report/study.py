"""One experiment as one page: a self-contained HTML file that needs no network and no server.

The page reads results and computes none: every number comes from one of `questions`, whose SQL is
printed on the page. Text from models and corpora is escaped by the template, and the page's
content policy forbids every script but its own.
"""

import json
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from inspect import cleandoc
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import yaml
from markupsafe import Markup

from sae_lib.artifacts import write_atomically
from sae_lib.errors import UnknownName
from sae_lib.report.figures import MAX_SITES, figures
from sae_lib.report.gallery import gallery
from sae_lib.report.questions import QUESTIONS
from sae_lib.report.scores import scores
from sae_lib.report.tokens import pieces
from sae_lib.report.variants import RECOVERY, are_compared, clusterings, with_intervals
from sae_lib.warehouse.query import query

TEMPLATES = Path(__file__).parent / "templates"
MAX_LATENTS = 200
"""Latents in the gallery, over all SAEs; keeps the page below 5 MB."""

PER_SAE = 6


def study_report(db: Path, experiment: str, out: Path) -> Path:
    """Write the page of ``experiment`` to ``out`` and return it; an existing file is replaced.

    Raises `UnknownName` where the warehouse has nothing about the experiment, and what
    `sae_lib.warehouse.query` raises.
    """
    _check_name(db, experiment)
    per_sae = _latents_per_sae(db, experiment)
    parameters = {"experiment": experiment, "per_sae": per_sae}
    answers = {
        name: query(db, sql, {key: parameters[key] for key in parameters if f"${key}" in sql})
        for name, sql in QUESTIONS.items()
    }
    answers["variants"] = with_intervals(answers["variants"])
    groups = clusterings(answers)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "pieces": pieces, "count": count}
    script = (TEMPLATES / "study.js").read_text("utf-8")
    policy = b64encode(sha256(script.encode()).digest()).decode()
    page = environment.get_template("study.html").render(
        experiment=experiment,
        made_at=datetime.now(UTC),
        style=Markup((TEMPLATES / "study.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{policy}",
        rows={name: answer.to_dicts() for name, answer in answers.items()},
        asked=_asked(answers["experiment"]),
        tiles=_tiles(answers),
        figures_of=figures(answers, groups).get,
        compares_variants=are_compared(answers["variants"]),
        recovery={
            column: (heading, True)
            for column, heading in RECOVERY.items()
            if answers["variants"][column].is_not_null().any()
        },
        clusterings=groups,
        scores=scores(answers),
        loss_measured=answers["frontier"]["delta_lm_loss"].is_not_null().any(),
        reason_for=lambda name: _reason(answers["not_measured"], name),
        why_not_applied=lambda name: _why_not_applied(answers["not_applied"], name),
        gallery=gallery(answers),
        per_sae=per_sae,
        sites_left_out=max(0, answers["leaderboard"]["site"].n_unique() - MAX_SITES),
        questions={name: _runnable(sql, parameters) for name, sql in QUESTIONS.items()},
    )
    write_atomically(out, page)
    return out


def number(value: float | int | None, digits: int = 3) -> str:
    """``value`` with so many significant digits; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text


def count(amount: int, thing: str) -> str:
    """ "1 site", "2 sites"."""
    return f"{amount:,} {thing}{'' if amount == 1 else 's'}"


def _check_name(db: Path, experiment: str) -> None:
    sql = "select experiment from declared union select experiment from stored.experiments"
    known = query(db, sql)["experiment"].to_list()
    if experiment not in known:
        raise UnknownName("experiment with results", experiment, known)


def _latents_per_sae(db: Path, experiment: str) -> int:
    sql = "select count(distinct (site, variant)) from latents where experiment = ?"
    num_saes = query(db, sql, [experiment]).item()
    return max(1, min(PER_SAE, MAX_LATENTS // max(1, num_saes)))


def _asked(experiment: pl.DataFrame) -> dict[str, Any] | None:
    if experiment.is_empty():
        return None
    row = experiment.row(0, named=True)
    config = yaml.safe_dump(json.loads(row["config"]), sort_keys=False, allow_unicode=True)
    return {**row, "config": config, "packages": json.loads(row["packages"])}


def _tiles(answers: dict[str, pl.DataFrame]) -> list[tuple[str, str, str]]:
    """Heading, value and remark of each summary tile."""
    board = answers["leaderboard"]
    built = board.filter(pl.col("status") != "not built")
    diverged = board.filter(~pl.col("status").is_in(["complete", "not built"]))
    remark = f"of {len(board)} declared" if len(built) < len(board) else "all that were declared"
    if len(diverged):
        remark += f"; {len(diverged)} did not finish"
    tokens = board["tokens"].max()
    assert tokens is None or isinstance(tokens, int)
    found = [
        ("SAEs", str(len(built)), remark),
        ("Sites", str(board["site"].n_unique()), ", ".join(board["site"].unique().sort()[:4])),
        ("Tokens trained on", number(tokens), "per SAE, at most"),
    ]
    for heading, column, remark in (
        ("Latents on per token", "l0", "L0"),
        ("Variance unexplained", "fvu", "FVU, lower is better"),
        ("Loss recovered", "loss_recovered", "against zero ablation, 1 is perfect"),
        ("Dead latents", "dead_share", "share of an SAE's latents that never fire"),
    ):
        values = board[column].drop_nulls()
        if len(values):
            low, high = number(values.min(), 2), number(values.max(), 2)  # type: ignore[arg-type]
            found.append((heading, low if low == high else f"{low} – {high}", remark))
    return found


def _reason(not_measured: pl.DataFrame, name: str) -> str:
    """Why a metric has no value for any SAE, as a sentence."""
    reasons = not_measured.filter(name=name)["reason"].drop_nulls().unique().sort()
    return "; ".join(reasons) or f"{name} was not evaluated."


def _why_not_applied(not_applied: pl.DataFrame, application: str) -> str:
    """Why there is nothing about an application, as a sentence."""
    reasons = not_applied.filter(application=application)["reason"].drop_nulls().unique().sort()
    if len(reasons):
        return f"No value: {'; '.join(reasons)}"
    return f"The experiment does not ask for {application}, or it has not run yet."


def _runnable(sql: str, parameters: dict[str, Any]) -> str:
    """``sql`` as a reader can paste it: with its parameters in place."""
    text = cleandoc(sql)
    for name, value in parameters.items():
        literal = str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
        text = text.replace(f"${name}", literal)
    return text
