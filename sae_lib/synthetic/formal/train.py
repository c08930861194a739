"""Train a small stock GPT-2 on a formal language.

Strings are drawn as they are needed and never twice. A context begins with a string and is filled
up with the next ones; the last one is cut, and its rest is skipped, so that every token is read
with all that came before it in its string. The loss leaves out ``<bos>``, which is never a guess.
A run that was stopped goes on from its last checkpoint as if it had never stopped.

The architecture is that of the paper but for its biases, which stock GPT-2 has; the learning rate
falls further than the paper's (to a hundredth instead of nine tenths), which ends nearer the floor.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lib.errors import BadInput
from sae_lib.synthetic.formal.dyck import Dyck
from sae_lib.synthetic.formal.language import floor
from sae_lib.synthetic.formal.languages import AnyLanguage, token_stream, vocabulary
from sae_lib.synthetic.formal.report import formal_report
from sae_lib.synthetic.lm_training import LoopConfig, Step, draw_weights, record_of, run
from sae_lib.synthetic.model_folder import begin_folder, replace_folder, save_model
from sae_lib.synthetic.word_level import BOS, EOS, PAD, word_level_tokenizer


class FormalTrainConfig(LoopConfig):
    """The model and how it is trained."""

    language: AnyLanguage = Dyck()
    """What it reads."""

    num_tokens: int = Field(default=10_240_000, gt=0)
    """Tokens to read, special tokens included."""

    batch_contexts: int = Field(default=16, gt=0)
    """Contexts per step."""

    context: int = Field(default=160, gt=0)
    """Tokens per context, and the most that the model can read."""

    layers: int = Field(default=2, gt=0)
    """Blocks."""

    hidden: int = Field(default=128, gt=0)
    """Width of the residual stream; the MLP is four times as wide."""

    heads: int = Field(default=2, gt=0)
    """Attention heads."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate; falls to a hundredth along a cosine."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW weight decay of matrices; vectors have none."""


class _Contexts:
    """Fills contexts with strings; the number of the ``next`` one is all there is to remember."""

    def __init__(self, cfg: FormalTrainConfig, string: int = 0) -> None:
        self._cfg = cfg
        self._stream = token_stream(cfg.language, string)
        self._next = string

    def _context(self) -> list[int]:
        ids: list[int] = []
        while len(ids) < self._cfg.context:
            ids += next(self._stream)
            self._next += 1
        return ids[: self._cfg.context]

    @property
    def position(self) -> dict[str, int]:
        return {"string": self._next}

    def batch(self, step: int) -> Int[Tensor, "batch seq"]:
        return torch.tensor([self._context() for _ in range(self._cfg.batch_contexts)])


def new_model(cfg: FormalTrainConfig) -> GPT2LMHeadModel:
    """An untrained model on the CPU, in float32; its weights follow ``cfg.seed``."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(vocabulary(cfg.language)),
            n_positions=cfg.context,
            n_embd=cfg.hidden,
            n_layer=cfg.layers,
            n_head=cfg.heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            use_cache=False,
        )
    )
    model.set_attn_implementation("eager")  # the fused kernel's backward pass is slow at this size
    draw_weights(model, cfg.seed)
    return model


def _loss(model: GPT2LMHeadModel, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    logits = model(input_ids=ids[:, :-1]).logits.float()
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=BOS)


_README = """# {name}

A GPT-2 of {millions:.2f} million parameters ({layers} layers, width {hidden}) that learned the
formal language `{name}` from scratch: {tokens:,} tokens.
Made by `{command}`; `training.json` holds the settings, the curve of the loss, the entropy
floor of the grammar and what the model was measured to know.
"""


def _publish(
    model: GPT2LMHeadModel, cfg: FormalTrainConfig, out_dir: Path, record: dict[str, Any]
) -> None:
    made = begin_folder(out_dir)
    save_model(model, made)
    tokenizer = word_level_tokenizer(vocabulary(cfg.language), max_length=cfg.context)
    tokenizer.save_pretrained(made)
    (made / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (made / "README.md").write_text(
        _README.format(
            name=cfg.language.kind,
            millions=record["num_parameters"] / 1e6,
            layers=cfg.layers,
            hidden=cfg.hidden,
            tokens=record["num_tokens"],
            command=record["script"],
        )
    )
    replace_folder(made, out_dir)


def train_formal(
    out_dir: Path,
    cfg: FormalTrainConfig,
    *,
    work_dir: Path,
    threads: int | None = None,
    checkpoint_every: int = 500,
    stop_after: int | None = None,
    report_strings: int = 1000,
    command: str = "sae world formal train",
    on_progress: Callable[[Step], None] | None = None,
) -> Path:
    """Train and publish into ``out_dir``; checkpoints and ``log.jsonl`` go to ``work_dir``.

    ``stop_after`` ends the call after that step, to be resumed later. The number of ``threads`` is
    that of the whole process. Raises `BadInput` when the checkpoint in ``work_dir`` was made with
    other settings, or a string may not fit into a context.
    """
    if cfg.language.max_tokens + 2 > cfg.context:
        raise BadInput(
            "the longest string and its two marks must fit into a context",
            key="context",
            value=cfg.context,
        )
    if threads is not None:
        torch.set_num_threads(threads)
    model = new_model(cfg)
    finished = run(
        model,
        cfg,
        lambda position: _Contexts(cfg, **position),
        _loss,
        work_dir=work_dir,
        lowest=floor(cfg.language, 200, split="validation"),
        beta2=0.95,
        checkpoint_every=checkpoint_every,
        stop_after=stop_after,
        after_step=on_progress or (lambda step: None),
    )
    if finished:
        record = record_of(model, cfg, cfg.num_steps, work_dir, command)
        _publish(model, cfg, out_dir, record)
        if report_strings:
            record["report"] = formal_report(cfg.language, out_dir, report_strings)
            _publish(model, cfg, out_dir, record)
    return out_dir
