"""What only p-annealing claims: a penalty whose power falls and whose worth stays."""

import itertools
from typing import Any

import pytest
import torch

from sae_lib.saes._penalties import power
from sae_lib.saes.p_annealed import PAnnealedConfig
from sae_lib.saes.standard import StandardConfig

every_base = pytest.mark.parametrize("base", ["relu", "gated"])


def config(**changes: Any) -> PAnnealedConfig:
    return PAnnealedConfig.example().but(**changes)


def at(step_of: Any, x: torch.Tensor, progress: float, **changes: Any) -> Any:
    return step_of(x, 32, **changes)._replace(progress=progress)


@pytest.mark.parametrize("both", [{}, {"coefficient": 0.1, "target_l0": 4.0}])
def test_exactly_one_of_coefficient_and_target_is_given(both: dict[str, float]):
    with pytest.raises(ValueError, match=r"exactly one of coefficient .* and target_l0"):
        PAnnealedConfig.model_validate({"d_in": 8, "d_sae": 32, **both})


def test_powers_by_hand():
    z = torch.tensor([4.0, 1.0])
    assert power(z, 1.0).sum() == 5
    assert power(z, 0.5).sum().item() == pytest.approx(3, abs=3e-3)
    assert power(torch.zeros(1), 0.2).item() == 0


def test_the_power_falls_in_equal_steps_from_one_to_its_end():
    cfg = config(anneal_start=0.25, p_end=0.2, p_updates=4)
    at_share = [cfg.power_at(cfg.level_at(share / 80)) for share in range(80)]
    assert at_share[:20] == [1.0] * 20
    for level in range(4):
        stretch = at_share[20 + 15 * level :][:15]
        assert stretch == pytest.approx([1 - 0.2 * (level + 1)] * 15)
    assert cfg.power_at(cfg.level_at(1.0)) == pytest.approx(0.2)


def test_a_change_keeps_what_the_penalty_is_worth_by_hand():
    """s = (4, 1): sum s is 5 and sum of roots 3, so the coefficient grows by 5/3."""
    cfg = config(d_in=2, d_sae=2, p_updates=1, p_end=0.5, anneal_start=0.5, coefficient=0.3)
    coder: Any = cfg.build()
    coder.remember_(torch.tensor([[4.0, 1.0]]))
    coder.anneal_(0.4)
    assert (coder.p, coder.control.coefficient.item()) == (1.0, pytest.approx(0.3))
    coder.anneal_(0.5)
    assert coder.p == 0.5
    assert coder.control.coefficient.item() == pytest.approx(0.3 * 5 / 3, rel=1e-3)


@every_base
def test_the_penalty_of_the_queue_is_the_same_before_and_after(
    base: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(base=base, queue=3, p_updates=2)).double()
    coder.level.zero_()
    coder.sums.zero_()
    coder.num_sums.zero_()
    batches = mixtures(5 * 64)[0].double().split(64)
    for x in batches:
        coder.terms(at(step_of, x, 0.0))
    seen = [coder.penalised_and_latents(x)[0] for x in batches[-3:]]  # older ones have left
    before = coder.control.coefficient * sum(power(s, 1.0).sum() for s in seen)
    coder.anneal_(0.3)
    assert coder.p == pytest.approx(0.6)
    after = coder.control.coefficient * sum(power(s, 0.6).sum() for s in seen)
    torch.testing.assert_close(after, before)
    coder.anneal_(1.0)  # nothing was seen since: the coefficient cannot be set anew
    torch.testing.assert_close(
        coder.control.coefficient * sum(power(s, 0.6).sum() for s in seen), before
    )


def test_without_annealing_it_is_the_standard_autoencoder(fitted: Any, mixtures: Any):
    x = mixtures(1024)[0]
    mine = fitted(config(p_end=1.0), x)
    other = fitted(StandardConfig(d_in=8, d_sae=32, l1=0.1), x)
    for name, value in other.coder.named_parameters():
        torch.testing.assert_close(mine.coder.get_parameter(name), value, rtol=0, atol=1e-6)


def test_only_what_is_on_is_pushed_and_gradients_are_finite(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder, x = seasoned(config(), torch.float64), mixtures(16)[0].double()
    coder.level.fill_(10)
    step, size = at(step_of, x, 1.0), 1e-6
    coder.terms(step).loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in coder.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                parameter.add_(sign * size * direction)
            losses.append(coder.terms(step).loss.item())
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        slope = (losses[0] - losses[1]) / (2 * size)
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-4), name


@every_base
def test_a_run_of_fewer_steps_than_changes_makes_one_at_a_time(
    base: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder: Any = config(base=base).build()
    x, levels = mixtures(64)[0], []
    for _ in range(12):
        coder.terms(at(step_of, x, 1.0))
        levels.append(int(coder.level))
    assert levels == [*range(1, 11), 10, 10]


def test_the_gate_learns_from_the_penalty_and_the_frozen_decoder(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder, x = seasoned(config(base="gated"), torch.float64), mixtures(64)[0].double()
    step = at(step_of, x, 0.5)

    def gradients(name: str) -> dict[str, Any]:
        coder.zero_grad()
        terms = coder.terms(step)
        {**terms.extra, "reconstruction": terms.reconstruction}[name].backward()
        return {key: value.grad for key, value in coder.named_parameters()}

    reconstruction, frozen = gradients("reconstruction"), gradients("gate")
    assert reconstruction["b_enc"] is None or not bool(reconstruction["b_enc"].any())
    for name in ("W_dec", "r_mag", "b_mag"):
        assert frozen[name] is None or not bool(frozen[name].any()), name
    for name in ("W_enc", "b_enc"):
        assert bool(frozen[name].any()), name
    penalty = gradients("sparsity")
    assert penalty["r_mag"] is None or not bool(penalty["r_mag"].any())
    assert bool(penalty["b_enc"].any())


def test_a_gated_base_with_one_path_is_the_relu_base(seasoned: Any, mixtures: Any):
    gated, x = seasoned(config(base="gated"), torch.float64), mixtures(64)[0].double()
    plain = config().build().double()
    with torch.no_grad():
        gated.r_mag.zero_()
        gated.b_mag.copy_(gated.b_enc)
        for name, value in plain.named_parameters():
            value.copy_(gated.get_parameter(name))
    torch.testing.assert_close(gated.encode(x), plain.encode(x))


@every_base
@pytest.mark.parametrize("target", [4.0, None])
def test_training_ends_at_the_last_power_and_the_target_is_kept(
    base: Any, target: float | None, fitted: Any, mixtures: Any
):
    dial = {"coefficient": None if target else 0.05, "target_l0": target}
    x = mixtures(4096)[0]
    result = fitted(config(base=base, p_end=0.4, **dial), x, steps=900, lr=3e-3)
    assert result.numbers["p"] == pytest.approx(0.4)
    with torch.no_grad():
        on = (result.coder.encode(x) > 0).sum(-1).float().mean().item()
    if target:
        assert on == pytest.approx(target, rel=0.15)
    ps = [point["value"] for point in result.curves if point["name"] == "p"]
    assert ps[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(ps))


def test_annealing_shrinks_less_at_the_same_number_of_latents_on(fitted: Any, mixtures: Any):
    x = mixtures(4096)[0]

    def size(cfg: Any) -> float:
        result = fitted(cfg, x, steps=900, lr=3e-3)
        with torch.no_grad():
            x_hat = result.coder(x)
        return float((x * x_hat).sum() / x.square().sum())

    annealed = size(config(coefficient=None, target_l0=3.0))
    plain = size(StandardConfig(d_in=8, d_sae=32, target_l0=3.0))
    assert annealed > plain + 0.01
