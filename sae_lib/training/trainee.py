"""One SAE in training: its coder, optimiser, counters and curves, and how they are stored."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from sae_lib.errors import BadInput, CorruptData
from sae_lib.saes.base import SparseCoder, Step, Terms
from sae_lib.training.checkpoint import CHECKPOINT, Checkpoint
from sae_lib.training.config import ResolvedTrain
from sae_lib.training.dead import advance_
from sae_lib.training.objectives.base import Batch, Objective, StepInfo
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.ranks import ALONE, Ranks
from sae_lib.training.schedules import lr_factor, sparsity_factor

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What the optimiser remembers of a parameter."""

Status = Literal["running", "complete", "diverged"]

DO_NOT_MATTER = ("checkpoint_every_seconds", "curve_points", "devices")
"""Settings that may change between a checkpoint and the training that takes it up."""


class CurvePoint(TypedDict):
    """One number at one moment of a training."""

    step: int
    tokens: int
    name: str
    value: float


@dataclass
class Trainee:
    """An SAE that is to be trained."""

    name: str
    """What it is called in reports; unique among those trained together."""

    coder: SparseCoder[Any]
    """Trained in place, on the device it is on."""

    site: str
    """Where its activations come from."""

    train: ResolvedTrain
    """How it is trained."""

    objective: Objective = field(default_factory=PlainConfig().build)
    """Which data a step sees, and what is added to the loss."""

    scale: float = 1.0
    """Factor c that brings raw activations to the scale of training; folded in at the end."""

    checkpoint: Path | None = None
    """Folder of its checkpoint; without one it cannot be resumed."""

    about: dict[str, Any] = field(default_factory=dict)
    """JSON facts that must agree between a checkpoint and the training that takes it up."""

    ranks: Ranks = ALONE
    """Those who train it together."""


class Fitted(NamedTuple):
    """What a training came to."""

    name: str

    coder: SparseCoder[Any]
    """For raw activations, in evaluation mode, without gradients; decoder rows of norm 1."""

    curves: list[CurvePoint]
    """About ``curve_points`` points for each number."""

    status: Status
    """"complete", or "diverged": then the coder is the last good one."""

    steps: int
    """Steps taken; for a diverged SAE the step whose loss was not finite."""

    seconds: float
    """Wall-clock time, shared with those trained in company."""

    numbers: dict[str, float]
    """The last point of each curve."""

    train: ResolvedTrain


def clip_(parameters: Mapping[str, nn.Parameter], clip_norm: float, ranks: Ranks) -> Tensor:
    """Scale gradients down to ``clip_norm`` where their common norm exceeds it; returns the norm.

    As torch's `clip_grad_norm_`, but on the CPU gradients that are small enough are left alone
    instead of being multiplied by 1, which is a pass over all of them.
    """
    norm = ranks.total_norm({name: p.grad for name, p in parameters.items() if p.grad is not None})
    if norm.device.type != "cpu" or not bool(norm <= clip_norm):
        nn.utils.clip_grads_with_norm_(list(parameters.values()), clip_norm, norm)
    return norm


class Progress:
    """A trainee under way. Everything that changes in training is here or in the coder."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee, self.coder, self.train = trainee, trainee.coder, trainee.train
        self.coder.train()
        self.parameters = {
            name: parameter
            for name, parameter in self.coder.named_parameters()
            if parameter.requires_grad
        }
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = torch.optim.Adam(
            list(self.parameters.values()),
            lr=self.train.lr,
            betas=self.train.betas,
            eps=self.train.eps,
            fused=self.device.type in ("cpu", "cuda", "mps"),
        )
        self.silent_for = torch.zeros(self.coder.d_sae, dtype=torch.int64, device=self.device)
        self.step, self.status, self.seconds = 0, "running", 0.0
        self.curves: list[CurvePoint] = []
        self.saved_at = -math.inf
        self._buffers: dict[str, Tensor] = {}
        self._latest: tuple[Step, Terms, Tensor] | None = None
        self._curve_clock: tuple[int, float] | None = None

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    def info(self) -> StepInfo:
        train = self.train
        return StepInfo(
            site=self.trainee.site,
            scale=self.trainee.scale,
            dead=self.silent_for >= train.dead_after_tokens,
            progress=self.step / train.steps,
            warmup=sparsity_factor(
                self.step, steps=train.steps, warmup_share=train.sparsity_warmup_share
            ),
            number=self.step,
        )

    # --- one step, in two halves, so that one look at the device serves all trainees ---

    def compute_gradients(self, batch: Batch) -> Tensor:
        """Loss and gradients of this step; returns whether all of them are finite, unread."""
        # a variant may change buffers while it computes its loss; a failed step undoes that
        self._buffers = {name: buffer.clone() for name, buffer in self.coder.named_buffers()}
        info = self.info()
        step = self.trainee.objective.step(batch, info)
        terms = self.trainee.objective.terms(self.coder, step, batch, info)
        loss = terms.loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.coder.before_update()
        grad_norm = clip_(self.parameters, self.train.clip_norm, self.trainee.ranks)
        self._latest = (step, terms, grad_norm)
        return torch.isfinite(loss.detach() + grad_norm)

    def update(self) -> None:
        """Take the step whose gradients were computed."""
        assert self._latest is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.step)
        self.optimizer.step()
        self.coder.after_update()
        step, terms, _ = self._latest
        advance_(self.silent_for, terms.code.fired(), len(step.x))
        self.step += 1
        if self.step == self.train.steps:
            self.status = "complete"

    def give_up(self) -> None:
        """Keep the coder as it was before the step whose loss was not finite."""
        with torch.no_grad():
            for name, buffer in self.coder.named_buffers():
                buffer.copy_(self._buffers[name])
        self.optimizer.zero_grad(set_to_none=True)
        self._latest = None
        self.status = "diverged"

    def lr_at(self, step: int) -> float:
        train = self.train
        return train.lr * lr_factor(
            step,
            steps=train.steps,
            warmup_steps=train.warmup_steps,
            decay_share=train.decay_share,
        )

    # --- curves ---

    @property
    def is_curve_point(self) -> bool:
        """Whether the step just taken is one whose numbers are read."""
        every = max(1, self.train.steps // self.train.curve_points)
        return self.step % every == 0 or self.step == self.train.steps or self.step == 1

    def read_numbers(self, now: float) -> dict[str, float]:
        """Read the numbers of the step just taken off the device, and add them to the curves."""
        assert self._latest is not None
        step, terms, grad_norm = self._latest
        spread = (step.target - step.target.mean(0)).square().sum() / len(step.target)
        dead = (self.silent_for >= self.train.dead_after_tokens).float().mean()
        scalars = {
            "loss": terms.loss,
            "reconstruction": terms.reconstruction,
            **terms.extra,
            "spread": spread,
            "l0": terms.code.num_on() / len(step.x),
            "dead_share": dead,
            "grad_norm": grad_norm,
        }
        values = torch.stack([value.detach().float().reshape(()) for value in scalars.values()])
        numbers = dict(zip(scalars, values.tolist(), strict=True))
        spread_read = numbers.pop("spread")
        if spread_read > 0:  # a constant batch has no share of variance to leave unexplained
            numbers["fvu"] = numbers["reconstruction"] / spread_read
        numbers["lr"] = self.lr_at(self.step - 1)
        if self._curve_clock is not None and now > self._curve_clock[1]:
            since, at = self._curve_clock
            numbers["tokens_per_second"] = (
                (self.step - since) * self.train.batch_tokens / (now - at)
            )
        self._curve_clock = (self.step, now)
        numbers.update(self.coder.numbers())
        tokens = self.step * self.train.batch_tokens
        self.curves += [
            CurvePoint(step=self.step, tokens=tokens, name=name, value=value)
            for name, value in numbers.items()
            if math.isfinite(value)
        ]
        return numbers

    # --- storage ---

    def identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the training that takes it up."""
        return {
            "name": self.trainee.name,
            "site": self.trainee.site,
            "scale": self.trainee.scale,
            "sae": self.coder.cfg.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=set(DO_NOT_MATTER)),
            "objective": self.trainee.objective.cfg.model_dump(mode="json"),
            "about": self.trainee.about,
        }

    def save(self) -> None:
        folder = self.trainee.checkpoint
        if folder is None:
            return
        tensors = {f"coder.{name}": value for name, value in self.coder.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["silent_for"] = self.silent_for
        state = {
            "identity": self.identity(),
            "step": self.step,
            "status": self.status,
            "seconds": self.seconds,
            "curves": self.curves,
        }
        self.trainee.ranks.write(folder, Checkpoint(tensors, state))

    def restore(self) -> bool:
        """Take up the checkpoint, if there is one; says whether there was."""
        folder = self.trainee.checkpoint
        found = self.trainee.ranks.read(folder) if folder is not None else None
        if folder is None or found is None:
            return False
        path = folder / CHECKPOINT
        mine, theirs = self.identity(), found.state.get("identity", {})
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise BadInput(
                    f"this checkpoint is of another training; expected {value!r}. "
                    "Delete it to train from the start.",
                    file=path,
                    key=key,
                    value=theirs.get(key),
                )
        try:
            self._take_over(found)
        except (KeyError, RuntimeError) as error:
            remedy = f"Delete {path} to train from the start."
            raise CorruptData(path, f"the checkpoint is incomplete ({error}).", remedy) from error
        return True

    def _take_over(self, found: Checkpoint) -> None:
        tensors = found.tensors
        self.coder.load_state_dict(
            {
                name.removeprefix("coder."): value
                for name, value in tensors.items()
                if name.startswith("coder.")
            }
        )
        for name, parameter in self.parameters.items():
            if f"adam.step.{name}" in tensors:  # a parameter without gradients has no moments
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"].to(self.device) for key in ADAM_STATE
                }
        self.silent_for.copy_(tensors["silent_for"])
        self.step, self.status = found.state["step"], found.state["status"]
        self.seconds, self.curves = found.state["seconds"], found.state["curves"]

    def finish(self) -> Fitted:
        """Turn the coder of normalised activations into one of raw activations, for good."""
        coder = self.coder
        if self.trainee.scale != 1:
            coder.scale_(1 / self.trainee.scale)
        coder.fold_norms_()
        coder.eval().requires_grad_(False)
        assert self.status != "running"
        return Fitted(
            name=self.trainee.name,
            coder=coder,
            curves=self.curves,
            status="complete" if self.status == "complete" else "diverged",
            steps=self.step,
            seconds=self.seconds,
            numbers={point["name"]: point["value"] for point in self.curves},
            train=self.train,
        )
