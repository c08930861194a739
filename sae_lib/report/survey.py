"""The survey's table as text: what its rows are, and what they came to in an experiment."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lib.errors import UnknownName
from sae_lib.report.variants import RECOVERY, with_intervals
from sae_lib.saes import VARIANTS
from sae_lib.training.survey import ROWS, Row
from sae_lib.warehouse.query import query

MEASURED = {
    "l0": "L0",
    "fvu": "FVU",
    "loss_recovered": "loss recovered",
    "dead_share": "dead",
    "gamma": "γ",
    **RECOVERY,
    "cpu_seconds": "CPU s",
    "flops_per_token": "FLOPs / token",
}
"""Columns of the view ``variants`` that are shown, and their headings."""

_FAMILIES = """
    select variants.*, any_value(config) as config
    from variants join saes
        on saes.experiment = variants.experiment and saes.site = variants.site
        and regexp_replace(saes.variant, '-s[0-9]+$', '') = family
    where variants.experiment = ?
    group by all order by variants.site, fvu nulls last, family
"""


def declared(rows: Iterable[Row] = ROWS) -> list[dict[str, Any]]:
    """What each row of the survey's table is: name, whether the survey has it, entry, dials."""
    return [
        {
            "name": row.name,
            "in the survey": "yes" if row.in_table else "no",
            "entry": inline(row.entry),
            "dials": ", ".join(VARIANTS[row.kind].dials),
            "what it is": row.summary,
            "source": "; ".join(paper.cite for paper in row.papers),
        }
        for row in rows
    ]


def measured(db: Path, experiment: str) -> list[dict[str, Any]]:
    """What every family of an experiment came to, in the order of the survey's table.

    Numbers are means over seeds; X_half are halves of their 95 % intervals, None for one seed.
    Families that are no row of the table come last, under their own id. Raises `UnknownName`
    where no SAE of ``experiment`` is published, and what `sae_lib.warehouse.query` raises.
    """
    families = query(db, _FAMILIES, [experiment])
    if families.is_empty():
        known = query(db, "select distinct experiment from saes order by all")["experiment"]
        raise UnknownName("experiment with SAEs", experiment, known.to_list())
    found = []
    for family in with_intervals(families).iter_rows(named=True):
        row = row_of(family["family"], family["kind"], family["objective"], family["config"])
        place = ROWS.index(row) if row else len(ROWS)
        about = {
            "name": _name(row, family) if row else family["family"],
            "site": family["site"],
            "family": family["family"],
            "seeds": family["num_seeds"],
        }
        numbers = {key: family[key] for name in MEASURED for key in (name, f"{name}_half")}
        found.append((place, {**about, **numbers}))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]


def row_of(family: str, kind: str, objective: str, config: str) -> Row | None:
    """The row that an SAE belongs to: of several that fit, the one that says most.

    Args:
        family: Its id without the seed, which begins with its preset where it has one.
        kind: Its architecture.
        objective: Its training strategy.
        config: Its resolved config as JSON.
    """
    settings = json.loads(config)

    def fits(row: Row) -> bool:
        if "preset" in row.entry:
            return family.startswith(f"{row.entry['preset']}-w")
        if row.objective != objective:
            return False
        own = {key: row.entry[key] for key in row.entry.keys() - {"kind", "objective"}}
        needs_kind = row.objective in ("plain", VARIANTS[row.kind].needs_objective)
        is_kind = row.kind == kind or not needs_kind  # a strategy is a row whatever it trains
        return is_kind and all(settings.get(key) == value for key, value in own.items())

    def says(row: Row) -> tuple[bool, int]:
        return "preset" in row.entry, len(row.entry)

    return max(filter(fits, ROWS), key=says, default=None)


def declared_table() -> str:
    """`declared` in Markdown."""
    rows = [
        {**row, "entry": f"`{row['entry']}`", "dials": _code(row["dials"])} for row in declared()
    ]
    return markdown(rows, left=tuple(rows[0]))


def measured_table(db: Path, experiment: str) -> str:
    """`measured` in Markdown. Raises what that raises."""
    rows = [{**row, "site": f"`{row['site']}`"} for row in readable(measured(db, experiment))]
    return markdown(rows, left=("name", "site"))


def readable(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of `measured` for people: mean ± half an interval; columns without a number left out."""
    shown = {
        name: heading
        for name, heading in MEASURED.items()
        if any(line[name] is not None for line in found)
    }
    return [
        {
            "name": line["name"],
            "site": line["site"],
            "seeds": str(line["seeds"]),
            **{heading: _with_half(line, name) for name, heading in shown.items()},
        }
        for line in found
    ]


def markdown(rows: Sequence[Mapping[str, str]], *, left: Sequence[str]) -> str:
    """A Markdown table of ``rows``, which have the same keys; ``left`` are not numbers."""
    head = list(rows[0])
    rule = ["---" if name in left else "---:" for name in head]
    lines = [head, rule, *([row[name].replace("|", "\\|") for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inline(value: Any) -> str:
    """``value`` as YAML on one line, such as ``{kind: topk, objective: {kind: plain}}``."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {inline(one)}' for key, one in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value)


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _name(row: Row, family: Mapping[str, Any]) -> str:
    """The row's name; with the architecture where a strategy trains another than in the table."""
    return row.name if row.kind == family["kind"] else f"{row.name} ({family['kind']})"


def _with_half(line: Mapping[str, Any], name: str) -> str:
    value, half = line[name], line[f"{name}_half"]
    if value is None:
        return "–"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} ± {half:.2g}" if half else text
