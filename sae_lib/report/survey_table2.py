"""The survey's Table 2: published numbers as data, and the same rows for any experiment.

Shu et al. 2025, "A Survey on Sparse Autoencoders", appendix D, lists seven SAEs by twelve numbers
that SAEBench computed. Several of them are not what their row says; each cell carries what is known
against it, and whether a number by our definitions can be laid beside it at all.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sae_lib.errors import UnknownName
from sae_lib.report.survey import markdown
from sae_lib.warehouse.query import query
from sae_lib.warehouse.write import Provenance, write_rows

SOURCE = "Shu et al. 2025, Table 2"
TABLE = "published"


class Line(NamedTuple):
    """One row of the table, and our rows of ``metrics`` that measure the same."""

    name: str
    metric: str
    """The metric, as experiment files name it."""

    measured: str
    """Name of the rows."""

    definitions: tuple[str, ...]
    """Of several definitions that were measured the first."""

    k: int | None = None
    """Latents used or ablated, where that is a setting."""

    is_comparable: bool = True
    caveat: str = ""
    """What holds for all seven SAEs."""


class Released(NamedTuple):
    """One column: an SAE that others released."""

    name: str
    variant: str
    """Name that an experiment imports it by: the beginning of its id there."""

    language_model: str
    """Hub id."""

    site: str
    repository: str
    """Hub id of the weights."""

    folder: str
    format: str
    d_sae: int
    is_comparable: bool = True
    caveat: str = ""
    """What holds for all its numbers."""


class Cell(NamedTuple):
    """One published number."""

    line: Line
    sae: Released
    value: float
    printed: str
    """As the paper prints it."""

    is_comparable: bool
    caveat: str


_probing = "the all-latents level (inference from its size): k = 1 values are far lower"

LINES: tuple[Line, ...] = (
    Line("Sparsity (L0)", "sparsity", "l0", ("mean_of_tokens",)),
    Line(
        "MSE",
        "reconstruction",
        "mse",
        ("per_token",),
        is_comparable=False,
        caveat="apparently divided by the tokens of a batch, about 2,000: no error per token",
    ),
    Line(
        "CE loss (recovered)",
        "model_loss",
        "loss_recovered",
        ("zero_ablation_kept", "zero_ablation_all"),
    ),
    Line(
        "KL divergence score",
        "model_loss",
        "kl_score",
        ("zero_ablation_kept", "zero_ablation_all"),
    ),
    Line(
        "Explained variance",
        "reconstruction",
        "explained_variance",
        ("ratio_of_sums",),
        is_comparable=False,
        caveat="SAEBench has had two formulas, neither of them ours, and which one this is was not "
        "said",
    ),
    Line("Absorption, mean", "absorption", "absorption_fraction", ("v0_6",)),
    Line("Absorption, full", "absorption", "full_absorption", ("v0_6",)),
    Line("SCR top 5", "scr", "scr", ("metric_direction",), 5),
    Line("SCR top 50", "scr", "scr", ("metric_direction",), 50),
    Line("SCR top 500", "scr", "scr", ("metric_direction",), 500),
    Line(
        "Sparse probing, LLM",
        "sparse_probing",
        "sparse_probing_accuracy",
        ("dense_probe",),
    ),
    Line(
        "Sparse probing, SAE",
        "sparse_probing",
        "sparse_probing_accuracy",
        ("all_latents",),
        caveat=_probing,
    ),
)


def _gemma(l0: int) -> Released:
    return Released(
        f"Gemma Scope L0:{l0}",
        f"gemma-scope-l0-{l0}",
        "google/gemma-2-2b",
        "resid_post.12",
        "google/gemma-scope-2b-pt-res",
        f"layer_12/width_16k/average_l0_{l0}",
        "gemma_scope",
        16_384,
    )


SAES: tuple[Released, ...] = (
    Released(
        "Llama Scope",
        "llama-scope-l12a-8x",
        "meta-llama/Llama-3.1-8B",
        "attn_out.12",
        "fnlp/Llama3_1-8B-Base-LXA-8x",
        "Llama3_1-8B-Base-L12A-8x",
        "llama_scope",
        32_768,
        is_comparable=False,
        caveat="implausible: this family has L0 50, so normalisation or thresholds were probably "
        "not applied",
    ),
    Released(
        "Pythia",
        "pythia-70m-standard",
        "EleutherAI/pythia-70m-deduped",
        "resid_post.4",
        "canrager/lm_sae",
        "pythia70m_sweep_standard_ctx128_0712/resid_post_layer_4",
        "dictionary_learning",
        0,
        caveat="printed as layer 5, of which no SAE was released: probably layer 4 counted from 1; "
        "which trainer of the sweep was not said",
    ),
    *(_gemma(l0) for l0 in (22, 41, 82, 176, 445)),
)

# as printed, line by line, in the order of SAES
_PRINTED: dict[str, tuple[str, ...]] = {
    "Sparsity (L0)": ("869.318", "112.888", "22.141", "41.422", "80.472", "174.74", "472.199"),
    "MSE": ("4.9E-5", "0.015", "2.125", "1.836", "1.539", "1.203", "0.707"),
    "CE loss (recovered)": ("1.00", "0.940", "0.974", "0.984", "0.988", "0.993", "0.998"),
    "KL divergence score": ("0.898", "-1", "0.975", "0.984", "0.990", "0.994", "0.997"),
    "Explained variance": ("0.863", "0.918", "0.824", "0.848", "0.875", "0.902", "0.941"),
    "Absorption, mean": ("2.8E-3", "0.227", "0.287", "0.267", "0.105", "0.055", "0.1347"),
    "Absorption, full": ("4.7E-4", "0.199", "0.333", "0.275", "0.091", "0.038", "0.045"),
    "SCR top 5": ("0.137", "0.330", "0.206", "0.217", "0.210", "0.184", "0.243"),
    "SCR top 50": ("0.713", "0.414", "0.376", "0.385", "0.407", "0.417", "0.384"),
    "SCR top 500": ("-0.727", "0.232", "0.316", "0.309", "0.359", "0.339", "0.384"),
    "Sparse probing, LLM": ("0.904", "0.922", *("0.958",) * 5),
    "Sparse probing, SAE": ("0.885", "0.929", "0.952", "0.955", "0.955", "0.957", "0.958"),
}

_THRESHOLDED = (
    "full above mean is possible by SAEBench's formula after March 2025 only; earlier releases "
    "cannot be compared"
)
_ROUNDED = "rounded to bfloat16"

_OF_CELLS: dict[tuple[str, str], str] = {
    ("KL divergence score", "Pythia"): "-1 stands for NaN: no score",
    ("CE loss (recovered)", "Llama Scope"): "a weak test: ablating one attention layer costs the "
    "model little",
    ("Absorption, mean", "Llama Scope"): "absorption read the residual stream, the SAE the output "
    "of attention",
    ("Absorption, full", "Llama Scope"): "absorption read the residual stream, the SAE the output "
    "of attention",
    ("SCR top 500", "Gemma Scope L0:445"): "as for 50: the fall that the text describes is not "
    "here",
    **{
        (line, f"Gemma Scope L0:{l0}"): _ROUNDED
        for line in ("MSE", "Explained variance")
        for l0 in (22, 41, 82, 176, 445)
    },
    **{
        (line, f"Gemma Scope L0:{l0}"): _THRESHOLDED
        for line in ("Absorption, mean", "Absorption, full")
        for l0 in (22, 41)
    },
    **{
        ("Sparse probing, LLM", f"Gemma Scope L0:{l0}"): "printed once for all Gemma Scope SAEs"
        for l0 in (22, 41, 82, 176, 445)
    },
}
"""What holds for one number alone."""

_NO_VALUE = {("KL divergence score", "Pythia")}


def cells() -> list[Cell]:
    """All 84 published numbers, line by line."""
    return [
        Cell(
            line,
            sae,
            float(printed),
            printed,
            line.is_comparable and sae.is_comparable and (line.name, sae.name) not in _NO_VALUE,
            "; ".join(
                filter(None, (_OF_CELLS.get((line.name, sae.name)), line.caveat, sae.caveat))
            ),
        )
        for line in LINES
        for sae, printed in zip(SAES, _PRINTED[line.name], strict=True)
    ]


def published_rows() -> list[dict[str, Any]]:
    """The same as rows of the table ``published``."""
    return [
        {
            "source": SOURCE,
            "line": cell.line.name,
            "place": LINES.index(cell.line),
            "sae": cell.sae.name,
            "released_as": cell.sae.variant,
            "language_model": cell.sae.language_model,
            "hub": f"{cell.sae.repository}/{cell.sae.folder}",
            "printed": cell.printed,
            "value": None if (cell.line.name, cell.sae.name) in _NO_VALUE else cell.value,
            "name": cell.line.measured,
            "definitions": list(cell.line.definitions),
            "k": cell.line.k,
            "is_comparable": cell.is_comparable,
            "caveat": cell.caveat or None,
        }
        for cell in cells()
    ]


def land(root: Path) -> Path:
    """Write the published numbers to the warehouse below ``root``; returns the file."""
    # the numbers are as old as the paper's version, so that the file is the same every time
    made = Provenance("", "", created_at=datetime(2025, 9, 23, tzinfo=UTC))
    return write_rows(root, TABLE, {}, published_rows(), made)


_VIEW = """
    select site, variant, line, place, value, stderr, reason, published, is_comparable, caveat
    from survey_table2 where experiment = ? order by site, variant, place
"""


class Measured(NamedTuple):
    """One SAE of an experiment, by lines of the table."""

    site: str
    variant: str
    values: dict[str, Mapping[str, Any]]
    """Row of the view ``survey_table2`` by name of the line."""


def measured(db: Path, experiment: str) -> list[Measured]:
    """What every SAE of ``experiment`` came to. Raises `UnknownName` where it has none."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in query(db, _VIEW, [experiment]).iter_rows(named=True):
        found.setdefault((row["site"], row["variant"]), {})[row["line"]] = row
    if not found:
        known = query(db, "select distinct experiment from saes order by all")["experiment"]
        raise UnknownName("experiment with SAEs", experiment, known.to_list())
    return [Measured(*cell, values) for cell, values in found.items()]


def readable(saes: Sequence[Measured]) -> list[dict[str, str]]:
    """The table: a row per line, a column per SAE; – where it was not measured.

    Where an SAE is one of the seven, its published number stands behind ours: in brackets, with a
    star where the two cannot be compared.
    """
    sites = {sae.site for sae in saes}
    heads = [sae.variant if len(sites) == 1 else f"{sae.variant} @ {sae.site}" for sae in saes]
    return [
        {
            "": line.name,
            **{
                head: _text(sae.values.get(line.name, {}))
                for head, sae in zip(heads, saes, strict=True)
            },
        }
        for line in LINES
    ]


def published_table() -> list[dict[str, str]]:
    """The survey's own table, a star at every number that ours cannot be compared with."""
    by_line = {line.name: {"": line.name} for line in LINES}
    for cell in cells():
        by_line[cell.line.name][cell.sae.name] = cell.printed + ("" if cell.is_comparable else "*")
    return list(by_line.values())


def caveats() -> list[str]:
    """Everything known against the published numbers, once each, with the cells it is about."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if line.caveat:
            found.setdefault(line.caveat, []).append(line.name)
    for sae in SAES:
        if sae.caveat:
            found.setdefault(sae.caveat, []).append(sae.name)
    for (line, sae), caveat in _OF_CELLS.items():
        found.setdefault(caveat, []).append(f"{line} of {sae}")
    return [f"{_short(where)}: {caveat}." for caveat, where in found.items()]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """`readable` or `published_table` in Markdown."""
    return markdown(rows, left=("",))


def _short(where: Sequence[str]) -> str:
    return ", ".join(where) if len(where) <= 2 else f"{where[0]} and {len(where) - 1} more"


def _text(row: Mapping[str, Any]) -> str:
    ours = "–" if row.get("value") is None else f"{row['value']:.4g}"
    if row.get("published") is None:
        return ours
    return f"{ours} ({row['published']:g}{'' if row['is_comparable'] else '*'})"
