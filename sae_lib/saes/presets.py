"""Published recipes by name: a variant, its settings, and how it was trained.

An entry of an experiment file names one and says what is left open, above all how sparse:

    expand("gemma_scope", {"d_sae": 4096, "penalty": 0.002})

A recipe is what its authors did, at their scale of data and steps. In a run of a few thousand
steps the defaults of this library learn more; the recipes are here so that one need not look them
up, and so that a long run is comparable to theirs.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sae_lib.errors import UnknownName
from sae_lib.papers import Paper

NO_CLIPPING = 1e9
"""A norm no gradient has: recipes that clip nothing."""

CONSTANT: Mapping[str, Any] = {
    "warmup_steps": 0,
    "decay_share": 0.0,
    "clip_norm": NO_CLIPPING,
}
"""A learning rate that never changes, and gradients as they are."""


class Preset(NamedTuple):
    """A recipe. Mappings hold fields of the variant's config and of the training's."""

    name: str

    summary: str
    """What it is, and what is done otherwise here."""

    papers: tuple[Paper, ...]

    sae: Mapping[str, Any]
    """Fields of the variant, ``kind`` among them."""

    train: Mapping[str, Any]
    """Training settings; tokens are the user's to say."""

    train_if_steered: Mapping[str, Any] = MappingProxyType({})
    """Settings in place of those where a penalty is steered towards ``target_l0``, which needs
    the full penalty for most of the run."""


def _preset(
    name: str,
    summary: str,
    paper: Paper,
    sae: dict[str, Any],
    train: dict[str, Any],
    train_if_steered: Mapping[str, Any] = MappingProxyType({}),
) -> Preset:
    return Preset(
        name,
        summary,
        (paper,),
        MappingProxyType(sae),
        MappingProxyType(train),
        MappingProxyType(dict(train_if_steered)),
    )


_ALL = (
    _preset(
        "bricken_2023",
        "ReLU with L1, unit rows, a constant learning rate. The rate of 1e-3 is widely used and "
        "not in the paper, and W_enc starts as a copy of W_dec.",
        Paper(
            "Bricken et al. 2023",
            "https://transformer-circuits.pub/2023/monosemantic-features",
            "Sparse Autoencoder Setup",
        ),
        {"kind": "standard", "form": "unit_norm"},
        {
            **CONSTANT,
            "batch_tokens": 8192,
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "sparsity_warmup_share": 0.0,
        },
    ),
    _preset(
        "anthropic_april_2024",
        "ReLU with L1 weighted by free decoder norms. Its lambda of 5 (2 to 10) is for x of norm "
        "sqrt(d_in): l1 is lambda / sqrt(d_in). The 5 % over which it rises are not in the text.",
        Paper(
            "Conerly et al. 2024",
            "https://transformer-circuits.pub/2024/april-update",
            "Update on how we train SAEs",
        ),
        {"kind": "standard", "form": "norm_weighted"},
        {
            "batch_tokens": 4096,
            "lr": 5e-5,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "warmup_steps": 0,
            "decay_share": 0.2,
            "sparsity_warmup_share": 0.05,
            "clip_norm": 1.0,
            "dead_after_tokens": 10_000_000,
        },
    ),
    _preset(
        "anthropic_january_2025",
        "JumpReLU with a tanh penalty and the pre-activation loss. Its lambda of 10 to 20 is for "
        "x of norm sqrt(d_in): penalty is lambda / d_in, and rises over the whole run unless it "
        "is steered. Adam's settings are not in the text.",
        Paper(
            "Conerly et al. 2025",
            "https://transformer-circuits.pub/2025/january-update",
            "Dictionary Learning Optimization Techniques",
        ),
        {"kind": "jumprelu", "form": "tanh"},
        {
            "batch_tokens": 32_768,
            "lr": 2e-4,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "warmup_steps": 0,
            "decay_share": 0.2,
            "sparsity_warmup_share": 1.0,
            "clip_norm": 1.0,
            "dead_after_tokens": 10_000_000,
        },
        {"sparsity_warmup_share": 0.05},
    ),
    _preset(
        "openai_topk",
        "TopK with AuxK. 1e-4 is the rate of the published code; the paper's falls as "
        "1 / sqrt(d_sae).",
        Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "2.3-2.4, A"),
        {"kind": "topk", "aux_weight": 1 / 32},
        {
            **CONSTANT,
            "batch_tokens": 131_072,
            "lr": 1e-4,
            "betas": (0.9, 0.999),
            "eps": 6.25e-10,
            "dead_after_tokens": 10_000_000,
        },
    ),
    _preset(
        "batch_topk_2024",
        "BatchTopK with AuxK over 512 dead latents. Data are scaled as a whole, where the "
        "published code normalises each token; there is a b_enc.",
        Paper("Bussmann et al. 2024", "https://arxiv.org/abs/2412.06410", "3-4"),
        {"kind": "batch_topk", "aux_k": 512, "aux_weight": 1 / 32},
        {
            **CONSTANT,
            "batch_tokens": 4096,
            "lr": 3e-4,
            "betas": (0.9, 0.99),
            "eps": 1e-8,
        },
    ),
    _preset(
        "gemma_scope",
        "JumpReLU with an L0 penalty, for 4 to 16 billion tokens: with so narrow a bandwidth "
        "thresholds hardly move in less. The rate rises from a tenth linearly instead of as a "
        "cosine, and W_dec starts from Gaussian instead of He-uniform directions.",
        Paper("Lieberum et al. 2024", "https://arxiv.org/abs/2408.05147", "3.2"),
        {
            "kind": "jumprelu",
            "form": "l0",
            "threshold": 0.001,
            "bandwidth": 0.001,
            "bias_start": "zero",
        },
        {
            "batch_tokens": 4096,
            "lr": 7e-5,
            "betas": (0.0, 0.999),
            "eps": 1e-8,
            "warmup_steps": 1000,
            "warmup_start": 0.1,
            "decay_share": 0.0,
            "sparsity_warmup_steps": 10_000,
            "clip_norm": NO_CLIPPING,
            "normalise": "unit_mean_square",
        },
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""All recipes by name."""


def preset_of(name: str) -> Preset:
    """The recipe called ``name``; `UnknownName` with the known ones where there is none."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]


def expand(name: str, entry: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The entry of an experiment file that ``entry`` and the recipe ``name`` come to.

    What ``entry`` says wins, field by field, also inside ``train``. Raises `UnknownName`.
    """
    preset = preset_of(name)
    is_steered = entry.get("target_l0") is not None
    train = {**preset.train, **(preset.train_if_steered if is_steered else {})}
    return {**preset.sae, **entry, "train": {**train, **entry.get("train", {})}}
