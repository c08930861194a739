"""One SAE in training: its coder, optimiser, counters and curves, and how they are stored."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from sae_lib.errors import BadInput, CorruptData
from sae_lib.models.places import Place
from sae_lib.saes.base import SparseCoder, Step, Terms
from sae_lib.training.checkpoint import CHECKPOINT, Checkpoint
from sae_lib.training.config import ResolvedTrain
from sae_lib.training.dead import advance_
from sae_lib.training.objectives.base import Batch, Objective, StepInfo
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.ranks import ALONE, Ranks
from sae_lib.training.resample import (
    Race,
    is_due,
    offer_errors,
    sample_steps,
    start_anew_,
    steps_since,
)
from sae_lib.training.schedules import lr_factor, rewarm_factor, sparsity_factor

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

    scales: Mapping[str, float] = field(default_factory=dict)
    """Of a place of several sites the factor of each; its objective applies and folds them."""

    checkpoint: Path | None = None
    """Folder of its checkpoint; without one it cannot be resumed."""

    about: dict[str, Any] = field(default_factory=dict)
    """JSON facts that must agree between a checkpoint and the training that takes it up."""

    ranks: Ranks = ALONE
    """Those who train it together."""

    is_fresh: bool = True
    """Whether the data give the coder its first values; False for one that has learnt before."""


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
    """Wall-clock time, shared with those on the same stream."""

    cpu_seconds: float
    """CPU time of the process during this SAE's own steps, from the loss to the optimiser; what
    threads read or harvest ahead in that time is in it."""

    flops: float
    """Operations of its products of matrices, by `SparseCoder.flops_per_token`."""

    numbers: dict[str, float]
    """The last point of each curve."""

    train: ResolvedTrain

    company: tuple[SparseCoder[Any], ...] = ()
    """Coders that were trained along, finished alike."""


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
        trainee.objective.site, trainee.objective.scales = trainee.site, trainee.scales
        trainee.objective.join(self.coder)
        self.coders = {"coder": self.coder}
        self.coders |= {f"company{i}": one for i, one in enumerate(trainee.objective.company)}
        self.parameters: dict[str, nn.Parameter] = {}
        for owner, coder in self.coders.items():
            coder.train()
            # names of the coder itself stand alone
            prefix = "" if owner == "coder" else f"{owner}."
            for name, parameter in coder.named_parameters():
                if parameter.requires_grad:
                    self.parameters[f"{prefix}{name}"] = parameter
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = torch.optim.Adam(
            list(self.parameters.values()),
            lr=self.train.lr,
            betas=self.train.betas,
            eps=self.train.eps,
            fused=self.device.type in ("cpu", "cuda", "mps"),
        )
        self.silences = {
            owner: torch.zeros(coder.d_sae, dtype=torch.int64, device=self.device)
            for owner, coder in self.coders.items()
        }
        self.sites = Place.parse(trainee.site).sites
        self.step, self.status, self.seconds = 0, "running", 0.0
        self.cpu_seconds = 0.0
        """Of the process while it computed this coder's steps."""
        self.curves: list[CurvePoint] = []
        self.saved_at = -math.inf
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._latest: tuple[Step, Terms, Tensor] | None = None
        self._dead: dict[str, Tensor] = {}
        self._races: dict[str, Race] = {}
        self._curve_clock: tuple[int, float] | None = None

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def silent_for(self) -> Tensor:
        """Tokens since each latent fired."""
        return self.silences["coder"]

    def info(self) -> StepInfo:
        train = self.train
        dead = [silent >= train.dead_after_tokens for silent in self.silences.values()]
        return StepInfo(
            site=self.trainee.site,
            scale=self.trainee.scale,
            dead=dead[0],
            progress=self.step / train.steps,
            warmup=sparsity_factor(
                self.step,
                steps=train.steps,
                warmup_share=train.sparsity_warmup_share,
                warmup_steps=train.sparsity_warmup_steps,
            ),
            number=self.step,
            dead_in_company=tuple(dead[1:]),
            scales=self.trainee.scales,
        )

    # --- one step, in two halves, so that one look at the device serves all trainees ---

    def compute_gradients(self, batch: Batch) -> Tensor:
        """Loss and gradients of this step; returns whether all of them are finite, unread."""
        # a variant may change buffers while it computes its loss; a failed step undoes that
        self._buffers = {
            owner: {name: buffer.clone() for name, buffer in coder.named_buffers()}
            for owner, coder in self.coders.items()
        }
        info = self.info()
        step = self.trainee.objective.step(batch, info)
        terms = self.trainee.objective.terms(self.coder, step, batch, info)
        loss = terms.loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for coder in self.coders.values():
            coder.before_update()
        grad_norm = clip_(self.parameters, self.train.clip_norm, self.trainee.ranks)
        self._latest = (step, terms, grad_norm)
        return torch.isfinite(loss.detach() + grad_norm)

    def update(self) -> None:
        """Take the step whose gradients were computed."""
        assert self._latest is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.step)
        self.optimizer.step()
        step, terms, _ = self._latest
        objective = self.trainee.objective
        all_terms = [terms, *objective.company_terms]
        for (owner, coder), its_terms in zip(self.coders.items(), all_terms, strict=True):
            coder.after_update()
            advance_(self.silences[owner], its_terms.code.fired(), len(step.x))
            if objective.starts_anew(coder, its_terms, self.step):
                self.start_anew_(owner)
        self.step += 1
        if self.step == self.train.steps:
            self.status = "complete"

    @torch.no_grad()
    def start_anew_(self, owner: str) -> None:
        """Give one of the coders other first weights and forget what the optimiser knew of it."""
        coder = self.coders[owner]
        seed = coder.cfg.seed + 1_000_003 * (self.step + 1)
        fresh = coder.cfg.but(seed=seed).build().to(self.device)
        coder.load_state_dict(fresh.state_dict())
        self.silences[owner].zero_()
        for parameter in coder.parameters():
            for value in self.optimizer.state.get(parameter, {}).values():
                value.zero_()

    # --- dead latents that start anew ---

    @property
    def sample_steps(self) -> range:
        """Batches that new directions come from, if they were drawn now."""
        train = self.train
        assert train.resample is not None
        return sample_steps(
            train.resample, self.step, steps=train.steps, batch_tokens=train.batch_tokens
        )

    def begin_resampling(self) -> bool:
        """Find the latents that are to start anew after this step; says whether there are any."""
        train, cfg = self.train, self.train.resample
        self._dead, self._races = {}, {}
        if cfg is None or not is_due(
            cfg, self.step, steps=train.steps, batch_tokens=train.batch_tokens
        ):
            return False
        for owner, silent in self.silences.items():
            dead = (silent >= cfg.silent_tokens).nonzero().squeeze(1)
            if len(dead):
                seeds = train.seed, self.coders[owner].cfg.seed, owner, self.step
                self._dead[owner], self._races[owner] = dead, Race(len(dead), *seeds)
        return bool(self._dead)

    @torch.no_grad()
    def offer(self, batch: Batch) -> None:
        """Let the inputs of ``batch`` take part in the draw of new directions."""
        step = self.trainee.objective.step(batch, self.info())
        for owner, race in self._races.items():
            offer_errors(race, self.coders[owner], step.x, step.target)

    def end_resampling(self) -> None:
        """Let the latents start anew, and note in the curves how many."""
        assert self.train.resample is not None
        share, states = self.train.resample.encoder_share, self.optimizer.state
        for owner, race in self._races.items():
            directions = race.directions()
            rows = start_anew_(self.coders[owner], self._dead[owner], directions, share, states)
            self.silences[owner][rows] = 0
            name = "resampled" if owner == "coder" else f"resampled.{owner}"
            tokens = self.step * self.train.batch_tokens
            self.curves.append(
                CurvePoint(step=self.step, tokens=tokens, name=name, value=float(len(rows)))
            )
        self._dead, self._races = {}, {}

    def give_up(self) -> None:
        """Keep the coder as it was before the step whose loss was not finite."""
        with torch.no_grad():
            for owner, coder in self.coders.items():
                for name, buffer in coder.named_buffers():
                    buffer.copy_(self._buffers[owner][name])
        self.optimizer.zero_grad(set_to_none=True)
        self._latest = None
        self.status = "diverged"

    def lr_at(self, step: int) -> float:
        train, cfg, rewarming = self.train, self.train.resample, 1.0
        if cfg is not None:
            since = steps_since(cfg, step, steps=train.steps, batch_tokens=train.batch_tokens)
            if since is not None:
                rewarming = rewarm_factor(since, steps=cfg.rewarm_steps, start=cfg.rewarm_from)
        return (
            train.lr
            * rewarming
            * lr_factor(
                step,
                steps=train.steps,
                warmup_steps=train.warmup_steps,
                decay_share=train.decay_share,
                warmup_start=train.warmup_start,
            )
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
            "scales": dict(self.trainee.scales),
            "sae": self.coder.cfg.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude=set(DO_NOT_MATTER)),
            "objective": self.trainee.objective.cfg.model_dump(mode="json"),
            "about": self.trainee.about,
        }

    def save(self) -> None:
        folder = self.trainee.checkpoint
        if folder is None:
            return
        tensors = {
            f"{owner}.{name}": value
            for owner, coder in self.coders.items()
            for name, value in coder.state_dict().items()
        }
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        for owner, silent in self.silences.items():
            tensors["silent_for" if owner == "coder" else f"silent_for.{owner}"] = silent
        for name, value in self.trainee.objective.memory.items():
            tensors[f"objective.{name}"] = value
        state = {
            "identity": self.identity(),
            "step": self.step,
            "status": self.status,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
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
        for owner, coder in self.coders.items():
            prefix = f"{owner}."
            coder.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
            )
        for name, parameter in self.parameters.items():
            if f"adam.step.{name}" in tensors:  # a parameter without gradients has no moments
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"].to(self.device) for key in ADAM_STATE
                }
        for owner, silent in self.silences.items():
            name = "silent_for" if owner == "coder" else f"silent_for.{owner}"
            silent.copy_(tensors[name])
        for name, value in self.trainee.objective.memory.items():
            value.copy_(tensors[f"objective.{name}"])
        self.step, self.status = found.state["step"], found.state["status"]
        self.seconds, self.curves = found.state["seconds"], found.state["curves"]
        self.cpu_seconds = found.state["cpu_seconds"]

    def finish(self) -> Fitted:
        """Turn the coder of normalised activations into one of raw activations, for good."""
        assert self.status != "running"
        for coder in self.coders.values():
            self.trainee.objective.finish_(coder)
            if self.trainee.scale != 1:
                coder.scale_(1 / self.trainee.scale)
            coder.fold_norms_()
            coder.eval().requires_grad_(False)
        coder, *company = self.coders.values()
        return Fitted(
            name=self.trainee.name,
            coder=coder,
            curves=self.curves,
            status="complete" if self.status == "complete" else "diverged",
            steps=self.step,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            flops=self.step
            * self.train.batch_tokens
            * sum(one.flops_per_token() for one in self.coders.values()),
            company=tuple(company),
            numbers={point["name"]: point["value"] for point in self.curves},
            train=self.train,
        )
