"""Transcoders: what they become where they are something simpler, and the way past the latents."""

from typing import Any

import pytest
import torch

from sae_lib.saes.topk import TopKConfig
from sae_lib.saes.transcoder import TranscoderConfig

EXAMPLES = TranscoderConfig.examples()
SMOOTH = [cfg for cfg in EXAMPLES if cfg.activation != "jumprelu"]


def step_to(step_of: Any, x: torch.Tensor, target: torch.Tensor, d_sae: int, **more: Any) -> Any:
    return step_of(x, d_sae, **more)._replace(target=target)


def test_with_the_input_as_target_and_no_skip_it_is_the_autoencoder(
    seasoned: Any, mixtures: Any, step_of: Any
):
    sae = seasoned(TopKConfig.example(), torch.float64)
    coder = TranscoderConfig.example().build().double()
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(coder, name).copy_(getattr(sae, name))
        coder.b_in.copy_(sae.b_dec)
        coder.target_variance.copy_(sae.x_variance)
    x = mixtures(64)[0].double()
    step = step_of(x, 32, dead=torch.arange(32) < 8)
    mine, its = coder.terms(step), sae.terms(step)
    torch.testing.assert_close(mine.loss, its.loss, rtol=1e-12, atol=0)
    assert set(mine.extra) == set(its.extra)
    mine.loss.backward()
    its.loss.backward()
    for name in ("W_enc", "W_dec", "b_enc"):
        torch.testing.assert_close(getattr(coder, name).grad, getattr(sae, name).grad)
    torch.testing.assert_close(coder.b_in.grad + coder.b_dec.grad, sae.b_dec.grad)


@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
def test_the_sparse_path_has_the_dense_gradients(
    activation: str, mixtures: Any, step_of: Any, monkeypatch: pytest.MonkeyPatch
):
    from sae_lib.saes import _codes

    cfg = TranscoderConfig(
        d_in=8, d_out=6, d_sae=256, k=4, aux_k=4, activation=activation, skip=True
    )
    x = mixtures(64)[0].double()
    target = (x[:, :6] * 2).relu()
    found = []
    for limit in (1.0, 0.0):
        monkeypatch.setattr(_codes, "MAX_DENSITY", limit)
        coder = cfg.build().double()
        with torch.no_grad():
            coder.W_dec.copy_(torch.randn(256, 6, generator=torch.Generator().manual_seed(0)))
        terms = coder.terms(step_to(step_of, x, target, 256, dead=torch.arange(256) < 99))
        assert terms.code.is_sparse == (limit == 1)
        terms.loss.backward()
        found.append({name: p.grad for name, p in coder.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cfg", SMOOTH, ids=str)
def test_gradients_are_those_of_the_loss(
    cfg: TranscoderConfig, seasoned: Any, mixtures: Any, step_of: Any
):
    coder, x = seasoned(cfg, torch.float64), mixtures(16)[0].double()
    state = {name: value.clone() for name, value in coder.state_dict().items()}
    step, size = step_of(x, cfg.d_sae), 1e-6
    coder.terms(step).loss.backward()
    for name, parameter in coder.named_parameters():
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            coder.load_state_dict(state)
            with torch.no_grad():
                parameter.add_(sign * size * direction)
            losses.append(coder.terms(step).loss.item())
        coder.load_state_dict(state)
        slope = (losses[0] - losses[1]) / (2 * size)
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5), name


def test_jumprelu_at_a_threshold_near_zero_is_relu(mixtures: Any):
    shape: dict[str, Any] = {"d_in": 8, "d_sae": 32}
    jump = TranscoderConfig(**shape, activation="jumprelu", penalty=0.0, threshold=1e-12).build()
    relu = TranscoderConfig(**shape, activation="relu", l1=0.0).build()
    x = mixtures(64)[0]
    torch.testing.assert_close(jump.encode(x), relu.encode(x))


def test_a_skip_transcoder_starts_at_the_mean_of_its_target(mixtures: Any):
    coder = TranscoderConfig(d_in=8, d_out=5, d_sae=32, k=4, skip=True).build()
    x, target = mixtures(64)[0], mixtures(64, d_in=5, seed=3)[0] + 2
    coder.initialise_(x)
    coder.initialise_target_(target)
    torch.testing.assert_close(coder(x), target.mean(0).expand(64, -1))


def test_a_linear_module_is_fit_exactly_by_the_skip(mixtures: Any, step_of: Any):
    cfg = TranscoderConfig(d_in=8, d_out=5, d_sae=32, k=4, skip=True)
    coder, x = cfg.build().double(), mixtures(64)[0].double()
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    a = torch.randn(5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        coder.W_skip.copy_(A)
        coder.b_dec.copy_(a)
        coder.b_enc.fill_(-100)
    target = x @ A.T + a
    terms = coder.terms(step_to(step_of, x, target, 32))
    assert terms.code.num_on() == 0
    assert terms.reconstruction < 1e-24
    terms.loss.backward()
    assert coder.W_skip.grad.abs().max() < 1e-10


def test_the_skip_adds_no_latents_and_is_not_in_what_they_decode_to(seasoned: Any, mixtures: Any):
    coder, x = seasoned(TranscoderConfig.example().but(skip=True)), mixtures(64)[0]
    z = coder.encode(x)
    assert int((z > 0).sum(1).max()) <= 4
    torch.testing.assert_close(coder(x) - coder.decode(z), x @ coder.W_skip.T)
    with torch.no_grad():
        coder.W_skip.zero_()
    assert torch.equal(coder.encode(x), z)


@pytest.mark.parametrize("cfg", EXAMPLES, ids=str)
def test_the_scale_of_the_output_is_folded_and_norms_after_it(
    cfg: TranscoderConfig, seasoned: Any, mixtures: Any
):
    coder, folded = seasoned(cfg, torch.float64), seasoned(cfg, torch.float64)
    x = mixtures(64)[0].double()
    folded.scale_output_(3.0)
    torch.testing.assert_close(folded(x), 3 * coder(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded.encode(x), coder.encode(x))
    folded.fold_norms_()
    torch.testing.assert_close(folded(x), 3 * coder(x), rtol=1e-10, atol=1e-10)
    folded.fold_norms_()  # a second time changes nothing
    torch.testing.assert_close(folded(x), 3 * coder(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 4, "l1": 0.1}, "topk takes exactly one of k; got k, l1"),
        ({}, "topk takes exactly one of k; got none"),
        ({"activation": "relu", "k": 4}, "relu takes exactly one of l1, target_l0; got k"),
        ({"activation": "jumprelu", "l1": 1}, "exactly one of penalty, target_l0; got l1"),
        ({"k": 33}, "k must be at most d_sae=32; got k=33"),
    ],
)
def test_dials_that_do_not_fit_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        TranscoderConfig(d_in=8, d_sae=32, **given)
