"""The whole pass over the tokens, on a tiny model: known coders, a slow second computation of
every number, and changes that must change nothing."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput
from sae_lib.evaluate import evaluate_site
from sae_lib.evaluate.frontier import FrontierConfig
from sae_lib.evaluate.model_loss import ModelLossConfig
from sae_lib.evaluate.reconstruction import ReconstructionConfig
from sae_lib.evaluate.sparsity import SparsityConfig
from sae_lib.evaluate.weights import WeightsConfig
from sae_lib.models.language_model import LanguageModel
from sae_lib.warehouse.rows import Measurement

SITE = "resid_post.0"
RECONSTRUCTION, SPARSITY, LOSS = ReconstructionConfig(), SparsityConfig(), ModelLossConfig()
METRICS = [RECONSTRUCTION, SPARSITY, LOSS]


def identity(tools: Any, d_in: int, bias: Tensor | None = None) -> Any:
    """x = relu(x) - relu(-x)."""
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    bias = torch.zeros(d_in) if bias is None else bias
    return tools.coder_of(both, both.clone(), torch.zeros(2 * d_in), bias)


def constant(tools: Any, vector: Tensor) -> Any:
    """``vector``, whatever x is."""
    nothing = torch.zeros(4, len(vector))
    return tools.coder_of(nothing, nothing.clone(), torch.full((4,), -1.0), vector)


def kept_mean(model: LanguageModel, tokens: Tensor, site: str = SITE) -> Tensor:
    x = model.capture(tokens, [site], mask=tokens != 0)[site]
    return x[tokens >= 4].double().mean(0).float()


def evaluate(
    tools: Any,
    model: LanguageModel,
    tokens: Tensor,
    coder: Any,
    *,
    metrics: Any = METRICS,
    mean: Tensor | None = None,
    batch_contexts: int = 4,
) -> dict[tuple[str, str], Measurement]:
    """The measurements that have no parameters, by name and definition."""
    results = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"it": coder}},
        metrics,
        mean_activation={SITE: kept_mean(model, tokens) if mean is None else mean},
        batch_contexts=batch_contexts,
    )
    rows = [r for r in results[SITE, "it"].measurements if not r.params]
    return tools.Values(rows)


def numbers(rows: Mapping[tuple[str, str], Measurement]) -> dict[tuple[str, str], float | None]:
    return {key: row.value for key, row in rows.items()}


@pytest.fixture(scope="module")
def written(tools: Any, load_tiny: Any) -> Tensor:
    """Text that the tiny model itself wrote: there an ablation must hurt."""
    tokens, model = tools.random_tokens(), load_tiny("llama")
    generator = torch.Generator().manual_seed(0)
    for t in range(1, tokens.shape[1]):
        likely = model.logits(tokens[:, :t])[:, -1, tools.first_word :].softmax(-1)
        drawn = torch.multinomial(likely, 1, generator=generator)[:, 0] + tools.first_word
        tokens[:, t] = torch.where(tokens[:, t] < tools.first_word, tokens[:, t], drawn)
    return tokens


@pytest.fixture
def tokens(written: Tensor) -> Tensor:
    return written.clone()


def test_a_perfect_reconstruction_leaves_the_model_as_it_was(tools, model, tokens):
    rows = evaluate(tools, model, tokens, identity(tools, model.d_model))
    assert rows["ce_spliced", "splice_kept"].value == pytest.approx(
        rows["ce_clean", "mean_of_tokens"].value, abs=1e-6
    )
    assert rows["delta_lm_loss", "splice_kept"].value == pytest.approx(0.0, abs=1e-6)
    assert rows["kl_spliced", "splice_kept"].value == pytest.approx(0.0, abs=1e-6)
    for ablation in ("zero", "mean"):
        for name in ("loss_recovered", "kl_score"):
            found = rows[name, f"{ablation}_ablation_kept"].value
            assert found == pytest.approx(1.0, abs=1e-5)
    assert rows["fvu", "ratio_of_sums"].value == pytest.approx(0.0, abs=1e-12)


def test_a_coder_that_gives_zero_is_the_zero_ablation(tools, model, tokens):
    rows = evaluate(tools, model, tokens, constant(tools, torch.zeros(model.d_model)))
    assert rows["ce_spliced", "splice_kept"].value == rows["ce_ablated", "zero_ablation_kept"].value
    assert rows["loss_recovered", "zero_ablation_kept"].value == 0.0
    assert rows["kl_score", "zero_ablation_kept"].value == 0.0
    assert rows["zero_reconstruction_share", "mean_of_tokens"].value == 1.0


def test_a_coder_that_gives_the_mean_explains_nothing_and_is_the_mean_ablation(
    tools, model, tokens
):
    mean = kept_mean(model, tokens)
    rows = evaluate(tools, model, tokens, constant(tools, mean), mean=mean)
    assert rows["fvu", "ratio_of_sums"].value == pytest.approx(1.0, abs=1e-6)
    assert rows["ce_spliced", "splice_kept"].value == rows["ce_ablated", "mean_ablation_kept"].value
    assert rows["loss_recovered", "mean_ablation_kept"].value == 0.0


def by_hand(
    model: LanguageModel, tokens: Tensor, coder: Any, mean: Tensor, *, replace_all: bool
) -> dict[str, float]:
    """Losses computed context by context, with a hook of our own and no masks of the library."""
    block = model.model.model.layers[0]
    sums: dict[str, float] = {}
    total = 0
    for row in tokens:
        row = row[row != 0]

        def predictions(change: Any = None, row: Tensor = row) -> Tensor:
            def hook(module: Any, inputs: Any, output: Any) -> Any:
                is_tuple = isinstance(output, tuple)
                x = (output[0] if is_tuple else output).clone()
                for t in range(len(row)):
                    if replace_all or row[t] >= 4:
                        x[0, t] = change(x[0, t])
                return (x, *output[1:]) if is_tuple else x

            handle = block.register_forward_hook(hook) if change else None
            with torch.no_grad():
                logits = model.model(row[None]).logits[0]
            if handle:
                handle.remove()
            return logits.double().softmax(-1)

        p = {
            "clean": predictions(),
            "spliced": predictions(lambda x: coder(x)),
            "zero": predictions(lambda x: torch.zeros_like(x)),
            "mean": predictions(lambda x: mean.to(x)),
        }
        for t in range(len(row) - 1):
            if row[t] < 4 or row[t + 1] == 1:
                continue
            total += 1
            for name, found in p.items():
                ce = -found[t, row[t + 1]].log().item()
                kl = (p["clean"][t] * (p["clean"][t] / found[t]).log()).sum().item()
                sums[f"ce_{name}"] = sums.get(f"ce_{name}", 0.0) + ce
                sums[f"kl_{name}"] = sums.get(f"kl_{name}", 0.0) + kl
    return {name: value / total for name, value in sums.items()}


@pytest.mark.parametrize("splice", ["kept", "all"])
def test_every_loss_equals_a_slow_second_computation(tools, model, tokens, splice):
    tokens[1, 9:] = 0
    model.model.double()
    coder = tools.random_coder(model.d_model).double()
    mean = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)
    with torch.no_grad():
        slow = by_hand(model, tokens, coder, mean, replace_all=splice == "all")
    metric = ModelLossConfig(splice=splice)
    rows = evaluate(tools, model, tokens, coder, metrics=[metric], mean=mean)
    expected = {
        ("ce_clean", "mean_of_tokens"): slow["ce_clean"],
        ("ce_spliced", f"splice_{splice}"): slow["ce_spliced"],
        ("delta_lm_loss", f"splice_{splice}"): slow["ce_spliced"] - slow["ce_clean"],
        ("kl_spliced", f"splice_{splice}"): slow["kl_spliced"],
    }
    for a in ("zero", "mean"):
        where = f"{a}_ablation_{splice}"
        gap = slow[f"ce_{a}"] - slow["ce_clean"]
        expected["ce_ablated", where] = slow[f"ce_{a}"]
        expected["kl_ablated", where] = slow[f"kl_{a}"]
        expected["kl_score", where] = 1 - slow["kl_spliced"] / slow[f"kl_{a}"]
        expected["loss_recovered", where] = (slow[f"ce_{a}"] - slow["ce_spliced"]) / gap
    found = numbers(rows)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_splicing_special_tokens_too_is_another_number(tools, model, tokens):
    coder = tools.random_coder(model.d_model)
    kept = evaluate(tools, model, tokens, coder, metrics=[LOSS])
    both = evaluate(tools, model, tokens, coder, metrics=[ModelLossConfig(splice="all")])
    assert kept["ce_clean", "mean_of_tokens"] == both["ce_clean", "mean_of_tokens"]
    a, b = kept["ce_spliced", "splice_kept"].value, both["ce_spliced", "splice_all"].value
    assert a != pytest.approx(b, abs=1e-4)


def test_two_ways_to_splice_in_one_pass_do_not_mix(tools, model, tokens):
    coder, ways = tools.random_coder(model.d_model), [LOSS, ModelLossConfig(splice="all")]
    clean = ("ce_clean", "mean_of_tokens")
    results = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"it": coder}},
        ways,
        mean_activation={SITE: kept_mean(model, tokens)},
        batch_contexts=4,
    )
    together = [r for r in results[SITE, "it"].measurements if (r.name, r.definition) != clean]
    apart: dict[tuple[str, str], Measurement] = {}
    for metric in ways:
        apart |= evaluate(tools, model, tokens, coder, metrics=[metric])
    del apart[clean]
    assert tools.Values(together) == apart


def test_float32_agrees_with_float64(tools, model, tokens):
    coder = tools.random_coder(model.d_model)
    mean = kept_mean(model, tokens)
    coarse = numbers(evaluate(tools, model, tokens, coder, mean=mean))
    model.model.double()
    fine = numbers(evaluate(tools, model, tokens, coder.double(), mean=mean.double()))
    assert coarse == pytest.approx(fine, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tools, model, tokens, side):
    coder = tools.random_coder(model.d_model)
    mean = kept_mean(model, tokens)
    plain = evaluate(tools, model, tokens, coder, mean=mean)
    padding = torch.zeros(len(tokens), 3, dtype=torch.long)
    wider = torch.cat([tokens, padding] if side == "right" else [padding, tokens], dim=1)
    padding_only = torch.zeros(1, wider.shape[1], dtype=torch.long)
    padded = evaluate(tools, model, torch.cat([wider, padding_only]), coder, mean=mean)
    assert numbers(padded) == pytest.approx(numbers(plain), rel=1e-5, abs=1e-6)
    assert {r.n for r in padded.values()} == {r.n for r in plain.values()}


@pytest.mark.parametrize("batch_contexts", [1, 5, 100])
def test_the_batch_means_nothing(tools, model, tokens, batch_contexts):
    coder = tools.random_coder(model.d_model)
    whole = evaluate(tools, model, tokens, coder)
    parts = evaluate(tools, model, tokens, coder, batch_contexts=batch_contexts)
    assert numbers(parts) == pytest.approx(numbers(whole), rel=1e-5, abs=1e-6)
    for key, row in whole.items():
        assert (row.stderr is None) == (parts[key].stderr is None)
        assert row.stderr is None or row.stderr == pytest.approx(parts[key].stderr, rel=1e-3)


def test_the_order_of_contexts_means_nothing(tools, model, tokens):
    coder = tools.random_coder(model.d_model)
    straight = numbers(evaluate(tools, model, tokens, coder))
    turned = numbers(evaluate(tools, model, tokens.flip(0), coder))
    assert turned == pytest.approx(straight, rel=1e-5, abs=1e-6)


def test_the_order_of_latents_means_nothing(tools, model, tokens):
    coder = tools.random_coder(model.d_model)
    order = torch.randperm(coder.d_sae, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other = tools.coder_of(
            coder.W_enc[order], coder.W_dec[order], coder.b_enc[order], coder.b_dec.clone()
        )
    straight = numbers(evaluate(tools, model, tokens, coder))
    turned = numbers(evaluate(tools, model, tokens, other))
    assert turned == pytest.approx(straight, rel=1e-5, abs=1e-5)


def test_latents_times_c_and_decoder_over_c_is_the_same_coder(tools, model, tokens):
    coder = tools.random_coder(model.d_model)
    with torch.no_grad():
        other = tools.coder_of(
            4 * coder.W_enc, coder.W_dec / 4, 4 * coder.b_enc, coder.b_dec.clone()
        )
    straight = numbers(evaluate(tools, model, tokens, coder))
    scaled = numbers(evaluate(tools, model, tokens, other))
    for name, definition in (("l1", "mean_of_tokens"), ("activation_when_on", "mean_of_firings")):
        once, four = straight.pop((name, definition)), scaled.pop((name, definition))
        assert once is not None
        assert four == pytest.approx(4 * once, rel=1e-5)
    assert scaled == pytest.approx(straight, rel=1e-5, abs=1e-6)


def test_every_row_carries_a_definition_that_its_metric_lists(tools, model, tokens):
    metrics = [*METRICS, WeightsConfig()]
    result = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"it": tools.random_coder(model.d_model)}},
        metrics,
        mean_activation={SITE: kept_mean(model, tokens)},
    )[SITE, "it"]
    listed = {(d.name, d.definition): d for m in metrics for d in m.definitions()}
    seen = set()
    for row in result.measurements:
        definition = listed[row.name, row.definition]
        seen.add((row.name, row.definition))
        assert row.version == definition.version
        assert row.value is not None, row
        assert definition.low - 1e-9 <= row.value <= definition.high + 1e-9
    other_splice = {key for key in listed if key[1].endswith("_all")}
    assert seen == listed.keys() - other_splice


def test_a_standard_error_counts_contexts(tools, model, tokens):
    rows = evaluate(tools, model, tokens, tools.random_coder(model.d_model))
    for key in (("mse", "per_token"), ("l0", "mean_of_tokens"), ("delta_lm_loss", "splice_kept")):
        assert (rows[key].n, rows[key].unit) == (len(tokens), "contexts")
        assert rows[key].stderr is not None


def counting(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    layers = model.model.model.layers
    calls = {"first": 0, "second": 0, "head": 0}
    for name, module in zip(calls, (*layers, model.model.lm_head), strict=True):
        forward = module.forward

        def counted(*args: Any, _name: str = name, _forward: Any = forward, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", counted)
    return calls


def test_the_model_runs_once_per_batch_and_once_more_per_ablation_and_coder(
    tools, model, tokens, monkeypatch
):
    coders = {f"seed{i}": tools.random_coder(model.d_model, seed=i) for i in range(3)}
    means = {site: kept_mean(model, tokens, site) for site in (SITE, "resid_post.1")}
    calls = counting(model, monkeypatch)
    results = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: coders, "resid_post.1": {"seed0": coders["seed0"]}},
        METRICS,
        mean_activation=means,
        batch_contexts=3,
    )
    assert set(results) == {*((SITE, name) for name in coders), ("resid_post.1", "seed0")}
    # two batches; clean, two ablations at each site, four coders
    assert calls["head"] == 2 * (1 + 2 * 2 + 4)


def test_without_a_metric_of_the_models_loss_the_pass_ends_at_the_site(
    tools, model, tokens, monkeypatch
):
    mean = kept_mean(model, tokens)
    calls = counting(model, monkeypatch)
    evaluate(
        tools,
        model,
        tokens,
        tools.random_coder(model.d_model),
        metrics=[RECONSTRUCTION, SPARSITY],
        mean=mean,
    )
    assert calls == {"first": 2, "second": 0, "head": 0}


def test_metrics_of_weights_alone_read_no_tokens(tools, model, tokens, monkeypatch):
    mean = kept_mean(model, tokens)
    calls = counting(model, monkeypatch)
    coder = tools.random_coder(model.d_model)
    results = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"it": coder}},
        [WeightsConfig()],
        mean_activation={SITE: mean},
    )
    row = next(r for r in results[SITE, "it"].measurements if r.name == "decoder_norm")
    assert row.value == pytest.approx(1.0)
    assert calls == {"first": 0, "second": 0, "head": 0}


def test_coders_in_company_get_the_numbers_they_get_alone(tools, model, tokens):
    coders = {f"seed{i}": tools.random_coder(model.d_model, seed=i) for i in range(2)}
    together = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: coders},
        METRICS,
        mean_activation={SITE: kept_mean(model, tokens)},
        batch_contexts=4,
    )
    for name, coder in coders.items():
        rows = together[SITE, name].measurements
        alone = evaluate(tools, model, tokens, coder)
        assert tools.Values([r for r in rows if not r.params]) == alone


def test_an_encoder_has_reconstruction_and_reasons_for_the_rest(tools, load_tiny, tokens):
    model = load_tiny("bert")
    rows = evaluate(tools, model, tokens, tools.random_coder(model.d_model))
    assert rows["mse", "per_token"].value is not None
    losses = [r for (name, _), r in rows.items() if name in {"delta_lm_loss", "loss_recovered"}]
    assert {r.value for r in losses} == {None}
    assert "no language-model head" in (losses[0].reason or "")


def test_a_broken_coder_has_reasons_and_leaves_its_neighbour_alone(tools, model, tokens):
    good, broken = tools.random_coder(model.d_model), tools.random_coder(model.d_model, seed=1)
    with torch.no_grad():
        broken.W_dec[3, 2] = torch.nan
    results = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"good": good, "broken": broken}},
        METRICS,
        mean_activation={SITE: kept_mean(model, tokens)},
    )
    rows = results[SITE, "broken"].measurements
    assert {r.value for r in rows} == {None}
    assert all("the reconstruction hold NaN or infinity on" in (r.reason or "") for r in rows)
    assert results[SITE, "broken"].per_latent == []
    alone = evaluate(tools, model, tokens, good, batch_contexts=16)
    assert tools.Values([r for r in results[SITE, "good"].measurements if not r.params]) == alone


def test_latents_are_listed_with_their_densities(tools, model, tokens):
    coder = tools.random_coder(model.d_model)
    result = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"it": coder}},
        METRICS,
        mean_activation={SITE: kept_mean(model, tokens)},
    )[SITE, "it"]
    with torch.no_grad():
        z = coder.encode(model.capture(tokens, [SITE])[SITE][tokens >= 4])
    found = [latent.density for latent in result.per_latent]
    assert found == pytest.approx((z > 0).double().mean(0).tolist())


def test_the_frontier_gets_the_boundary_of_each_site_from_the_same_pass(tools, model, tokens):
    coders = {f"seed{i}": tools.random_coder(model.d_model, seed=i) for i in range(2)}
    results = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: coders},
        [RECONSTRUCTION, FrontierConfig()],
        mean_activation={SITE: kept_mean(model, tokens)},
        batch_contexts=4,
    )
    boundary = results[SITE, "seed0"].boundary
    assert boundary == results[SITE, "seed1"].boundary
    x = model.capture(tokens, [SITE])[SITE][tokens >= 4].double()
    values = torch.linalg.svdvals(x - x.mean(0)) ** 2
    found = {r.params["l0"]: r.value for r in boundary}
    expected = {k: (values[k:].sum() / values.sum()).item() for k in (0, 1, 2, 4, 8)}
    assert found == pytest.approx(expected, abs=1e-9)
    assert not [r for r in results[SITE, "seed0"].measurements if r.name == "boundary_loss"]


def test_tokens_on_disk_give_what_tokens_in_memory_give(tools, model, tokens, tmp_path):
    words = [" ".join(f"w{i - 4}" for i in row if i >= 4) for row in tokens.tolist()]
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in 20 * words))
    cfg = CorpusConfig(id="text.jsonl", tokens=256, eval_tokens=128, context=16)
    build_tokens(cfg, model.tokenizer, model.info, tmp_path / "tokens", relative_to=tmp_path)
    split = Tokens.open(tmp_path / "tokens").split("eval")
    coder, mean = tools.random_coder(model.d_model), torch.zeros(model.d_model)
    given: Any = {"mean_activation": {SITE: mean}, "batch_contexts": 4}
    (stored,) = evaluate_site(model, split, {SITE: {"it": coder}}, METRICS, **given).values()
    read = tools.TokensInMemory(split.rows(range(split.num_contexts)).tokens)
    (held,) = evaluate_site(model, read, {SITE: {"it": coder}}, METRICS, **given).values()
    assert stored == held
    assert stored.measurements[0].n == split.num_contexts == 8


def test_progress_is_told_in_contexts(tools, model, tokens):
    told: list[tuple[int, int]] = []
    evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {SITE: {"it": tools.random_coder(model.d_model)}},
        [RECONSTRUCTION],
        mean_activation={SITE: kept_mean(model, tokens)},
        batch_contexts=4,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(4, 6), (6, 6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.zeros(0, 12, dtype=torch.long)}, "no contexts to evaluate on"),
        ({"width": 5}, "is 8 wide, and the coder reads 5 numbers"),
        ({"mean_activation": {}}, "there is no mean activation for the site"),
        ({"mean_activation": {SITE: torch.zeros(5)}}, r"mean activation has shape \(5,\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_runs(tools, model, tokens, change, message):
    with pytest.raises(BadInput, match=message):
        evaluate_site(
            model,
            tools.TokensInMemory(change.get("tokens", tokens)),
            {SITE: {"it": tools.random_coder(change.get("width", model.d_model))}},
            METRICS,
            mean_activation=change.get("mean_activation", {SITE: torch.zeros(8)}),
        )
