"""Our metrics beside SAEBench's functions, on the same SAE and tokens of the world's model.

    python -m benchmarks.saebench_agreement --peer .venv-saebench/bin/python [--contexts 32]

For a TopK, a ReLU and a JumpReLU SAE, trained here for a moment, every number of SAEBench's core
evaluation stands beside ours. Contexts are ``[BOS] text [EOS]``, so that both count the same
positions. Expected:

    agrees     to 1e-3, relative
    predicted  SAEBench's is another number (its mse is divided by the tokens of a batch twice, its
               explained variance takes squares for means, with special tokens spared the ablated
               pass spares none); it agrees to 1e-3 with the one computed from ours by that rule

Exits with 1 where that is not so.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_lib.activations.tokens import TokenRows
from sae_lib.evaluate import evaluate_site, read_metric
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import BUNDLED
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.saes.base import VARIANTS, SparseCoder
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import take_step
from sae_lib.training.memory import MemoryBatch
from sae_lib.training.trainee import Progress, Trainee

LAYER = 2
SITE = f"resid_post.{LAYER}"
TOLERANCE = 1e-3
CONTEXT = 128

CODERS: dict[str, dict[str, Any]] = {
    "topk": {"k": 16},
    "standard": {"target_l0": 16},
    "jumprelu": {"form": "target_l0", "target_l0": 16},
}


class Contexts(NamedTuple):
    """Contexts in memory, as an evaluation reads them."""

    tokens: Tensor
    keep: Tensor

    @property
    def num_contexts(self) -> int:
        return len(self.tokens)

    def batches(self, batch_contexts: int) -> Iterator[tuple[range, TokenRows]]:
        """The contexts in order."""
        for low in range(0, len(self.tokens), batch_contexts):
            part = self.tokens[low : low + batch_contexts]
            numbers = range(low, low + len(part))
            document = torch.tensor(numbers)[:, None].expand_as(part)
            position = torch.arange(part.shape[1]).expand_as(part)
            yield numbers, TokenRows(part, document, position, self.keep[low : numbers.stop])


class Line(NamedTuple):
    """One number of SAEBench beside ours."""

    kind: str
    name: str
    ours: float
    theirs: float
    predicted: float | None
    """What SAEBench's rule makes of our numbers, where that is another one than ours."""

    @property
    def expected(self) -> float:
        return self.ours if self.predicted is None else self.predicted

    @property
    def difference(self) -> float:
        return abs(self.theirs - self.expected) / max(abs(self.expected), 1e-12)

    @property
    def holds(self) -> bool:
        return math.isfinite(self.theirs) and self.difference <= TOLERANCE


def contexts(model: LanguageModel, num: int, *, split: str) -> Contexts:
    """``[BOS] text [EOS]``, the text cut from documents of the world one after the other."""
    tokenizer: Any = model.tokenizer
    ids: list[int] = []
    per_context = CONTEXT - 2
    vocabulary = tokenizer.get_vocab()
    for document in documents(WorldConfig(), split=split):
        ids += [vocabulary[word] for word in document.tokens]
        if len(ids) >= num * per_context:
            break
    text = torch.tensor(ids[: num * per_context]).view(num, per_context)
    bos = torch.full((num, 1), tokenizer.bos_token_id)
    eos = torch.full((num, 1), tokenizer.eos_token_id)
    tokens = torch.cat([bos, text, eos], 1)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, [0, -1]] = False
    return Contexts(tokens, keep)


@torch.no_grad()
def activations(model: LanguageModel, given: Contexts) -> Tensor:
    parts = [
        model.capture(rows.tokens, [SITE])[SITE][rows.keep].float() for _, rows in given.batches(16)
    ]
    return torch.cat(parts)


def train(kind: str, x: Tensor, d_sae: int, steps: int) -> SparseCoder[Any]:
    """A short training, at unit mean square norm; the coder then takes raw activations."""
    config = VARIANTS[kind].model_validate(
        {"d_in": x.shape[1], "d_sae": d_sae, **CODERS[kind], "seed": 0}
    )
    batch = 512
    settings = TrainConfig(tokens=steps * batch, batch_tokens=batch)
    trainee = Progress(Trainee(kind, config.build(), "x", resolve(settings, config)))
    factor = float(x.square().sum(-1).mean().rsqrt())
    scaled = x * factor
    trainee.coder.initialise_(scaled)
    order = torch.Generator().manual_seed(0)
    for number in range(steps):
        rows = scaled[torch.randint(len(x), (batch,), generator=order)]
        take_step([trainee], MemoryBatch({"x": rows}, torch.arange(batch)), number)
    coder = trainee.coder
    coder.scale_(1 / factor)
    return coder.eval().requires_grad_(False)


def measure(model: LanguageModel, given: Contexts, coder: Any, mean: Tensor) -> dict[Any, float]:
    """Our numbers by name and definition."""
    metrics = [
        read_metric("reconstruction"),
        read_metric("sparsity"),
        read_metric({"name": "model_loss", "splice": "all"}),
        read_metric({"name": "model_loss", "splice": "kept"}),
    ]
    found = evaluate_site(
        model, given, {SITE: {"coder": coder}}, metrics, mean_activation={SITE: mean}
    )
    rows = found[SITE, "coder"].measurements
    return {(row.name, row.definition): row.value for row in rows if row.value is not None}


def peer(python: Path, coder: Any, kind: str, given: Contexts, batch: int) -> dict[str, Any]:
    """SAEBench's numbers."""
    weights = {
        "W_enc": coder.W_enc.T.contiguous(),
        "W_dec": coder.W_dec.contiguous(),
        "b_enc": coder.b_enc,
        "b_dec": coder.b_dec,
    }
    if kind == "jumprelu":
        weights["threshold"] = coder.threshold
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.safetensors"
        special = torch.tensor(sorted({int(given.tokens[0, 0]), int(given.tokens[0, -1]), 0}))
        tensors = {name: value.detach().clone() for name, value in weights.items()}
        save_file({**tensors, "tokens": given.tokens, "special": special}, file)
        command = [python, Path(__file__).with_name("saebench_peer.py"), BUNDLED / "world"]
        done = subprocess.run(
            [*map(str, command), str(file), str(LAYER), kind, str(getattr(coder.cfg, "k", 0)),
             str(batch)],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"the peer failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    kind: str, ours: Mapping[Any, float], theirs: Mapping[str, Any], d_in: int, batch: int
) -> list[Line]:
    """Every number that both have."""
    quality = theirs["activations"]
    mse = ours["mse", "per_token"]
    energy = mse / ours["fvu", "uncentred"]
    scalar = energy / d_in
    wrong_variance = 1 - mse / (energy - scalar**2)
    same = {
        "l0": ("l0", "mean_of_tokens"),
        "l1": ("l1", "mean_of_tokens"),
        "cossim": ("cosine", "mean_of_tokens"),
        "l2_norm_in": ("l2_norm_in", "mean_of_tokens"),
        "l2_norm_out": ("l2_norm_out", "mean_of_tokens"),
        "l2_ratio": ("l2_ratio", "mean_of_ratios"),
        "relative_reconstruction_bias": ("relative_reconstruction_bias", "ratio_of_sums"),
        "explained_variance_legacy": ("explained_variance", "legacy_mean_of_ratios"),
    }
    lines = [Line(kind, name, ours[key], quality[name], None) for name, key in same.items()]
    tokens = batch * (CONTEXT - 2)
    lines += [
        Line(kind, "mse", mse, quality["mse"], mse / tokens),
        Line(
            kind,
            "explained_variance",
            ours["explained_variance", "ratio_of_sums"],
            quality["explained_variance"],
            wrong_variance,
        ),
    ]
    clean = ours["ce_clean", "mean_of_tokens"]
    for theirs_of, where in (("all", "all"), ("spared", "kept")):
        found = theirs[theirs_of]
        ce, kl = ours["ce_spliced", f"splice_{where}"], ours["kl_spliced", f"splice_{where}"]
        # whichever tokens are spared in the spliced pass, SAEBench ablates all of them
        ce_ablated = ours["ce_ablated", "zero_ablation_all"]
        kl_ablated = ours["kl_ablated", "zero_ablation_all"]
        is_same = where == "all"
        recovered = (ce_ablated - ce) / (ce_ablated - clean)
        pairs = {
            "ce_loss_without_sae": (clean, None),
            "ce_loss_with_sae": (ce, None),
            "kl_div_with_sae": (kl, None),
            "ce_loss_with_ablation": (
                ours["ce_ablated", f"zero_ablation_{where}"],
                None if is_same else ce_ablated,
            ),
            "kl_div_with_ablation": (
                ours["kl_ablated", f"zero_ablation_{where}"],
                None if is_same else kl_ablated,
            ),
            "ce_loss_score": (
                ours["loss_recovered", f"zero_ablation_{where}"],
                None if is_same else recovered,
            ),
            "kl_div_score": (
                ours["kl_score", f"zero_ablation_{where}"],
                None if is_same else 1 - kl / kl_ablated,
            ),
        }
        lines += [
            Line(kind, f"{name} ({theirs_of})", own, found[name], predicted)
            for name, (own, predicted) in pairs.items()
        ]
    return lines


def table(lines: list[Line]) -> str:
    head = f"{'SAE':9} {'number':36} {'ours':>12} {'SAEBench':>12} {'predicted':>12} {'off by':>9}"
    rows = [head]
    for line in lines:
        predicted = "" if line.predicted is None else f"{line.predicted:.6g}"
        verdict = "" if line.holds else "  NO"
        rows.append(
            f"{line.kind:9} {line.name:36} {line.ours:12.6g} {line.theirs:12.6g} {predicted:>12}"
            f" {line.difference:9.1e}{verdict}"
        )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, default=Path(".venv-saebench/bin/python"))
    parser.add_argument("--contexts", type=int, default=32, help="a multiple of the batch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kind", nargs="+", default=list(CODERS), choices=list(CODERS))
    parser.add_argument("--json", type=Path)
    said = parser.parse_args(arguments)
    if said.contexts % said.batch:
        parser.error(f"--contexts must be a multiple of {said.batch}; got {said.contexts}")
    model = load_model(ModelConfig(id="world"))
    given = contexts(model, said.contexts, split="test")
    x = activations(model, contexts(model, 128, split="train"))
    lines: list[Line] = []
    versions: dict[str, str] = {}
    for kind in said.kind:
        coder = train(kind, x, said.d_sae, said.steps)
        ours = measure(model, given, coder, x.mean(0))
        theirs = peer(said.peer, coder, kind, given, said.batch)
        versions = theirs["versions"]
        lines += compare(kind, ours, theirs, x.shape[1], said.batch)
    sys.stdout.write(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
    sys.stdout.write(table(lines) + "\n")
    if said.json:
        rows = [{**line._asdict(), "difference": line.difference} for line in lines]
        said.json.write_text(json.dumps({"versions": versions, "lines": rows}, indent=2) + "\n")
    failed = [line for line in lines if not line.holds]
    right = len(lines) - len(failed)
    sys.stdout.write(f"{right} of {len(lines)} numbers are as expected\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
