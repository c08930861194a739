"""Schedules as pure functions of the step, so that a resumed run needs no state for them."""

import math


def lr_factor(
    step: int, *, steps: int, warmup_steps: int, decay_share: float, warmup_start: float = 0.0
) -> float:
    """Factor on the learning rate in step ``step`` of ``steps``, in (0, 1].

    Rises linearly from ``warmup_start`` over ``warmup_steps``, is 1, and falls linearly over the
    last ``decay_share`` of the run; it would reach 0 in the step after the last.
    """
    rising = 1.0
    if step < warmup_steps:
        rising = warmup_start + (1 - warmup_start) * (step + 1) / warmup_steps
    decay_steps = round(decay_share * steps)
    falling = (steps - step) / (decay_steps + 1) if steps - step <= decay_steps else 1.0
    return min(rising, falling)


def rewarm_factor(since: int, *, steps: int, start: float) -> float:
    """Factor on the learning rate ``since`` steps after it was cut to ``start`` of itself.

    Rises along half a cosine and is 1 again after ``steps``; with no steps it is never cut.
    """
    if since >= steps:
        return 1.0
    return start + (1 - start) * (1 - math.cos(math.pi * since / steps)) / 2


def sparsity_factor(
    step: int, *, steps: int, warmup_share: float, warmup_steps: int | None = None
) -> float:
    """Factor on sparsity penalties in step ``step``: 0 at the start, 1 after the warm-up.

    That takes ``warmup_steps``; where they are None, ``warmup_share`` of the run.
    """
    rising_for = warmup_share * steps if warmup_steps is None else warmup_steps
    return min(1.0, step / rising_for) if rising_for > 0 else 1.0
