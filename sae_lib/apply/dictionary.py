"""Dictionary recovery: what would this variant make of data whose directions are known?

Nobody knows the true directions of a language model's activations. So for every coder a small twin
is trained - the same kind and settings, at another width - on sparse mixtures of known unit
directions (`sae_lib.synthetic.dictionary`), and what it learnt is compared with them on mixtures it
has not seen:

    mmcs             mean over true directions of the largest cosine with a decoder row
    recovered        share of true directions with one above `COVERED`
    fvu              sum |x - x_hat|^2 / sum |x - mean(x)|^2
    l0               latents on per row
    relative_reconstruction_bias    gamma = sum |x_hat|^2 / sum <x, x_hat>; below 1 is shrinkage
    dead_share       share of latents that are on at no held-out row

Method ``twin`` is the trained twin, ``untrained`` the same twin before its first step: cosines
that chance gives.

A twin's budget (``k`` or ``target_l0``) is the true mean number of directions on; where a coder was
given a coefficient instead, its twin has the same one, and L0 says what came of it. Settings
that count latents or dimensions scale with the width, what was derived is derived again, and the
seed is the coder's. Twins learn by the plain objective and one recipe on one stream, whatever the
coder was trained by, so that only the variants differ; twins with equal settings are one.

The default data: 64 dimensions, 128 directions, of which 3 are on in the mean, the i-th with
a probability in proportion to 1/(i + 8); magnitudes .5 + .7 Exp(1), noise .02.

Sources: Sharkey et al. 2022 (mean max cosine similarity on such data), Rajamanoharan et al. 2024
(gamma). Differs from the former: features fire independently, by Zipf's law, and the dictionary is
larger than the space in which it lies.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError, model_validator

from sae_lib.activations.batches import Batch
from sae_lib.apply.base import ApplicationConfig, Applied, Bench, OnProgress, register
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.papers import Paper
from sae_lib.saes.base import CODERS, SaeConfig, SparseCoder
from sae_lib.synthetic.controls import COVERED
from sae_lib.synthetic.dictionary import (
    DictionaryConfig,
    best_matches,
    firing_probabilities,
    ground_truth_dictionary,
    root_mean_square_norm,
    sparse_mixtures,
)
from sae_lib.training.config import ResolvedTrain, TrainConfig, resolve
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.trainee import Fitted, Trainee
from sae_lib.warehouse.rows import ApplicationRow, Measurement

SITE = "mixtures"
"""What stands for a site where nothing but mixtures is read."""

BATCH_ROWS = 512
HELD_OUT_BATCH_ROWS = 4096
HELD_OUT = 1 << 40
"""Number of the first held-out batch: no training is so long."""

WARMUP_SHARE, SPARSITY_WARMUP_SHARE = 1 / 15, 1 / 6
"""Shares of the run over which the learning rate and penalties rise: 200 and 500 of 3,000 steps."""

MEASURES = {
    "mmcs": ("mean_of_directions", "directions"),
    "recovered": (f"cosine_above_{COVERED}", "directions"),
    "fvu": ("ratio_of_sums", "rows"),
    "l0": ("mean_of_rows", "rows"),
    "relative_reconstruction_bias": ("ratio_of_sums", "rows"),
    "dead_share": ("never_on_held_out", "latents"),
}
"""Definition, and what is counted, of every number."""

POINTS_AWAY = "reconstructions are 0 or point away from the rows: sum <x, x_hat> <= 0"


class Recovery(NamedTuple):
    """What a coder made of mixtures of known directions."""

    mmcs: float
    """Mean over true directions of the largest cosine with a decoder row, in [-1, 1]."""

    recovered: float
    """Share of true directions with a cosine above `COVERED`."""

    fvu: float | None
    """Squared error in units of the variance of the rows; None where all rows are the same."""

    l0: float
    """Latents on per row."""

    relative_reconstruction_bias: float | None
    """Gamma; None where reconstructions point away from the rows, or are all 0."""

    dead_share: float
    """Share of latents that are on at no row."""

    num_rows: int


class Mixtures:
    """Training batches: mixture *i* is a function of the data's seed and *i*."""

    def __init__(self, data: DictionaryConfig) -> None:
        self.data = data

    def batch(self, i: int) -> Batch:
        """`BATCH_ROWS` rows, numbered on from those of the batch before."""
        x = next(sparse_mixtures(self.data, BATCH_ROWS, start=i)).x
        return Batch({SITE: x}, torch.arange(i * BATCH_ROWS, (i + 1) * BATCH_ROWS))


@register
class DictionaryRecoveryConfig(ApplicationConfig):
    """Which data twins are trained on, and how long."""

    papers: ClassVar = (
        Paper(
            "Sharkey et al. 2022",
            "https://www.alignmentforum.org/posts/z6QQJbtpkEAX3Aojj",
            "Mean max cosine similarity",
        ),
        Paper("Rajamanoharan et al. 2024a", "https://arxiv.org/abs/2404.16014", "shrinkage"),
    )
    summary: ClassVar = "What a small twin of each SAE makes of data whose directions are known."
    headline: ClassVar = "mmcs"
    dials: ClassVar = ("d_in", "num_features", "mean_active", "d_sae", "steps")

    kind: Literal["dictionary"] = "dictionary"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    d_in: int = Field(default=64, gt=0)
    """Width of the mixtures."""

    num_features: int = Field(default=128, gt=0)
    """True directions."""

    mean_active: float = Field(default=3.0, gt=0)
    """Directions on per row, on average; the twins' budget."""

    noise: float = Field(default=0.02, ge=0)
    """Standard deviation of the noise in each coordinate."""

    d_sae: int | None = Field(default=None, gt=0)
    """Latents of a twin; derived: num_features."""

    steps: int = Field(default=1500, gt=0)
    """Steps of 512 fresh rows."""

    lr: float = Field(default=5e-3, gt=0)
    """Peak learning rate of Adam, at unit mean square norm."""

    rows: int = Field(default=32_768, gt=0)
    """Held-out rows."""

    seed: int = Field(default=0, ge=0)
    """Seed of the directions and of the rows; a twin starts from its coder's seed."""

    @model_validator(mode="after")
    def _data_is_possible(self) -> "DictionaryRecoveryConfig":
        try:
            _ = self.data
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @property
    def data(self) -> DictionaryConfig:
        """The mixtures."""
        return DictionaryConfig(
            d_in=self.d_in,
            num_features=self.num_features,
            mean_active=self.mean_active,
            firing="zipf",
            zipf_offset=8.0,
            magnitudes="exponential",
            magnitude_std=0.7,
            magnitude_floor=0.5,
            bias_norm=0.0,
            noise=self.noise,
            seed=self.seed,
        )

    @property
    def width(self) -> int:
        """Latents of a twin."""
        return self.d_sae or self.num_features

    def train(self, twin: SaeConfig) -> ResolvedTrain:
        """How a twin is trained: the same for all."""
        cfg = TrainConfig(
            tokens=self.steps * BATCH_ROWS,
            batch_tokens=BATCH_ROWS,
            lr=self.lr,
            warmup_steps=round(WARMUP_SHARE * self.steps),
            sparsity_warmup_share=SPARSITY_WARMUP_SHARE,
        )
        return resolve(cfg, twin)

    def apply(self, bench: Bench, on_progress: OnProgress) -> dict[str, Applied]:
        cfgs = {name: coder.cfg for name, coder in bench.coders.items()}
        return {name: Applied(rows, []) for name, rows in self.compare(cfgs, on_progress).items()}

    def compare(
        self,
        cfgs: Mapping[str, SaeConfig],
        on_progress: OnProgress = lambda done, total: None,
    ) -> dict[str, list[ApplicationRow]]:
        """Rows of every coder by name; all that is asked of a coder is its config."""
        twins: dict[str, SaeConfig] = {}
        key_of: dict[str, str] = {}
        found: dict[str, list[ApplicationRow]] = {}
        for name, cfg in cfgs.items():
            try:
                twin = twin_of(cfg, self.data, self.width)
            except NotApplicable as error:
                found[name] = [self._row("twin", self.headline, None, reason=error.reason)]
                continue
            key_of[name] = twin.model_dump_json()
            twins[key_of[name]] = twin
        whole = self.steps + max(1, self.steps // 10)  # scoring takes about that long
        fitted = self._fit(list(twins.values()), lambda step: on_progress(step, whole))
        rows = {
            key: [*self._rows(one), self._untrained(twin)]
            for (key, twin), one in zip(twins.items(), fitted, strict=True)
        }
        on_progress(whole, whole)
        return {**found, **{name: rows[key] for name, key in key_of.items()}}

    def _fit(self, twins: Sequence[SaeConfig], on_step: Callable[[int], None]) -> list[Fitted]:
        scale = 1 / root_mean_square_norm(self.data)
        trainees = [
            Trainee(f"twin{i}", twin.build(), SITE, self.train(twin), scale=scale)
            for i, twin in enumerate(twins)
        ]

        def seen(report: StepReport) -> None:
            if report.problem is None:
                on_step(report.step)

        return fit(trainees, Mixtures(self.data), on_step=seen)

    def _rows(self, fitted: Fitted) -> list[ApplicationRow]:
        cfg = fitted.coder.cfg
        if fitted.status != "complete":
            reason = f"the twin diverged in step {fitted.steps}"
            return [self._row("twin", name, cfg, reason=reason) for name in MEASURES]
        found = recovery(fitted.coder, self.data, self.rows)
        rows = []
        for name in MEASURES:
            value, reason = getattr(found, name), None
            if value is None:
                reason = "all rows are the same" if name == "fvu" else POINTS_AWAY
            rows.append(self._row("twin", name, cfg, value, reason))
        return rows

    def _untrained(self, twin: SaeConfig) -> ApplicationRow:
        matches = best_matches(ground_truth_dictionary(self.data), twin.build().W_dec.detach())
        return self._row("untrained", "mmcs", twin, matches.mean().item())

    def _row(
        self,
        method: str,
        name: str,
        twin: SaeConfig | None,
        value: float | None = None,
        reason: str | None = None,
    ) -> ApplicationRow:
        definition, unit = MEASURES[name]
        counted = {"directions": self.num_features, "rows": self.rows, "latents": self.width}
        params = self.model_dump(exclude={"kind", "rows"}) | {"d_sae": self.width}
        if twin is not None:
            params |= budget_of(twin)
        measurement = Measurement(
            name,
            value,
            definition,
            n=None if value is None else counted[unit],
            unit=unit,
            params=params,
            reason=reason,
        )
        return ApplicationRow(self.kind, method, SITE, measurement)


def budget_of(cfg: SaeConfig) -> dict[str, Any]:
    """What a config says of sparsity: those of its dials that are given."""
    values = {name: getattr(cfg, name) for name in cfg.dials}
    return {name: value for name, value in values.items() if value is not None}


def twin_of(cfg: SaeConfig, data: DictionaryConfig, d_sae: int) -> SaeConfig:
    """The config of a small coder of ``data`` that is otherwise like ``cfg``.

    Raises `NotApplicable` where a coder of ``data`` cannot be like that: a variant that maps one
    place to another, one that is not trained at all, a budget that does not fit ``d_sae``.
    """
    if cfg.needs_objective is not None:
        raise NotApplicable(
            "dictionary",
            f"a {cfg.kind} reconstructs another place than it reads (objective "
            f"{cfg.needs_objective}); the mixtures are one place",
        )
    if cfg.kind not in CODERS:
        raise NotApplicable(
            "dictionary", f"the weights of a {cfg.kind} coder are given, not learnt"
        )
    fields = {**settings_of(cfg), "d_in": data.d_in, "d_sae": d_sae}
    active = firing_probabilities(data).double().sum().item()
    old_k = fields.get("k")
    if old_k is not None:
        fields["k"] = max(1, round(active))
    if fields.get("target_l0") is not None:
        fields["target_l0"] = round(active, 6)  # float32 probabilities
    _scale(fields, by_width=data.d_in / cfg.d_in, by_latents=d_sae / cfg.d_sae)
    if "zipf_offset" in fields and old_k is not None:
        fields["zipf_offset"] *= fields["k"] / old_k
    if "num_experts" in fields:
        fields["num_experts"] = _experts(fields["num_experts"], d_sae, fields.get("k", 1))
    try:
        return type(cfg).model_validate(fields)
    except ValidationError as error:
        raise NotApplicable("dictionary", f"no such twin: {error.errors()[0]['msg']}") from error


def settings_of(cfg: SaeConfig) -> dict[str, Any]:
    """Fields of ``cfg`` but those that have the value that follows from the others.

    A coder that was saved says all of its fields, so what was set cannot be told by who set it.
    """
    said, settings = cfg.model_dump(), {}
    before: dict[str, Any] = {}
    for name, field in type(cfg).model_fields.items():
        derived = field.get_default(call_default_factory=True, validated_data=before)
        is_derived = field.default_factory is not None and said[name] == derived
        if not is_derived:
            settings[name] = said[name]
        before[name] = said[name]
    return settings


def _scale(fields: dict[str, Any], by_width: float, by_latents: float) -> None:
    """Bring settings that count dimensions or latents to other widths, in place."""
    d_sae = fields["d_sae"]
    if fields.get("aux_k"):  # of dead latents, as many as half the dimensions
        fields["aux_k"] = min(d_sae, max(1, round(fields["aux_k"] * by_width)))
    if fields.get("start_on"):
        fields["start_on"] = fields["start_on"] * by_latents
    if "num_random" in fields:
        fields["num_random"] = min(fields["num_random"], d_sae)
    if any(isinstance(size, int) for size in fields.get("prefixes", ())):
        sizes = {max(1, round(size * by_latents)) for size in fields["prefixes"]}
        fields["prefixes"] = tuple(sorted(sizes))


def _experts(num_experts: int, d_sae: int, k: int) -> int:
    """The most experts, up to ``num_experts``, that share ``d_sae`` evenly and hold k latents."""
    fitting = (n for n in range(num_experts, 0, -1) if d_sae % n == 0 and d_sae // n >= k)
    return next(fitting, 1)


@torch.no_grad()
def recovery(coder: SparseCoder[Any], data: DictionaryConfig, num_rows: int = 32_768) -> Recovery:
    """How much of ``data`` a coder of raw mixtures has found, on ``num_rows`` rows that `Mixtures`
    never gives. Raises `BadInput` for a coder of another width, or without rows."""
    if not coder.d_in == coder.d_out == data.d_in:
        raise BadInput(
            f"the mixtures have {data.d_in} coordinates; this coder reads {coder.d_in} and "
            f"reconstructs {coder.d_out}.",
            key="d_in",
            value=coder.d_in,
        )
    if num_rows < 1:
        raise BadInput("at least one row is needed.", key="num_rows", value=num_rows)
    device = coder.W_dec.device
    matches = best_matches(ground_truth_dictionary(data), coder.W_dec.float().cpu())
    error = inner = out = squares = on = 0.0
    total = torch.zeros(data.d_in, dtype=torch.float64)
    has_fired = torch.zeros(coder.d_sae, dtype=torch.bool, device=device)
    batches, left = sparse_mixtures(data, HELD_OUT_BATCH_ROWS, start=HELD_OUT), num_rows
    while left:
        x = next(batches).x[:left]
        left -= len(x)
        z = coder.encode(x.to(device))
        x_hat = coder.reconstruct(x.to(device), z).double().cpu()
        has_fired |= (z > 0).any(0)
        on += (z > 0).sum().item()
        x = x.double()
        error += (x - x_hat).square().sum().item()
        inner += (x * x_hat).sum().item()
        out += x_hat.square().sum().item()
        squares += x.square().sum().item()
        total += x.sum(0)
    spread = squares - (total.square().sum() / num_rows).item()
    return Recovery(
        matches.mean().item(),
        (matches > COVERED).double().mean().item(),
        error / spread if spread > 1e-12 * squares else None,
        on / num_rows,
        out / inner if inner > 0 else None,
        1 - has_fired.double().mean().item(),
        num_rows,
    )
