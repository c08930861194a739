"""The claims of the survey and of its papers, by name.

How large an effect must be to count is a choice of this file, not of the sources: 5 % of the
unexplained variance (2 % where small differences are claimed), 0.005 of loss recovered, 0.01 of the
reconstruction bias, 0.02 of shares and cosines; where it is another, the sentence says so.
"""

from typing import Any

from sae_lib.claims.base import Claim, Selector
from sae_lib.papers import Paper

SURVEY = Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "SAE variants, Table 1")
GATED = Paper("Rajamanoharan et al. 2024a", "https://arxiv.org/abs/2404.16014", "experiments")
JUMPRELU = Paper("Rajamanoharan et al. 2024b", "https://arxiv.org/abs/2407.14435", "experiments")
TOPK = Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "experiments")
BATCH_TOPK = Paper("Bussmann et al. 2024", "https://arxiv.org/abs/2412.06410", "experiments")
PROLU = Paper(
    "Taggart 2024",
    "https://www.alignmentforum.org/posts/HEpufTdakGTTKgoYF/prolu-a-pareto-improvement-for-sparse-autoencoders",
    "Results",
)
P_ANNEALED = Paper("Karvonen et al. 2024", "https://arxiv.org/abs/2408.00113", "experiments")
SWITCH = Paper("Mudide et al. 2024", "https://arxiv.org/abs/2410.08201", "experiments")
CHOICE = Paper("Ayonrinde 2024", "https://arxiv.org/abs/2411.02124", "abstract")
MATRYOSHKA = Paper("Bussmann et al. 2025", "https://arxiv.org/abs/2503.17547", "experiments")
LAYER_GROUP = Paper("Ghilardi et al. 2024", "https://arxiv.org/abs/2410.21508", "experiments")
END_TO_END = Paper("Braun et al. 2024", "https://arxiv.org/abs/2405.12241", "experiments")
MFR = Paper("Marks et al. 2024", "https://arxiv.org/abs/2411.01220", "experiments")
SPECIALIZED = Paper("Muhamed et al. 2024", "https://arxiv.org/abs/2411.00743", "experiments")
CAUSAL = Paper("Menon et al. 2024", "https://arxiv.org/abs/2410.11767", "experiments")
TRANSCODER = Paper("Paulo et al. 2025", "https://arxiv.org/abs/2501.18823", "experiments")
CROSSCODER = Paper("Minder et al. 2025", "https://arxiv.org/abs/2504.02922", "experiments")


def _claim(name: str, statement: str, *papers: Paper, **what: Any) -> Claim:
    return Claim(name=name, statement=statement, papers=papers, **what)


def _beats(a: str, b: str, *papers: Paper) -> Claim:
    return _claim(
        f"{a}_beats_{b}",
        f"At equal L0, `{a}` leaves less variance unexplained than `{b}`.",
        *papers,
        a=Selector(kind=a),
        b=Selector(kind=b),
        quantity="fvu",
        direction="lower",
        least=0.05,
        relative=True,
    )


def _shrinks_less(a: str, paper: Paper) -> Claim:
    return _claim(
        f"{a}_shrinks_less",
        f"At equal L0, reconstructions of `{a}` are shrunk less than those of `standard`: their "
        "relative reconstruction bias, 1 without shrinkage, is higher.",
        paper,
        a=Selector(kind=a),
        b=Selector(kind="standard"),
        quantity="gamma",
        direction="higher",
        least=0.01,
    )


def _trained(objective: str, **fields: Any) -> dict[str, Any]:
    """SAEs trained by ``objective`` against those of the same architecture trained plainly."""
    return {
        "a": Selector(objective=objective, of_objective=fields),
        "b": Selector(),
        "same": ("kind", "d_sae"),
    }


E2E_ONLY = {"downstream": 0.0}

_listed = (
    _beats("topk", "standard", SURVEY, TOPK),
    _beats("batch_topk", "topk", BATCH_TOPK),
    _beats("gated", "standard", SURVEY, GATED),
    _beats("jumprelu", "standard", SURVEY, JUMPRELU),
    _beats("prolu", "standard", SURVEY, PROLU),
    _beats("p_annealed", "standard", P_ANNEALED),
    _beats("jumprelu", "gated", JUMPRELU),
    _beats("jumprelu", "topk", JUMPRELU),
    _shrinks_less("gated", GATED),
    _shrinks_less("jumprelu", JUMPRELU),
    _shrinks_less("topk", TOPK),
    _claim(
        "gated_halves_l0",
        "At equal loss recovered, `gated` needs about half the L0 of `standard`: at least 40 % "
        "less.",
        GATED,
        a=Selector(kind="gated"),
        b=Selector(kind="standard"),
        quantity="l0",
        direction="lower",
        least=0.4,
        relative=True,
        at="loss_recovered",
    ),
    _claim(
        "switch_beats_topk_at_equal_flops",
        "At equal operations per token and equal L0, `switch` leaves less variance unexplained "
        "than `topk`.",
        SURVEY,
        SWITCH,
        a=Selector(kind="switch"),
        b=Selector(kind="topk"),
        quantity="fvu",
        direction="lower",
        least=0.05,
        relative=True,
        same=(),
        equal_flops=True,
    ),
    _claim(
        "switch_loses_to_topk_at_equal_width",
        "With equally many latents and at equal L0, `switch` leaves more variance unexplained "
        "than `topk`.",
        SWITCH,
        a=Selector(kind="switch"),
        b=Selector(kind="topk"),
        quantity="fvu",
        direction="higher",
        least=0.05,
        relative=True,
    ),
    _beats("feature_choice", "topk", SURVEY, CHOICE),
    _beats("mutual_choice", "topk", SURVEY, CHOICE),
    _claim(
        "feature_choice_has_no_dead_latents",
        "`feature_choice` leaves nearly no latent dead: less than 1 %.",
        CHOICE,
        a=Selector(kind="feature_choice"),
        against=0.01,
        at=None,
        quantity="dead_share",
        direction="lower",
        least=0.0,
    ),
    _claim(
        "matryoshka_costs_fvu",
        "At equal L0, `matryoshka` leaves somewhat more variance unexplained than `batch_topk`.",
        MATRYOSHKA,
        a=Selector(kind="matryoshka"),
        b=Selector(kind="batch_topk"),
        quantity="fvu",
        direction="higher",
        least=0.02,
        relative=True,
    ),
    _claim(
        "matryoshka_absorbs_less",
        "At equal L0, fewer first letters are absorbed in `matryoshka` than in `batch_topk`.",
        MATRYOSHKA,
        a=Selector(kind="matryoshka"),
        b=Selector(kind="batch_topk"),
        quantity="absorption",
        direction="lower",
        least=0.1,
        relative=True,
    ),
    _claim(
        "matryoshka_absorbs_fewer_words_fully",
        "At equal L0, another latent takes over fewer words' first letter in `matryoshka` than in "
        "`batch_topk`.",
        MATRYOSHKA,
        a=Selector(kind="matryoshka"),
        b=Selector(kind="batch_topk"),
        quantity="full_absorption",
        direction="lower",
        least=0.1,
        relative=True,
    ),
    _claim(
        "matryoshka_has_better_letter_latents",
        "At equal L0, the best latent of a first letter tells it better in `matryoshka` than in "
        "`batch_topk`.",
        MATRYOSHKA,
        a=Selector(kind="matryoshka"),
        b=Selector(kind="batch_topk"),
        quantity="letter_f1",
        direction="higher",
        least=0.02,
    ),
    _claim(
        "layer_group_keeps_quality",
        "One SAE for a group of layers is nearly as good as one per layer: at equal L0 it leaves "
        "at most 10 % more variance unexplained.",
        SURVEY,
        LAYER_GROUP,
        **_trained("layer_group"),
        quantity="fvu",
        direction="lower",
        least=-0.1,
        relative=True,
    ),
    _claim(
        "layer_group_saves_time",
        "One SAE for a group of layers takes less training time per layer: at least a quarter "
        "less CPU-seconds.",
        SURVEY,
        LAYER_GROUP,
        **_trained("layer_group"),
        quantity="cpu_seconds_per_layer",
        direction="lower",
        least=0.25,
        relative=True,
        at=None,
    ),
    _claim(
        "layer_group_saves_operations",
        "One SAE for a group of layers takes fewer operations per layer: at least a quarter less.",
        SURVEY,
        LAYER_GROUP,
        **_trained("layer_group"),
        quantity="flops_per_layer",
        direction="lower",
        least=0.25,
        relative=True,
        at=None,
    ),
    _claim(
        "end_to_end_recovers_more_loss",
        "At equal L0, an SAE trained end to end recovers more of the model's loss.",
        SURVEY,
        END_TO_END,
        **_trained("end_to_end"),
        quantity="loss_recovered",
        direction="higher",
        least=0.005,
    ),
    _claim(
        "end_to_end_needs_fewer_latents",
        "At equal loss added to the model's, an SAE trained end to end has fewer latents on: at "
        "least 40 % less.",
        SURVEY,
        END_TO_END,
        **_trained("end_to_end"),
        quantity="l0",
        direction="lower",
        least=0.4,
        relative=True,
        at="delta_lm_loss",
    ),
    _claim(
        "end_to_end_uses_fewer_latents_altogether",
        "At equal L0, an SAE trained end to end has fewer latents that ever fire.",
        END_TO_END,
        **_trained("end_to_end"),
        quantity="alive_share",
        direction="lower",
        least=0.02,
    ),
    _claim(
        "end_to_end_reconstructs_badly",
        "At equal L0, an SAE trained end to end, without a downstream term, reconstructs the "
        "activation itself far worse: at least 50 % more unexplained variance.",
        END_TO_END,
        **_trained("end_to_end", **E2E_ONLY, local=0.0),
        quantity="fvu",
        direction="higher",
        least=0.5,
        relative=True,
    ),
    _claim(
        "downstream_term_helps_reconstruction",
        "At equal L0, a downstream term makes end-to-end SAEs reconstruct the activation better.",
        END_TO_END,
        a=Selector(objective="end_to_end", of_objective={"downstream": "positive", "local": 0.0}),
        b=Selector(objective="end_to_end", of_objective={**E2E_ONLY, "local": 0.0}),
        same=("kind", "d_sae"),
        quantity="fvu",
        direction="lower",
        least=0.05,
        relative=True,
    ),
    _claim(
        "feature_aligned_reconstructs_better",
        "At equal L0, mutual feature regularisation leaves less variance unexplained.",
        SURVEY,
        MFR,
        **_trained("feature_aligned"),
        quantity="fvu",
        direction="lower",
        least=0.02,
        relative=True,
    ),
    _claim(
        "feature_aligned_recovers_concepts",
        "At equal L0, mutual feature regularisation recovers more of the true concepts.",
        MFR,
        **_trained("feature_aligned"),
        quantity="concept_coverage",
        direction="higher",
        least=0.02,
    ),
    _claim(
        "specialized_finds_rare_concepts",
        "At equal L0, a specialised SAE recovers more of the rare concepts.",
        SURVEY,
        SPECIALIZED,
        **_trained("specialized"),
        quantity="rare_concept_coverage",
        direction="higher",
        least=0.02,
    ),
    _claim(
        "specialized_reconstructs_the_rest_worse",
        "At equal L0, a specialised SAE leaves more variance of ordinary text unexplained.",
        SPECIALIZED,
        **_trained("specialized"),
        quantity="fvu",
        direction="higher",
        least=0.05,
        relative=True,
    ),
    _claim(
        "causal_objective_makes_latents_causal",
        "At equal L0, latents trained with the causal objective move the model's logits more "
        "nearly the way that they themselves are moved.",
        SURVEY,
        CAUSAL,
        **_trained("formal_causal"),
        quantity="causal_linearity",
        direction="lower",
        least=0.05,
        relative=True,
    ),
    _claim(
        "skip_transcoder_beats_transcoder",
        "At equal L0, a linear way past the latents lets a transcoder leave less variance of the "
        "output unexplained.",
        TRANSCODER,
        a=Selector(kind="transcoder", objective="transcode", sae={"skip": True}),
        b=Selector(kind="transcoder", objective="transcode", sae={"skip": False}),
        quantity="fvu",
        direction="lower",
        least=0.05,
        relative=True,
    ),
    _claim(
        "batch_topk_crosscoder_beats_l1",
        "At equal L0, a crosscoder with BatchTopK leaves less variance unexplained than one with "
        "an L1 penalty.",
        CROSSCODER,
        a=Selector(kind="crosscoder", objective="crosscode", sae={"activation": "batch_topk"}),
        b=Selector(kind="crosscoder", objective="crosscode", sae={"activation": "relu"}),
        quantity="fvu",
        direction="lower",
        least=0.05,
        relative=True,
    ),
)  # fmt: skip
CLAIMS = {claim.name: claim for claim in _listed}
"""Every claim there is."""


def table() -> str:
    """Every claim as a Markdown table; what ``docs/claims.md`` shows."""
    lines = ["| claim | statement | source |", "|---|---|---|"]
    for claim in CLAIMS.values():
        sources = ", ".join(f"[{paper.cite}]({paper.url})" for paper in claim.papers)
        lines.append(f"| `{claim.name}` | {claim.statement} | {sources} |")
    return "\n".join(lines) + "\n"
