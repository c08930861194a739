"""What only the JumpReLU claims, in its three forms."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.saes import Step
from sae_lib.saes._jump import jump
from sae_lib.saes.jumprelu import JumpReLU, JumpReLUConfig
from sae_lib.saes.standard import StandardConfig

FORMS = ("l0", "target_l0", "tanh")
every_form = pytest.mark.parametrize("form", FORMS)


def config(**changes: Any) -> JumpReLUConfig:
    given: dict[str, Any] = {"d_in": 8, "d_sae": 32, **changes}
    if not {"penalty", "target_l0"} & set(given):
        given |= {"target_l0": 4} if given.get("form") == "target_l0" else {"penalty": 0.02}
    return JumpReLUConfig(**given)


def built(**changes: Any) -> JumpReLU:
    coder = config(**changes).build()
    assert isinstance(coder, JumpReLU)
    return coder


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    return torch.zeros_like(parameter) if found is None else found


# --- the step and its estimated gradient (variants.md 2.8, 3.6) ---


@pytest.mark.parametrize(
    ("pre", "z", "is_near"),
    [(1.1, 1.1, True), (0.9, 0.0, True), (1.3, 1.3, False), (0.7, 0, False)],
)
def test_a_threshold_feels_what_is_near_it_on_both_sides(pre: float, z: float, is_near: bool):
    threshold = torch.tensor([1.0], requires_grad=True)
    values, on = jump(torch.tensor([[pre]]), threshold, 0.5)
    assert values.item() == pytest.approx(z)
    assert on.item() == (z > 0)
    slope = -2.0 if is_near else 0.0
    assert gradient(on.sum(), threshold).item() == slope
    assert gradient(values.sum(), threshold).item() == slope


def test_the_value_passes_gradients_where_it_is_on_and_the_step_passes_none():
    pre = torch.tensor([[1.1, 0.9, 1.3, 0.7]], requires_grad=True)
    values, on = jump(pre, torch.ones(4), 0.5)
    assert gradient(values.sum(), pre).tolist() == [[1, 0, 1, 0]]
    only = torch.ones(4, requires_grad=True)
    _, on = jump(pre, only, 0.5)
    assert gradient(on.sum(), pre).tolist() == [[0, 0, 0, 0]]


def test_at_its_threshold_a_latent_is_off():
    values, on = jump(torch.tensor([[1.0]]), torch.tensor([1.0]), 0.5)
    assert (values.item(), on.item()) == (0, 0)


def test_the_estimate_is_the_slope_of_the_expected_loss():
    """z ~ N(0, 1), one latent: d/dtheta E[(z - J(z))^2 + l H(z - theta)] = (theta^2 - l) p(theta).

    For theta = .7 and l = .3 that is .0593; for H alone -p(theta) = -.3123.
    """
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(4_000_000, 1, generator=generator)
    threshold = torch.tensor([0.7], requires_grad=True)
    values, on = jump(pre, threshold, 0.1)
    density = math.exp(-(0.7**2) / 2) / math.sqrt(2 * math.pi)
    assert gradient(on.mean(), threshold).item() == pytest.approx(-density, abs=0.004)
    loss = (pre - values).square().sum(1).mean() + 0.3 * on.mean()
    exact = (0.7**2 - 0.3) * density
    assert exact == pytest.approx(0.0593, abs=1e-4)
    assert gradient(loss, threshold).item() == pytest.approx(exact, abs=0.004)


def test_a_whole_step_has_the_gradients_of_the_paper(seasoned: Any, mixtures: Any, step_of: Any):
    """dL/dt_i of one token = theta_i K / eps (2 theta_i d_i . e - l), written out."""
    cfg = config(penalty=0.03, threshold=0.2, bandwidth=0.3)
    coder, x = seasoned(cfg, torch.float64), mixtures(64)[0].double()
    terms = coder.terms(step_of(x, 32, warmup=0.5))
    with torch.no_grad():
        threshold, pre = coder.threshold, coder.pre(x)
        near = ((pre - threshold).abs() < 0.15).double()
        along = terms.error @ coder.W_dec.T
        penalty = float(torch.tensor(0.03) * 0.5)
        expected = (threshold * near / 0.3 * (2 * threshold * along - penalty)).mean(0)
    assert near.any()
    torch.testing.assert_close(gradient(terms.loss, coder.log_threshold), expected)


@every_form
def test_gradients_of_all_but_thresholds_are_those_of_the_loss(
    form: str, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(form=form, pre_weight=0.01), torch.float64)
    step, size = step_of(mixtures(16)[0].double(), 32), 1e-6
    state = {name: value.clone() for name, value in coder.state_dict().items()}
    coder.terms(step).loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        parameter = coder.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * size * direction)
            losses.append(coder.terms(step).loss.item())
            coder.load_state_dict(state)
        slope = (losses[0] - losses[1]) / (2 * size)
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5), name


@pytest.mark.parametrize("form", ["l0", "target_l0"])
def test_the_penalty_moves_thresholds_alone(form: str, seasoned: Any, mixtures: Any, step_of: Any):
    coder = seasoned(config(form=form, bandwidth=0.5))
    sparsity = coder.terms(step_of(mixtures(64)[0], 32)).extra["sparsity"]
    for name, parameter in coder.named_parameters():
        is_moved = bool(gradient(sparsity, parameter).any())
        assert is_moved == (name == "log_threshold"), name


def test_the_tanh_penalty_reaches_all_that_decides_what_is_on(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(form="tanh"))
    sparsity = coder.terms(step_of(mixtures(64)[0], 32)).extra["sparsity"]
    moved = {name for name, p in coder.named_parameters() if gradient(sparsity, p).any()}
    assert moved == {"W_enc", "b_enc", "W_dec", "log_threshold"}


# --- the penalties ---


def test_the_l0_penalty_counts(seasoned: Any, mixtures: Any, step_of: Any):
    coder = seasoned(config(penalty=0.25), torch.float64)
    terms = coder.terms(step_of(mixtures(64)[0].double(), 32, warmup=0.5))
    on = (terms.z > 0).sum(1).double()
    torch.testing.assert_close(terms.per_token["sparsity"], 0.125 * on)
    assert terms.extra["sparsity"].item() == pytest.approx(0.125 * on.mean().item())


def test_the_target_penalty_is_the_square_of_the_relative_gap(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(form="target_l0", target_l0=4, penalty=2.0), torch.float64)
    terms = coder.terms(step_of(mixtures(64)[0].double(), 32, warmup=0.5))
    on = (terms.z > 0).sum(1).double().mean().item()
    assert on != 4
    assert terms.extra["sparsity"].item() == pytest.approx((on / 4 - 1) ** 2)
    assert "sparsity" not in terms.per_token


def test_tanh_saturates_at_one_per_latent():
    """Slope 4: a latent of .5 costs tanh 2 = .9640, one of 2 costs tanh 8 = .9999998."""
    coder = built(d_in=1, d_sae=2, form="tanh", penalty=1.0, slope=4.0, start_on=None).double()
    with torch.no_grad():
        coder.W_dec.copy_(torch.tensor([[1.0], [2.0]]))
        coder.W_enc.fill_(0.5)
        coder.b_enc.copy_(torch.tensor([0.0, 0.5]))
        coder.log_threshold.fill_(math.log(0.1))
    x = torch.ones(1, 1, dtype=torch.float64)
    terms = coder.terms(Step(x, x, torch.zeros(2, dtype=torch.bool), 0.0))
    assert terms.z.tolist() == [[0.5, 1.0]]
    assert math.tanh(4 * 0.5) == pytest.approx(0.9640, abs=1e-4)
    assert math.tanh(4 * 2) == pytest.approx(0.9999998, abs=1e-7)
    both = math.tanh(4 * 0.5 * 1) + math.tanh(4 * 1.0 * 2)
    assert terms.extra["sparsity"].item() == pytest.approx(both)


@every_form
@pytest.mark.parametrize("latents", ["all", "dead"])
def test_the_pre_activation_loss_pulls_on_what_is_below_its_threshold(
    form: str, latents: str, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(form=form, pre_weight=0.01, pre_latents=latents), torch.float64)
    x, dead = mixtures(1)[0].double(), torch.arange(32) % 2 == 0
    terms = coder.terms(step_of(x, 32, dead=dead))
    below = (coder.pre(x) < coder.threshold)[0]
    counts = below & dead if latents == "dead" else below
    assert 0 < counts.sum() < 32
    expected = -0.01 * coder.W_dec.norm(dim=-1) * counts
    torch.testing.assert_close(gradient(terms.extra["pre"], coder.b_enc), expected.detach())
    torch.testing.assert_close(terms.per_token["pre"].mean(), terms.extra["pre"])


def test_the_pre_activation_loss_wakes_latents_that_were_put_to_sleep(mixtures: Any, step_of: Any):
    awake = {}
    x = mixtures(256)[0]
    for weight in (0.0, 1e-2):
        coder = built(pre_weight=weight, pre_latents="dead")
        asleep = torch.arange(32) < 8
        with torch.no_grad():
            coder.b_enc[asleep] = -1.5
        assert not (coder.encode(x)[:, asleep] > 0).any()
        optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            dead = ~(coder.encode(x) > 0).any(0)
            coder.terms(step_of(x, 32, dead=dead)).loss.backward()
            optimizer.step()
            coder.after_update()
        awake[weight] = int((coder.encode(x)[:, asleep] > 0).any(0).sum())
    assert awake == {0.0: 0, 1e-2: 8}


# --- limits ---


def test_at_zero_threshold_it_is_relu(seasoned: Any, mixtures: Any):
    coder, x = seasoned(config(), torch.float64), mixtures(64)[0].double()
    relu = StandardConfig(d_in=8, d_sae=32, l1=0.1).build().double()
    with torch.no_grad():
        coder.log_threshold.fill_(-math.inf)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            relu.get_parameter(name).copy_(coder.get_parameter(name))
    assert torch.equal(coder.encode(x), relu.encode(x))
    assert torch.equal(coder(x), relu(x))


def test_the_tanh_form_does_not_see_how_norms_are_shared(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder, other = (seasoned(config(form="tanh"), torch.float64) for _ in range(2))
    factors = torch.rand(32, dtype=torch.float64) * 5 + 0.1
    with torch.no_grad():
        other.W_enc.mul_(factors[:, None])
        other.b_enc.mul_(factors)
        other.log_threshold.add_(factors.log())
        other.W_dec.div_(factors[:, None])
    step = step_of(mixtures(64)[0].double(), 32)
    mine, theirs = coder.terms(step), other.terms(step)
    assert mine.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-12)
    torch.testing.assert_close(theirs.z, mine.z * factors)


def test_a_latent_without_a_decoder_row_is_switched_off_by_folding(seasoned: Any, mixtures: Any):
    coder, x = seasoned(config(form="tanh")), mixtures(32)[0]
    with torch.no_grad():
        coder.W_dec[3] = 0
        before = coder(x)
    coder.fold_norms_()
    assert bool(torch.isfinite(coder.log_threshold).all())
    assert bool((coder.encode(x)[:, 3] == 0).all())
    torch.testing.assert_close(coder(x), before)


# --- first values ---


def test_first_values_are_those_of_the_sources():
    coder = built(threshold=0.001)
    torch.testing.assert_close(coder.threshold, torch.full((32,), 0.001))
    assert torch.equal(coder.W_enc, coder.W_dec)
    tanh = built(form="tanh")
    width = math.sqrt(8)
    torch.testing.assert_close(tanh.log_threshold, torch.full((32,), 0.1 - math.log(width)))
    assert tanh.cfg.bandwidth == pytest.approx(2 / width)
    assert tanh.cfg.slope == pytest.approx(4 * width)
    assert tanh.cfg.pre_weight == pytest.approx(3e-6 / width)
    torch.testing.assert_close(tanh.W_enc, 8 / 32 * tanh.W_dec)
    torch.testing.assert_close(tanh.W_dec.norm(dim=-1), torch.full((32,), 3**-0.5))


@pytest.mark.parametrize("start_on", [4.0, 16.0])
def test_every_latent_starts_with_the_share_of_tokens_it_was_promised(
    start_on: float, mixtures: Any
):
    coder, x = built(form="tanh", start_on=start_on), mixtures(4096)[0]
    coder.initialise_(x)
    shares = (coder.encode(x) > 0).float().mean(0)
    torch.testing.assert_close(shares, torch.full((32,), start_on / 32), rtol=0, atol=0.01)
    assert not coder.b_dec.any()


def test_where_the_bias_starts_is_a_choice(mixtures: Any):
    x = mixtures(512)[0] + 1
    median, zero = built(), built(bias_start="zero")
    for coder in (median, zero):
        coder.initialise_(x)
    assert float((median.b_dec - x.mean(0)).detach().norm()) < 0.3
    assert not zero.b_dec.any()


# --- bad descriptions ---


@pytest.mark.parametrize("form", ["l0", "tanh"])
@pytest.mark.parametrize("both", [{}, {"penalty": 0.1, "target_l0": 4.0}])
def test_exactly_one_of_penalty_and_target_is_given(form: Any, both: dict[str, float]):
    with pytest.raises(ValueError, match=r"exactly one of penalty .* and target_l0"):
        JumpReLUConfig(d_in=8, d_sae=32, form=form, **both)


def test_the_target_form_needs_its_target():
    with pytest.raises(ValueError, match="form target_l0 needs target_l0"):
        JumpReLUConfig(d_in=8, d_sae=32, form="target_l0", penalty=1.0)


@pytest.mark.parametrize("field", ["target_l0", "start_on"])
def test_more_latents_than_there_are_are_refused(field: str):
    given: dict[str, Any] = {"target_l0": 4, field: 32}
    with pytest.raises(ValueError, match=rf"{field} must be below d_sae=32; got {field}=32"):
        JumpReLUConfig(d_in=8, d_sae=32, **given)


# --- training ---


@every_form
@pytest.mark.parametrize("target", [2.5, 4.0])
def test_the_number_of_latents_on_comes_to_its_target(
    form: str, target: float, fitted: Any, mixtures: Any
):
    """Where that is not more than there are directions on; see the docstring of the module."""
    x = mixtures(4096, 24, num_true=24, on=4.0)[0]
    cfg = config(d_in=24, d_sae=48, form=form, target_l0=target)
    result = fitted(cfg, x, steps=800, lr=5e-3)
    with torch.no_grad():
        on = (result.coder.encode(x) > 0).sum(-1).float().mean().item()
    assert on == pytest.approx(target, rel=0.12)
    assert result.numbers["median_threshold"] > 0


@pytest.mark.parametrize(("form", "size"), [("l0", 1.0), ("tanh", 0.2)])
def test_a_larger_penalty_leaves_fewer_latents_on(
    form: str, size: float, fitted: Any, mixtures: Any
):
    x = mixtures(2048)[0]
    on = [
        fitted(config(form=form, penalty=size * p), x, steps=400, lr=5e-3).numbers["l0"]
        for p in (0.003, 0.015, 0.08)
    ]
    assert on[0] > 1.1 * on[1] > 1.21 * on[2]


def test_a_bandwidth_that_sees_nothing_leaves_thresholds_alone(fitted: Any, mixtures: Any):
    """Why the paper's .001 belongs to long runs, and the default is not that."""
    x = mixtures(2048)[0]
    moved = {}
    for size in (0.001, None):
        given = {} if size is None else {"threshold": size, "bandwidth": size}
        cfg = config(penalty=0.02, **given)
        result = fitted(cfg, x, steps=300, lr=3e-3)
        moved[size] = result.numbers["median_threshold"] - cfg.threshold
    assert moved[0.001] < 0.01 < 0.03 < moved[None]


@every_form
def test_thresholds_stay_positive_and_rows_keep_their_norms(form: str, mixtures: Any, step_of: Any):
    coder, x = built(form=form), mixtures(64)[0]
    coder.initialise_(x)
    optimizer = torch.optim.Adam(coder.parameters(), lr=3e-2)
    for _ in range(20):
        optimizer.zero_grad()
        coder.terms(step_of(x, 32)).loss.backward()
        coder.before_update()
        if form != "tanh":
            assert coder.W_dec.grad is not None
            along = (coder.W_dec.grad * coder.W_dec.detach()).sum(-1)
            assert float(along.abs().max()) < 1e-6
        optimizer.step()
        coder.after_update()
        assert bool((coder.threshold > 0).all())
    norms = coder.W_dec.norm(dim=-1)
    are_one = bool(((norms - 1).abs() < 1e-6).all())
    assert are_one == (form != "tanh")


def test_a_folded_recipe_on_raw_activations_is_the_unfolded_one_on_scaled_ones(
    seasoned: Any, mixtures: Any
):
    cfg = config(threshold=0.001, bandwidth=0.001)
    coder, folded = seasoned(cfg), seasoned(cfg)
    raw = 37 * mixtures(64)[0]
    folded.scale_(37.0)
    torch.testing.assert_close(folded(raw), 37 * coder(raw / 37), rtol=1e-5, atol=1e-4)
