"""Absorption by hand, at planted rates, and from words to rows."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_lib.activations.task_tables import TableConfig
from sae_lib.errors import BadInput
from sae_lib.evaluate._absorbed_letters import absorption, letters_in_coder
from sae_lib.evaluate._letter_probes import (
    ProbeRecipe,
    Words,
    f1,
    fit_one_vs_rest,
    letters_of,
    num_main,
)
from sae_lib.evaluate._letter_words import (
    at_last_token,
    is_one_token,
    prompts,
    split_words,
    vocabulary_words,
)
from sae_lib.evaluate.absorption import AbsorptionConfig
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.synthetic.controls import merged, true_code
from sae_lib.synthetic.dictionary import DictionaryConfig, group_features, sparse_mixtures
from sae_lib.synthetic.structure import Hierarchy
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.1"
AXIS = torch.tensor([1.0, 0.0], dtype=torch.float64)


def one_word(q, cosines, projection=1.0):
    cosine = torch.tensor(cosines, dtype=torch.float64)
    W_dec = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)
    code = torch.tensor([q], dtype=torch.float64) / W_dec[:, 0]
    at = torch.tensor([projection], dtype=torch.float64)
    return absorption(code, W_dec, AXIS, at, torch.tensor([0]))


# --- by hand (evaluation.md, 8.4) ---


@pytest.mark.parametrize(
    ("q", "fraction", "old", "is_full"),
    [
        ((0.0, 0.7, 0.03), 1.0, 1.0, True),
        ((0.1, 0.7, 0.03), 0.875, 0.73 / 0.83, False),
        ((0.5, 0.3, 0.0), 0.0, 0.3 / 0.8, False),
        ((0.5, 0.45, 0.0), 0.45 / 0.95, 0.45 / 0.95, False),
        ((1.0, 0.7, 0.0), 0.0, 0.0, False),
        ((0.0, 0.0, 0.0), 0.0, 0.0, False),
    ],
)
def test_words_in_both_versions(q, fraction, old, is_full):
    found = one_word(q, (1.0, 0.5, 0.04))
    assert found.fraction.item() == pytest.approx(fraction)
    assert found.fraction_v0_3.item() == pytest.approx(old)
    assert found.is_full.item() is is_full


def test_a_cosine_between_the_thresholds_counts_for_full_alone():
    found = one_word((0.0, 0.7), (1.0, 0.05))
    assert (found.fraction.item(), found.is_full.item()) == (0.0, True)
    assert found.fraction_v0_3.item() == 1.0  # the old version has no thresholds


@pytest.mark.parametrize("projection", [0.0, -1.0])
def test_no_projection_is_no_absorption(projection):
    found = one_word((0.0, 0.7), (1.0, 0.5), projection)
    assert (found.fraction.item(), found.is_full.item()) == (0.0, False)


def test_two_words_whose_reconstructions_are_exact():
    half = 0.5**0.5
    W_dec = torch.tensor([[1.0, 0.0, 0.0], [half, half, 0.0], [0.0, 0.0, 1.0]])
    x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    code = torch.tensor([[0.0, 2**0.5, 0.0], [1.0, 0.0, 1.0]])
    torch.testing.assert_close(code @ W_dec, x)
    direction = torch.tensor([1.0, 0.0, 0.0])
    found = absorption(code, W_dec, direction, x @ direction, torch.tensor([0]))
    assert found.fraction.mean().item() == pytest.approx(0.5)
    assert found.is_full.double().mean().item() == 0.5


def test_main_latents_by_hand():
    asked = []

    def scores(k):
        asked.append(k)
        return [0.70, 0.75, 0.76, 0.90][k - 1]

    assert num_main(scores, 4, 0.03) == 2
    assert asked == [1, 2, 3]
    assert num_main(lambda k: k / 10, 4, 0.03) == 4


def test_f1_by_hand():
    said = torch.tensor([True, True, False, False])
    assert f1(said, torch.tensor([True, False, True, False])) == 0.5
    assert f1(~said & said, ~said & said) == 0


def test_neither_norms_nor_order_of_latents_mean_anything():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(12, 5, generator=generator).double()
    code = (torch.randn(40, 12, generator=generator).double() - 0.3).relu()
    direction = torch.randn(5, generator=generator).double()
    at = 4 * torch.rand(40, generator=generator).double()
    plain = absorption(code, W_dec, direction, at, torch.tensor([3, 7]))
    scale = torch.rand(12, generator=generator).double() + 0.5
    scaled = absorption(
        code * scale, W_dec / scale[:, None], 9 * direction, at, torch.tensor([3, 7])
    )
    order = torch.randperm(12, generator=generator)
    place = order.argsort()[torch.tensor([3, 7])]
    moved = absorption(code[:, order], W_dec[order], direction, at, place)
    for other in (scaled, moved):
        torch.testing.assert_close(plain.fraction, other.fraction)
        torch.testing.assert_close(plain.fraction_v0_3, other.fraction_v0_3)
        assert torch.equal(plain.is_full, other.is_full)
    single = absorption(
        code.float(), W_dec.float(), direction.float(), at.float(), torch.tensor([3, 7])
    )
    torch.testing.assert_close(plain.fraction.float(), single.fraction, atol=1e-4, rtol=1e-4)


# --- planted: words with a letter, of which many small children may take the letter over ---

PLANTED = DictionaryConfig(
    d_in=128,
    num_features=123,
    is_orthonormal=True,
    groups=(Hierarchy(copies=3, chance=0.3, levels=((0.02,) * 40,)),),
)
"""Each child has 2 % of its parent's words: too few to become a main latent by the F1 jump."""


@pytest.fixture(scope="module")
def planted():
    mixture = next(sparse_mixtures(PLANTED, 6000))
    roots = group_features(PLANTED)[0][:, 0]
    train, test = slice(0, 4000), slice(4000, 6000)
    return mixture, roots, train, test


def measured(planted, control, labels=None):
    mixture, roots, train, test = planted
    labels = mixture.z[:, roots] > 0 if labels is None else labels
    sides = [Words(mixture.x[side], labels[side]) for side in (train, test)]
    recipe = ProbeRecipe(epochs=15)
    letters = letters_of("ABC", *sides, recipe)
    code = control.recode(mixture.z)
    found = letters_in_coder(
        letters, code[train], labels[train], code[test], labels[test], control.weights.W_dec, recipe
    )
    return letters, found


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.4])
def test_what_is_planted_is_found_by_probes_that_are_trained(planted, rate):
    control = merged(PLANTED, rate)
    mixture, roots, _, test = planted
    letters, found = measured(planted, control)
    code = control.recode(mixture.z)[test]
    for letter, one, root in zip(letters, found, roots.tolist(), strict=True):
        assert one.reason is None
        assert one.main == [root]
        absorbed = (code[letter.words, root] == 0).double().mean().item()
        assert one.full == pytest.approx(absorbed, abs=0.03)
        assert one.fraction == pytest.approx(absorbed, abs=0.03)
    mean = sum(one.fraction for one in found) / 3
    assert mean == pytest.approx(0.8 * rate, abs=0.03)  # children are there for .8 of the words


def test_the_oracle_has_no_absorption_and_tells_every_word(planted):
    for one in measured(planted, true_code(PLANTED))[1]:
        assert (one.fraction, one.full, len(one.main)) == (0.0, 0.0, 1)
        assert one.f1_one > 0.97
        assert one.old is not None
        assert one.old < 0.05


def test_shuffled_letters_leave_no_letter_to_measure(planted):
    mixture, roots, *_ = planted
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(0))
    labels = (mixture.z[:, roots] > 0)[order]
    letters, found = measured(planted, true_code(PLANTED), labels)
    assert all("probe F1" in letter.reason for letter in letters)
    assert all(one.reason is not None for one in found)


def test_a_letter_that_no_latent_speaks_for_is_left_out(planted):
    mixture, roots, train, test = planted
    labels = mixture.z[:, roots] > 0
    sides = [Words(mixture.x[side], labels[side]) for side in (train, test)]
    recipe = ProbeRecipe(epochs=5)
    letters = letters_of("ABC", *sides, recipe)
    dead = torch.zeros(len(mixture.x), 7)
    found = letters_in_coder(
        letters, dead[train], labels[train], dead[test], labels[test], torch.ones(7, 128), recipe
    )
    assert {one.reason for one in found} == {"no latent speaks for it"}
    assert all(one.fraction is None for one in found)


def test_probes_tell_classes_apart_and_are_the_same_again():
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(4, 10, generator=generator), dim=1)
    kind = torch.arange(400) % 4
    x = 3 * centres[kind] + 0.3 * torch.randn(400, 10, generator=generator)
    labels = torch.nn.functional.one_hot(kind, 4).bool()
    probe = fit_one_vs_rest(x, labels)
    assert f1((probe.logits(x) > 0).flatten(), labels.flatten()) > 0.97
    assert torch.equal(probe.weights, fit_one_vs_rest(x, labels).weights)
    penalised = fit_one_vs_rest(x, labels, l1=0.05)
    assert penalised.weights.abs().sum() < 0.8 * probe.weights.abs().sum()


# --- words and prompts ---


class Vocabulary:
    def get_vocab(self):
        return dict.fromkeys(
            [
                "\u0120lion",
                "lion",
                "\u2581Lynx",
                "a1",
                "##x",
                "caf\u00e9",
                "\u0120",
                "\u0120\u0120two",
                "Z",
            ]
        )


def test_words_are_letters_with_at_most_one_space():
    assert vocabulary_words(Vocabulary()) == [" Lynx", " lion", "Z", "lion"]


def test_spellings_of_one_word_fall_on_one_side():
    words = [f"{space}{word}" for word in map("w{}".format, "abcdefghij") for space in ("", " ")]
    words += [word.upper() for word in words]
    train, test = split_words(words, test_share=0.3, most=1000, seed=0)
    assert len(train) + len(test) == 40
    assert len(test) == 12
    assert not {w.strip().lower() for w in train} & {w.strip().lower() for w in test}
    few = split_words(words, test_share=0.3, most=7, seed=0)
    assert len(few[0] + few[1]) == 7


def test_a_word_is_never_among_its_own_examples():
    words = ["lion", "lynx", "ox", "bee", "ant"]
    for word, text in zip(words, prompts(words, "{word} is {letter}", "\n", 4, 0), strict=True):
        *shown, asked = text.split("\n")[1:]
        assert asked == word
        assert sorted(line.split(" is ")[0] for line in shown) == sorted(set(words) - {word})
        assert all(line.endswith(line[0].upper()) for line in shown)
    with_question = prompts(words, "{word} is {letter}", "\n", 2, 0, with_question=True)
    assert all(text.endswith(f"{w} is") for w, text in zip(words, with_question, strict=True))
    with pytest.raises(BadInput, match="num_examples"):
        prompts(words, "{word} is {letter}", "\n", 5, 0)


@pytest.fixture(scope="module")
def world():
    return load_model(ModelConfig(id="world"))


def test_what_is_read_is_the_last_token_whatever_the_batch(world):
    texts = ["the dog saw a bird", "a lamp", "review of the scarf : the scarf"]
    found = at_last_token(world, SITE, texts, batch_texts=2)
    for text, row in zip(texts, found, strict=True):
        ids = world.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([[world.tokenizer.bos_token_id, *ids]])
        alone = world.capture(tokens, [SITE])[SITE][0, -1].float()
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadInput, match="fewer examples"):
        at_last_token(world, SITE, ["dog " * 400])


def test_a_word_of_the_world_is_one_token(world):
    assert is_one_token(world.tokenizer, " ", "dog")
    assert not is_one_token(world.tokenizer, " ", "dog cat")


# --- the metric ---

SMALL = AbsorptionConfig(
    num_examples=2, max_words=200, epochs=8, min_probe_f1=0.0, min_letters=3, max_main=2
)


def test_on_the_world_every_row_is_there(world, tools):
    coder = tools.random_coder(world.d_model, 64)
    with TextReader(world, "resid_pre.1") as reader:
        bench = Bench(
            world, "resid_pre.1", {"one": coder}, reader, torch.zeros(1), world=WorldConfig()
        )
        rows = measure_task(SMALL, bench)["one"].measurements
        again = measure_task(SMALL, bench)["one"].measurements
    assert rows == again
    assert (rows[0].name, rows[0].definition) == ("absorption_fraction", "v0_6")
    keys = {(row.name, row.definition) for row in rows}
    assert keys == {(d.name, d.definition) for d in AbsorptionConfig.definitions()}
    kept = next(row for row in rows if row.definition == "kept")
    left = [row for row in rows if row.definition == "left_out"]
    assert kept.value + sum(row.value for row in left) == kept.n
    few = next(row for row in left if "fewer than" in row.params["because"])
    assert set(few.params["letters"]) >= {"Q"}  # three test words begin with it
    for row in rows:
        assert row.value is not None or row.reason
        if row.name == "absorption_fraction" and row.value is not None:
            assert 0 <= row.value <= 1
    parts = [row for row in rows if (row.name, row.definition) == ("absorption_fraction", "of_one")]
    own = [row.value for row in parts if row.params["kept"]]
    assert rows[0].value == pytest.approx(sum(own) / len(own))


def test_with_too_few_letters_there_is_a_reason_and_the_letters_are_still_there(world, tools):
    strict = SMALL.but(min_probe_f1=0.99)
    coder = tools.random_coder(world.d_model, 32)
    with TextReader(world, "resid_pre.0") as reader:
        bench = Bench(
            world, "resid_pre.0", {"one": coder}, reader, torch.zeros(1), world=WorldConfig()
        )
        rows = measure_task(strict, bench)["one"].measurements
    assert rows[0].value is None
    assert "min_letters" in rows[0].reason
    assert next(row for row in rows if row.definition == "v0_3").value is not None
    assert any("F1 is not above 0.99" in row.params.get("because", "") for row in rows)


def test_a_vocabulary_without_words_says_so(model, tools):
    with TextReader(model, "resid_post.0") as reader:
        bench = Bench(model, "resid_post.0", {"one": tools.random_coder()}, reader, torch.zeros(1))
        rows = measure_task(AbsorptionConfig(), bench)["one"].measurements
    assert {row.value for row in rows} == {None}
    assert "too few" in rows[0].reason


def test_words_may_come_from_a_table(model, tmp_path):
    for split, words in {"train": "lion ox lynx", "test": "bee ant lion2"}.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["word", *words.split()]))
    metric = AbsorptionConfig(words=TableConfig(id=str(tmp_path)))
    assert len(metric.files(tmp_path)) == 2
    with TextReader(model, "resid_post.0") as reader:
        bench = Bench(model, "resid_post.0", {}, reader, torch.zeros(1))
        with pytest.raises(BadInput, match="lion2"):
            metric.read_words(bench)


@pytest.mark.parametrize("line", ["{word} begins", "{letter} begins {word}"])
def test_an_example_needs_a_word_and_then_a_letter(model, line):
    with TextReader(model, "resid_post.0") as reader, pytest.raises(BadInput, match="line"):
        AbsorptionConfig(line=line).check(Bench(model, "resid_post.0", {}, reader, torch.zeros(1)))
