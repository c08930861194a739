"""Schedules, and the counting of silence."""

import pytest
import torch

from sae_lib.saes._codes import Code
from sae_lib.training.dead import advance_
from sae_lib.training.schedules import lr_factor, sparsity_factor


def lr_curve(steps: int, warmup_steps: int, decay_share: float) -> list[float]:
    return [
        lr_factor(step, steps=steps, warmup_steps=warmup_steps, decay_share=decay_share)
        for step in range(steps)
    ]


def test_the_learning_rate_rises_stays_and_falls():
    found = lr_curve(10, 2, 0.4)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_without_warm_up_and_decay_the_learning_rate_is_constant():
    assert lr_curve(5, 0, 0.0) == [1] * 5


def test_the_learning_rate_of_every_step_is_positive():
    for steps in (1, 2, 7, 1000):
        assert min(lr_curve(steps, steps // 20, 0.2)) > 0
        assert max(lr_curve(steps, steps // 20, 0.2)) <= 1


def test_sparsity_penalties_rise_from_nothing_to_their_full_size():
    found = [sparsity_factor(step, steps=100, warmup_share=0.04) for step in range(6)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    assert sparsity_factor(0, steps=100, warmup_share=0.0) == 1


def test_the_learning_rate_may_rise_from_a_share_of_its_peak():
    found = [
        lr_factor(step, steps=100, warmup_steps=4, decay_share=0.0, warmup_start=0.2)
        for step in range(6)
    ]
    assert found == pytest.approx([0.4, 0.6, 0.8, 1, 1, 1])


def test_sparsity_penalties_may_rise_for_a_number_of_steps():
    found = [sparsity_factor(i, steps=100, warmup_share=0.5, warmup_steps=2) for i in range(4)]
    assert found == pytest.approx([0, 0.5, 1, 1])
    assert sparsity_factor(0, steps=100, warmup_share=0.5, warmup_steps=0) == 1


def test_silence_is_counted_in_tokens_and_ends_with_one_firing():
    silent_for = torch.zeros(3, dtype=torch.int64)
    z = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    advance_(silent_for, Code(z).fired(), 2)
    advance_(silent_for, Code(z[1:]).fired(), 1)
    advance_(silent_for, Code(z.flip(1)).fired(), 2)
    assert silent_for.tolist() == [5, 0, 5]
