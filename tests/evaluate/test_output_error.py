from types import SimpleNamespace

import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import ContextMoments
from sae_lib.evaluate._passes import Losses
from sae_lib.evaluate.base import EvalContext
from sae_lib.evaluate.output_error import OutputErrorConfig, ratio_of_products
from sae_lib.evaluate.run import evaluate_site
from sae_lib.saes.topk import TopKConfig


class QuadraticPasses:
    """A model whose divergence is v' F v / 2 for an error v, token by token."""

    def __init__(self, x, fisher, context):
        self.x, self.fisher = x, fisher
        self.clean = SimpleNamespace(ce=torch.zeros(len(x), dtype=torch.float64), context=context)

    def replaced(self, rows, positions):
        v = (self.x - rows).double()
        kl = (v @ self.fisher * v).sum(1) / 2
        return Losses(3 * kl, kl)


def measured(tools, x, x_hat, fisher, parts=1, **settings):
    """Values by definition; ``parts`` batches of one context per ten tokens."""
    batches = []
    for rows in torch.arange(len(x)).chunk(parts):
        context = rows // 10 - int(rows[0]) // 10
        passes = QuadraticPasses(x[rows], fisher, context)
        batches.append(
            tools.batch_of(x[rows], x_hat[rows], context=context)._replace(passes=passes)
        )
    found = tools.run_metric(OutputErrorConfig(**settings), batches).rows()
    return tools.Values(found)


@pytest.fixture
def planted():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    fisher = torch.diag(torch.tensor([4.0, 1, 1, 1, 1, 0, 0, 0])).double()
    return x, fisher


def test_the_ratio_is_the_error_in_the_metric_of_the_output(tools, planted):
    x, fisher = planted
    # trace(F) / d = 1, so e' F e / |e|^2 is the ratio: 4 on the first axis, 0 on the last
    for axis, wanted in ((0, 4.0), (1, 1.0), (7, 0.0)):
        error = torch.zeros_like(x)
        error[:, axis] = 0.5
        found = measured(tools, x, x - error, fisher, draws=40)
        ratio = found["output_error", "kl_ratio_to_random"]
        assert ratio.value == pytest.approx(wanted, abs=4 * 0.02 * wanted + 1e-9)
        assert found["output_error", "loss_ratio_to_random"].value == pytest.approx(ratio.value)
        assert found["output_error_kl", "coder"].value == pytest.approx(wanted * 0.25 / 2)
        assert found["output_error_kl", "random"].value == pytest.approx(0.125, rel=0.06)


def test_a_random_error_has_ratio_one_within_its_standard_error(tools, planted):
    x, fisher = planted
    error = torch.randn(400, 8, generator=torch.Generator().manual_seed(5))
    row = measured(tools, x, x - error, fisher)["output_error", "kl_ratio_to_random"]
    assert row.stderr is not None
    assert 0.02 < row.stderr < 0.2
    assert row.value == pytest.approx(1.0, abs=3.5 * row.stderr)
    assert (row.n, row.unit) == (40, "contexts")


def test_divergence_per_unit_of_error_does_not_depend_on_the_errors_length(tools, planted):
    x, fisher = planted
    error = torch.randn(400, 8, generator=torch.Generator().manual_seed(5))
    key = "output_error", "kl_per_fvu"
    values = [measured(tools, x, x - s * error, fisher)[key].value for s in (0.01, 1.0)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    fvu = float(error.double().square().sum() / x.double().square().sum())
    kl = float((error.double() @ fisher * error.double()).sum(1).mean() / 2)
    assert values[1] == pytest.approx(kl / fvu, rel=1e-6)
    scaled = measured(tools, x, x - error, fisher, scale=0.1)
    assert scaled["output_error_kl", "coder"].value == pytest.approx(kl / 100, rel=1e-4)


def test_batches_change_nothing_and_the_seed_decides(tools, planted):
    x, fisher = planted
    x_hat = 0.9 * x
    whole = measured(tools, x, x_hat, fisher)
    for key, row in measured(tools, x, x_hat, fisher, parts=4).items():
        assert row.value == pytest.approx(whole[key].value, rel=1e-9)
        assert row.stderr == pytest.approx(whole[key].stderr, rel=1e-6)
    other = measured(tools, x, x_hat, fisher, seed=1)
    assert other["output_error_kl", "random"].value != whole["output_error_kl", "random"].value


def test_without_an_error_there_are_reasons(tools, planted):
    x, fisher = planted
    found = measured(tools, x, x.clone(), fisher)
    for key in (("output_error", "kl_ratio_to_random"), ("output_error", "kl_per_fvu")):
        assert found[key].value is None
        assert found[key].reason
    assert found["output_error_kl", "coder"].value == 0


def test_the_error_of_a_ratio_of_products_is_that_of_a_bootstrap():
    generator = torch.Generator().manual_seed(0)
    sums = torch.rand(500, 4, generator=generator).double() + 0.5
    moments = ContextMoments(["a", "b", "c"])
    moments.add_sums(*sums.unbind(1))
    found = ratio_of_products(moments, ["a", "c"], ["tokens", "b"])
    total = sums.sum(0)
    assert found.value == pytest.approx(float(total[1] * total[3] / total[0] / total[2]))
    drawn = torch.randint(0, 500, (2000, 500), generator=generator)
    again = torch.stack([sums[rows].sum(0) for rows in drawn])
    spread = (again[:, 1] * again[:, 3] / again[:, 0] / again[:, 2]).std().item()
    assert found.stderr == pytest.approx(spread, rel=0.08)


def test_a_model_without_a_loss_is_refused(tools):
    context = EvalContext(
        "resid_post.0", tools.random_coder(), torch.zeros(8), 1, no_language_model="no head"
    )
    with pytest.raises(NotApplicable, match="no head"):
        OutputErrorConfig().start(context)


def test_a_real_model_gives_a_row_of_every_definition(tools, model):
    coder = TopKConfig(d_in=tools.d_model, d_sae=20, k=3).build()
    site = "resid_post.0"
    found = evaluate_site(
        model,
        tools.TokensInMemory(tools.random_tokens(8)),
        {site: {"mine": coder}},
        [OutputErrorConfig(), OutputErrorConfig(scale=0.01)],
        mean_activation={site: torch.zeros(tools.d_model)},
        batch_contexts=3,
    )[site, "mine"].measurements
    assert [row.definition for row in found[:6]] == [
        d.definition for d in OutputErrorConfig.definitions()
    ]
    # on random tokens an error need not cost any loss, which is a ratio without a unit
    assert all(r.value is not None for r in found if r.definition != "loss_ratio_to_random")
    # in the limit the divergence is quadratic, so a hundredth of the error does a 10,000th
    small = next(r for r in found[6:] if r.name == "output_error_kl")
    assert 0 < small.value < 2e-3 * found[4].value
