import pytest
import torch
from torch.nn.functional import normalize

from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.meta_sae import MetaRecipe, MetaSaeConfig, meta_sae
from sae_lib.evaluate.reader import TextReader

QUICK = MetaRecipe(k=2, steps=300, lr=1e-2)


def sums(num=160, atoms=16, width=24, seed=0):
    """Rows that are sums of two of a few directions."""
    generator = torch.Generator().manual_seed(seed)
    basis = normalize(torch.randn(atoms, width, generator=generator), dim=1)
    pairs = torch.rand(num, atoms, generator=generator).topk(2, dim=1).indices
    return basis[pairs].sum(1)


def test_sums_of_a_few_directions_are_explained_and_random_rows_less():
    composed = meta_sae(sums(), QUICK)
    random = meta_sae(torch.randn(160, 24, generator=torch.Generator().manual_seed(1)), QUICK)
    assert composed.explained > 0.85
    assert random.explained < composed.explained - 0.3
    assert composed.l0 == pytest.approx(2.0, abs=0.01)
    assert composed.d_sae == 40


def test_the_length_of_a_row_means_nothing_and_zero_rows_are_left_out():
    rows = sums()
    scaled = rows * torch.linspace(0.5, 3, len(rows))[:, None]
    with_zeros = torch.cat([scaled, torch.zeros(7, rows.shape[1])])
    few = QUICK._replace(steps=40)
    assert meta_sae(with_zeros, few).explained == pytest.approx(
        meta_sae(rows, few).explained, abs=0.02
    )


def test_the_same_seed_gives_the_same_number():
    few = QUICK._replace(steps=30)
    assert meta_sae(sums(), few) == meta_sae(sums(), few)


def test_a_coder_stands_beside_random_rows(tools, model):
    composed = sums(width=tools.d_model, atoms=6)
    d_sae = len(composed)
    bias = torch.zeros(d_sae), torch.zeros(tools.d_model)
    coders = {
        "composed": tools.coder_of(composed.clone(), composed, *bias),
        "tiny": tools.random_coder(d_sae=8),
    }
    metric = MetaSaeConfig(k=2, steps=200, lr=1e-2)
    with TextReader(model, "resid_post.0") as reader:
        bench = Bench(model, "resid_post.0", coders, reader, torch.zeros(tools.d_model))
        found = measure_task(metric, bench)
    rows = tools.Values(found["composed"].measurements)
    explained = rows["meta_variance_explained", "decoder_rows"].value
    floor = rows["meta_variance_explained", "random_rows"].value
    assert rows["meta_variance_excess", "decoder_less_random"].value == explained - floor
    assert explained > floor
    assert all("too few" in row.reason for row in found["tiny"].measurements)
