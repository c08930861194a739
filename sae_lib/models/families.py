"""Where each family of models keeps its blocks, and what stands where inside a block.

A **site** is a place in the residual stream or in a sub-layer. What is there, exactly:

    resid_pre.L   input of block L; for L = 0 the embeddings (after embedding norm, if any)
    attn_out.L    what attention adds to the stream: after the output projection, and after a norm
                  that follows it (Gemma 2 and 3)
    resid_mid.L   the stream between attention and MLP
    mlp_act.L     input of the MLP's down projection, width d_mlp (gated: the product)
    mlp_out.L     what the MLP adds to the stream: after the norm that follows it (Gemma 2 and 3)
    resid_post.L  output of block L, before the model's final norm

The blocks come in three wirings, and the sums below hold to rounding:

    sequential    resid_mid = resid_pre + attn_out, resid_post = resid_mid + mlp_out
    parallel      resid_post = resid_pre + attn_out + mlp_out; there is no resid_mid
                  (GPT-J, Phi, and GPT-NeoX unless use_parallel_residual is false)
    post_norm     resid_mid = norm(resid_pre + attn_out), resid_post = norm(resid_mid + mlp_out)
                  (BERT, RoBERTa, DistilBERT, and OPT where do_layer_norm_before is false)

Read from, and tested against, the modelling files of transformers 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Wiring = Literal["sequential", "parallel", "post_norm"]

KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_act", "mlp_out", "resid_post")
"""Sites of one block, in the order in which a forward pass reaches them."""


class Point(NamedTuple):
    """A tensor on its way into or out of a module of a block."""

    module: str
    """Path below the block; empty for the block itself."""

    side: Literal["input", "output"]
    """Whether the tensor goes into the module or comes out of it."""

    is_shared: bool = False
    """Whether the tensor also goes on past the module, as the residual: a replacement must then
    happen inside the tensor, since handing the module another one would leave the residual."""

    is_flat: bool = False
    """Whether batch and sequence are one axis here (OPT flattens them before its MLP)."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """How a family's ``config.json`` calls things."""

    num_layers: str = "num_hidden_layers"
    d_model: str = "hidden_size"
    d_mlp: str = "intermediate_size"
    max_context: str = "max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that share one layout. Paths start at the base model, below any LM head."""

    name: str
    model_types: tuple[str, ...]
    """Values of ``model_type`` in ``config.json``."""

    blocks: str
    """Path of the list of blocks."""

    final_norm: str | None
    """Path of the norm before the LM head."""

    points: Mapping[str, Point]
    """Where each kind of site is."""

    keys: Keys = field(default_factory=Keys)
    wiring: Wiring = "sequential"
    is_causal: bool = True
    gain_is_offset: bool = False
    """Whether the final norm multiplies by 1 + weight."""

    def wiring_of(self, raw: Mapping[str, Any]) -> Wiring:
        """The wiring of the model that ``raw``, its ``config.json``, describes."""
        if self.name == "gpt_neox" and not raw.get("use_parallel_residual", True):
            return "sequential"
        if self.name == "opt" and not raw.get("do_layer_norm_before", True):
            return "post_norm"
        return self.wiring

    def points_of(self, wiring: Wiring) -> dict[str, Point]:
        """Where each kind of site is, without those that ``wiring`` lacks."""
        points = {kind: self.points[kind] for kind in KINDS if kind in self.points}
        if wiring == "parallel":
            points.pop("resid_mid", None)
        if self.name == "opt" and wiring == "post_norm":
            points["resid_mid"] = Point("self_attn_layer_norm", "output")
        return points


def _points(
    *, attn: str, mid: Point | None, down: str, mlp: str, is_flat: bool = False
) -> dict[str, Point]:
    return {
        "resid_pre": Point("", "input"),
        "attn_out": Point(attn, "output"),
        **({"resid_mid": mid} if mid else {}),
        "mlp_act": Point(down, "input", is_flat=is_flat),
        "mlp_out": Point(mlp, "output", is_flat=is_flat),
        "resid_post": Point("", "output"),
    }


def _before(norm: str) -> Point:
    return Point(norm, "input", is_shared=True)


_LLAMA = _points(
    attn="self_attn", mid=_before("post_attention_layernorm"), down="mlp.down_proj", mlp="mlp"
)
_GEMMA_2 = _points(
    attn="post_attention_layernorm",
    mid=_before("pre_feedforward_layernorm"),
    down="mlp.down_proj",
    mlp="post_feedforward_layernorm",
)
_GPT_2 = _points(attn="attn", mid=_before("ln_2"), down="mlp.c_proj", mlp="mlp")
_BERT = _points(
    attn="attention.output.dense",
    mid=Point("attention.output", "output"),
    down="output.dense",
    mlp="output.dense",
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "phi3"),
        blocks="layers",
        final_norm="norm",
        points=_LLAMA,
    ),
    Family(
        name="gemma",
        model_types=("gemma",),
        blocks="layers",
        final_norm="norm",
        points=_LLAMA,
        gain_is_offset=True,
    ),
    Family(
        name="gemma2",
        model_types=("gemma2", "gemma3_text"),
        blocks="layers",
        final_norm="norm",
        points=_GEMMA_2,
        gain_is_offset=True,
    ),
    Family(
        name="gpt2",
        model_types=("gpt2",),
        blocks="h",
        final_norm="ln_f",
        points=_GPT_2,
        keys=Keys(
            num_layers="n_layer", d_model="n_embd", d_mlp="n_inner", max_context="n_positions"
        ),
    ),
    Family(
        name="gpt_neo",
        model_types=("gpt_neo",),
        blocks="h",
        final_norm="ln_f",
        points=_GPT_2,
        keys=Keys(num_layers="num_layers"),
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        blocks="layers",
        final_norm="final_layer_norm",
        points=_points(
            attn="attention",
            mid=_before("post_attention_layernorm"),
            down="mlp.dense_4h_to_h",
            mlp="mlp",
        ),
        wiring="parallel",
    ),
    Family(
        name="gptj",
        model_types=("gptj",),
        blocks="h",
        final_norm="ln_f",
        points=_points(attn="attn", mid=None, down="mlp.fc_out", mlp="mlp"),
        keys=Keys(
            num_layers="n_layer", d_model="n_embd", d_mlp="n_inner", max_context="n_positions"
        ),
        wiring="parallel",
    ),
    Family(
        name="phi",
        model_types=("phi",),
        blocks="layers",
        final_norm="final_layernorm",
        points=_points(attn="self_attn", mid=None, down="mlp.fc2", mlp="mlp"),
        wiring="parallel",
    ),
    Family(
        name="opt",
        model_types=("opt",),
        blocks="decoder.layers",
        final_norm="decoder.final_layer_norm",
        points=_points(
            attn="self_attn",
            mid=Point("final_layer_norm", "input", is_shared=True, is_flat=True),
            down="fc2",
            mlp="fc2",
            is_flat=True,
        ),
        keys=Keys(d_mlp="ffn_dim"),
    ),
    Family(
        name="bert",
        model_types=("bert", "roberta"),
        blocks="encoder.layer",
        final_norm=None,
        points=_BERT,
        wiring="post_norm",
        is_causal=False,
    ),
    Family(
        name="distilbert",
        model_types=("distilbert",),
        blocks="transformer.layer",
        final_norm=None,
        points=_points(
            attn="attention",
            mid=Point("sa_layer_norm", "output"),
            down="ffn.lin2",
            mlp="ffn",
        ),
        keys=Keys(num_layers="n_layers", d_model="dim", d_mlp="hidden_dim"),
        wiring="post_norm",
        is_causal=False,
    ),
)

BY_NAME: dict[str, Family] = {family.name: family for family in FAMILIES}
BY_MODEL_TYPE: dict[str, Family] = {
    model_type: family for family in FAMILIES for model_type in family.model_types
}
