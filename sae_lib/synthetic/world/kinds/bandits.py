"""Traces of a two-armed bandit: ``two levers . press left : win . press right : loss . ...``

Somebody presses two levers again and again and learns their values as `_learner` says. The values
follow from the words, so the chance of every choice is known exactly (`action_places`).
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
from sae_lib.synthetic.world.task import (
    OTHER,
    LabelledTask,
    PairTask,
    PromptPair,
    add_pairs,
    add_task,
)
from sae_lib.synthetic.world.writer import Writer

LEVERS = ("left", "right")
FEWEST, MOST, LONGEST = 10, 24, 49
"""Trials: 24 fill a context, 49 a long one."""
PREFERENCE = 0.4
"""One lever is called preferred if its value is higher by more than this."""

tag("noun-plural", "levers")
tag("verb-base", "press")
tag("reward-word", "win")
tag("no-reward-word", "loss")
tag("noun-singular", "win loss")
for _lever in LEVERS:
    declare(
        f"bandit-prefers-{_lever}",
        f"A lever is chosen next, and the {_lever} one has had a clearly higher value.",
        scope="context",
    )
declare("bandit-likely-win", "The lever that was pressed wins more often than not.",
        scope="context")  # fmt: skip
declare("bandit-likely-loss", "The lever that was pressed loses more often than not.",
        scope="context")  # fmt: skip
declare("bandit-surprise-good", "A win came unexpected.", scope="context")
declare("bandit-surprise-bad", "A loss came unexpected.", scope="context")
declare("bandit-exploring", "The lever of lower value was pressed.", scope="context")
declare("bandit-switched", "Another lever was pressed than before.", scope="context")


def _preference(left: float, right: float) -> tuple[str, ...]:
    if left - right > PREFERENCE:
        return ("bandit-prefers-left",)
    return ("bandit-prefers-right",) if right - left > PREFERENCE else ()


def write(w: Writer, cfg: WorldConfig) -> None:
    few, many = round(FEWEST * cfg.length_factor), round(MOST * cfg.length_factor)
    num_trials = w.pick(range(min(few, LONGEST), min(many, LONGEST) + 1))
    values = [0.0, 0.0]
    urns = (Urn(), Urn())
    before = -1
    prefers: tuple[str, ...] = ()
    most = False
    w.say("two levers .")
    for trial in range(1, num_trials + 1):
        w.say("press", *prefers)
        w.measure("trial", float(trial))
        w.measure("q-left", values[0])
        w.measure("q-right", values[1])

        w.mark("choice")
        lever = int(not w.flip(chance(*values)))
        likely = urns[lever].chance
        state: tuple[str, ...] = ()
        if likely >= LIKELY:
            state = ("bandit-likely-win",)
        elif likely <= 1 - LIKELY:
            state = ("bandit-likely-loss",)
        if values[lever] < values[1 - lever]:
            state += ("bandit-exploring",)
        if lever == 1 - before:
            state += ("bandit-switched",)
        w.say(LEVERS[lever], *state)
        w.measure("q-chosen", values[lever])
        w.say(":", *state)

        reward = w.flip(likely)
        error = reward - values[lever]
        values[lever] += LEARNING_RATE * error
        urns[lever].add(reward)
        before, most = lever, most or reward
        prefers = _preference(*values)
        state = prefers
        if abs(error) > SURPRISE:
            state += ("bandit-surprise-good" if reward else "bandit-surprise-bad",)
        w.say("win" if reward else "loss", *state)
        w.measure("reward", float(reward))
        w.measure("max-reward", float(most))
        w.measure("td-error", error)
        w.say(".", *state)
    higher = "left" if values[0] > values[1] else "right" if values[1] > values[0] else "neither"
    w.labels |= {"higher": higher, "last": LEVERS[before], "trials": str(num_trials)}


def action_places(words: Sequence[str]) -> list[ActionPlace]:
    """The choices in the words of a bandit document, with their probabilities."""
    values: dict[str, float] = dict.fromkeys(LEVERS, 0.0)
    found = []
    for place in range(4, len(words) - 3, 5):
        found.append(ActionPlace(place, LEVERS, chance(values["left"], values["right"])))
        lever, reward = words[place], words[place + 2] == "win"
        values[lever] += LEARNING_RATE * (reward - values[lever])
    return found


register(Kind("bandit", "choices between two levers, and what they won", write, weight=0.04))
add_task(
    LabelledTask(
        name="bandit-left-higher",
        description="Has the left lever the higher value at the end?",
        classes=(OTHER, "left"),
        key="higher",
        kind="bandit",
    )
)


def _mirrored(w: Writer, cfg: WorldConfig) -> PromptPair:
    """A history before a clear choice, and the same with the levers exchanged."""
    while True:
        start = len(w.tokens)
        write(w, cfg)
        words = w.tokens[start:]
        clear = [
            found
            for found in action_places(words)
            if abs(found.probability - 0.5) > chance(PREFERENCE, 0.0) - 0.5
        ]
        if clear:
            break
    choice = w.pick(clear)
    likelier = LEVERS[0] if choice.probability > 0.5 else LEVERS[1]
    other = {"left": "right", "right": "left"}
    clean = words[: choice.place]
    return PromptPair(
        " ".join(clean),
        " ".join(other.get(word, word) for word in clean),
        likelier,
        other[likelier],
        {"trial": str(choice.place // 5 + 1)},
    )


add_pairs(
    PairTask(
        name="bandit-lever",
        description="One lever has won more; in the patch the other one has.",
        pair=_mirrored,
    )
)
