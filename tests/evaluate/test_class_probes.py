import csv
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate import Bench
from sae_lib.evaluate._class_probes import (
    ClassSet,
    ProbeRecipe,
    ablated_scores,
    accuracies,
    check_has_sets,
    class_texts,
    differences,
    fit_probes,
    floors,
    one_against_rest,
    over_repeats,
    part_of,
    pooled_codes,
    sizes_for,
    strongest,
    unit_decoder,
    unsuitable,
    without_direction,
)
from sae_lib.evaluate.reader import TextActivations
from sae_lib.saes.base import VARIANTS, SaeConfig, SparseCoder
from sae_lib.saes.topk import TopKConfig
from sae_lib.saes.transcoder import TranscoderConfig
from sae_lib.synthetic.world.config import WorldConfig


def read(x, length):
    """Activations as if ``length`` had been read; BOS and padding are not among the rows."""
    length = torch.tensor(length)
    text = torch.arange(len(length)).repeat_interleave(length)
    start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    return TextActivations(x, torch.zeros(len(x), dtype=torch.long), text, text, start)


def bench(world=None, relative_to=None):
    """What loading texts looks at."""
    nothing = torch.zeros(1)
    return Bench(None, "", {}, None, nothing, None, None, world, relative_to)


def linear_coders():
    for kind, config in VARIANTS.items():
        for number, cfg in enumerate(config.examples()):
            coder = cfg.build()
            if unsuitable(coder, coder.d_in) is None:
                yield pytest.param(coder, id=f"{kind}-{number}")


@pytest.mark.parametrize("coder", list(linear_coders()))
def test_ablation_by_pooled_codes_is_what_token_wise_decoding_gives(coder):
    generator = torch.Generator().manual_seed(0)
    length = [3, 1, 5, 2]
    x = 10 * torch.randn(sum(length), coder.d_in, generator=generator)
    found = read(x, length)
    W_dec, codes = unit_decoder(coder), pooled_codes(coder, found)
    chosen = codes.sum(0).argsort(descending=True)[:4]
    with torch.no_grad():
        z = coder.encode(x)
        left = z.clone()
        left[:, chosen] = 0
        ablated = (coder.decode(left) + x - coder.decode(z)).double()
    assert (ablated - x).norm() > 0.1  # else nothing is compared
    w, b = torch.randn(coder.d_in, 3, generator=generator).double(), torch.ones(3).double()
    wanted = torch.stack([own.mean(0) for own in ablated.split(length)]) @ w + b
    scores = found.pooled_x() @ w + b
    for size in (4, 10):  # as many as there are
        got = ablated_scores(scores, codes, W_dec @ w, chosen, [size])[0]
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_every_number_of_latents_comes_from_one_sum():
    generator = torch.Generator().manual_seed(0)
    z, written = (torch.rand(*s, generator=generator) for s in ((7, 9), (9, 2)))
    scores, chosen = torch.zeros(7, 2, dtype=torch.float64), torch.tensor([8, 0, 3, 5])
    together = ablated_scores(scores, z, written.double(), chosen, [1, 3, 100])
    for got, size in zip(together, (1, 3, 4), strict=True):
        alone = -z[:, chosen[:size]].double() @ written[chosen[:size]].double()
        torch.testing.assert_close(got, alone)


def test_the_strongest_are_by_value_and_never_those_without_effect():
    effects = torch.tensor([0.0, -2.0, 3.0, 1.0, 3.0, -1.0])
    assert strongest(effects, 3).tolist() == [2, 4, 3]
    assert strongest(effects, 100).tolist() == [2, 4, 3, 5, 1]


def test_a_probe_has_as_many_of_the_rest_as_of_its_class_evenly_from_every_other():
    rows = one_against_rest(4, 6, seed=0)
    assert rows.shape == (4, 12)
    for own, row in enumerate(rows):
        classes = row // 6
        assert (classes[:6] == own).all()
        assert torch.bincount(classes[6:], minlength=4).tolist() == [
            0 if c == own else 2 for c in range(4)
        ]
        assert len(row.unique()) == 12
    assert torch.equal(rows, one_against_rest(4, 6, seed=0))
    assert not torch.equal(rows, one_against_rest(4, 6, seed=1))


def test_parts_share_no_text_and_have_equally_many_of_each_group():
    parts = [part_of(45, 3, 3, place) for place in range(3)]
    assert all(torch.bincount(part // 15).tolist() == [5, 5, 5] for part in parts)
    assert len(torch.cat(parts).unique()) == 45
    with pytest.raises(BadInput, match="4 repeats need 16 texts"):
        part_of(45, 3, 4, 0)


@pytest.fixture(scope="module")
def two_classes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 6, generator=generator)
    x[:80, 2] += 3
    return x, torch.stack([torch.arange(160), torch.arange(160).roll(80)])


def test_a_probe_finds_the_direction_in_which_classes_differ(two_classes):
    x, rows = two_classes
    probes = fit_probes(x, rows, ProbeRecipe(), seed=0)
    assert (accuracies(probes.scores(x), rows) > 0.9).all()
    assert probes.weights.abs().argmax(1).tolist() == [2, 2]
    assert probes.weights[0, 2] > 0 > probes.weights[1, 2]  # the second has the classes reversed


def test_a_probe_does_not_depend_on_the_scale_or_the_place_of_activations(two_classes):
    x, rows = two_classes
    recipe = ProbeRecipe(epochs=5)
    plain = fit_probes(x, rows, recipe, seed=0)
    moved = fit_probes(100 * x.double() + 7, rows, recipe, seed=0)
    torch.testing.assert_close(
        moved.scores(100 * x.double() + 7), plain.scores(x), atol=1e-5, rtol=1e-5
    )
    assert not torch.equal(fit_probes(x, rows, recipe, seed=1).weights, plain.weights)


def test_texts_that_are_not_a_probes_own_do_not_change_it(two_classes):
    x, rows = two_classes
    recipe = ProbeRecipe(epochs=3)
    more = torch.cat([x, 1e3 * torch.ones(5, 6)])
    plain, other = (fit_probes(given, rows, recipe, seed=0) for given in (x, more))
    assert torch.equal(plain.weights, other.weights)


def test_an_epoch_that_validates_no_better_is_not_kept():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 100, generator=generator)
    x[:30, 0] += 1
    rows = torch.arange(60)[None]
    kept = [fit_probes(x, rows, ProbeRecipe(epochs=n, lr=0.3), seed=0).weights for n in range(1, 9)]
    is_new = [not torch.equal(one, before) for before, one in pairwise(kept)]
    assert any(is_new)
    assert not all(is_new)


def test_accuracy_counts_positives_above_and_negatives_below():
    scores = torch.tensor([[1.0, -1.0], [2.0, 1.0], [-1.0, 1.0], [3.0, -2.0]])
    rows = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert accuracies(scores, rows).tolist() == [0.75, 0.5]
    assert accuracies(torch.stack([scores, -scores]), rows).tolist() == [[0.75, 0.5], [0.25, 0.5]]


def test_differences_are_of_means():
    values = torch.tensor([[1.0, 0], [3, 2], [5, 1], [0, 0]])
    rows = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
    wanted = torch.tensor([[-0.5, 0.5], [0.5, -0.5]]).double()
    torch.testing.assert_close(differences(values, rows), wanted)


def test_moving_along_a_direction_changes_nothing_else():
    x, like, away = torch.randn(5, 4).double(), torch.randn(4).double(), torch.randn(4).double()
    moved = without_direction(x, like, away)
    torch.testing.assert_close(moved @ away, (like @ away).expand(5))
    across = torch.linalg.svd(away[None]).Vh[1:]
    torch.testing.assert_close(moved @ across.mT, x @ across.mT)


def test_pooled_codes_are_as_if_decoder_rows_had_length_1():
    coder = TopKConfig(d_in=4, d_sae=6, k=2).build()
    found = read(torch.randn(7, 4), [3, 4])
    wanted = pooled_codes(coder, found)
    with torch.no_grad():
        coder.W_dec.mul_(torch.arange(1, 7)[:, None])
    torch.testing.assert_close(
        pooled_codes(coder, found), wanted * torch.arange(1, 7), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(unit_decoder(coder).norm(dim=1), torch.ones(6).double())


class CurvedConfig(SaeConfig):
    kind: Literal["curved_for_tests"] = "curved_for_tests"


class Curved(SparseCoder[CurvedConfig]):
    def __init__(self) -> None:
        super().__init__()
        self.cfg = CurvedConfig(d_in=4, d_sae=6)
        self.W_dec = nn.Parameter(torch.ones(6, 4))

    def encode(self, x):
        return x

    def decode(self, z):
        return (z @ self.W_dec).square()

    def terms(self, step):
        raise NotImplementedError

    def scale_(self, factor):
        raise NotImplementedError


def test_coders_whose_latents_cannot_be_taken_out_are_told_why():
    coder = TopKConfig(d_in=4, d_sae=6, k=2).build()
    assert unsuitable(coder, 4) is None
    assert "reads 4 values where the site has 5" in (unsuitable(coder, 5) or "")
    same_width = TranscoderConfig(d_in=4, d_out=4, d_sae=6, k=2).build()
    assert "another place" in (unsuitable(same_width, 4) or "")
    assert "not linear" in (unsuitable(Curved(), 4) or "")


def test_coders_of_one_width_and_sparsity_share_a_floor():
    x = torch.randn(50, 4)
    some = {str(i): TopKConfig(d_in=4, d_sae=6 + i // 2, k=2, seed=i).build() for i in range(3)}
    found = floors(some, x, seed=0)
    assert found.of["0"] == found.of["1"] != found.of["2"]
    assert len(found.coders) == 2
    assert found.coders[found.of["2"]].d_sae == 7


def test_numbers_of_latents_are_limited_by_the_width():
    assert sizes_for((500, 5, 2, 5), 20) == [2, 5]


def test_the_error_is_over_repeats():
    found = over_repeats([0.1, 0.3])
    assert found.value == pytest.approx(0.2)
    assert found.stderr == pytest.approx(0.1)
    assert (found.n, found.unit) == (2, "repeats")
    assert over_repeats([0.1]).stderr is None


def test_the_worlds_classes_are_balanced_and_splits_share_no_text():
    for given in ("world:tpp-product", "world:diary-occasion"):
        texts = class_texts(given, bench(WorldConfig()), train=12, test=6, seed=0, key="d")
        assert len(texts.classes) == 5
        assert {len(own) for own in texts.train} == {12}
        assert {len(own) for own in texts.test} == {6}
        train, test = ({t for own in side for t in own} for side in (texts.train, texts.test))
        assert len(train) == 60
        assert not train & test


@pytest.fixture
def table(tmp_path):
    """Three classes in unequal numbers; ``group`` is rare in the third."""
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["said", "kind", "group"])
        for i in range(300):
            kind = "abc"[min(i % 5, 2)]
            writer.writerow([f"text {i} of {kind}", kind, "ab"[i % 3 == 0]])
    return tmp_path


def test_classes_of_a_table_are_cut_to_the_smallest_and_balanced_by_a_column(table):
    columns = {"text": "said", "label": "kind"}
    given = ClassSet(id="texts.csv", columns=columns)
    texts = class_texts(given, bench(relative_to=table), train=1000, test=1000, seed=0, key="d")
    assert texts.classes == ("a", "b", "c")
    assert len({len(own) for own in texts.train}) == 1
    assert all(
        text.endswith(kind) for kind, own in zip("abc", texts.train, strict=True) for text in own
    )
    given = given.but(columns={**columns, "balance": "group"}, classes=("c", "a"))
    balanced = class_texts(given, bench(relative_to=table), train=20, test=6, seed=0, key="d")
    assert balanced.classes == ("c", "a")
    for own in balanced.train:
        numbers = [int(text.split()[1]) for text in own]
        assert sum(number % 3 == 0 for number in numbers) == len(numbers) / 2


def test_classes_that_are_not_there_are_told(table):
    given = ClassSet(id="texts.csv", columns={"text": "said", "label": "kind"}, classes=("a", "z"))
    with pytest.raises(BadInput, match=r"datasets\.0.*class 'z' needs at least 4.*a, b, c"):
        class_texts(given, bench(relative_to=table), train=9, test=9, seed=0, key="datasets.0")
    one = given.but(classes=("a",))
    with pytest.raises(BadInput, match="two classes"):
        class_texts(one, bench(relative_to=table), train=9, test=9, seed=0, key="datasets.0")


def test_without_sets_there_is_nothing_to_measure():
    check_has_sets((), bench(WorldConfig()), "tpp", "data sets")
    check_has_sets(("texts.csv",), bench(), "tpp", "data sets")
    for given, reason in (((), "are not named"), (("world:tpp-product",), "of the bundled world")):
        with pytest.raises(NotApplicable, match=reason):
            check_has_sets(given, bench(), "tpp", "data sets")


def test_order_of_a_draw_depends_on_the_seed():
    drawn = [
        class_texts("world:tpp-product", bench(WorldConfig()), train=8, test=4, seed=seed, key="d")
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert np.all([len(own) == 8 for own in drawn[2].train])
