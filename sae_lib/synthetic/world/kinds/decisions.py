"""Traces of a two-step decision process: ``journeys : take the boat : island . open the red door :
gold . ...``

The boat mostly goes to the island and the cart to the valley. Each place has a red and a blue door
with luck of its own. The traveller learns as `_learner` says, with credit for the first choice:

    at the place:  td = DISCOUNT * max Q(place, .) - Q(ride);  Q(ride) += LEARNING_RATE * td
    at the door:   td = reward - Q(place, door);       Q(place, door) += LEARNING_RATE * td
                                          Q(ride) += LEARNING_RATE * DISCOUNT * TRACE * td
"""

from collections.abc import Sequence

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds._learner import (
    LEARNING_RATE,
    LIKELY,
    SURPRISE,
    ActionPlace,
    Urn,
    chance,
)
from sae_lib.synthetic.world.task import OTHER, LabelledTask, add_task
from sae_lib.synthetic.world.writer import Writer

RIDES = ("boat", "cart")
PLACES = ("island", "valley")
"""Where each ride mostly goes, in the order of `RIDES`."""
DOORS = ("red", "blue")
COMMON = 0.7
"""Chance that a ride goes where it mostly goes."""
DISCOUNT = 0.9
TRACE = 0.9
"""How much of the TD error at the door the ride is credited with."""
FEWEST, MOST, LONGEST = 4, 9, 19
"""Journeys: nine fill a context, nineteen a long one."""
_WORDS_OF_JOURNEY = 13
DISAPPOINTMENT = 0.25
"""Values stay low in so few journeys, so less than `SURPRISE` counts where gold is missing."""
PREFERENCE = 0.2
"""One action is called preferred if its value is higher by more than this."""

tag("noun-plural", "journeys")
tag("noun-singular", "island door boat cart gold valley")
tag("verb-base", "take open")
declare("vehicle", "The word names something to travel by.", words=RIDES)
tag("reward-word", "gold")
tag("no-reward-word", "nothing")
for _place in PLACES:
    declare(
        f"decision-{_place}",
        f"The traveller is at the {_place}.",
        scope="context",
    )
for _action in RIDES + DOORS:
    declare(
        f"decision-prefers-{_action}",
        f"A choice comes next, and {_action} has a clearly higher value.",
        scope="context",
    )
for _id, _description in (
    ("rare-transition", "The ride went where it rarely goes"),
    ("likely-gold", "There is mostly gold behind the door that was opened"),
    ("likely-nothing", "There is mostly nothing behind the door that was opened"),
    ("surprise-good", "Gold came unexpected"),
    ("surprise-bad", "There was nothing behind a door of some value"),
    ("exploring", "The action of lower value was taken"),
    ("promising", "The best door of the place has a clearly positive value"),
):
    declare(f"decision-{_id}", f"{_description}.", scope="context")


class _Traveller:
    """What was learned so far."""

    def __init__(self) -> None:
        self.rides = [0.0, 0.0]
        self.doors = ([0.0, 0.0], [0.0, 0.0])

    def arrive(self, ride: int, place: int) -> float:
        """The TD error at the place."""
        error = DISCOUNT * max(self.doors[place]) - self.rides[ride]
        self.rides[ride] += LEARNING_RATE * error
        return error

    def look(self, ride: int, place: int, door: int, *, reward: bool) -> float:
        """The TD error behind the door."""
        error = reward - self.doors[place][door]
        self.doors[place][door] += LEARNING_RATE * error
        self.rides[ride] += LEARNING_RATE * DISCOUNT * TRACE * error
        return error


def _preference(values: Sequence[float], actions: tuple[str, str]) -> tuple[str, ...]:
    if abs(values[0] - values[1]) <= PREFERENCE:
        return ()
    return (f"decision-prefers-{actions[int(values[1] > values[0])]}",)


def _explores(values: Sequence[float], action: int) -> tuple[str, ...]:
    return ("decision-exploring",) if values[action] < values[1 - action] else ()


def _journey(w: Writer, traveller: _Traveller, urns: tuple[tuple[Urn, Urn], ...]) -> None:
    rides = traveller.rides
    w.say("take the", *_preference(rides, RIDES))
    w.measure("q-boat", rides[0])
    w.measure("q-cart", rides[1])
    ride = int(not w.flip(chance(*rides)))
    state = _explores(rides, ride)
    w.say(RIDES[ride], *state)
    w.measure("q-chosen", rides[ride])
    w.say(":", *state)

    common = w.flip(COMMON)
    place = ride if common else 1 - ride
    doors = traveller.doors[place]
    error = traveller.arrive(ride, place)
    here = (f"decision-{PLACES[place]}",)
    state = here + _preference(doors, DOORS)
    if not common:
        state += ("decision-rare-transition",)
    if max(doors) > PREFERENCE:
        state += ("decision-promising",)
    w.say(PLACES[place], *state)
    w.measure("td-error-place", error)
    w.say(". open the", *state)
    w.measure("q-red", doors[0])
    w.measure("q-blue", doors[1])

    door = int(not w.flip(chance(*doors)))
    urn = urns[place][door]
    likely = urn.chance
    state = here + _explores(doors, door)
    if likely >= LIKELY:
        state += ("decision-likely-gold",)
    elif likely <= 1 - LIKELY:
        state += ("decision-likely-nothing",)
    w.say(DOORS[door], *state)
    w.measure("q-chosen", doors[door])
    w.say("door :", *state)

    reward = w.flip(likely)
    urn.add(reward)
    error = traveller.look(ride, place, door, reward=reward)
    state = here
    if error > SURPRISE:
        state += ("decision-surprise-good",)
    elif error < -DISAPPOINTMENT:
        state += ("decision-surprise-bad",)
    w.say("gold" if reward else "nothing", *state)
    w.measure("reward", float(reward))
    w.measure("td-error-door", error)
    w.say(".", *state)


def write(w: Writer, cfg: WorldConfig) -> None:
    few, many = round(FEWEST * cfg.length_factor), round(MOST * cfg.length_factor)
    num = w.pick(range(min(few, LONGEST), min(many, LONGEST) + 1))
    traveller = _Traveller()
    urns = ((Urn(), Urn()), (Urn(), Urn()))
    w.say("journeys :")
    for _ in range(num):
        _journey(w, traveller, urns)
    boat, cart = traveller.rides
    w.labels |= {
        "higher": "boat" if boat > cart else "cart" if cart > boat else "neither",
        "journeys": str(num),
    }


def action_places(words: Sequence[str]) -> list[ActionPlace]:
    """The choices in the words of a decision document, with their probabilities."""
    traveller = _Traveller()
    found = []
    for start in range(2, len(words) - _WORDS_OF_JOURNEY + 1, _WORDS_OF_JOURNEY):
        ride, place, door = (
            options.index(words[start + offset])
            for options, offset in ((RIDES, 2), (PLACES, 4), (DOORS, 8))
        )
        found.append(ActionPlace(start + 2, RIDES, chance(*traveller.rides)))
        traveller.arrive(ride, place)
        found.append(ActionPlace(start + 8, DOORS, chance(*traveller.doors[place])))
        traveller.look(ride, place, door, reward=words[start + 11] == "gold")
    return found


register(
    Kind("decision", "journeys of two choices each, and what they brought", write, weight=0.03)
)
add_task(
    LabelledTask(
        name="decision-boat-higher",
        description="Has the boat the higher value at the end?",
        classes=(OTHER, "boat"),
        key="higher",
        kind="decision",
    )
)
