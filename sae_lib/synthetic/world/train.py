"""Train a small stock Llama on the world from scratch, or go on from another one.

Documents are drawn as they are needed and never twice. Contexts are cut from one stream of
``<bos> words <eos>``, so most of them begin inside a document; every few steps they are twice as
long, so that the model knows all its positions. A run that was stopped goes on from its last
checkpoint as if it had never stopped.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from sae_lib.config import Config, digest
from sae_lib.errors import BadInput, MissingFile
from sae_lib.synthetic.world.bundled import world_model_dir
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import floor
from sae_lib.synthetic.world.publish import publish
from sae_lib.synthetic.world.report import world_report
from sae_lib.synthetic.world.tokenizer import BOS, EOS, PAD, token_stream, vocabulary


class TrainConfig(Config):
    """The model and how it is trained."""

    world: WorldConfig = WorldConfig()
    """What it reads."""

    seed: int = 0
    """Seed of the initial weights; the texts follow the seed of the world."""

    start: str = ""
    """Folder of the model to begin with, or ``world`` for the bundled one; a new model if empty."""

    num_tokens: int = 44_000_000
    """Tokens to read, special tokens included."""

    batch_contexts: int = 32
    """Contexts per step; half as many where they are long."""

    context: int = 128
    """Tokens per context."""

    long_every: int = 8
    """Every so many steps contexts are twice as long; 0 never."""

    layers: int = 5
    """Decoder blocks."""

    hidden: int = 192
    """Width of the residual stream."""

    heads: int = 6
    """Attention heads."""

    intermediate: int = 512
    """Width of the gated MLP."""

    lr: float = 2e-3
    """Peak learning rate; falls to a hundredth along a cosine."""

    warmup_steps: int = 200
    """Steps in which the learning rate rises to its peak."""

    weight_decay: float = 0.05
    """AdamW weight decay of matrices; vectors have none."""

    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    bf16: bool = True
    """Whether matrix products run in bfloat16; weights and losses stay in float32."""

    compile: bool = True
    """Whether the forward and backward pass are compiled; 1.3 to 1.9 times as fast on 2 cores."""

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

    def batch(self, step: int) -> Int[Tensor, "batch seq"]:
        """The contexts of a step, numbered from 0; always the same number of tokens."""
        rows, width = self._cfg.batch_contexts, self._cfg.context
        every = self._cfg.long_every
        if every and step % every == every - 1:
            rows, width = rows // 2, 2 * width
        return torch.tensor(self._take(rows * width)).view(rows, width)


def new_model(cfg: TrainConfig) -> LlamaForCausalLM:
    """What training begins with, on the CPU, in float32. New weights follow ``cfg.seed``."""
    if cfg.start:
        folder = world_model_dir() if cfg.start == "world" else Path(cfg.start)
        if not (folder / "config.json").exists():
            raise MissingFile("there is no model to begin with", file=folder, key="start")
        begun = LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        begun.config.use_cache = False
        return begun
    model = LlamaForCausalLM._from_config(
        LlamaConfig(
            vocab_size=len(vocabulary()),
            hidden_size=cfg.hidden,
            intermediate_size=cfg.intermediate,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            max_position_embeddings=2 * cfg.context,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            use_cache=False,
        ),
        attn_implementation="eager",  # the fused kernel's backward pass is slow at this size
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


def _loss(model: LlamaForCausalLM, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    hidden = model.model(input_ids=ids).last_hidden_state
    logits = model.lm_head(hidden[:, :-1]).float()
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _record(
    model: LlamaForCausalLM, cfg: TrainConfig, step: int, log: Path, command: str
) -> dict[str, Any]:
    """What ``training.json`` says, but for the report."""
    lines = [json.loads(line) for line in log.read_text().splitlines()[:step]]
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


def train_world(
    out_dir: Path,
    cfg: TrainConfig,
    *,
    work_dir: Path,
    name: str = "world",
    threads: int | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    revisions: Mapping[str, int] | None = None,
    stop_after: int | None = None,
    report_documents: int = 1000,
    command: str = "sae world train",
    on_progress: Callable[[Step], None] | None = None,
) -> Path:
    """Train and publish into ``out_dir``; checkpoints and ``log.jsonl`` go to ``work_dir``.

    ``revisions`` names steps after which the unfinished model is published as well, as
    ``revisions/NAME`` in ``out_dir``; ``stop_after`` ends the call after that step, to be resumed
    later. The number of ``threads`` is that of the whole process. Raises `BadInput` when the
    checkpoint was made with other settings, `MissingFile` when there is no model to begin with.
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

    origin = Path(cfg.start).name if cfg.start else ""
    lowest = floor(cfg.world, 500, split="validation")["all"]
    loss_of = torch.compile(_loss) if cfg.compile else _loss
    model.train()
    for step in range(start, cfg.num_steps):
        if step == stop_after:
            return out_dir
        began = time.perf_counter()
        ids = contexts.batch(step)
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
            document, used = contexts.position
            notes = {"config": fingerprint, "step": str(done), "document": str(document),
                     "used": str(used)}  # fmt: skip
            _save_checkpoint(checkpoint, model, optimizer, notes)
        for revision, place in (revisions or {}).items():
            if done == place:
                record = _record(model, cfg, done, log, command)
                publish(model, out_dir / "revisions" / revision, record, name=f"{name}, {revision}",
                        start=origin)  # fmt: skip
                model.config.use_cache = False
        if on_progress:
            on_progress(Step(done, cfg.num_steps, value))
    record = _record(model, cfg, cfg.num_steps, log, command)
    publish(model, out_dir, record, name=name, start=origin)
    if report_documents:
        record["report"] = world_report(out_dir, report_documents, cfg=cfg.world)
        publish(model, out_dir, record, name=name, start=origin)
    return out_dir
