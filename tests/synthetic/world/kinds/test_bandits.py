from math import exp, log

import pytest

from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds.bandits import action_places, write
from sae_lib.synthetic.world.tasks import prompt_pairs
from sae_lib.synthetic.world.writer import Writer

CFG = WorldConfig(kind_weights={"bandit": 1.0})
DOCS = list(documents(CFG, 0, 200))


def replay(words):
    """Per trial, read off the words: values before, lever, chance of it, win, chance of a win."""
    assert " ".join(words[:3]) == "two levers ."
    q, history = {"left": 0.0, "right": 0.0}, {"left": [], "right": []}
    for start in range(3, len(words), 5):
        press, lever, colon, outcome, stop = words[start : start + 5]
        assert (press, colon, stop) == ("press", ":", ".")
        exps = {name: exp(3 * value) for name, value in q.items()}
        past = history[lever]
        win = outcome == "win"
        yield (
            start,
            dict(q),
            lever,
            exps[lever] / sum(exps.values()),
            win,
            (sum(past) + 1) / (len(past) + 2),
        )
        q[lever] += 0.3 * (win - q[lever])
        past.append(win)


def test_the_surprise_is_that_of_learner_and_urns():
    for doc in DOCS:
        nats = log(15)
        for _, _, _, chosen, win, luck in replay(doc.tokens):
            nats -= log(chosen) + log(luck if win else 1 - luck)
        assert doc.nll == pytest.approx(nats, rel=1e-9)


def test_places_of_actions_and_measures_agree_with_the_words():
    for doc in DOCS[:60]:
        measures = {name: dict(found) for name, found in doc.measures.items()}
        trials = list(replay(doc.tokens))
        places = action_places(doc.tokens)
        assert len(places) == len(trials) == int(doc.labels["trials"])
        for number, (found, (start, q, lever, chosen, win, _)) in enumerate(
            zip(places, trials, strict=True), 1
        ):
            assert found.place == start + 1
            assert doc.tokens[found.place] == lever
            left = found.probability
            assert (left if lever == "left" else 1 - left) == pytest.approx(chosen)
            assert measures["q-left"][start] == pytest.approx(q["left"])
            assert measures["q-right"][start] == pytest.approx(q["right"])
            assert measures["q-chosen"][start + 1] == pytest.approx(q[lever])
            assert measures["td-error"][start + 3] == pytest.approx(win - q[lever])
            assert measures["reward"][start + 3] == win
            assert measures["trial"][start] == number
            assert measures["max-reward"][start + 3] == any(t[4] for t in trials[:number])


def test_places_of_a_text_that_ends_before_a_choice_are_those_before_it():
    words = DOCS[0].tokens
    places = action_places(words)
    assert action_places(words[: places[5].place]) == places[:5]


def test_levers_are_pressed_as_often_as_the_learner_says():
    found = [
        (p.probability, d.tokens[p.place] == "left") for d in DOCS for p in action_places(d.tokens)
    ]
    for low, high in ((0, 0.3), (0.3, 0.7), (0.7, 1)):
        inside = [(p, left) for p, left in found if low <= p <= high]
        mean = sum(p for p, _ in inside) / len(inside)
        error = (sum(p * (1 - p) for p, _ in inside)) ** 0.5 / len(inside)
        assert sum(left for _, left in inside) / len(inside) == pytest.approx(mean, abs=4 * error)


def test_concepts_hold_where_the_history_says():
    seen = set()
    for doc in DOCS:
        before = ""
        for start, q, lever, _, win, luck in replay(doc.tokens):
            press, action, _, outcome, _ = doc.contexts[start : start + 5]
            other = "right" if lever == "left" else "left"
            error = win - q[lever]
            for id, active, expected in (
                ("bandit-prefers-left", press, q["left"] - q["right"] > 0.4),
                ("bandit-prefers-right", press, q["right"] - q["left"] > 0.4),
                ("bandit-likely-win", action, luck >= 2 / 3),
                ("bandit-likely-loss", action, luck <= 1 - 2 / 3),
                ("bandit-exploring", action, q[lever] < q[other]),
                ("bandit-switched", action, before == other),
                ("bandit-surprise-good", outcome, error > 0.5),
                ("bandit-surprise-bad", outcome, error < -0.5),
            ):
                assert (id in active) == expected
                seen |= {id} if expected else set()
            before = lever
        values = {name: value[-1][1] for name, value in doc.measures.items()}
        assert set(values) >= {"q-left", "q-right"}
    assert len(seen) == 8


def test_the_label_is_the_lever_of_higher_value_at_the_end():
    found = set()
    for doc in DOCS:
        *_, (_, q, lever, _, win, _) = replay(doc.tokens)
        q[lever] += 0.3 * (win - q[lever])
        expected = max(q, key=q.__getitem__) if q["left"] != q["right"] else "neither"
        assert doc.labels["higher"] == expected
        found.add(expected)
    assert {"left", "right"} <= found


def test_pairs_differ_in_the_lever_that_won_more():
    pairs = prompt_pairs("bandit-lever", "test", 30)
    assert len(pairs) == 30
    for pair in pairs:
        clean, patch = pair.clean.split(), pair.patch.split()
        assert len(clean) == len(patch)
        for words, answer in ((clean, pair.clean_answer), (patch, pair.patch_answer)):
            assert words[-1] == "press"
            *_, last = action_places([*words, "left", ":", "win", "."])
            likelier = "left" if last.probability > 0.5 else "right"
            assert answer == likelier
            assert max(last.probability, 1 - last.probability) > 0.76
        assert pair.clean_answer != pair.patch_answer


def test_probabilities_of_all_short_texts_sum_to_one():
    """All choices of three trials, as the writer scores them."""
    total = 0.0
    seen: dict[str, float] = {}
    for seed in range(4000):
        w = Writer(seed)
        write(w, CFG)
        words = w.tokens[:18]
        nats = 0.0
        for _, _, _, chosen, win, luck in replay(words):
            nats -= log(chosen) + log(luck if win else 1 - luck)
        seen[" ".join(words)] = exp(-nats)
    total = sum(seen.values())
    assert len(seen) <= 64
    assert total == pytest.approx(1, abs=0.01)
