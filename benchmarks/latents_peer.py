"""The strongest examples of every latent by EleutherAI's delphi, in an environment of its own.

    python benchmarks/latents_peer.py MODEL GIVEN.safetensors LAYER K BATCH THREADS

MODEL is a folder of Llama form, GIVEN holds ``tokens`` and the weights of a TopK SAE. Imports
nothing of this library. For each line that it reads it runs one round, in which codes are cached,
written in delphi's files, and read again as ten strongest windows per latent, and prints a JSON
object with the wall and CPU seconds of it.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def encoder_of(weights: dict[str, torch.Tensor], k: int) -> Any:
    """Dense codes with k on per token, as delphi makes them of a sparse coder's indices."""

    def encode(x: torch.Tensor) -> torch.Tensor:
        pre = torch.nn.functional.linear(
            x - weights["b_dec"], weights["W_enc"], weights["b_enc"]
        ).relu()
        values, indices = pre.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values)

    return encode


@torch.no_grad()
def main() -> None:
    folder, given, layer, k, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with contextlib.redirect_stdout(sys.stderr):  # libraries like to print
        from delphi.config import (  # pyright: ignore[reportMissingImports]
            ConstructorConfig,
            SamplerConfig,
        )
        from delphi.latents import (  # pyright: ignore[reportMissingImports]
            LatentCache,
            LatentDataset,
        )
        from transformers import AutoTokenizer, LlamaForCausalLM

        logging.disable(logging.WARNING)
        weights = load_file(given)
        tokens = weights.pop("tokens")
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        place = f"model.layers.{layer}"
        encode = encoder_of(weights, int(k))
        sampling = SamplerConfig(n_examples_train=10, n_examples_test=0, train_type="top")
        making = ConstructorConfig(min_examples=1, n_non_activating=0)

        def one_round() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as temporary:
                raw = Path(temporary) / "latents"
                at = time.perf_counter(), time.process_time()
                cache = LatentCache(model, {place: encode}, batch_size=int(batch))
                cache.run(tokens.numel(), tokens)
                cache.save_splits(5, raw)
                config = {"model_name": folder, "ctx_len": tokens.shape[1]}
                (raw / place / "config.json").write_text(json.dumps(config))
                data = LatentDataset(raw, sampling, making, tokenizer=tokenizer)
                found = [record for record in data if record is not None]
                seconds = (time.perf_counter() - at[0], time.process_time() - at[1])
                return {"seconds": seconds, "latents": sum(bool(one.train) for one in found)}

    names = ("eai-delphi", "torch", "transformers")
    versions = {name: version(name) for name in names}
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            answer = one_round()
        sys.stdout.write(json.dumps({**answer, "versions": versions}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
