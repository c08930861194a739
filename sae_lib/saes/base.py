"""The contract every sparse coder keeps, and the registry that finds the files which keep it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from sae_lib.config import Config
from sae_lib.papers import Paper
from sae_lib.registry import Registry
from sae_lib.saes._codes import Code

Activations = Float[Tensor, "*batch {self.d_in}"]
Latents = Float[Tensor, "*batch {self.d_sae}"]


class SaeConfig(Config):
    """What every variant's description has; a variant adds its dials."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    summary: ClassVar[str] = ""
    """One line for tables: what the variant is for."""

    dials: ClassVar[tuple[str, ...]] = ()
    """Fields that set sparsity, in the order in which they appear in a variant's id."""

    needs_objective: ClassVar[str | None] = None
    """The one objective that the variant can be trained by; None where it takes any."""

    kind: str
    """Name in experiment files."""

    d_in: int = Field(gt=0)
    """Width of the activations; in an experiment file it follows from the site."""

    d_sae: int = Field(gt=0)
    """Number of latents."""

    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights. The order of the data has a seed of its own."""

    def build(self) -> "SparseCoder[Any]":
        """A fresh coder with these settings, in float32 on the CPU."""
        return CODERS[self.kind](self)

    @classmethod
    def example(cls) -> "SaeConfig":
        """A tiny member for tests and docs."""
        raise TypeError(f"{cls.__name__} has no example")

    @classmethod
    def examples(cls) -> "tuple[SaeConfig, ...]":
        """Tiny members that together reach every form of the variant; the tests run them all."""
        return (cls.example(),)


class Step(NamedTuple):
    """All a variant may look at in one step of training."""

    x: Float[Tensor, "batch d_in"]
    """Activations, at unit mean square norm unless the recipe says otherwise."""

    target: Float[Tensor, "batch d_out"]
    """What to reconstruct: ``x`` itself, unless the variant maps one place to another."""

    dead: Bool[Tensor, " d_sae"]
    """Latents that have not fired for a while; the loop decides how long that is."""

    progress: float
    """Share of training that is done, in [0, 1]."""

    warmup: float = 1.0
    """Factor on sparsity penalties, from 0 to 1 while they are warmed up."""

    number: int = 0
    """Index of the step: with a seed it makes a variant's own random draws repeatable."""


class Terms(NamedTuple):
    """What a step came to. The loss is the sum of the terms; each is a weighted scalar."""

    code: Code
    """Latent activations as trained on; the loop reads which latents fired."""

    error: Float[Tensor, "batch d_out"]
    """Target minus reconstruction, at the scale of training."""

    reconstruction: Float[Tensor, ""]
    """Squared error: sum over d_out, mean over the batch."""

    extra: dict[str, Float[Tensor, ""]]
    """Every other term by name, already weighted."""

    per_token: Mapping[str, Float[Tensor, " batch"]] = MappingProxyType({})
    """Of those other terms that are means over tokens what each token adds, by the same name.
    Objectives that weigh tokens need them."""

    reconstruction_weight: float = 1.0
    """Factor on the squared error in the loss; 0 where it is watched and not trained on."""

    @property
    def z(self) -> Float[Tensor, "batch d_sae"]:
        """The latents as one dense matrix, made when it is asked for."""
        return self.code.z

    @property
    def loss(self) -> Float[Tensor, ""]:
        total = self.reconstruction
        if self.reconstruction_weight != 1:
            total = self.reconstruction_weight * total if self.reconstruction_weight else 0.0
        for term in self.extra.values():
            total = total + term
        return total if isinstance(total, Tensor) else self.reconstruction.new_zeros(())


AnyCoder = TypeVar("AnyCoder", bound=SaeConfig)


class SparseCoder(nn.Module, ABC, Generic[AnyCoder]):
    """A sparse coder: activations to latents and back.

    A finished class is never subclassed again; variants share functions (`_ops`), not behaviour
    by inheritance. Rows of ``W_enc`` and ``W_dec``, both (d_sae, d_in), belong to one latent.
    """

    cfg: AnyCoder
    by_latent: ClassVar[tuple[str, ...]] = ("W_enc", "W_dec", "b_enc")
    """Parameters with a row or an entry per latent: what `reset_latents_` sets."""

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        finished = [
            base
            for base in cls.__mro__[1:]
            if issubclass(base, SparseCoder)
            and base is not SparseCoder
            and not getattr(base, "__abstractmethods__", None)
        ]
        if finished:
            raise TypeError(f"{cls.__name__} subclasses {finished[0].__name__}, which is finished")

    @property
    def d_in(self) -> int:
        return self.cfg.d_in

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed."""
        return self.cfg.d_in

    @property
    def d_sae(self) -> int:
        return self.cfg.d_sae

    @abstractmethod
    def encode(self, x: Activations) -> Latents:
        """Latent activations of raw activations, as used after training: per token, >= 0."""

    @abstractmethod
    def decode(self, z: Latents) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction from latents."""

    @abstractmethod
    def terms(self, step: Step) -> Terms:
        """The loss of one step, term by term. May update state that only this variant needs."""

    @abstractmethod
    def scale_(self, factor: float) -> None:
        """Turn a coder of ``x`` into the coder of ``factor * x``; its latents scale alike.

        This folds the normalisation of training into the weights (variants.md 2.2): biases and
        thresholds times ``factor``, encoder and decoder unchanged.
        """

    def fold_norms_(self) -> None:
        """Give decoder rows unit norm without changing reconstructions (variants.md 2.3).

        Called once when training is over; default: the rows have unit norm already.
        """

    def flops_per_token(self) -> float:
        """Floating-point operations of a training step per token, for products of matrices.

        A product of one row with an (m, n) matrix counts 2 m n. Default: the encoder's product,
        the decoder's, and two more of each in the backward pass but the gradient by x.
        """
        encode, decode = 2.0 * self.d_sae * self.d_in, 2.0 * self.d_sae * self.d_out
        return 2 * encode + 3 * decode

    def numbers(self) -> dict[str, float]:
        """What a curve should show of state only this variant has; default: nothing."""
        return {}

    def reconstruct(self, x: Activations, z: Latents) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction from ``x`` and its latents ``z``; default: from the latents alone."""
        return self.decode(z)

    def forward(self, x: Activations) -> Float[Tensor, "*batch d_out"]:
        return self.reconstruct(x, self.encode(x))

    @torch.no_grad()
    def initialise_(self, sample: Float[Tensor, "rows d_in"]) -> None:
        """Set what depends on data before the first step; default: nothing does."""

    @torch.no_grad()
    def initialise_target_(self, target: Float[Tensor, "rows d_out"]) -> None:
        """Set what depends on that which is to be reconstructed; called after `initialise_`.

        Default: nothing, since a coder of one place has seen it there.
        """

    @property
    def input_centre(self) -> Float[Tensor, " d_in"] | None:
        """What is subtracted from x before it is encoded; default: the decoder's bias."""
        return self.b_dec

    @torch.no_grad()
    def reset_latents_(
        self,
        rows: Int64[Tensor, " reset"],
        directions: Float[Tensor, "reset d_in"],
        encoder_norm: Float[Tensor, ""],
    ) -> None:
        """Let latents start anew along ``directions``, of norm 1 (variants.md 2.7 A).

        Encoder rows get the norm ``encoder_norm`` and biases are 0, so that a latent fires on the
        centred input it was made from. A variant with more ``by_latent`` than these sets them too.
        """
        self.W_dec[rows] = directions
        self.W_enc[rows] = encoder_norm * directions
        self.b_enc[rows] = 0

    @torch.no_grad()
    def before_update(self) -> None:
        """Change gradients after backward and before clipping; default: leave them."""

    @torch.no_grad()
    def after_update(self) -> None:
        """Restore a constraint after the optimiser's step; default: there is none."""


VARIANTS: Registry[type[SaeConfig]] = Registry("SAE variant")
CODERS: Registry[type[SparseCoder[Any]]] = Registry("SAE variant")

CoderClass = TypeVar("CoderClass", bound=type[SparseCoder[Any]])


def register(config: type[SaeConfig]) -> Any:
    """Class decorator: the coder that ``config.build()`` makes."""

    def add(coder: CoderClass) -> CoderClass:
        kind = config.model_fields["kind"].default
        VARIANTS.add(kind, config)
        CODERS.add(kind, coder)
        return coder

    return add
