"""What a training does alone and several processes do together: measure gradients, and store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sae_lib.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint


@runtime_checkable
class Ranks(Protocol):
    """Those who train one SAE."""

    def total_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Norm of the gradient over the whole SAE, from those of its parameters held here."""
        ...

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Store the whole training, of which ``checkpoint`` is what is held here."""
        ...

    def read(self, folder: Path) -> Checkpoint | None:
        """What is to be held here of a stored training; None where there is none."""
        ...


class Alone:
    """One process, which holds everything."""

    def total_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return nn.utils.get_total_norm(list(gradients.values()))

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        write_checkpoint(folder, checkpoint)

    def read(self, folder: Path) -> Checkpoint | None:
        return read_checkpoint(folder)


ALONE = Alone()
