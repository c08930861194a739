"""SAEBench's own metric functions on given weights and tokens, in an environment of its own.

    python benchmarks/saebench_peer.py MODEL GIVEN.safetensors SITE_LAYER KIND K BATCH

MODEL is a folder of Llama form, GIVEN holds ``tokens`` and the weights of an SAE in SAELens' form.
Imports nothing of this library. Prints one JSON object: numbers by whether special tokens are
spared in the spliced pass.
"""

import contextlib
import json
import sys
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file


def hooked(folder: str) -> tuple[Any, float]:
    """The model as a HookedTransformer, and how far its logits are from those of transformers."""
    from transformer_lens import (  # pyright: ignore[reportMissingImports]
        HookedTransformer,
        HookedTransformerConfig,
    )
    from transformer_lens.pretrained.weight_conversions.llama import (  # pyright: ignore[reportMissingImports]
        convert_llama_weights,
    )
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    c = llama.config
    d_head = c.hidden_size // c.num_attention_heads
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        n_ctx=c.max_position_embeddings,
        d_head=d_head,
        n_heads=c.num_attention_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=c.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_adjacent_pairs=False,
        rotary_base=int(c.rope_parameters["rope_theta"]),
        device="cpu",
    )
    model = HookedTransformer(cfg)
    model.load_state_dict(convert_llama_weights(llama, cfg), strict=False)
    tokens = torch.randint(4, c.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = llama(tokens).logits, model(tokens, prepend_bos=False)
    difference = (theirs.log_softmax(-1) - ours.log_softmax(-1)).abs().max()
    return model.eval(), float(difference)


def build_sae(kind: str, k: int, weights: dict[str, torch.Tensor], layer: int) -> Any:
    """SAELens' SAE with these weights, beside the settings that SAEBench reads."""
    from sae_lens import (  # pyright: ignore[reportMissingImports]
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

    d_in, d_sae = weights["W_enc"].shape
    shape = {"d_in": d_in, "d_sae": d_sae, "apply_b_dec_to_input": True}
    if kind == "topk":
        sae = TopKSAE(TopKSAEConfig(**shape, k=k))
    elif kind == "jumprelu":
        sae = JumpReLUSAE(JumpReLUSAEConfig(**shape))
    else:
        sae = StandardSAE(StandardSAEConfig(**shape))
    sae.load_state_dict(weights)
    cfg = SimpleNamespace(
        hook_name=f"blocks.{layer}.hook_resid_post",
        hook_layer=layer,
        hook_head_index=None,
        d_sae=d_sae,
    )
    return SimpleNamespace(encode=sae.encode, decode=sae.decode, cfg=cfg, device="cpu", sae=sae)


class Batches:
    """The tokens, batch after batch, as SAEBench asks a store for them."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.at = tokens, 0

    def get_batch_tokens(self, size: int) -> torch.Tensor:
        found = self.tokens[self.at : self.at + size]
        self.at += size
        return found


@torch.no_grad()
def main() -> None:
    folder, given, layer, kind, k, batch = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):  # libraries like to print
        from sae_bench.evals.core.main import (  # pyright: ignore[reportMissingImports]
            get_downstream_reconstruction_metrics,
            get_sparsity_and_variance_metrics,
        )

        tensors = load_file(given)
        tokens = tensors.pop("tokens")
        special = set(tensors.pop("special").tolist())
        model, difference = hooked(folder)
        sae = build_sae(kind, int(k), tensors, int(layer))
        size, num = int(batch), len(tokens) // int(batch)
        metrics, _ = get_sparsity_and_variance_metrics(
            sae,
            model,
            Batches(tokens),
            n_batches=num,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            eval_batch_size_prompts=size,
            model_kwargs={},
            ignore_tokens=special,
        )
        found: dict[str, Any] = {"logit_difference": difference, "activations": metrics}
        for spared in (False, True):
            found["spared" if spared else "all"] = get_downstream_reconstruction_metrics(
                sae,
                model,
                Batches(tokens),
                compute_kl=True,
                compute_ce_loss=True,
                n_batches=num,
                eval_batch_size_prompts=size,
                ignore_tokens=special,
                exclude_special_tokens_from_reconstruction=spared,
            )
        names = ("sae-bench", "sae-lens", "transformer-lens", "torch", "transformers")
        found["versions"] = {name: version(name) for name in names}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
