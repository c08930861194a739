import json
from itertools import permutations

import pytest
import torch

from sae_lib.activations.task_tables import TableConfig
from sae_lib.errors import BadInput
from sae_lib.evaluate import Bench, measure_task, read_metric
from sae_lib.evaluate import _unlearning_questions as module
from sae_lib.evaluate._clamped_latents import Setting, clamped, frequencies, select_latents
from sae_lib.evaluate._unlearning_questions import Asked, Question, halves, question_of
from sae_lib.evaluate.reader import TextReader
from sae_lib.evaluate.unlearning import Table, UnlearningConfig, qualifying, unlearning_score
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.synthetic.dictionary import DictionaryConfig, ground_truth_dictionary
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.sets import task_rows

SITE = "resid_post.2"
SMALL = {
    "name": "unlearning",
    "num_texts": 24,
    "num_questions": 12,
    "retain_thresholds": [0.01],
    "num_latents": [5],
    "multipliers": [50.0, 200.0],
    "mean_on_multipliers": [3.0],
    "strengths": [4.0],
}


# --- by hand --------------------------------------------------------------------------------------

FORGET, RETAIN = [0.30, 0.05, 0.20, 0, 0.10], [0.02, 0.0005, 0.005, 0, 0.0009]


@pytest.mark.parametrize(("threshold", "wanted"), [(0.001, [4, 1]), (0.01, [2, 4, 1])])
def test_selection(threshold, wanted):
    forget, retain = torch.tensor(FORGET), torch.tensor(RETAIN)
    assert select_latents(forget, retain, threshold, 10) == wanted
    assert select_latents(forget, retain, threshold, 1) == wanted[:1]
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = select_latents(forget[order], retain[order], threshold, 10)
    assert [int(order[i]) for i in permuted] == wanted


def test_score():
    forget, retain = (0.90, 0.60, 0.40, 0.75), (1.0, 0.995, 0.97, 0.99)
    assert unlearning_score(forget, retain) == pytest.approx(0.4)
    assert qualifying(forget, retain) == 1
    assert unlearning_score(forget, (0.9,) * 4) == 0
    assert unlearning_score(forget, retain, lowest=0.9) == pytest.approx(0.6)


def test_clamp():
    z = torch.tensor([[0.0, 3.0, 2.0]])
    z[:, :2] = clamped(z[:, :2], torch.tensor([25.0, 25.0]))
    assert z.tolist() == [[0, -25, 2]]


def test_a_setting_is_chosen_on_one_half_and_reported_on_the_other():
    # two settings; on half 0 the first looks better, on half 1 the second is
    right = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1]]).bool()
    is_forget = torch.arange(8) < 4
    half = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    table = Table([Setting(None, None, 1.0), Setting(None, None, 2.0)], right, is_forget, half)
    chosen = qualifying(table.accuracies("forget", 0), table.accuracies("retain", 0))
    assert chosen == 0
    assert unlearning_score(table.accuracies("forget"), table.accuracies("retain")) == 0.5
    assert table.accuracies("forget", 1)[chosen] == 1  # so the honest score is 0
    assert (table.num("forget"), table.num("retain", 1)) == (4, 2)


# --- planted facts, read off linearly -------------------------------------------------------------

FACTS = DictionaryConfig(d_in=16, num_features=16, is_orthonormal=True, noise=0.0, mean_active=2.0,
                         firing_ratio=1.0)  # fmt: skip


class Planted:
    """Half of the facts are to be forgotten; a question about one holds its direction.

    The right option is read off that direction, the others off nothing: it loses once the
    direction is written negatively.
    """

    def __init__(self) -> None:
        self.D = ground_truth_dictionary(FACTS).float()
        self.is_forget = torch.arange(16) < 8

    def right(self, x):
        logits = torch.zeros(len(x), 4)
        logits[:, 0] = (x * self.D).sum(1)
        return logits.argmax(1) == 0

    def score(self, coder, *, forget, retain, num):
        share = [(coder.encode(x) > 0).double().mean(0) for x in (forget, retain)]
        latents = torch.tensor(select_latents(*share, 0.01, num), dtype=torch.long)
        z = coder.encode(self.D)
        moved = z.clone()
        moved[:, latents] = clamped(z[:, latents], torch.full((len(latents),), 5.0))
        right = self.right(self.D + coder.decode(moved) - coder.decode(z))
        table = Table([Setting(None, num, 5.0)], right[None], self.is_forget,
                      torch.zeros(16, dtype=torch.long))  # fmt: skip
        return unlearning_score(table.accuracies("forget"), table.accuracies("retain"))


def test_planted_facts_are_forgotten_by_their_latents_only(tools):
    planted = Planted()
    D, zeros, below = planted.D, torch.zeros(16), torch.full((16,), -0.01)
    oracle = tools.coder_of(D.clone(), D.clone(), below, zeros)
    assert planted.score(oracle, forget=D[:8], retain=D[8:], num=8) == 1
    assert planted.score(oracle, forget=D[:8], retain=D[8:], num=4) == 0.5
    # corpora that do not differ: nothing is selected
    assert planted.score(oracle, forget=D, retain=D, num=8) == 0
    # the wrong corpus: all that is kept is harmed
    assert planted.score(oracle, forget=D[8:], retain=D[:8], num=8) == 0
    # latents that mix facts fire on both
    Q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    mixed = tools.coder_of(Q, Q.clone(), below, zeros)
    assert planted.score(mixed, forget=D[:8], retain=D[8:], num=8) < 0.5


def test_clamping_does_not_depend_on_the_decoders_scale(tools):
    coder = tools.random_coder(8, 20)
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    scaled = tools.coder_of(3 * coder.W_enc.detach(), coder.W_dec.detach() / 3,
                            3 * coder.b_enc.detach(), coder.b_dec.detach())  # fmt: skip
    written = []
    for one in (coder, scaled):
        z = one.encode(x)
        on = z > 0
        mean_on = z.sum(0) / on.sum(0).clamp_min(1)
        written.append(
            [
                one.decode(clamped(z, value)) - one.decode(z)
                for value in (5 / one.W_dec.norm(dim=1), 5 * mean_on)
            ]
        )
    for a, b in zip(*written, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# --- the bundled world ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return load_model(ModelConfig(id="world"))


@pytest.fixture(scope="module")
def reader(world):
    with TextReader(world, SITE) as found:
        yield found


def bench_of(model, reader, coders, **changes):
    given = {"world": WorldConfig()} | changes
    return Bench(model, SITE, coders, reader, torch.zeros(model.d_model), **given)


@pytest.fixture(scope="module")
def coder(world):
    """Directions with a threshold, so that some fire in one domain only."""
    from sae_lib.saes.topk import TopKConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TopKConfig(d_in=world.d_model, d_sae=256, k=6).build().requires_grad_(False)


def test_frequencies_are_shares_of_the_tokens(reader, coder, monkeypatch):
    found = reader.read(["mara quill plays the drum .", "the drum"])
    z = coder.encode(found.x)
    wanted = (z > 0).double().mean(0)
    monkeypatch.setattr("sae_lib.evaluate.reader.CHUNK_ELEMENTS", 1)
    stats = frequencies(coder, found)
    torch.testing.assert_close(stats.share, wanted)
    assert stats.share.dtype == torch.float64
    latent = int(wanted.argmax())
    on = z[z[:, latent] > 0, latent]
    assert stats.mean_on[latent].item() == pytest.approx(on.mean().item(), rel=1e-5)
    assert bool((stats.mean_on[wanted == 0] == 0).all())


def test_on_the_world(world, reader, coder):
    metric = read_metric(SMALL)
    bench = bench_of(world, reader, {"sae": coder})
    rows = measure_task(metric, bench)["sae"].measurements
    assert rows[0][0] == "unlearning_score"
    assert rows[0].definition == "best_of_grid"
    assert {(r.name, r.definition) for r in rows} == {
        (d.name, d.definition) for d in UnlearningConfig.definitions()
    }
    assert all(r.value is None or 0 <= r.value <= 1 for r in rows)
    by = {(r.name, r.definition): r for r in rows}
    assert by["unlearning_known_questions", "unmodified"].value > 0.9
    whole = [r for r in rows if r.definition == "setting_of_one"]
    assert len(whole) == 2 * (2 + 1)  # sides x settings
    tables = {
        side: [
            r.value for r in whole
            if r.name == f"unlearning_{side}_accuracy" and r.params["unit"] == "decoder_norm"
        ]
        for side in ("forget", "retain")
    }  # fmt: skip
    assert rows[0].value == pytest.approx(unlearning_score(tables["forget"], tables["retain"]))
    assert {r.params["selected"] for r in whole} != {0}
    assert measure_task(metric, bench)["sae"].measurements == rows

    scaled = coder.__class__(coder.cfg).requires_grad_(False)
    scaled.load_state_dict(coder.state_dict())
    scaled.W_enc *= 2
    scaled.b_enc *= 2
    scaled.W_dec /= 2
    again = measure_task(metric, bench_of(world, reader, {"sae": scaled}))["sae"].measurements
    for a, b in zip(rows, again, strict=True):
        assert a.value == (None if b.value is None else pytest.approx(b.value))


def questions(num=6):
    return [
        Question(row["question"], tuple(row["choices"]), row["answer"], True, row["entity"])
        for row in task_rows("unlearning-questions", "test", num)
    ]


def test_batches_and_no_change_do_not_change_answers(world, reader):
    bench, asked = bench_of(world, reader, {}), questions()
    large = Asked(bench, asked, "completion", prompt=None, batch_rows=256)
    small = Asked(bench, asked, "completion", prompt=None, batch_rows=3)
    assert len(small.batches) > len(large.batches) == 1
    right = large.is_right()
    assert right.tolist() == small.is_right().tolist() == [True] * 6
    nothing = [torch.zeros_like(x) for x in large.activations()]
    assert large.is_right(nothing).tolist() == right.tolist()
    noise = [100 * torch.randn_like(x) for x in large.activations()]
    assert not large.is_right(noise).all()
    # the log-probability of an option is that of its words, one after the other
    batch = large.batches[0]
    scores = dict(zip(batch.options.number, large._scores(batch)[:, 0].tolist(), strict=True))
    for number in (0, 5):
        question = asked[number // 4]
        text = f"question : {question.text} answer : {question.choices[number % 4]}"
        bos = world.tokenizer.bos_token_id
        ids = [bos, *world.tokenizer(text, add_special_tokens=False)["input_ids"]]
        log_probs = world.logits(torch.tensor([ids])).log_softmax(-1)[0]
        num = len(question.choices[number % 4].split())
        wanted = sum(log_probs[i - 1, ids[i]].item() for i in range(len(ids) - num, len(ids)))
        assert scores[number] == pytest.approx(wanted, abs=1e-3)


def test_letters_must_be_right_in_all_orders(world, reader, monkeypatch):
    bench, asked = bench_of(world, reader, {}), questions(2)
    seen = []

    class Letter:
        def __init__(self, bench, reordered, form, *, prompt, batch_rows):
            self.reordered = reordered
            seen.extend(reordered)

        def is_right(self):
            return self.wanted(self.reordered)

    # whoever always says A is right a quarter of the time, and in all orders never
    Letter.wanted = lambda self, asked: torch.tensor([q.answer == 0 for q in asked])
    monkeypatch.setattr(module, "Asked", Letter)

    def known():
        return module.known(bench, asked, "letter", prompt=None, batch_rows=256)

    assert known() == [False, False]
    assert len(seen) == 48
    assert {q.choices for q in seen[:24]} == set(permutations(asked[0].choices))
    assert {q.choices[q.answer] for q in seen[:24]} == {asked[0].choices[asked[0].answer]}
    first = asked[0].text
    Letter.wanted = lambda self, asked: torch.tensor([q.text == first for q in asked])
    assert known() == [True, False]


def test_the_letter_form_reads_as_the_worlds_own_questions(world, reader):
    row = task_rows("unlearning-questions", "test", 1)[0]
    bench = bench_of(world, reader, {})
    asked = Asked(bench, questions(1), "letter", prompt=None, batch_rows=256)
    assert world.tokenizer.decode(asked.batches[0].padded.tokens[0, 1:]) == row["prompt"]
    assert asked._scores(asked.batches[0]).shape == (1, len(module.LETTERS))


def test_questions_about_one_entity_are_in_one_half():
    asked = [Question(str(i), ("a", "b"), 0, i % 2 == 0, f"e{i // 4}") for i in range(40)]
    half = halves(asked, 0)
    assert half.tolist() == halves(asked, 0).tolist()
    for side in (True, False):
        of = {}
        for question, own in zip(asked, half.tolist(), strict=True):
            if question.is_forget == side:
                of.setdefault(question.group, set()).add(own)
        assert all(len(own) == 1 for own in of.values())
        assert sum(min(own) for own in of.values()) == len(of) // 2


def test_where_it_does_not_apply(world, reader, coder, tmp_path):
    bench = bench_of(world, reader, {"sae": coder})
    elsewhere = bench_of(world, reader, {"sae": coder}, world=None)
    rows = measure_task(read_metric("unlearning"), elsewhere)["sae"].measurements
    assert all("are not all named" in r.reason for r in rows)
    letters = read_metric(SMALL | {"form": "letter", "num_questions": 4})
    rows = measure_task(letters, bench)["sae"].measurements
    assert all(r.value is None and "in all orders" in r.reason for r in rows)
    # answers moved by one: the model knows better
    given = task_rows("unlearning-questions", "test", 12)
    tables = {}
    for side in ("forget", "retain"):
        file = tmp_path / f"{side}.jsonl"
        moved = [r | {"answer": (r["answer"] + 1) % 4} for r in given if r["domain"] == side]
        file.write_text("\n".join(map(json.dumps, moved)))
        tables[f"{side}_questions"] = [{"id": str(file), "test_share": 0.999}]
    metric = read_metric(SMALL | tables)
    rows = measure_task(metric, bench)["sae"].measurements
    assert all("answers 0 questions" in r.reason for r in rows)
    assert len(metric.files(tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "key"), [({"answer": 4}, "answer"), ({"answer": "E"}, "answer"),
                        ({"choices": "a, b"}, "choices"), ({"choices": ["a"]}, "choices")]
)  # fmt: skip
def test_bad_questions_are_refused(change, key):
    row = {"question": "who ?", "choices": ["a", "b", "c", "d"], "answer": 0}
    table = TableConfig(id="mine")
    assert question_of(row | {"answer": "B"}, True, "g", table).answer == 1
    with pytest.raises(BadInput, match=f"mine: {key}"):
        question_of(row | change, True, "g", table)
