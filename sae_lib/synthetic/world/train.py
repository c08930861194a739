"""Train a small stock Llama on the world from scratch.

Documents are drawn as they are needed and never twice. Contexts are cut from one stream of
``<bos> words <eos>``, so most of them begin inside a document. A run that was stopped goes on from
its last checkpoint as if it had never stopped.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sae_lib.config import Config, digest
from sae_lib.errors import BadInput
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import floor
from sae_lib.synthetic.world.report import world_report
from sae_lib.synthetic.world.tokenizer import (
    BOS,
    EOS,
    PAD,
    save_tokenizer,
    token_stream,
    vocabulary,
)


class TrainConfig(Config):
    """The model and how it is trained."""

    world: WorldConfig = WorldConfig()
    """What it reads."""

    seed: int = 0
    """Seed of the initial weights; the texts follow the seed of the world."""

    num_tokens: int = 10_000_000
    """Tokens to read, special tokens included."""

    batch_contexts: int = 16
    """Contexts per step."""

    context: int = 128
    """Tokens per context."""

    layers: int = 4
    """Decoder blocks."""

    hidden: int = 192
    """Width of the residual stream."""

    heads: int = 6
    """Attention heads."""

    intermediate: int = 512
    """Width of the gated MLP."""

    lr: float = 2e-3
    """Peak learning rate; falls to a hundredth along a cosine."""

    warmup_steps: int = 100
    """Steps in which the learning rate rises to its peak."""

    weight_decay: float = 0.05
    """AdamW weight decay of matrices; vectors have none."""

    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    bf16: bool = True
    """Whether matrix products run in bfloat16; weights and losses stay in float32."""

    @property
    def num_steps(self) -> int:
        return max(1, self.num_tokens // (self.batch_contexts * self.context))


class Step(NamedTuple):
    """What a callback learns after each step."""

    step: int
    num_steps: int
    loss: float
    """Nats per predicted token on this batch."""


class _Contexts:
    """Cuts the stream of documents into contexts; ``position`` is all there is to remember."""

    def __init__(self, cfg: TrainConfig, next_document: int = 0, skip: int = 0) -> None:
        self._cfg = cfg
        self._stream = token_stream(cfg.world, next_document)
        self._buffer: list[int] = []
        self._document, self._used = next_document, 0
        self._starts: list[tuple[int, int]] = []
        self._take(skip)

    def _take(self, num: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < num:
            if not self._buffer:
                self._document, self._buffer = next(self._stream)
                self._used = 0
            part = self._buffer[: num - len(taken)]
            taken += part
            self._used += len(part)
            self._buffer = self._buffer[len(part) :]
        return taken

    @property
    def position(self) -> tuple[int, int]:
        """The document to read next, and how many of its tokens are used up."""
        return (self._document - 1, self._used) if self._buffer else (self._document, 0)

    def batch(self) -> Int[Tensor, "batch seq"]:
        rows, width = self._cfg.batch_contexts, self._cfg.context
        return torch.tensor(self._take(rows * width)).view(rows, width)


def new_model(cfg: TrainConfig) -> LlamaForCausalLM:
    """Untrained, on the CPU, in float32. Weights follow ``cfg.seed``."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary()),
            hidden_size=cfg.hidden,
            intermediate_size=cfg.intermediate,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            max_position_embeddings=cfg.context,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            use_cache=False,
        )
    )
    # transformers initialises from the global generator; drawing again keeps ours out of it
    draw = torch.Generator().manual_seed(cfg.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)
    return model


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear rise, then a cosine down to a hundredth of the peak."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    share = (step - cfg.warmup_steps) / max(1, cfg.num_steps - cfg.warmup_steps)
    return cfg.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def _optimizer(model: LlamaForCausalLM, cfg: TrainConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": cfg.weight_decay},
         {"params": vectors, "weight_decay": 0.0}],
        lr=cfg.lr, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip


def _save_checkpoint(
    file: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, notes: dict[str, str]
) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata=notes)
    partial.replace(file)


def _load_checkpoint(
    file: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW
) -> dict[str, str]:
    with safe_open(file, framework="pt") as stored:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(stored.get_tensor(f"model.{name}"))
            optimizer.state[parameter] = {
                key: stored.get_tensor(f"optimizer.{key}.{name}")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        return stored.metadata()


def _replace_folder(made: Path, target: Path) -> None:
    """Put the files of ``made`` in place one by one, weights last; each replacement is atomic."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(made.iterdir(), key=lambda f: f.name == "model.safetensors"):
        file.replace(target / file.name)
    shutil.rmtree(made)


_README = """# world

A Llama of {millions:.1f} million parameters ({layers} layers, width {hidden}) that learned the
bundled world from scratch: {tokens:,} tokens of biographies, facts, reviews, news and stories.
Made by `python -m sae_lib.synthetic.world.train`; `training.json` holds the settings, the
entropy floor of the generator and what the model was measured to know.
"""


def publish(
    model: LlamaForCausalLM, cfg: TrainConfig, out_dir: Path, *, step: int, num_documents: int
) -> dict[str, object]:
    """Write a Hugging Face folder into ``out_dir`` and return what ``training.json`` says."""
    made = out_dir.parent / f".{out_dir.name}.partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.dtype = torch.float32
    model.config.use_cache = True  # training goes without, generation should not
    model.config.save_pretrained(made)
    assert model.generation_config is not None
    model.generation_config.save_pretrained(made)
    # model.save_pretrained would write the same tensors, and a progress bar
    save_file(
        {name: p.detach().contiguous() for name, p in model.state_dict().items()},
        made / "model.safetensors",
        metadata={"format": "pt"},
    )
    (made / "model.safetensors").chmod(0o644)
    save_tokenizer(made)
    tokens = step * cfg.batch_contexts * cfg.context
    record: dict[str, object] = {
        "script": "python -m sae_lib.synthetic.world.train",
        "config": cfg.model_dump(mode="json"),
        "config_digest": digest(cfg.model_dump(mode="json")),
        "step": step,
        "num_steps": cfg.num_steps,
        "num_tokens": tokens,
        "finished": step == cfg.num_steps,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__.split("+")[0],
        "report": world_report(made, num_documents, cfg=cfg.world) if num_documents else None,
    }
    (made / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (made / "README.md").write_text(
        _README.format(
            millions=sum(p.numel() for p in model.parameters()) / 1e6,
            layers=cfg.layers, hidden=cfg.hidden, tokens=tokens,
        )
    )  # fmt: skip
    _replace_folder(made, out_dir)
    return record


def train_world(
    out_dir: Path,
    cfg: TrainConfig,
    *,
    work_dir: Path,
    threads: int | None = None,
    resume: bool = True,
    checkpoint_every: int = 200,
    publish_at: tuple[int, ...] = (),
    stop_after: int | None = None,
    report_documents: int = 1000,
    on_progress: Callable[[Step], None] | None = None,
) -> Path:
    """Train and publish into ``out_dir``; checkpoints and ``log.jsonl`` go to ``work_dir``.

    ``publish_at`` names steps after which an unfinished model is published already;
    ``stop_after`` ends the call after that step, to be resumed later. The number of ``threads``
    is that of the whole process. Raises `BadInput` when the checkpoint was made with other
    settings.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work_dir / "checkpoint.safetensors", work_dir / "log.jsonl"
    fingerprint = digest(cfg.model_dump(mode="json"))
    model = new_model(cfg)
    optimizer = _optimizer(model, cfg)
    start, contexts = 0, _Contexts(cfg)
    if resume and checkpoint.exists():
        notes = _load_checkpoint(checkpoint, model, optimizer)
        if notes["config"] != fingerprint:
            raise BadInput(
                "the checkpoint was made with other settings; train into another folder or "
                "without resuming",
                file=checkpoint,
            )
        start = int(notes["step"])
        contexts = _Contexts(cfg, int(notes["document"]), int(notes["used"]))
        # what was logged after the checkpoint will be done, and logged, again
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:start]))
    elif log.exists():
        log.unlink()

    lowest = floor(cfg.world, 500, split="validation")["all"]
    model.train()
    for step in range(start, cfg.num_steps):
        if step == stop_after:
            return out_dir
        began = time.perf_counter()
        ids = contexts.batch()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        done, value = step + 1, float(loss.detach())
        if not math.isfinite(value):
            raise BadInput(
                f"the loss is {value} after step {done}; a smaller lr would help",
                key="lr",
                value=cfg.lr,
            )
        line = {
            "step": done,
            "loss": value,
            "excess": value - lowest,
            "tokens_per_second": round(ids.numel() / (time.perf_counter() - began)),
        }
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if done % checkpoint_every == 0 or done in {cfg.num_steps, stop_after}:
            document, used = contexts.position
            notes = {"config": fingerprint, "step": str(done), "document": str(document),
                     "used": str(used)}  # fmt: skip
            _save_checkpoint(checkpoint, model, optimizer, notes)
        if done in publish_at and done < cfg.num_steps:
            publish(model, cfg, out_dir, step=done, num_documents=report_documents // 10)
            model.train()
        if on_progress:
            on_progress(Step(done, cfg.num_steps, value))
    publish(model, cfg, out_dir, step=cfg.num_steps, num_documents=report_documents)
    return out_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TrainConfig().num_tokens)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--publish-at", type=int, nargs="*", default=[], help="steps")
    parser.add_argument("--no-resume", dest="resume", action="store_false")
    given = parser.parse_args()
    train_world(
        given.out,
        TrainConfig(seed=given.seed, num_tokens=given.tokens),
        work_dir=given.work,
        threads=given.threads,
        resume=given.resume,
        publish_at=tuple(given.publish_at),
    )


if __name__ == "__main__":
    main()
