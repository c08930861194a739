import math
from typing import Any

import pytest
import torch

from sae_lib.activations.task_tables import TableConfig
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._transfer import (
    COLUMNS,
    Sums,
    by_position,
    by_speaker,
    firing_frequency,
    jensen_shannon,
    position_edges,
    quantities,
    resample,
    speakers,
    transfer_sums,
)
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.generalizability import (
    DEFINITIONS,
    GeneralizabilityConfig,
    Value,
    difference,
    ratio,
    values_of,
)
from sae_lib.evaluate.model_loss import ModelLossConfig
from sae_lib.evaluate.reconstruction import ReconstructionConfig
from sae_lib.evaluate.run import evaluate_site
from sae_lib.evaluate.sparsity import SparsityConfig
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.sets import task_rows

SITE = "resid_post.2"


def sums_of(documents, *, x=None, fired=None):
    """Sums from rows (tokens, error, spread, l0, counted, clean, spliced, ablated) by group."""
    columns = torch.tensor(documents, dtype=torch.float64)
    if columns.ndim == 2:
        columns = columns[:, None]
    num = len(columns)
    x = torch.zeros(num, 2, dtype=torch.float64) if x is None else x
    fired = torch.ones(num, 3, dtype=torch.float64) if fired is None else fired
    return Sums(columns, x, fired)


def once(sums):
    found = quantities(sums, torch.ones(1, len(sums.columns), dtype=torch.float64))
    return {name: float(value[0]) for name, value in found.items()}


def test_buckets_by_hand():
    # squared errors 9, 1, 1, 1 over centred squares 10, 5, 5, 5: the first place apart
    sums = sums_of([[[1, 9, 10, 0, 1, 2, 2.5, 12], [3, 3, 15, 0, 3, 6, 7.5, 36]]])
    assert once(sums)["fvu"] == pytest.approx(0.48)
    assert once(sums.of([0]))["fvu"] == pytest.approx(0.9)
    assert once(sums.of([1]))["fvu"] == pytest.approx(0.2)
    assert once(sums)["ce_score"] == pytest.approx(0.95)
    assert once(sums)["delta_lm_loss"] == pytest.approx(0.5)


def test_the_corpus_has_a_mean_of_its_own():
    # two tokens at 1 and 3 from a training mean of 0: spread 10 there, 2 about their own mean
    sums = sums_of([[2, 1, 10, 4, 2, 1, 1, 1]], x=torch.tensor([[4.0, 0.0]], dtype=torch.float64))
    found = once(sums)
    assert found["fvu"] == pytest.approx(0.1)
    assert found["fvu_own_mean"] == pytest.approx(0.5)
    assert found["explained_variance_own_mean"] == pytest.approx(0.5)
    assert found["l0"] == 2
    assert math.isnan(found["ce_score"])  # the ablation costs nothing


def test_differences_and_ratios_by_hand():
    there, here = (Value(v, torch.full((3,), v)) for v in (0.26, 0.20))
    assert difference(there, here).value == pytest.approx(0.06)
    scores = [Value(v, torch.full((3,), v)) for v in (0.931, 0.98)]
    assert ratio(*scores).value == pytest.approx(0.95)
    assert ratio(here, Value(0.0, torch.zeros(3))).estimate(3, "why").reason == "why"


def test_divergence_of_frequencies():
    p, q = torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.0, 0.0, 0.3])
    assert float(jensen_shannon(p, q)) == pytest.approx(1.0)
    assert float(jensen_shannon(p, 3 * p)) == pytest.approx(0.0, abs=1e-12)
    a, b = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    # (1/2) KL((1/2, 1/2) || (3/4, 1/4)) + (1/2) KL((1, 0) || (3/4, 1/4)), in bits
    kl = 0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)
    assert float(jensen_shannon(a, b)) == pytest.approx((kl + math.log2(4 / 3)) / 2)
    assert float(jensen_shannon(b, a)) == pytest.approx(float(jensen_shannon(a, b)))
    assert math.isnan(float(jensen_shannon(p, torch.zeros(3))))


def test_the_bootstrap_draws_documents():
    weights = resample(50, 400, 0)
    assert weights.sum(1).unique().tolist() == [50.0]
    assert float(weights.mean()) == pytest.approx(1.0)
    assert torch.equal(weights, resample(50, 400, 0))
    assert not torch.equal(weights, resample(50, 400, 1))
    generator = torch.Generator().manual_seed(0)
    error = torch.rand(50, generator=generator).double()
    rows = torch.ones(50, len(COLUMNS), dtype=torch.float64)
    rows[:, 1] = error
    found = values_of(sums_of(rows.tolist()), weights)["fvu"]
    assert found.value == pytest.approx(float(error.mean()))
    estimate = found.estimate(50)
    assert estimate.stderr == pytest.approx(float(error.std()) / 50**0.5, rel=0.15)
    assert (estimate.n, estimate.unit) == (50, "documents")


def test_places_of_the_reference():
    assert position_edges(128, 100) == [0, 1, 8, 32, 128]
    assert position_edges(128, 600) == [0, 1, 8, 32, 128, 512, 2048]


def test_who_speaks():
    # 7 begins a turn of the user, 8 9 one of the assistant, 6 ends any
    tokens = torch.tensor([[1, 5, 7, 3, 3, 6, 8, 9, 4, 6], [1, 8, 9, 4, 7, 3, 8, 3, 9, 0]])
    speaker, is_mark = speakers(tokens, {"user": [7], "assistant": [8, 9]}, [[6]])
    assert speaker.tolist() == [[-1, -1, 0, 0, 0, 0, 1, 1, 1, 1], [-1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]
    marks = [[i for i, m in enumerate(row) if m] for row in is_mark.tolist()]
    assert marks == [[2, 5, 6, 7, 9], [1, 2, 4]]


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


@pytest.fixture(scope="module")
def coder():
    torch.manual_seed(0)
    return TopKConfig(d_in=192, d_sae=96, k=8).build()


def texts(name, num):
    return [row["text"] for row in task_rows(name, "test", num)]


def test_the_sums_are_those_of_the_streaming_metrics(tools, model, coder):
    documents = by_position(model, texts("in-distribution", 6), 32)
    mean = torch.full((192,), 0.1)
    own = transfer_sums(
        model, SITE, {"mine": coder}, documents, mean, ablation="mean", batch_documents=4
    )["mine"]
    rows = evaluate_site(
        model,
        tools.TokensInMemory(documents.tokens),
        {SITE: {"mine": coder}},
        [ReconstructionConfig(), SparsityConfig(), ModelLossConfig()],
        mean_activation={SITE: mean},
    )[SITE, "mine"].measurements
    at = {(r.name, r.definition): r.value for r in rows}
    found = once(own)
    assert found["fvu_own_mean"] == pytest.approx(at["fvu", "ratio_of_sums"], rel=1e-5)
    assert found["l0"] == pytest.approx(at["l0", "mean_of_tokens"])
    assert found["delta_lm_loss"] == pytest.approx(at["delta_lm_loss", "splice_kept"], abs=1e-4)
    assert found["ce_score"] == pytest.approx(at["loss_recovered", "mean_ablation_kept"], abs=1e-4)
    frequency = firing_frequency(own)
    assert float(frequency.sum()) == pytest.approx(found["l0"])
    # groups add up to the whole, and nothing is in the place of the BOS
    assert float(own.columns[:, 0, 0].sum()) == 0
    assert float(own.columns[..., 0].sum()) == float(documents.keep.sum())
    single = transfer_sums(
        model, SITE, {"mine": coder}, documents, mean, ablation="mean", batch_documents=1
    )["mine"]
    torch.testing.assert_close(single.columns, own.columns, rtol=1e-4, atol=1e-3)


def test_marks_of_a_chat_are_a_group_of_their_own(model):
    documents = by_speaker(
        model,
        ["<user> repeat the first word : sea <assistant> sea ."],
        {"user": "<user>", "assistant": "<assistant>"},
        (),
    )
    names = [documents.names[g] if g >= 0 else "" for g in documents.group[0].tolist()]
    assert names == ["", "template", *["user"] * 6, "template", "assistant", "assistant"]
    assert documents.keep[0].tolist() == [False, *[True] * 10]


def bench_of(model, coders, world=None, relative_to=None):
    nothing: Any = None
    mean = torch.zeros(192)
    return Bench(model, SITE, coders, nothing, mean, world=world, relative_to=relative_to)


def test_the_world_gives_rows_of_every_definition(model, coder):
    cfg = GeneralizabilityConfig(
        corpora=("world:in-distribution", "world:ood-recipes"),
        long=("world:longer-context",),
        num_documents=6,
        resamples=50,
    )
    found = measure_task(cfg, bench_of(model, {"a": coder, "b": coder}, WorldConfig()))
    rows = found["a"].measurements
    assert rows == found["b"].measurements
    defined = [(d.name, d.definition) for d in cfg.definitions()]
    assert (rows[0].name, rows[0].definition) == defined[0]
    assert {(r.name, r.definition) for r in rows} == set(defined)
    assert all(r.value is not None or r.reason for r in rows)
    assert all(r.params["corpus"] for r in rows if r.definition.endswith("_of_one"))
    fvu = {r.params["corpus"]: r.value for r in rows
           if (r.name, r.definition) == ("generalizability_fvu", "difference_of_one")}  # fmt: skip
    assert set(fvu) == {
        "world:in-distribution", "world:ood-recipes", "world:longer-context", "world:ood-chat",
        "in-distribution",
    }  # fmt: skip
    models = {r.params["model"] for r in rows if "model" in r.params}
    assert models == {"world", "world-chat"}
    groups = {
        r.params["group"]
        for r in rows
        if r.definition == "group_of_one" and r.params["corpus"] == "world:ood-chat"
    }
    assert groups == {"template", "user", "assistant"}
    long = [r for r in rows if r.definition == "long_context_difference_of_one"]
    assert {r.params["corpus"] for r in long} == {"world:longer-context"}


def test_a_corpus_that_is_the_training_text_differs_in_nothing(model, coder):
    # the control takes the second half of the first documents, the corpus the first of them
    cfg = GeneralizabilityConfig(
        in_distribution=TableConfig(id="world:in-distribution"),
        corpora=("world:in-distribution",),
        long=("world:longer-news",),
        num_documents=6,
        resamples=20,
    )
    rows = measure_task(cfg, bench_of(model, {"a": coder}, WorldConfig()))["a"].measurements
    same = {
        (r.name, r.definition): r.value
        for r in rows
        if r.params.get("corpus") == "world:in-distribution"
    }
    assert same["generalizability_fvu", "difference_of_one"] == pytest.approx(0.0, abs=1e-9)
    assert same["generalizability_ce_score", "ratio_of_one"] == pytest.approx(1.0)
    assert same["generalizability_divergence", "value_of_one"] == pytest.approx(0.0, abs=1e-9)
    control = next(
        r
        for r in rows
        if (r.name, r.definition) == ("generalizability_divergence", "control_difference")
    )
    assert control.value > 0  # other documents: what chance makes


def test_other_text_from_files(model, coder, tmp_path):
    for name in ("plain", "other"):
        lines = ["text", *(f"the {name} dog number {i} saw a bird ." for i in range(40))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    cfg = GeneralizabilityConfig(
        in_distribution=TableConfig(id="plain.csv"),
        corpora=(TableConfig(id="other.csv"),),
        num_documents=4,
        resamples=10,
    )
    assert cfg.files(tmp_path) == [tmp_path / "plain.csv", tmp_path / "other.csv"]
    rows = measure_task(cfg, bench_of(model, {"a": coder}, None, tmp_path))["a"].measurements
    at = {(r.name, r.definition): r for r in rows}
    assert at["generalizability_fvu", "transfer_difference"].n == 1
    missing = at["generalizability_fvu", "chat_model_difference"]
    assert missing.value is None
    assert "no finetuned model" in (missing.reason or "")


def test_without_other_text_it_does_not_apply(model):
    with pytest.raises(NotApplicable, match="no other corpora"):
        GeneralizabilityConfig().check(bench_of(model, {}))
    with pytest.raises(NotApplicable, match="no in-distribution text"):
        GeneralizabilityConfig(corpora=("a.csv",)).check(bench_of(model, {}))


def test_the_models_that_decide_are_named():
    assert GeneralizabilityConfig().models() == ["world-chat"]
    assert GeneralizabilityConfig(chat_model="other").models() == ["other"]


def test_definitions_say_of_what():
    assert all(d.text.strip() for d in DEFINITIONS.values())
