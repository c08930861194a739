"""Train a small stock Llama on the world from scratch, or go on from another one.

Documents are drawn as they are needed and never twice. Contexts are cut from one stream of
``<bos> words <eos>``, so most of them begin inside a document; every few steps they are twice as
long, so that the model knows all its positions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from sae_lib.errors import MissingFile
from sae_lib.synthetic.lm_training import LoopConfig, Step, draw_weights, record_of, run
from sae_lib.synthetic.word_level import BOS, EOS, PAD
from sae_lib.synthetic.world.bundled import world_model_dir
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import floor
from sae_lib.synthetic.world.publish import publish
from sae_lib.synthetic.world.report import report_json, world_report
from sae_lib.synthetic.world.tokenizer import token_stream, vocabulary


class TrainConfig(LoopConfig):
    """The model and how it is trained."""

    world: WorldConfig = WorldConfig()
    """What it reads."""

    start: str = ""
    """Folder of the model to begin with, or ``world`` for the bundled one; a new model if empty."""

    num_tokens: int = Field(default=44_000_000, gt=0)
    """Tokens to read, special tokens included."""

    batch_contexts: int = Field(default=32, gt=0)
    """Contexts per step; half as many where they are long."""

    context: int = Field(default=128, gt=0)
    """Tokens per context."""

    long_every: int = Field(default=8, ge=0)
    """Every so many steps contexts are twice as long; 0 never."""

    layers: int = Field(default=5, gt=0)
    """Decoder blocks."""

    hidden: int = Field(default=192, gt=0)
    """Width of the residual stream."""

    heads: int = Field(default=6, gt=0)
    """Attention heads."""

    intermediate: int = Field(default=512, gt=0)
    """Width of the gated MLP."""

    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate; falls to a hundredth along a cosine."""

    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW weight decay of matrices; vectors have none."""

    compile: bool = True
    """Whether the forward and backward pass are compiled; 1.3 to 1.9 times as fast on 2 cores."""


class _Contexts:
    """Cuts the stream of documents into contexts; ``position`` is all there is to remember."""

    def __init__(self, cfg: TrainConfig, document: int = 0, used: int = 0) -> None:
        self._cfg = cfg
        self._stream = token_stream(cfg.world, document)
        self._buffer: list[int] = []
        self._document, self._used = document, 0
        self._starts: list[tuple[int, int]] = []
        self._take(used)

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
    def position(self) -> dict[str, int]:
        """The document to read next, and how many of its tokens are used up."""
        if self._buffer:
            return {"document": self._document - 1, "used": self._used}
        return {"document": self._document, "used": 0}

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
    draw_weights(model, cfg.seed)
    return model


def _loss(model: LlamaForCausalLM, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    hidden = model.model(input_ids=ids).last_hidden_state
    logits = model.lm_head(hidden[:, :-1]).float()
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


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
    model = new_model(cfg)
    origin = Path(cfg.start).name if cfg.start else ""

    def after_step(step: Step) -> None:
        for revision, place in (revisions or {}).items():
            if step.step == place:
                record = record_of(model, cfg, place, work_dir, command)
                publish(model, out_dir / "revisions" / revision, record, name=f"{name}, {revision}",
                        start=origin)  # fmt: skip
                model.config.use_cache = False
        if on_progress:
            on_progress(step)

    finished = run(
        model,
        cfg,
        lambda position: _Contexts(cfg, **position),
        torch.compile(_loss) if cfg.compile else _loss,
        work_dir=work_dir,
        lowest=floor(cfg.world, 500, split="validation")["all"],
        beta2=0.98,
        resume=resume,
        checkpoint_every=checkpoint_every,
        stop_after=stop_after,
        after_step=after_step,
    )
    if finished:
        record = record_of(model, cfg, cfg.num_steps, work_dir, command)
        publish(model, out_dir, record, name=name, start=origin)
        if report_documents:
            rows = world_report(out_dir, report_documents, cfg=cfg.world, chat=cfg.world.chat)
            record["report"] = report_json(rows)
            publish(model, out_dir, record, name=name, start=origin)
    return out_dir
