from math import exp, log

import pytest

from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds.decisions import action_places

CFG = WorldConfig(kind_weights={"decision": 1.0})
DOCS = list(documents(CFG, 0, 200))
COMMON = {"boat": "island", "cart": "valley"}


def softmax(q, name):
    return exp(3 * q[name]) / sum(exp(3 * value) for value in q.values())


def replay(words):
    """Per journey, read off the words, what was chosen and what was known before."""
    assert tuple(words[:2]) == ("journeys", ":")
    rides = {"boat": 0.0, "cart": 0.0}
    doors = {place: {"red": 0.0, "blue": 0.0} for place in COMMON.values()}
    past = {(place, door): [] for place, own in doors.items() for door in own}
    for start in range(2, len(words), 13):
        part = words[start : start + 13]
        ride, place, door, outcome = part[2], part[4], part[8], part[11]
        expected = f"take the {ride} : {place} . open the {door} door : {outcome} ."
        assert " ".join(part) == expected
        gold, tries = outcome == "gold", past[place, door]
        arriving = 0.9 * max(doors[place].values()) - rides[ride]
        opening = gold - doors[place][door]
        yield {
            "start": start, "ride": ride, "place": place, "door": door, "gold": gold,
            "rides": dict(rides), "doors": dict(doors[place]), "arriving": arriving,
            "opening": opening, "p_ride": softmax(rides, ride),
            "p_door": softmax(doors[place], door),
            "luck": (sum(tries) + 1) / (len(tries) + 2),
        }  # fmt: skip
        rides[ride] += 0.3 * arriving
        doors[place][door] += 0.3 * opening
        rides[ride] += 0.3 * 0.9 * 0.9 * opening
        tries.append(gold)


def test_the_surprise_is_that_of_learner_places_and_urns():
    for doc in DOCS:
        nats = log(6)
        for j in replay(doc.tokens):
            nats -= log(j["p_ride"]) + log(0.7 if COMMON[j["ride"]] == j["place"] else 0.3)
            nats -= log(j["p_door"]) + log(j["luck"] if j["gold"] else 1 - j["luck"])
        assert doc.nll == pytest.approx(nats, rel=1e-9)


def test_places_of_actions_and_measures_agree_with_the_words():
    for doc in DOCS[:60]:
        measures = {name: dict(found) for name, found in doc.measures.items()}
        places = iter(action_places(doc.tokens))
        for j in replay(doc.tokens):
            for offset, options, word, probability in (
                (2, ("boat", "cart"), j["ride"], j["p_ride"]),
                (8, ("red", "blue"), j["door"], j["p_door"]),
            ):
                found = next(places)
                assert (found.place, found.actions) == (j["start"] + offset, options)
                first = found.probability
                assert (first if word == options[0] else 1 - first) == pytest.approx(probability)
            for name, offset, number in (
                ("q-boat", 1, j["rides"]["boat"]), ("q-cart", 1, j["rides"]["cart"]),
                ("q-chosen", 2, j["rides"][j["ride"]]), ("td-error-place", 4, j["arriving"]),
                ("q-red", 7, j["doors"]["red"]), ("q-blue", 7, j["doors"]["blue"]),
                ("q-chosen", 8, j["doors"][j["door"]]), ("reward", 11, float(j["gold"])),
                ("td-error-door", 11, j["opening"]),
            ):  # fmt: skip
                assert measures[name][j["start"] + offset] == pytest.approx(number)
        assert next(places, None) is None


def test_rides_go_where_they_mostly_go_and_no_action_is_favoured():
    journeys = [j for doc in DOCS for j in replay(doc.tokens)]
    common = sum(COMMON[j["ride"]] == j["place"] for j in journeys) / len(journeys)
    assert common == pytest.approx(0.7, abs=3 * (0.21 / len(journeys)) ** 0.5)
    firsts = [next(replay(doc.tokens)) for doc in DOCS]
    for key, value in (("ride", "boat"), ("door", "red"), ("gold", True)):
        share = sum(j[key] == value for j in firsts) / len(firsts)
        assert share == pytest.approx(0.5, abs=3 * 0.5 / len(firsts) ** 0.5)


def test_concepts_hold_where_the_history_says():
    seen = set()
    for doc in DOCS:
        for j in replay(doc.tokens):
            at = doc.contexts[j["start"] : j["start"] + 13]
            rides, doors = j["rides"], j["doors"]
            other_ride = sum(rides.values()) - rides[j["ride"]]
            other_door = sum(doors.values()) - doors[j["door"]]
            for name, offset, expected in (
                ("prefers-boat", 1, rides["boat"] - rides["cart"] > 0.2),
                ("prefers-cart", 1, rides["cart"] - rides["boat"] > 0.2),
                ("rare-transition", 4, COMMON[j["ride"]] != j["place"]),
                ("island", 4, j["place"] == "island"),
                ("valley", 12, j["place"] == "valley"),
                ("promising", 5, max(doors.values()) > 0.2),
                ("prefers-red", 7, doors["red"] - doors["blue"] > 0.2),
                ("prefers-blue", 7, doors["blue"] - doors["red"] > 0.2),
                ("likely-gold", 10, j["luck"] >= 2 / 3),
                ("likely-nothing", 10, j["luck"] <= 1 - 2 / 3),
                ("surprise-good", 11, j["opening"] > 0.5),
                ("surprise-bad", 11, j["opening"] < -0.25),
            ):
                assert (f"decision-{name}" in at[offset]) == expected, name
                seen |= {name} if expected else set()
            assert ("decision-exploring" in at[2]) == (rides[j["ride"]] < other_ride - 1e-12)
            assert ("decision-exploring" in at[8]) == (doors[j["door"]] < other_door - 1e-12)
            assert not any("decision-island" in c or "decision-valley" in c for c in at[:4])
    assert len(seen) == 12


def test_the_label_is_the_ride_of_higher_value_at_the_end():
    found = set()
    for doc in DOCS:
        *_, last = replay(doc.tokens)
        rides, ride = last["rides"], last["ride"]
        rides[ride] += 0.3 * last["arriving"] + 0.3 * 0.81 * last["opening"]
        gap = rides["boat"] - rides["cart"]
        expected = "neither" if abs(gap) < 1e-12 else "boat" if gap > 0 else "cart"
        assert doc.labels["higher"] == expected
        found.add(expected)
    assert {"boat", "cart"} <= found
