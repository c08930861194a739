"""Results as SAEBench writes them: one JSON file per SAE and eval type.

    TO/EVAL_TYPE/{experiment}_{site}_{variant}_custom_sae_eval_results.json

Numbers keep this library's definitions; `_saebench_layout.LAYOUTS` says which rows they are. A file
is left out, with a note that says why, where a number that SAEBench requires has no value: plain
JSON has no NaN, and a stand-in would pass for a measurement.

``reference_scaling=True`` writes numbers on the scale of SAEBench 0.6 instead, so that they can be
laid beside published ones, errors included:

    mse                 sum |e|^2 / (tokens * tokens per batch)
    explained_variance  1 - E|e|^2 / (E|x|^2 - s^2),  s = mean over dimensions of E[x_j^2]
    no value            -1

The layout is SAEBench's (Karvonen et al. 2025, https://arxiv.org/abs/2503.09532).
"""

import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sae_lib.artifacts import package_versions, write_atomically
from sae_lib.errors import BadInput, UnknownName
from sae_lib.interop.hooks import hook_of
from sae_lib.report._saebench_layout import LAYOUTS, Layout, Source
from sae_lib.warehouse.query import query

CUSTOM = "custom_sae"
"""What SAEBench calls an SAE that is in no registry."""

SENTINEL = -1.0
"""What SAEBench writes where there is no number."""

_SAES = """
    select * from saes where experiment = ? and variant <> '' order by site, variant
"""
_METRICS = """
    select site, variant, name, definition, params, value, stderr, n, unit, reason, created_at
    from latest_metrics where experiment = ? and variant <> ''
    order by site, variant, name, definition, params
"""
_EXPLAINED = """
    select
        site, variant, latent, avg(scores.value) as score,
        arg_max(explanations.text, coalesce(explanations.score, 0)) as explanation
    from latent_scores as scores left join explanations using (experiment, site, variant, latent)
    where experiment = ? and metric = 'autointerp' and name = 'autointerp_accuracy'
        and definition = 'held_out' and scores.value is not null
    group by all order by site, variant, latent
"""


class Note(NamedTuple):
    """A file that was not written."""

    site: str
    variant: str
    eval_type: str
    reason: str


class Exported(NamedTuple):
    """What an export came to."""

    files: list[Path]
    notes: list[Note]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class EvalOutput(_Part):
    """What all eval types have in common."""

    eval_type_id: str
    eval_config: dict[str, Any]
    eval_id: str = Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    datetime_epoch_millis: int = Field(ge=0, le=9999999999999)
    eval_result_metrics: _Part
    eval_result_details: list[_Part] | None
    sae_bench_commit_hash: str
    sae_lens_id: str | None
    sae_lens_release_id: str | None
    sae_lens_version: str | None
    sae_cfg_dict: dict[str, Any] | None
    eval_result_unstructured: dict[str, Any] | None = None


@cache
def output_model(eval_type: str) -> type[EvalOutput]:
    """The file of one eval type as a pydantic model. Raises `UnknownName`."""
    layout = _layout(eval_type)
    categories: dict[str, Any] = {
        name: (_numbers(f"{eval_type}_{name}", sources), ...)
        for name, sources in layout.categories.items()
    }
    details: Any = list[_Part]
    if layout.details:
        key: dict[str, Any] = {layout.detail_key: (str, ...)}
        details = list[_numbers(f"{eval_type}_detail", layout.details, **key)]
    fields: dict[str, Any] = {
        "eval_result_metrics": (
            create_model(f"{eval_type}_metrics", __base__=_Part, **categories),
            ...,
        ),
        "eval_result_details": (details | None, ...),
    }
    return create_model(f"{eval_type}_output", __base__=EvalOutput, **fields)


def json_schema(eval_type: str) -> dict[str, Any]:
    """The JSON schema of one eval type's file. Raises `UnknownName`."""
    return output_model(eval_type).model_json_schema()


def _numbers(name: str, sources: Mapping[str, Source], **more: Any) -> Any:
    fields: dict[str, Any] = {}
    for key, source in sources.items():
        kind: Any = int if source.is_whole else float
        fields[key] = (kind | None, None) if source.is_optional else (kind, ...)
    return create_model(name, __base__=_Part, **more, **fields)


def _layout(eval_type: str) -> Layout:
    if eval_type not in LAYOUTS:
        raise UnknownName("SAEBench eval type", eval_type, LAYOUTS)
    return LAYOUTS[eval_type]


def export(
    db: Path,
    experiment: str,
    to: Path,
    *,
    eval_types: Iterable[str] = tuple(LAYOUTS),
    reference_scaling: bool = False,
) -> Exported:
    """Write the results of ``experiment`` below ``to``; the same results give the same bytes.

    Args:
        db: The published database.
        experiment: Its name.
        to: Folder; made where it is missing. Files of the same names are replaced.
        eval_types: Which to write, by SAEBench's ids.
        reference_scaling: Write numbers on the scale of SAEBench 0.6; see the module.

    Raises:
        UnknownName: no SAE of the experiment has been published, or an eval type is unknown.
        BadInput: two SAEs of the experiment would have one file.
    """
    layouts = {name: _layout(name) for name in eval_types}
    saes = query(db, _SAES, [experiment]).to_dicts()
    if not saes:
        known = query(db, "select distinct experiment from saes order by all")["experiment"]
        raise UnknownName("experiment with SAEs", experiment, known.to_list())
    asked = _asked(db, experiment)
    rows = _by_cell(query(db, _METRICS, [experiment]).to_dicts())
    explained = _by_cell(query(db, _EXPLAINED, [experiment]).to_dicts())
    releases: dict[str, tuple[str, str]] = {}
    exported = Exported([], [])
    for sae in saes:
        cell = sae["site"], sae["variant"]
        release = release_name(experiment, *cell)
        if releases.setdefault(release, cell) != cell:
            raise BadInput(
                "two SAEs of this experiment would be written to one file; rename one of them.",
                key=experiment,
                value=[releases[release], cell],
            )
        for name, layout in layouts.items():
            one = _Sae(experiment, sae, _Rows(rows.get(cell, [])), asked, release)
            made = _output(name, layout, one, explained.get(cell, []), reference_scaling)
            if isinstance(made, str):
                exported.notes.append(Note(*cell, name, made))
                continue
            path = to / name / f"{release}_{CUSTOM}_eval_results.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, made.model_dump_json(indent=2) + "\n")
            exported.files.append(path)
    return exported


def release_name(experiment: str, site: str, variant: str) -> str:
    """What stands where SAEBench has the release: names a file, so only safe signs are in it."""
    site = site.replace(">", "-to-").replace("+", "-and-")
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{experiment}_{site}_{variant}")


class _Rows:
    """The metric rows of one SAE."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.all = [{**row, "params": json.loads(row["params"])} for row in rows]

    def find(self, source: Source, **params: Any) -> Mapping[str, Any] | None:
        """The row of ``source``: of its definitions the first that has a value, or any row."""
        wanted = {**source.params, **params}
        found = [
            row
            for definition in source.definitions
            for row in self.all
            if row["name"] == source.name
            and row["definition"] == definition
            and all(_equal(row["params"].get(key), value) for key, value in wanted.items())
        ]
        return next((row for row in found if row["value"] is not None), next(iter(found), None))

    def number(self, source: Source, **params: Any) -> float | int | None:
        row = self.find(source, **params)
        if row is None or row["value"] is None:
            return None
        value, n = row["value"], row["n"]
        if source.part != "value":
            if not n or (source.part == "spread" and row["stderr"] is None):
                return None
            parts = {"spread": (row["stderr"] or 0) * math.sqrt(n), "units": n, "total": value * n}
            value = parts[source.part]
        return round(value) if source.is_whole else value

    def why_not(self, source: Source) -> str:
        """Why there is no number."""
        row = self.find(source)
        if row is None:
            which = ", ".join(f"{key}={value}" for key, value in source.params.items())
            return f"no rows of {source.name}" + (f" with {which}" if which else "")
        if row["value"] is None:
            return f"{source.name} has no value: {row['reason']}"
        return f"{source.name} has no {source.part}: it is a mean over {row['n'] or 'no'} units"

    def values_of(self, layout: Layout) -> list[str]:
        """Datasets or letters that rows of the layout's details are about, in order."""
        names = {source.name for source in layout.details.values()}
        kinds = {one for source in layout.details.values() for one in source.definitions}
        about = (
            row["params"].get(layout.detail_param)
            for row in self.all
            if row["name"] in names and row["definition"] in kinds and row["value"] is not None
        )
        return list(dict.fromkeys(str(one) for one in about if one is not None))


class _Sae(NamedTuple):
    """One SAE and all that its files say of it."""

    experiment: str
    sae: Mapping[str, Any]
    rows: _Rows
    asked: Mapping[str, Any]
    """The resolved experiment."""

    release: str


def _output(
    eval_type: str,
    layout: Layout,
    one: _Sae,
    explained: Sequence[Mapping[str, Any]],
    reference_scaling: bool,
) -> EvalOutput | str:
    """The content of one file, or why there is none."""
    rows = one.rows
    numbers = {
        category: {key: rows.number(source) for key, source in sources.items()}
        for category, sources in layout.categories.items()
    }
    if all(value is None for found in numbers.values() for value in found.values()):
        first = next(iter(next(iter(layout.categories.values())).values()))
        return f"{rows.why_not(first)}; add {layout.metric} to the experiment's evaluate"
    if eval_type == "core":
        numbers["token_stats"] = dict.fromkeys(numbers["token_stats"], _num_tokens(one))
        if reference_scaling:
            _use_scale_of_reference(numbers["reconstruction_quality"], one)
    for category, sources in layout.categories.items():
        for key, source in sources.items():
            if numbers[category][key] is not None or source.is_optional:
                continue
            if not reference_scaling:
                reason = rows.why_not(source) if source.name else "nothing measures it here"
                return f"{key} is required: {reason}"
            numbers[category][key] = int(SENTINEL) if source.is_whole else SENTINEL
    used = [row for row in rows.all if row["name"] in _names(layout)]
    newest = max(row["created_at"] for row in used)
    identity = {
        "sae": one.release,
        "eval_type": eval_type,
        "reference_scaling": reference_scaling,
        "created_at": newest.isoformat(),
        "numbers": numbers,
    }
    content = {
        "eval_type_id": eval_type,
        "eval_config": _config(eval_type, layout, one, reference_scaling),
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(identity, sort_keys=True))),
        "datetime_epoch_millis": round(newest.timestamp() * 1000),
        "eval_result_metrics": numbers,
        "eval_result_details": _details(layout, rows),
        "sae_bench_commit_hash": f"not SAEBench: {_written_by()}",
        "sae_lens_id": CUSTOM,
        "sae_lens_release_id": one.release,
        "sae_lens_version": None,
        "sae_cfg_dict": _sae_config(one),
        "eval_result_unstructured": _unstructured(explained) if eval_type == "autointerp" else {},
    }
    try:
        return output_model(eval_type).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where} is {first['input']!r}: {first['msg']}"


def _names(layout: Layout) -> set[str]:
    sources = [one for found in layout.categories.values() for one in found.values()]
    return {source.name for source in (*sources, *layout.details.values())}


def _details(layout: Layout, rows: _Rows) -> list[dict[str, Any]]:
    """One object per dataset or letter; those that lack a required number are left out."""
    found = []
    for one in rows.values_of(layout):
        numbers = {
            key: rows.number(source, **{layout.detail_param: one})
            for key, source in layout.details.items()
        }
        required = (key for key, source in layout.details.items() if not source.is_optional)
        if all(numbers[key] is not None for key in required):
            found.append({layout.detail_key: f"{one}{layout.detail_suffix}", **numbers})
    return found


def _use_scale_of_reference(quality: dict[str, Any], one: _Sae) -> None:
    """Put numbers of SAEBench 0.6 in the place of ours, from the same sums."""
    mse, uncentred = quality["mse"], one.rows.number(Source("fvu", ("uncentred",)))
    quality["explained_variance"] = None
    if mse is not None and uncentred:
        energy = mse / uncentred
        scalar = energy / one.sae["d_in"]
        variance = energy - scalar**2
        quality["explained_variance"] = 1 - mse / variance if variance else None
    batch = _batch_tokens(one)
    quality["mse"] = mse / batch if mse is not None and batch else None


def _batch_tokens(one: _Sae) -> float | None:
    """Tokens that count in one batch of evaluation contexts."""
    alive = one.rows.find(Source("alive_share", ("fired_once",)))
    mse = one.rows.find(Source("mse", ("per_token",)))
    legacy = one.rows.find(Source("explained_variance", ("legacy_mean_of_ratios",)))
    if alive is None or mse is None or legacy is None or not mse["n"]:
        return None
    contexts = min(legacy["params"].get("batch_contexts", mse["n"]), mse["n"])
    return alive["params"]["num_tokens"] / mse["n"] * contexts


def _num_tokens(one: _Sae) -> int | None:
    """Positions of the contexts evaluated on, special ones included, as SAEBench counts them."""
    l0 = one.rows.find(Source("l0", ("mean_of_tokens",)))
    context = one.asked.get("corpus", {}).get("context")
    return l0["n"] * context if l0 is not None and l0["n"] and context else None


def _config(eval_type: str, layout: Layout, one: _Sae, reference_scaling: bool) -> dict[str, Any]:
    """Settings under SAEBench's names where it has one, and our own beside them."""
    asked = one.asked
    model, corpus = asked.get("model", {}), asked.get("corpus", {})
    own = _metric_settings(asked, layout.metric)
    config: dict[str, Any] = {
        "model_name": model.get("id", one.sae["model"]),
        "llm_dtype": model.get("dtype", "float32"),
        "metric": own,
        "reference_scaling": reference_scaling,
    }
    if isinstance(own.get("seed"), int):
        config["random_seed"] = own["seed"]
    if eval_type == "core":
        batch = asked.get("activations", {}).get("batch_contexts")
        l0 = one.rows.find(Source("l0", ("mean_of_tokens",)))
        loss = _metric_settings(asked, "model_loss")
        config |= {
            "dataset": corpus.get("id"),
            "context_size": corpus.get("context"),
            "batch_size_prompts": batch,
            "compute_kl": True,
            "compute_ce_loss": True,
            "compute_l2_norms": True,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
            "compute_featurewise_density_statistics": False,
            "compute_featurewise_weight_based_metrics": False,
            "exclude_special_tokens_from_reconstruction": loss.get("splice", "kept") == "kept",
        }
        if batch and l0 is not None and l0["n"]:
            batches = math.ceil(l0["n"] / batch)
            config["n_eval_reconstruction_batches"] = batches
            config["n_eval_sparsity_variance_batches"] = batches
    return {key: value for key, value in config.items() if value is not None}


def _metric_settings(asked: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = (dict(one) for one in asked.get("evaluate", ()) if one.get("name") == name)
    return next(found, {})


def _sae_config(one: _Sae) -> dict[str, Any]:
    hook = hook_of(one.sae["site"])
    return {
        "architecture": one.sae["kind"],
        "d_in": one.sae["d_in"],
        "d_sae": one.sae["d_sae"],
        "hook_name": hook or one.sae["site"],
        "hook_layer": int(hook.split(".")[1]) if hook else None,
        "model_name": one.asked.get("model", {}).get("id", one.sae["model"]),
        "dtype": "float32",
        "context_size": one.asked.get("corpus", {}).get("context"),
        "training_tokens": one.sae["tokens"],
        "seed": one.sae["seed"],
        "site": one.sae["site"],
        "variant": one.sae["variant"],
        "sae_id": one.sae["sae_id"],
        "config": json.loads(one.sae["config"]),
    }


def _unstructured(explained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        str(row["latent"]): {
            "latent": row["latent"],
            "explanation": row["explanation"],
            "score": row["score"],
        }
        for row in explained
    }


def _asked(db: Path, experiment: str) -> dict[str, Any]:
    found = query(db, "select config from experiments where experiment = ?", [experiment])
    return json.loads(found["config"][0]) if len(found) else {}


def _by_cell(
    rows: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["site"], row["variant"]), []).append(row)
    return found


def _equal(given: Any, wanted: Any) -> bool:
    if isinstance(given, int | float) and isinstance(wanted, int | float):
        return math.isclose(given, wanted, rel_tol=1e-9)
    return str(given) == str(wanted) if given is not None else False


def _written_by() -> str:
    versions = package_versions()
    return f"sae-workflows {versions.get('sae-workflows', 'unknown')}"
