"""The SAEs of an experiment as the results database has them, with the numbers claims ask for."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_lib.claims.base import Selector
from sae_lib.claims.quantities import QUANTITIES, Quantity
from sae_lib.config import canonical_json
from sae_lib.errors import UnknownName
from sae_lib.warehouse.query import query

SPARSITY = ("k", "l1", "target_l0", "coefficient", "penalty")
"""Fields of architectures that set how sparse they are, where they hold a number."""

NOT_OF_TRAINING = ("seed", "devices", "checkpoint_every_seconds", "curve_points")
"""Settings of training in which members of a family may differ."""

_SAES = """
select site, variant, kind, coalesce(objective, 'plain') as objective, d_sae, seed, status, config,
       train, cpu_seconds, flops, tokens
from saes where experiment = ? order by site, variant
"""
_METRICS = """
select site, variant, name, definition, value from latest_metrics
where experiment = ? and variant <> '' and value is not null order by params
"""
_APPLICATIONS = """
select site, variant, application, task, name, definition, params, value from latest_applications
where experiment = ? and variant <> '' and method = 'sae' and value is not null order by params
"""
_GROUPS = 'select num_groups, "group", member from layer_groups where experiment = ?'


class Cell(NamedTuple):
    """One trained SAE."""

    site: str
    variant: str
    kind: str
    objective: str
    d_sae: int
    seed: int
    status: str
    config: Mapping[str, Any]
    """Of the architecture, complete."""

    of_objective: Mapping[str, Any]
    family: str
    """Text that SAEs share which differ only in seed and sparsity, at one site or at several."""

    values: Mapping[str, float]
    """Numbers by name of the quantity; what was not measured is left out."""

    def matches(self, selector: Selector) -> bool:
        return (
            selector.kind in (None, self.kind)
            and selector.objective == self.objective
            and _has(self.config, selector.sae)
            and _has(self.of_objective, selector.of_objective)
        )


def read_cells(database: Path, experiment: str) -> list[Cell]:
    """Every SAE of ``experiment``, site by site, as the experiment lists them.

    Raises `UnknownName` where the database knows no such experiment.
    """
    known = query(database, "select experiment, config from experiments")
    configs = dict(known.iter_rows())
    if experiment not in configs:
        raise UnknownName("experiment", experiment, sorted(configs))
    said = {one["variant"]: one for one in json.loads(configs[experiment]).get("saes", [])}
    metrics: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    for site, variant, name, definition, value in query(
        database, _METRICS, [experiment]
    ).iter_rows():
        metrics[site, variant].setdefault((name, definition), value)
    applied: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in query(database, _APPLICATIONS, [experiment]).iter_rows(named=True):
        applied[row["site"], row["variant"]].append({**row, "params": json.loads(row["params"])})
    groups: dict[int, dict[str, int]] = defaultdict(dict)
    for number, index, member in query(database, _GROUPS, [experiment]).iter_rows():
        groups[number][member] = index
    cells = []
    for row in query(database, _SAES, [experiment]).iter_rows(named=True):
        place = row["site"], row["variant"]
        entry = said.get(row["variant"], {})
        config = json.loads(row["config"])
        objective = entry.get("objective", {"kind": row["objective"]})
        values = {
            one.name: value
            for one in QUANTITIES.values()
            if one.source != "saes"
            and (value := _value(one, metrics[place], applied[place])) is not None
        }
        layers = _layers_sharing(row["site"], objective, entry.get("sites", ()), groups)
        values |= _costs(row, layers)
        cells.append(
            Cell(
                *place,
                row["kind"],
                row["objective"],
                row["d_sae"],
                config.get("seed", row["seed"]) or 0,
                row["status"],
                config,
                objective,
                _family(entry.get("sae", config), objective, json.loads(row["train"])),
                values,
            )
        )
    order = {variant: place for place, variant in enumerate(said)}
    return sorted(cells, key=lambda cell: (cell.site, order.get(cell.variant, len(order))))


def _has(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    for key, value in wanted.items():
        found = config.get(key)
        if value == "positive":
            if not (isinstance(found, int | float) and found > 0):
                return False
        elif found != value:
            return False
    return True


def _family(sae: Mapping[str, Any], objective: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    kept = {
        key: value
        for key, value in sae.items()
        if key != "seed" and not (key in SPARSITY and isinstance(value, int | float | None))
    }
    training = {key: value for key, value in train.items() if key not in NOT_OF_TRAINING}
    return canonical_json({"sae": kept, "objective": dict(objective), "train": training})


def _value(
    quantity: Quantity,
    metrics: Mapping[tuple[str, str], float],
    applied: list[dict[str, Any]],
) -> float | None:
    if quantity.source == "metrics":
        keys = ((quantity.measured, definition) for definition in quantity.definitions)
        found = [metrics[key] for key in keys if key in metrics]
    else:
        found = [
            row["value"]
            for row in applied
            if (row["application"], row["task"], row["name"])
            == (quantity.application, quantity.task, quantity.measured)
            and (not quantity.definitions or row["definition"] in quantity.definitions)
            and quantity.params.items() <= row["params"].items()
        ]
    return found[0] if found else None


def _costs(row: Mapping[str, Any], layers: int | None) -> dict[str, float]:
    """Cost per token, and per layer where one SAE serves several."""
    costs: dict[str, float] = {}
    if row["flops"] and row["tokens"]:
        costs["flops_per_token"] = row["flops"] / row["tokens"]
    if layers:
        for column in ("cpu_seconds", "flops"):
            if row[column]:
                costs[f"{column}_per_layer"] = row[column] / layers
    return {name: value for name, value in costs.items() if math.isfinite(value)}


def _layers_sharing(
    site: str,
    objective: Mapping[str, Any],
    sites: Any,
    groups: Mapping[int, Mapping[str, int]],
) -> int | None:
    """How many layers the SAE at ``site`` was trained for at once; None where it is not known."""
    if objective.get("kind") != "layer_group":
        return 1
    asked = objective.get("groups", 1)
    if not isinstance(asked, int):
        return next((len(group) for group in asked if site in group), None)
    if asked == 1:
        return len(sites) or None
    members = groups.get(asked, {})
    if site not in members:
        return None
    return sum(index == members[site] for index in members.values())
