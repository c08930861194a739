"""What every sparse coder promises. A new file in `sae_lib/saes` is under test at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_lib.saes import CODERS, VARIANTS, SaeConfig
from sae_lib.saes.files import load_sae, save_sae

every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)

EXAMPLES = {
    f"{name}-{i}": cfg
    for name, variant in VARIANTS.items()
    for i, cfg in enumerate(variant.examples())
}
every_example = pytest.mark.parametrize("cfg", EXAMPLES.values(), ids=EXAMPLES)

NO_GRADIENT_CHECK: dict[str, str] = {
    "transcoder": "its jumprelu form learns thresholds by an estimate; see test_transcoder.py",
    "prolu": "the bias has a made-up gradient; test_prolu.py checks it and the others",
    "p_annealed": "the gated base has a frozen decoder; test_p_annealed.py checks the ReLU one",
    "gated": "its auxiliary term takes the decoder for a constant; test_gated.py holds it still",
    "jumprelu": "thresholds learn by an estimate; test_jumprelu.py checks the others",
}
"""Variants whose gradients are not those of their loss on purpose, and why."""

ORDER_MATTERS: dict[str, str] = {
    "switch": "latents belong to experts by their place; test_switch.py permutes within experts",
}
"""Variants in which the order of latents means something, and what."""


# --- descriptions ---


@every_variant
def test_every_field_says_what_it_means(variant: type[SaeConfig]):
    undescribed = [name for name, field in variant.model_fields.items() if not field.description]
    assert not undescribed


@every_variant
def test_a_variant_names_its_source_and_its_dials(variant: type[SaeConfig]):
    assert variant.papers
    assert variant.summary.endswith(".")
    assert set(variant.dials) <= set(variant.model_fields)
    assert variant.example().kind == variant.model_fields["kind"].default
    assert CODERS[variant.example().kind].__doc__


@every_example
def test_a_config_survives_json(cfg: SaeConfig):
    assert type(cfg).model_validate_json(cfg.model_dump_json()) == cfg


@every_variant
def test_a_finished_coder_is_not_subclassed(variant: type[SaeConfig]):
    coder = CODERS[variant.example().kind]
    with pytest.raises(TypeError, match="finished"):
        type("Derived", (coder,), {})


# --- building ---


@every_example
def test_the_seed_alone_decides_the_first_weights(cfg: SaeConfig):
    # not asked of W_dec: a decoder may start at zero
    before = torch.get_rng_state()
    first, again, other = cfg.build(), cfg.build(), cfg.but(seed=cfg.seed + 1).build()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.W_dec, again.W_dec)
    assert torch.equal(first.W_enc, again.W_enc)
    assert not torch.equal(first.W_enc, other.W_enc)


@every_example
def test_both_matrices_have_a_row_per_latent(cfg: SaeConfig):
    coder = cfg.build()
    assert coder.W_enc.shape == (cfg.d_sae, cfg.d_in)
    assert coder.W_dec.shape == (cfg.d_sae, coder.d_out)
    assert coder.b_enc.shape == (cfg.d_sae,)
    assert coder.b_dec.shape == (coder.d_out,)


# --- encoding and decoding ---


@every_example
def test_any_leading_axes_will_do(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    coder, x = seasoned(cfg, torch.float64), mixtures(15, cfg.d_in)[0].double()
    z, flat = coder.encode(x.view(3, 5, -1)), coder.encode(x)
    assert z.shape == (3, 5, cfg.d_sae)
    torch.testing.assert_close(z.view(15, -1), flat)
    assert coder.decode(z).shape == (3, 5, coder.d_out)


@every_example
def test_an_activation_of_another_width_is_refused(cfg: SaeConfig):
    with pytest.raises(Exception, match=r"d_in|size|shape"):
        cfg.build().encode(torch.zeros(3, cfg.d_in + 1))


@every_example
def test_forward_is_encode_then_decode(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    coder, x = seasoned(cfg), mixtures(32, cfg.d_in)[0]
    assert torch.equal(coder(x), coder.reconstruct(x, coder.encode(x)))


@every_example
def test_latents_are_never_negative_and_some_are_on(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    z = seasoned(cfg).encode(mixtures(64, cfg.d_in)[0])
    assert bool((z >= 0).all())
    assert 0 < (z > 0).float().mean() < 1


@every_example
def test_a_token_is_encoded_alike_in_any_company(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    coder = seasoned(cfg, torch.float64).eval()
    x = mixtures(64, cfg.d_in)[0].double()
    together = coder.encode(x)
    alone = torch.cat([coder.encode(row) for row in x.split(1)])
    reversed_ = coder.encode(x.flip(0)).flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reversed_, together, rtol=1e-12, atol=1e-12)


@every_example
def test_encoding_changes_nothing(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    coder, x = seasoned(cfg), mixtures(64, cfg.d_in)[0]
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    coder.train().encode(x)
    coder.eval().encode(x)
    for name, value in coder.state_dict().items():
        assert torch.equal(value, before[name]), name


@every_example
def test_the_order_of_latents_means_nothing(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    if cfg.kind in ORDER_MATTERS:
        pytest.skip(ORDER_MATTERS[cfg.kind])
    coder, shuffled = seasoned(cfg, torch.float64), seasoned(cfg, torch.float64)
    order = torch.randperm(cfg.d_sae, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for tensor in [*shuffled.parameters(), *shuffled.buffers()]:
            if tensor.ndim and tensor.shape[0] == cfg.d_sae:
                tensor.copy_(tensor[order])
    x = mixtures(64, cfg.d_in)[0].double()
    torch.testing.assert_close(shuffled.encode(x), coder.encode(x)[:, order])
    torch.testing.assert_close(shuffled(x), coder(x))


@every_example
def test_a_latent_adds_its_activation_times_its_row(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    coder, x = seasoned(cfg, torch.float64), mixtures(64, cfg.d_in)[0].double()
    z = coder.encode(x)
    latent = int((z > 0).sum(0).argmax())
    before, row = coder.decode(z), coder.W_dec[latent].detach().clone()
    with torch.no_grad():
        coder.W_dec[latent] = 0
    expected = before - z[:, latent, None] * row
    torch.testing.assert_close(coder.decode(z), expected, rtol=1e-12, atol=1e-12)


# --- training ---


@every_example
def test_the_loss_is_the_sum_of_its_terms(
    cfg: SaeConfig, seasoned: Any, mixtures: Any, step_of: Any
):
    coder, x = seasoned(cfg), mixtures(64, cfg.d_in)[0]
    terms = coder.terms(step_of(x, cfg.d_sae))
    reconstruction = terms.reconstruction_weight * terms.reconstruction
    torch.testing.assert_close(terms.loss, reconstruction + sum(terms.extra.values()))
    assert terms.z.shape == (64, cfg.d_sae)
    by_hand = (x - coder.reconstruct(x, terms.z)).square().sum(-1).mean()
    torch.testing.assert_close(terms.reconstruction, by_hand)


@every_example
def test_gradients_are_those_of_the_loss(
    cfg: SaeConfig, seasoned: Any, mixtures: Any, step_of: Any
):
    if cfg.kind in NO_GRADIENT_CHECK:
        pytest.skip(NO_GRADIENT_CHECK[cfg.kind])
    coder, x = seasoned(cfg, torch.float64), mixtures(16, cfg.d_in)[0].double()
    state = {name: value.clone() for name, value in coder.state_dict().items()}
    step, size = step_of(x, cfg.d_sae), 1e-6
    coder.terms(step).loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in coder.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            coder.load_state_dict(state)
            with torch.no_grad():
                parameter.add_(sign * size * direction)
            losses.append(coder.terms(step).loss.item())
        coder.load_state_dict(state)
        assert parameter.grad is not None, name
        slope = (losses[0] - losses[1]) / (2 * size)
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5), name


@every_example
def test_one_small_step_lowers_the_loss(cfg: SaeConfig, seasoned: Any, mixtures: Any, step_of: Any):
    coder, x = seasoned(cfg), mixtures(64, cfg.d_in)[0]
    optimizer = torch.optim.SGD(coder.parameters(), lr=1e-3)
    before = coder.terms(step_of(x, cfg.d_sae)).loss
    before.backward()
    optimizer.step()
    assert coder.terms(step_of(x, cfg.d_sae)).loss < before


@every_example
def test_a_few_tokens_are_learnt_by_heart(cfg: SaeConfig, fitted: Any, mixtures: Any):
    x = mixtures(64, cfg.d_in)[0]
    short = fitted(cfg, x, steps=200, batch_tokens=64, lr=1e-2)
    first = next(point for point in short.curves if point["name"] == "fvu")
    assert short.numbers["fvu"] < 0.25 * first["value"]


@every_variant
def test_learns_a_known_dictionary(variant: type[SaeConfig], fitted: Any, mixtures: Any):
    cfg = variant.example()
    # as many directions on at a time as the examples' k: with fewer, other dictionaries do as well
    cfg = cfg.but(d_in=24, d_sae=48)
    x, directions = mixtures(8192, cfg.d_in, num_true=24, on=4.0)

    def cosine_to_truth(coder: Any) -> float:
        rows = torch.nn.functional.normalize(coder.W_dec.detach(), dim=-1)
        return float((directions @ rows.T).max(1).values.mean())

    assert cosine_to_truth(cfg.build()) < 0.5, "the coder knew the answer before it was trained"
    result = fitted(cfg, x, steps=1200, lr=5e-3, batch_tokens=256)
    assert cosine_to_truth(result.coder) > 0.9
    x_hat = result.coder(x)
    assert (x - x_hat).square().sum() < 0.3 * (x - x.mean(0)).square().sum()


@every_example
@pytest.mark.parametrize("kind", ["zero", "constant", "one row"])
@pytest.mark.parametrize("all_dead", [False, True])
def test_degenerate_batches_give_finite_gradients(
    cfg: SaeConfig, kind: str, all_dead: bool, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(cfg)
    x = {
        "zero": torch.zeros(64, cfg.d_in),
        "constant": mixtures(1, cfg.d_in)[0].expand(64, -1),
        "one row": mixtures(1, cfg.d_in)[0],
    }[kind]
    terms = coder.terms(step_of(x, cfg.d_sae, dead=torch.full((cfg.d_sae,), all_dead)))
    assert bool(torch.isfinite(terms.loss))
    terms.loss.backward()
    coder.before_update()
    for name, parameter in coder.named_parameters():
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
    for name, buffer in coder.named_buffers():
        assert not bool(buffer.isinf().any()), name


@every_example
def test_degenerate_first_samples_leave_a_usable_coder(cfg: SaeConfig):
    for sample in (torch.zeros(32, cfg.d_in), torch.ones(32, cfg.d_in)):
        coder = cfg.build()
        coder.initialise_(sample)
        coder.initialise_target_(sample)
        assert bool(torch.isfinite(coder(sample)).all())


# --- folding ---


@every_example
@pytest.mark.parametrize("factor", [0.037, 250.0])
def test_folding_a_scale_scales_latents_and_reconstructions(
    cfg: SaeConfig, factor: float, seasoned: Any, mixtures: Any
):
    coder, folded = seasoned(cfg, torch.float64), seasoned(cfg, torch.float64)
    folded.scale_(factor)
    x = mixtures(64, cfg.d_in)[0].double()
    z = coder.encode(x)
    torch.testing.assert_close(folded.encode(factor * x), factor * z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded(factor * x), factor * coder(x), rtol=1e-10, atol=1e-10)


@every_example
def test_folding_norms_changes_no_reconstruction(cfg: SaeConfig, seasoned: Any, mixtures: Any):
    coder, folded = seasoned(cfg, torch.float64), seasoned(cfg, torch.float64)
    folded.fold_norms_()
    x = mixtures(64, cfg.d_in)[0].double()
    torch.testing.assert_close(folded(x), coder(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(folded.encode(x) > 0, coder.encode(x) > 0)
    has_row = (coder.W_dec.norm(dim=-1) > 0).double()  # rows that start at 0 may still be there
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), has_row, rtol=0, atol=1e-6)
    contributions = coder.encode(x) * coder.W_dec.norm(dim=-1)
    torch.testing.assert_close(folded.encode(x), contributions, rtol=1e-6, atol=1e-8)


@every_example
def test_the_unit_of_the_data_means_nothing(cfg: SaeConfig, fitted: Any, mixtures: Any):
    x = mixtures(1024, cfg.d_in)[0]
    small, large = fitted(cfg, x, scale=1.0), fitted(cfg, 64 * x, scale=1 / 64)
    with torch.no_grad():
        assert torch.equal(large.coder.encode(64 * x), 64 * small.coder.encode(x))
    assert large.numbers["fvu"] == small.numbers["fvu"]


# --- files ---


@every_example
def test_saving_and_loading_changes_no_bit(
    cfg: SaeConfig, seasoned: Any, mixtures: Any, tmp_path: Path
):
    coder = seasoned(cfg)
    save_sae(coder, tmp_path, facts={"site": "resid_post.2"})
    loaded = load_sae(tmp_path)
    assert loaded.cfg == cfg
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert set(load_file(tmp_path / "sae.safetensors")) == set(coder.state_dict())
    for name, value in coder.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype, name
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    x = mixtures(64, cfg.d_in)[0]
    with torch.no_grad():
        assert torch.equal(loaded.encode(x), coder.encode(x))
