"""Objectives that run the model on from the reconstruction, on the bundled world's model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lib.activations.contexts import ContextBatches
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, TokenSplit, build_tokens
from sae_lib.errors import BadInput
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.saes import VARIANTS
from sae_lib.saes._codes import Code
from sae_lib.saes.base import SaeConfig, SparseCoder, Step, Terms
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives.base import SharedBatch, StepInfo
from sae_lib.training.objectives.end_to_end import (
    EndToEndConfig,
    divergence,
    later_streams,
    unexplained,
)
from sae_lib.training.objectives.formal_causal import FormalCausalConfig, nearest_latents
from sae_lib.training.trainee import Fitted, Trainee

SITE = "resid_post.1"
LATER = ["resid_post.2", "resid_post.3", "resid_post.4"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(ModelConfig(id="world"))


@pytest.fixture(scope="module")
def split(model: LanguageModel, tmp_path_factory: Any) -> TokenSplit:
    folder: Path = tmp_path_factory.mktemp("tokens")
    corpus = CorpusConfig(id="world", tokens=4096, eval_tokens=1024, context=64)
    build_tokens(corpus, model.tokenizer, model.info, folder)
    return Tokens.open(folder).split("train")


@pytest.fixture
def batches(model: LanguageModel, split: TokenSplit) -> ContextBatches:
    return ContextBatches(model, split, [SITE, *LATER], batch_tokens=256, seed=0)


def info(**changes: Any) -> StepInfo:
    none = torch.zeros(64, dtype=torch.bool)
    return StepInfo(SITE, 0.5, none, progress=0.5, warmup=1.0, number=3)._replace(**changes)


class Perfect(SparseCoder[SaeConfig]):
    """A coder whose latents are what it reads, and whose reconstruction may be off everywhere."""

    def __init__(self, d_in: int, wrong: float = 0.0) -> None:
        super().__init__()
        self.cfg = SaeConfig(kind="perfect", d_in=d_in, d_sae=d_in)
        self.wrong = wrong

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z - self.wrong

    def terms(self, step: Step) -> Terms:
        error = torch.full_like(step.x, self.wrong)
        return Terms(Code(step.x), error, error.square().sum() / len(error), {"l1": error.sum()})

    def scale_(self, factor: float) -> None:
        self.wrong *= factor


def topk(model: LanguageModel, **changes: Any) -> Any:
    return VARIANTS["topk"].model_validate(
        {"d_in": model.d_model, "d_sae": 64, "k": 4, "aux_k": 8, **changes}
    )


def trained(
    model: LanguageModel, batches: Any, objective: Any, steps: int = 6, **how: Any
) -> Fitted:
    cfg = topk(model)
    train = resolve(TrainConfig(tokens=256 * steps, batch_tokens=256, lr=3e-3), cfg)
    scale = 1 / batches.stats(SITE).mean_square_norm ** 0.5
    trainee = Trainee("it", cfg.build(), SITE, train, objective, scale, **how)
    return fit([trainee], batches)[0]


# --- batches of contexts ---


def test_a_batch_is_a_function_of_its_number(
    model: LanguageModel, split: TokenSplit, batches: ContextBatches
):
    again = ContextBatches(model, split, [SITE], batch_tokens=256, seed=0)
    other = ContextBatches(model, split, [SITE], batch_tokens=256, seed=1)
    late = again.batch(20)
    assert torch.equal(late.tokens, batches.batch(20).tokens)
    assert torch.equal(late.x[SITE], batches.batch(20).x[SITE])
    assert not torch.equal(late.tokens, other.batch(20).tokens)
    epoch = np.concatenate([batches.contexts(i) for i in range(split.num_contexts // 4)])
    assert sorted(epoch) == list(range(split.num_contexts))


def test_rows_are_the_kept_positions_with_their_activations(
    model: LanguageModel, split: TokenSplit, batches: ContextBatches
):
    batch = batches.batch(2)
    assert len(batch.rows) == int(batch.keep.sum()) < batch.keep.numel()
    context, position = batch.rows[7] // split.context, batch.rows[7] % split.context
    tokens = split.rows(np.array([int(context)])).tokens
    alone = model.capture(tokens, [SITE])[SITE][0, int(position)]
    torch.testing.assert_close(batch.x[SITE][7], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch.logits, model.logits(batch.tokens), rtol=1e-4, atol=1e-3)


def test_statistics_are_those_of_the_stream(batches: ContextBatches, split: TokenSplit):
    x = torch.cat([batches.batch(i).x[SITE] for i in range(split.num_contexts // 4)]).double()
    found = batches.stats(SITE)
    assert found.mean_square_norm == pytest.approx(float(x.square().sum(1).mean()), rel=1e-6)


# --- end to end ---


def test_divergence_by_hand():
    clean, patched = torch.tensor([[2.0, 0, -1]]), torch.tensor([[0.0, 1, 0]])
    assert float(divergence(clean, patched)) == pytest.approx(0.9130, abs=1e-4)
    assert float(divergence(patched, clean)) == pytest.approx(0.9826, abs=1e-4)


def test_a_perfect_reconstruction_costs_nothing(model: LanguageModel, batches: ContextBatches):
    objective = EndToEndConfig(downstream=2.0).build(model=model)
    batch = SharedBatch(batches.batch(0))
    perfect = Perfect(model.d_model)
    terms = objective.terms(perfect, objective.step(batch, info()), batch, info())
    assert float(terms.extra["kl"]) == pytest.approx(0, abs=1e-6)
    assert float(terms.extra["downstream"]) == pytest.approx(0, abs=1e-6)
    worse = Perfect(model.d_model, wrong=0.1)
    terms = objective.terms(worse, objective.step(batch, info()), batch, info())
    assert float(terms.extra["kl"]) > 1e-4
    assert float(terms.extra["downstream"]) > 1e-4


def test_the_local_error_is_watched_and_not_trained_on(
    model: LanguageModel, batches: ContextBatches
):
    batch, coder = SharedBatch(batches.batch(0)), Perfect(model.d_model, wrong=0.1)
    for local in (0.0, 0.25):
        objective = EndToEndConfig(kl=3.0, local=local).build(model=model)
        terms = objective.terms(coder, objective.step(batch, info()), batch, info())
        rest = sum(terms.extra.values())
        assert float(terms.reconstruction) == pytest.approx(0.01 * model.d_model, rel=1e-5)
        assert float(terms.loss) == pytest.approx(
            float(rest + local * terms.reconstruction), rel=1e-5
        )
    assert float(terms.extra["kl"]) == pytest.approx(3 * kl_by_hand(model, batches), rel=1e-3)


def kl_by_hand(model: LanguageModel, batches: ContextBatches) -> float:
    """Of activations that are .2 off in every coordinate (.1 at a scale of .5), token by token."""
    batch = batches.batch(0)

    def off(x: Tensor) -> Tensor:
        return torch.where(batch.keep[..., None], x - 0.2, x)

    with model.intervene({SITE: off}):
        q = model.logits(batch.tokens)[batch.keep].double().log_softmax(-1)
    p = batch.logits[batch.keep].double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_gradients_reach_the_coder_and_not_the_model(model: LanguageModel, batches: ContextBatches):
    coder, batch = topk(model).build(), SharedBatch(batches.batch(0))
    objective = EndToEndConfig(downstream=1.0).build(model=model)
    terms = objective.terms(coder, objective.step(batch, info()), batch, info())
    terms.loss.backward()
    for name, parameter in coder.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_without_downstream_it_is_end_to_end(model: LanguageModel, batches: ContextBatches):
    coder, batch = topk(model).build(), SharedBatch(batches.batch(0))
    losses = []
    for cfg in (EndToEndConfig(), EndToEndConfig(downstream=1e-12)):
        objective = cfg.build(model=model)
        found = objective.terms(coder, objective.step(batch, info()), batch, info())
        losses.append(float(found.loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_later_streams_are_those_behind_the_site():
    sites = ["resid_pre.0", "mlp_out.0", "resid_post.0", "mlp_out.1", "resid_post.1"]
    assert later_streams(sites, "resid_pre.0") == ["resid_post.0", "resid_post.1"]
    assert later_streams(sites, "resid_post.0") == ["resid_post.1"]
    assert later_streams(sites, "resid_post.1") == []
    assert later_streams(sites, "module:x") == []
    x = torch.tensor([[1.0, 0], [-1, 0]])
    assert float(unexplained(x, torch.zeros(2, 2))) == pytest.approx(1)


def test_training_lowers_the_divergence_and_resumes_to_the_bit(
    model: LanguageModel, batches: ContextBatches, tmp_path: Path
):
    whole = trained(model, batches, EndToEndConfig().build(model=model), steps=12)
    kl = [point["value"] for point in whole.curves if point["name"] == "kl"]
    assert kl[-1] < 0.8 * kl[0]

    class Stop(Exception):
        pass

    class Cut:
        """The same batches, until the sixth."""

        runs_model = True

        def batch(self, i: int) -> Any:
            if i == 6:
                raise Stop
            return batches.batch(i)

        def stats(self, site: str) -> Any:
            return batches.stats(site)

    how = {"checkpoint": tmp_path / "checkpoint"}
    cfg = topk(model)
    train = resolve(
        TrainConfig(tokens=256 * 12, batch_tokens=256, lr=3e-3, checkpoint_every_seconds=0), cfg
    )
    scale = 1 / batches.stats(SITE).mean_square_norm ** 0.5

    def again(source: Any) -> Fitted:
        objective = EndToEndConfig().build(model=model)
        return fit([Trainee("it", cfg.build(), SITE, train, objective, scale, **how)], source)[0]

    with pytest.raises(Stop):
        again(Cut())
    resumed = again(batches)
    assert torch.equal(resumed.coder.W_dec, whole.coder.W_dec)
    assert torch.equal(resumed.coder.b_enc, whole.coder.b_enc)


def test_rows_from_everywhere_are_refused(model: LanguageModel):
    rows = InMemoryBatches({SITE: torch.randn(512, model.d_model)}, 256)
    with pytest.raises(BadInput, match="whole contexts"):
        trained_on_rows(model, rows)


def trained_on_rows(model: LanguageModel, rows: InMemoryBatches) -> None:
    cfg = topk(model)
    train = resolve(TrainConfig(tokens=512, batch_tokens=256), cfg)
    fit([Trainee("it", cfg.build(), SITE, train, EndToEndConfig().build(model=model))], rows)


def test_impossible_settings_are_refused(model: LanguageModel):
    with pytest.raises(ValueError, match="nothing would be trained"):
        EndToEndConfig(kl=0)
    with pytest.raises(BadInput, match="none was given"):
        EndToEndConfig().build()
    matryoshka = VARIANTS["matryoshka"].example()
    with pytest.raises(BadInput, match="prefixes"):
        EndToEndConfig().check(matryoshka)


# --- causal ---


def test_neighbours_are_of_the_same_document_and_not_oneself():
    z = torch.tensor([[0.0], [5], [1], [0.1], [9], [9]])
    keep = torch.tensor([[False, True, True, True, True], [False, False, False, True, True]])
    document = torch.tensor([[0, 0, 0, 0, 1], [2, 2, 2, 2, 2]])
    z_rows = z
    found = nearest_latents(z_rows, keep, document).tolist()
    # 0, 5 and 1 are one document; the fourth is alone in its own; the last two are neighbours
    assert found == [2, 2, 0, 3, 5, 4]


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_latents_that_are_the_activations_and_do_not_move_cost_nothing(
    distance: Any, model: LanguageModel, batches: ContextBatches
):
    batch, perfect = SharedBatch(batches.batch(0)), Perfect(model.d_model)

    def causal(shift: float) -> float:
        objective = FormalCausalConfig(shift=shift, distance=distance).build(model=model)
        terms = objective.terms(perfect, objective.step(batch, info()), batch, info())
        return float(terms.extra["causal"])

    assert causal(0.0) == pytest.approx(0, abs=1e-6)
    assert causal(1.0) > causal(0.2) > 1e-4


def test_a_whole_move_is_compared_with_the_neighbours_logits(
    model: LanguageModel, batches: ContextBatches
):
    batch = batches.batch(0)
    perfect = Perfect(model.d_model)
    objective = FormalCausalConfig(shift=1.0, weight=2.0).build(model=model)
    shared = SharedBatch(batch)
    terms = objective.terms(perfect, objective.step(shared, info()), shared, info())
    partner = nearest_latents(0.5 * batch.x[SITE], batch.keep, batch.document)
    assert bool((partner != torch.arange(len(partner))).all())

    def moved(x: Tensor) -> Tensor:
        x[batch.keep] = batch.x[SITE][partner]
        return x

    with model.intervene({SITE: moved}):
        logits = model.logits(batch.tokens)[batch.keep]
    wanted = batch.logits[batch.keep][partner]
    by_hand = 2 * float((logits - wanted).double().square().mean())
    assert float(terms.extra["causal"]) == pytest.approx(by_hand, rel=1e-3)


def test_shifts_are_drawn_anew_in_each_step_and_the_same_each_time(model: LanguageModel):
    first, again = (FormalCausalConfig().build(model=model) for _ in range(2))
    shifts: list[float] = [first.shift(number) for number in range(200)]  # pyright: ignore[reportAttributeAccessIssue]
    assert shifts == [again.shift(number) for number in range(200)]  # pyright: ignore[reportAttributeAccessIssue]
    assert 0.4 < sum(shifts) / 200 < 0.6
    assert 0 <= min(shifts) < 0.1 < 0.9 < max(shifts) <= 1


def test_without_weight_it_is_the_plain_objective_and_the_weight_may_ramp(
    model: LanguageModel, batches: ContextBatches
):
    coder, batch = topk(model).build(), SharedBatch(batches.batch(0))

    def extra(cfg: FormalCausalConfig, progress: float) -> float:
        objective = cfg.build(model=model)
        step = objective.step(batch, info())
        terms = objective.terms(coder, step, batch, info(progress=progress))
        plain = coder.terms(step)
        assert torch.equal(terms.reconstruction, plain.reconstruction)
        return float((terms.loss - plain.loss).detach())

    assert extra(FormalCausalConfig(weight=0.0), 0.5) == 0
    full = extra(FormalCausalConfig(), 0.1)
    assert full > 0
    assert extra(FormalCausalConfig(ramp=0.4), 0.1) == pytest.approx(full / 4, rel=1e-3)


def test_the_causal_objective_trains(model: LanguageModel, batches: ContextBatches):
    found = trained(model, batches, FormalCausalConfig().build(model=model))
    assert found.status == "complete"
    assert found.numbers["causal"] > 0
