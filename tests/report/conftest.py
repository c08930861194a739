"""A small warehouse as a study of eight SAEs at two sites leaves it, hostile tokens included."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sae_lib.report.dashboard import Dashboard, dashboard
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.rows import (
    ApplicationRow,
    ExampleRow,
    ExplanationRow,
    LatentRow,
    Measurement,
    SelectionRow,
)
from sae_lib.warehouse.write import Provenance, write_rows
from tests.report.synthetic_latents import Synthetic

HOSTILE = "</script><script>alert(1)</script>"
NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
SITES = {"resid_post.2": 1.0, "resid_post.3": 1.35}
VARIANTS = {
    "topk-w2048-k16-s0": ("topk", 16, 0.20),
    "topk-w2048-k32-s0": ("topk", 32, 0.13),
    "topk-w2048-k64-s0": ("topk", 64, 0.085),
    "standard-w2048-l30-s0": ("standard", 30, 0.24),
}
WORDS = [
    ("animals", ["cat", "dog", "horse", "sparrow", "wolf"]),
    ("brackets", ["(", ")", "[", HOSTILE]),
    ("colours", ["red", "blue", "green", "amber"]),
    ("numbers", ["seven", "twelve", "forty", "hundred"]),
    ("professions", ["nurse", "baker", "pilot", "judge"]),
    ("rivers", ["Elbe", "Danube", "Loire"]),
    ("refusals", ["cannot", "sorry", "unable"]),
    ("praise", ["splendid", "lovely", "superb"]),
]


class Study(NamedTuple):
    root: Path
    db: Path


class Writer(NamedTuple):
    """Writes the tables of one study; tests leave out parts by name."""

    root: Path
    without: frozenset[str]
    experiment: str = "world-variants"

    def cell(self, table: str, site: str, variant: str, rows: Iterable[Any], sae: str = "") -> None:
        if table in self.without:
            return
        seed = 0 if variant else None
        where = {"experiment": self.experiment, "site": site, "variant": variant}
        come_from = Provenance("world", "fp-4be1c09a77d2", sae or None, f"art{sae}", seed, NOW)
        write_rows(self.root, table, where, list(rows), come_from)

    def whole(self, table: str, partition: dict[str, str], row: dict[str, Any]) -> None:
        if table not in self.without:
            come_from = Provenance("world", "fp-4be1c09a77d2", created_at=NOW)
            write_rows(self.root, table, partition, [row], come_from)


def build(
    root: Path, db: Path, *, without: Iterable[str] = (), num_sites: int = 2, num_variants: int = 4
) -> Study:
    """A published study. ``without`` names tables, or ``loss`` for a model without LM head."""
    sites = dict(list(SITES.items())[:num_sites])
    variants = dict(list(VARIANTS.items())[:num_variants])
    writer = Writer(root, frozenset(without))
    writer.whole(
        "experiments",
        {"experiment": writer.experiment},
        {
            "description": "TopK against ReLU at equal sparsity on the bundled world.",
            "config": {"name": writer.experiment, "model": {"id": "world"}, "sites": list(SITES)},
            "packages": {"python": "3.11", "torch": "2.13"},
        },
    )
    writer.whole(
        "models",
        {"model": "world", "model_fingerprint": "fp-4be1c09a77d2"},
        {"family": "gpt2", "num_layers": 4, "d_model": 192, "has_lm_head": True},
    )
    writer.whole(
        "definitions",
        {},
        {
            "name": "fvu",
            "definition": "ratio_of_sums",
            "version": 1,
            "text": "sum |e|^2 / sum |x - mean(x)|^2",
            "better": "lower",
            "low": 0.0,
        },
    )
    about_sites = [row for site, factor in sites.items() for row in site_metrics(site, factor)]
    writer.cell("metrics", "", "", about_sites)
    for s, (site, factor) in enumerate(sites.items()):
        for v, (variant, (kind, l0, fvu)) in enumerate(variants.items()):
            sae = f"{s}{v}c0ffee"
            rng = np.random.default_rng(10 * s + v)
            has_loss = "loss" not in writer.without
            writer.cell("saes", site, variant, [sae_row(kind, l0, variant)], sae)
            writer.cell("curves", site, variant, curves(l0, fvu * factor), sae)
            writer.cell("metrics", site, variant, metrics(l0, fvu * factor, rng, has_loss), sae)
            writer.cell("applications", site, variant, applications(v, rng), sae)
            writer.cell("selections", site, variant, selections(), sae)
            latents, explanations, examples = gallery(rng)
            writer.cell("latents", site, variant, latents, sae)
            writer.cell("explanations", site, variant, explanations, sae)
            writer.cell("examples", site, variant, examples, sae)
    cells = [(writer.experiment, site, variant) for site in sites for variant in variants]
    publish(root, db, cells)
    return Study(root, db)


def sae_row(kind: str, l0: int, variant: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "objective": "plain",
        "d_in": 192,
        "d_sae": 2048,
        "config": {"kind": kind, "d_in": 192, "d_sae": 2048, "target": l0},
        "train": {"tokens": 2_000_000, "lr": 2e-4},
        "status": "diverged" if variant.startswith("standard") else "complete",
        "reason": "loss not finite at step 900" if variant.startswith("standard") else None,
        "steps": 976,
        "tokens": 2_000_000,
        "seconds": 61.5,
        "device": "cpu",
        "packages": {"python": "3.11", "torch": "2.13"},
        "path": "artifacts/sae/x",
    }


def site_metrics(site: str, factor: float) -> list[Measurement]:
    where = {"site": site, "loss": "fvu"}
    rows = [Measurement("boundary_loss", 1.0, "mean_predictor", params={**where, "l0": 0})]
    rows += [
        Measurement(
            "boundary_loss", factor / (1 + 0.09 * k), "pca_in_sample", params={**where, "l0": k}
        )
        for k in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    rows.append(
        Measurement(
            "dominance",
            0.061,
            "mean_of_log_grid",
            stderr=0.008,
            params={**where, "family_a": "topk-w2048", "family_b": "standard-w2048"},
        )
    )
    return rows


def metrics(l0: int, fvu: float, rng: np.random.Generator, has_loss: bool) -> list[Measurement]:
    reason = None if has_loss else "the model has no language-model head."

    def loss(name: str, value: float, definition: str, stderr: float | None = None) -> Measurement:
        if has_loss:
            return Measurement(name, value, definition, 1, stderr, 512, "contexts")
        return Measurement(name, None, definition, reason=reason)

    rows = [
        Measurement("l0", l0 * 0.98, "mean_of_tokens", 1, 0.2, 512, "contexts"),
        Measurement("fvu", fvu, "ratio_of_sums", 1, fvu / 30, 512, "contexts"),
        Measurement("fvu", fvu * 0.8, "uncentred", 1, fvu / 30, 512, "contexts"),
        Measurement("explained_variance", 1 - fvu, "ratio_of_sums", 1, fvu / 30, 512, "contexts"),
        Measurement("cosine", math.sqrt(1 - fvu), "mean_of_tokens", 1, 0.001, 512, "contexts"),
        Measurement("dead_share", 0.04, "never_fired", params={"num_tokens": 65536}),
        loss("ce_clean", 2.31, "mean_of_tokens", 0.02),
        loss("delta_lm_loss", fvu * 0.9, "splice_kept", fvu / 20),
        loss("loss_recovered", 1 - fvu / 3, "zero_ablation_kept", 0.004),
        loss("loss_recovered", 1 - fvu / 2, "mean_ablation_kept", 0.004),
    ]
    logs = rng.normal(-2.6, 0.7, 2000)
    for i in range(100):
        low = -10 + i / 10
        share = float(((logs >= low) & (logs < low + 0.1)).mean())
        if share:
            place = {"low": round(low, 10), "high": round(low + 0.1, 10)}
            rows.append(
                Measurement("log10_density_histogram", share, "share_of_latents", params=place)
            )
    rows.append(
        Measurement(
            "log10_density_histogram", 0.04, "share_of_latents", params={"low": -10, "high": -9.9}
        )
    )
    return rows


def curves(l0: int, fvu: float) -> list[dict[str, Any]]:
    return [
        {"step": 5 * i, "tokens": 10_000 * i, "name": name, "value": value}
        for i in range(1, 200)
        for name, value in (
            ("fvu", fvu + (1 - fvu) * math.exp(-i / 25)),
            ("l0", l0 * (1 + 3 * math.exp(-i / 15))),
            ("dead_share", 0.04 + 0.2 * math.exp(-((i - 60) ** 2) / 900)),
            ("grad_norm", 2.0 + math.exp(-i / 10)),
            ("tokens_per_second", 50_000.0 + 100 * (i % 7)),
            ("aux", 0.1 * math.exp(-i / 30)),
        )
    ]


def applications(v: int, rng: np.random.Generator) -> list[ApplicationRow]:
    rows = []

    def add(application: str, method: str, task: str, *more: Any, **params: Any) -> None:
        name, value, definition, stderr = more
        found = Measurement(name, value, definition, 1, stderr, 200, "texts", params)
        rows.append(ApplicationRow(application, method, task, found))

    for task in ("profession", "sentiment", "all"):
        definition = "mean_of_tasks_" if task == "all" else ""
        for k, accuracy in ((1, 0.71), (5, 0.84), (10, 0.88)):
            for method, gain in (("sae_probe", 0.01 * v), ("random_sae_probe", -0.2)):
                add(
                    "probing",
                    method,
                    task,
                    "accuracy",
                    accuracy + gain,
                    definition + "mean_difference_top_k",
                    0.02,
                    k=k,
                )
        for method, accuracy in (("dense_probe", 0.95), ("bag_of_words", 0.92), ("majority", 0.5)):
            add("probing", method, task, "accuracy", accuracy, f"{definition}x", 0.015)
    for method, peak in (("latent", 0.55), ("difference_in_means", 0.62), ("random", 0.08)):
        for strength in (0.25, 0.5, 1.0, 1.5, 2.0):
            score = peak * math.exp(-((strength - 1) ** 2)) + 0.01 * v
            fluency = max(0.0, 1 - 0.4 * strength + float(rng.normal(0, 0.02)))
            for concept in ("animals", "praise"):
                for name, value in (
                    ("overall", score),
                    ("concept_score", min(1.0, score * 1.2)),
                    ("fluency", fluency),
                ):
                    add(
                        "steering",
                        method,
                        concept,
                        name,
                        value,
                        "lexicon",
                        0.03,
                        strength=strength,
                        split="test",
                    )
        for concept in ("animals", "praise"):
            add(
                "steering",
                method,
                concept,
                "best_overall",
                peak,
                "lexicon",
                0.03,
                strength=1.0,
                split="test",
            )
    for method, power in (("sae_greedy", 0.55), ("random", 0.8), ("longest_first", 0.7)):
        for n in (5, 10, 20, 50, 100):
            add(
                "selection",
                method,
                "documents",
                "coverage",
                (n / 400) ** (power / 2),
                "share_of_present_latents",
                0.01 if method == "random" else None,
                n=n,
                equal="documents",
            )
    return rows


def selections() -> list[SelectionRow]:
    return [
        SelectionRow("sae_greedy", i, 40 + i, 300 - 40 * i, 310, 120, 0.2 + 0.1 * i, f"Doc {i} ...")
        for i in range(5)
    ]


def gallery(
    rng: np.random.Generator,
) -> tuple[list[LatentRow], list[ExplanationRow], list[ExampleRow]]:
    latents, explanations, examples = [], [], []
    for i, (topic, words) in enumerate(WORDS):
        density = float(10 ** rng.uniform(-3, -1.5))
        latents.append(LatentRow(i, density, 1.5, 4.0, f"{topic}: {', '.join(words[:2])}"))
        scores = [2.0 - 0.2 * j for j in range(len(words))]
        text = f"fires on {', '.join(words)}"
        explanations.append(ExplanationRow(i, "max_act", text, words, scores, 0.9 - 0.05 * i, "f1"))
        both = [*words[:3], "the", "of"]
        marks = [1.2, 1.0, 0.7, -0.6, -0.9]
        explanations.append(ExplanationRow(i, "vocab_proj", f"promotes {words[0]}", both, marks))
        for rank in range(3):
            word = words[rank % len(words)]
            tokens = ["Once", " the", f" {word}", " stood", " near\n", " a", "\u200b", " gate", "."]
            strength = 4.0 - rank
            values = [0.0, 0.1, strength, 0.6, 0.0, 0.0, 0.0, 0.2, 0.0]
            examples.append(ExampleRow(i, rank, 10 * i + rank, 30, 2, tokens, values, strength))
    latents.append(LatentRow(len(WORDS), 0.0, None, 0.0, None))
    return latents, explanations, examples


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    return build(folder / "rows", folder / "results.duckdb")


@pytest.fixture
def build_study(tmp_path: Path) -> Any:
    """A function that builds a study of one SAE without the named parts."""

    def make(*without: str) -> Study:
        root, db = tmp_path / "rows", tmp_path / "results.duckdb"
        return build(root, db, without=without, num_sites=1, num_variants=1)

    return make


@pytest.fixture(scope="session")
def wide_page(tmp_path_factory: pytest.TempPathFactory) -> Dashboard:
    """The dashboard of 16,384 latents with all default examples."""
    return dashboard(Synthetic(16384), tmp_path_factory.mktemp("wide") / "page.html")
