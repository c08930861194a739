"""The loop in which small language models learn synthetic languages, on the CPU.

A run that was stopped goes on from its last checkpoint as if it had never stopped: checkpoints hold
weights, optimizer and the place in the data, and what was logged after one is done, and logged,
again.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_lib.config import Config, digest
from sae_lib.errors import BadInput


class LoopConfig(Config):
    """What all such trainings have in common."""

    seed: int = 0
    """Seed of the initial weights; the texts follow the seed of the language."""

    num_tokens: int = Field(gt=0)
    """Tokens to read, special tokens included."""

    batch_contexts: int = Field(gt=0)
    """Contexts per step."""

    context: int = Field(gt=0)
    """Tokens per context."""

    layers: int = Field(gt=0)
    """Blocks."""

    hidden: int = Field(gt=0)
    """Width of the residual stream."""

    heads: int = Field(gt=0)
    """Attention heads."""

    lr: float = Field(gt=0)
    """Peak learning rate; falls to a hundredth along a cosine."""

    warmup_steps: int = Field(default=200, ge=0)
    """Steps in which the learning rate rises to its peak."""

    weight_decay: float = Field(ge=0)
    """AdamW weight decay of matrices; vectors have none."""

    clip_norm: float = Field(default=1.0, gt=0)
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


class Source(Protocol):
    """Where batches come from."""

    @property
    def position(self) -> Mapping[str, int]:
        """All there is to remember in order to go on from here."""
        ...

    def batch(self, step: int) -> Int[Tensor, "batch seq"]:
        """The contexts of a step, numbered from 0."""
        ...


def draw_weights(model: nn.Module, seed: int) -> None:
    """Normal matrices of deviation 0.02 that follow ``seed`` alone.

    transformers initialises from the global generator; drawing again keeps ours out of it.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)


def learning_rate(cfg: LoopConfig, step: int) -> float:
    """Linear rise, then a cosine down to a hundredth of the peak."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    share = (step - cfg.warmup_steps) / max(1, cfg.num_steps - cfg.warmup_steps)
    return cfg.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def _optimizer(model: nn.Module, cfg: LoopConfig, beta2: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": cfg.weight_decay},
         {"params": vectors, "weight_decay": 0.0}],
        lr=cfg.lr, betas=(0.9, beta2), fused=True,
    )  # fmt: skip


def _save_checkpoint(
    file: Path, model: nn.Module, optimizer: torch.optim.AdamW, notes: dict[str, str]
) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata=notes)
    partial.replace(file)


def _load_checkpoint(file: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, str]:
    with safe_open(file, framework="pt") as stored:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(stored.get_tensor(f"model.{name}"))
            optimizer.state[parameter] = {
                key: stored.get_tensor(f"optimizer.{key}.{name}")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        return stored.metadata()


def run(
    model: PreTrainedModel,
    cfg: LoopConfig,
    source: Callable[[Mapping[str, int]], Source],
    loss_of: Callable[[Any, Int[Tensor, "batch seq"]], Float[Tensor, ""]],
    *,
    work_dir: Path,
    lowest: float,
    beta2: float,
    resume: bool = True,
    checkpoint_every: int = 500,
    stop_after: int | None = None,
    after_step: Callable[[Step], None] = lambda step: None,
) -> bool:
    """Train ``model`` in place; whether it is finished (it is not after ``stop_after``).

    ``source`` gives batches from a position on ({} is the start); ``lowest`` is the entropy floor,
    for the log. Checkpoints and ``log.jsonl`` go to ``work_dir``. Raises `BadInput` when the
    checkpoint there was made with other settings, or the loss is no longer a number.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work_dir / "checkpoint.safetensors", work_dir / "log.jsonl"
    fingerprint = digest(cfg.model_dump(mode="json"))
    optimizer = _optimizer(model, cfg, beta2)
    start, batches = 0, source({})
    if resume and checkpoint.exists():
        notes = _load_checkpoint(checkpoint, model, optimizer)
        if notes.pop("config") != fingerprint:
            raise BadInput(
                "the checkpoint was made with other settings; train into another folder or "
                "without resuming",
                file=checkpoint,
            )
        start = int(notes.pop("step"))
        batches = source({key: int(value) for key, value in notes.items()})
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:start]))
    else:
        log.unlink(missing_ok=True)

    model.train()
    for step in range(start, cfg.num_steps):
        if step == stop_after:
            return False
        began = time.perf_counter()
        ids = batches.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bf16):
            loss = loss_of(model, ids)
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
            place = {key: str(value) for key, value in batches.position.items()}
            notes = {"config": fingerprint, "step": str(done), **place}
            _save_checkpoint(checkpoint, model, optimizer, notes)
        after_step(Step(done, cfg.num_steps, value))
    return True


def record_of(
    model: nn.Module, cfg: LoopConfig, step: int, work_dir: Path, command: str
) -> dict[str, Any]:
    """What ``training.json`` says of a training after ``step``, but for the report."""
    lines = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()[:step]]
    every = max(1, len(lines) // 100)
    curve = [
        {"step": part[-1]["step"]}
        | {key: round(sum(x[key] for x in part) / len(part), 4) for key in ("loss", "excess")}
        for part in (lines[i : i + every] for i in range(0, len(lines), every))
    ]
    return {
        "script": command,
        "config": cfg.model_dump(mode="json"),
        "config_digest": digest(cfg.model_dump(mode="json")),
        "step": step,
        "num_steps": cfg.num_steps,
        "num_tokens": step * cfg.batch_contexts * cfg.context,
        "finished": step == cfg.num_steps,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__.split("+")[0],
        "curve": curve,
    }
