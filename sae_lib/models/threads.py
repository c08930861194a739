"""How many threads torch computes with."""

import torch


def use_threads(count: int | None) -> None:
    """Compute with ``count`` threads from now on; None changes nothing.

    Sums are taken in another order with another number, so results differ in their last bits.
    """
    if count is not None and count != torch.get_num_threads():
        torch.set_num_threads(count)
