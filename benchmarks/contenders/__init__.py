"""Libraries that train the same SAE, each the way its own trainer does; one file each."""

from importlib import import_module
from typing import Any, NamedTuple, Protocol


class Setting(NamedTuple):
    """What every contender is given."""

    kind: str
    """``topk`` or ``batch_topk``."""

    d_in: int
    d_sae: int
    k: int
    batch: int

    steps: int
    """Steps that the run is planned for: schedules depend on it."""

    lr: float
    warmup_steps: int
    seed: int = 0


class Reconstruction(NamedTuple):
    """What an SAE makes of some activations."""

    x_hat: Any
    num_on: Any
    """Latents that are on, over all rows."""


class Contender(Protocol):
    """One SAE with its optimiser."""

    def step(self, x: Any) -> None:
        """A whole optimisation step on (batch, d_in) activations of unit mean square norm."""
        ...

    def reconstruct(self, x: Any) -> Reconstruction:
        """Reconstruction of (rows, d_in) activations."""
        ...


OURS = "ours"

CONTENDERS = {
    OURS: "ours",
    "ours-data": "ours",
    "sparsify": "sparsify_",
    "sparsify-bf16": "sparsify_",
    "sae-lens": "sae_lens_",
    "sae-lens-sparse": "sae_lens_",
    "sae-lens-bf16": "sae_lens_",
    "dictionary-learning": "dictionary_learning_",
    "dictionary-learning-bf16": "dictionary_learning_",
}
"""Names and the modules that build them."""

FLOORS = {"encode-float32": "encode", "encode-bfloat16": "encode"}
"""What no step can do without; they train nothing."""


def build(name: str, setting: Setting) -> Contender:
    """The contender called ``name``; raises NotImplementedError where it has no such SAE."""
    module = import_module(f"benchmarks.contenders.{(CONTENDERS | FLOORS)[name]}")
    return module.build(name, setting)
