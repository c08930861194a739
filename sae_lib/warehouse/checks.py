"""What must hold of a published database, as SQL that finds the rows that break it."""

from pathlib import Path
from typing import Any, NamedTuple

from sae_lib.warehouse.query import query

SLACK = 1e-6
"""By which a value may lie beyond the bounds of its definition: sums are rounded."""

SHOWN = 5


class TableCheck(NamedTuple):
    """One rule."""

    name: str
    description: str
    sql: str
    """Selects the rows that break it; none when it holds."""

    is_error: bool = True
    """Whether breaking it is a fault; else it is something to know."""


CHECKS = (
    TableCheck(
        "no_row_stands_twice",
        "No number is held twice for one SAE, version of the model, definition and setting.",
        """
        select experiment, site, variant, model_fingerprint, name, definition, version, params,
            count(*) as times
        from stored.metrics group by all having count(*) > 1
        """,
    ),
    TableCheck(
        "values_are_possible",
        "No value lies outside of what its definition allows.",
        f"""
        select experiment, site, variant, name, definition, value, low, high
        from stored.metrics join definitions using (name, definition, version)
        where value < low - {SLACK} * greatest(1, abs(low))
            or value > high + {SLACK} * greatest(1, abs(high))
        """,
    ),
    TableCheck(
        "densities_are_shares",
        "Every latent fires on a share of tokens between 0 and 1.",
        "select experiment, site, variant, latent, density from stored.latents "
        "where not density between 0 and 1 or max_activation < 0",
    ),
    TableCheck(
        "examples_are_whole",
        "Every example has one activation per token, and its peak is one of them.",
        "select experiment, site, variant, latent, rank from stored.examples "
        "where len(tokens) <> len(activations) or not peak between 0 and len(tokens) - 1",
    ),
    TableCheck(
        "measured_saes_are_known",
        "Whatever is measured is measured of an SAE that the table of SAEs has.",
        """
        select distinct experiment, site, variant from metrics
        anti join saes using (experiment, site, variant) where variant <> ''
        """,
    ),
    TableCheck(
        "declared_cells_are_measured",
        "Every SAE that an experiment declares has metrics.",
        """
        select experiment, site, variant from declared
        anti join metrics using (experiment, site, variant) where variant <> ''
        """,
        is_error=False,
    ),
    TableCheck(
        "rows_are_declared",
        "No rows are left of cells that no experiment declares; they are kept, and left out.",
        "select distinct experiment, site, variant from stored.metrics where not is_declared",
        is_error=False,
    ),
    TableCheck(
        "claims_are_judged",
        "No claim is without a verdict.",
        "select experiment, claim from claims where verdict is null or verdict = ''",
    ),
)


class Outcome(NamedTuple):
    """How one rule stands."""

    check: TableCheck
    broken: int
    """Rows that break it."""

    some: list[dict[str, Any]]
    """The first of them."""


def check_tables(db: Path) -> list[Outcome]:
    """Every rule on the database ``db``."""
    outcomes = []
    for check in CHECKS:
        found = query(db, check.sql)
        some = [
            {key: value if value is None else str(value) for key, value in row.items()}
            for row in found.head(SHOWN).to_dicts()
        ]
        outcomes.append(Outcome(check, found.height, some))
    return outcomes
