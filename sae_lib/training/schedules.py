"""Schedules as pure functions of the step, so that a resumed run needs no state for them."""


def lr_factor(step: int, *, steps: int, warmup_steps: int, decay_share: float) -> float:
    """Factor on the learning rate in step ``step`` of ``steps``, in (0, 1].

    Rises linearly over ``warmup_steps``, is 1, and falls linearly over the last ``decay_share``
    of the run; it would reach 0 in the step after the last.
    """
    rising = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    decay_steps = round(decay_share * steps)
    falling = (steps - step) / (decay_steps + 1) if steps - step <= decay_steps else 1.0
    return min(rising, falling)


def sparsity_factor(step: int, *, steps: int, warmup_share: float) -> float:
    """Factor on sparsity penalties in step ``step``: 0 at the start, 1 after ``warmup_share``."""
    warmup_steps = warmup_share * steps
    return min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
