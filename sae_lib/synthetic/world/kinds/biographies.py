"""Lives of people nobody else writes about: name, gender, profession, birthplace.

Gender shows in the first name (not in neutral ones) and in the pronouns; it is correlated with
the profession as strongly as ``gender_profession_correlation`` says.
"""

from functools import cache

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.knowledge import KNOWN_CITIES, STRANGERS
from sae_lib.synthetic.world.lexicon import (
    DIGITS,
    FAMILY_OF_PROFESSION,
    FOODS,
    INSTRUMENTS,
    MONTHS,
    NUMBER_WORDS,
    PETS,
    PROFESSIONS,
    SEASONS,
    TYPED_FEMALE,
    TYPED_MALE,
    WORKPLACES,
    article,
    listed,
)
from sae_lib.synthetic.world.task import (
    OTHER,
    LabelledTask,
    SteeringConcept,
    add_steering,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

NEUTRAL_NAME_SHARE = 0.25

HOBBIES = listed("chess tennis gardening swimming sewing fishing hiking singing painting")
TRAITS = listed("patient curious cheerful stubborn generous shy brave witty calm honest")
WORK: dict[str, tuple[str, ...]] = {
    "medical": ("treats patients", "prepares medicine", "examines wounds"),
    "artistic": ("rehearses for a show", "prepares an exhibition", "performs on stage"),
    "technical": ("repairs machines", "tests circuits", "installs pumps"),
    "academic": ("reads old books", "gives lectures", "writes essays"),
    "service": ("serves guests", "takes orders", "sweeps the floor"),
    "outdoor": ("carries tools", "rises before dawn", "watches the clouds"),
}
PRIZES = ("prize", "medal", "award", "scholarship")

declare("hobby", "The word names a hobby.", words=HOBBIES)
declare("trait", "The word describes a person's character.", words=TRAITS)
declare("prize", "The word names something that is awarded.", words=PRIZES)
declare("work-activity", "The word is about what somebody does at work.")
for _work_family, _phrases in WORK.items():
    _content = [
        word for phrase in _phrases for word in phrase.split()
        if word not in {"for", "a", "an", "on", "the", "before", "old"}
    ]  # fmt: skip
    declare(
        f"{_work_family}-work",
        f"The word is about what people in {_work_family} professions do.",
        parents=("work-activity",),
        words=_content,
    )
    tag("verb-present", [phrase.split()[0] for phrase in _phrases])
tag("adjective", (*TRAITS, "old", "first"))
tag("noun-singular", HOBBIES + PRIZES + ("house", "instrument"))
tag("verb-past", "born won began left")
tag("verb-present", "lives works plays likes keeps owns loves speaks has")
tag("adverb", "still")

declare("subject", "The biography has told the gender of its subject.", scope="context")
for _gender in ("female", "male"):
    declare(
        f"subject-{_gender}",
        f"The subject of the biography is {_gender}, as a first name or a pronoun has told.",
        parents=("subject",),
        scope="context",
    )
declare("subject-profession", "It is known of which kind the subject's profession is.",
        scope="context")  # fmt: skip
for _profession_family in PROFESSIONS:
    declare(
        f"subject-{_profession_family}",
        f"The subject's profession, which was told, is of the {_profession_family} kind.",
        parents=("subject-profession",),
        scope="context",
    )

PRONOUNS = {"female": ("she", "her"), "male": ("he", "his")}
_FAMILIES_AFTER = {
    a: {family for profession, family in FAMILY_OF_PROFESSION.items() if article(profession) == a}
    for a in ("a", "an")
}
"""Of which kinds a profession can be after an article; where there is one, the article tells."""
_NUM_FACTS = Table((2, 3, 4), (0.3, 0.4, 0.3))


@cache
def _professions(gender: str, correlation: float) -> Table[str]:
    """Professions typed like ``gender`` have probability (1 + correlation) / 2 together."""
    same, other = (TYPED_FEMALE, TYPED_MALE) if gender == "female" else (TYPED_MALE, TYPED_FEMALE)
    return Table(
        same + other,
        [(1 + correlation) / 2 / len(same)] * len(same)
        + [(1 - correlation) / 2 / len(other)] * len(other),
    )


def _hobby(w: Writer, she: str, her: str) -> None:
    if w.flip(0.5):
        w.say(f"{she} likes")
        w.say(w.pick(HOBBIES))
        w.say("very much .")
    else:
        w.say("in the evening" if w.flip(0.5) else "on sunday")
        w.say(f"{she} loves")
        w.say(w.pick(HOBBIES))
        w.say(".")


def _pet(w: Writer, she: str, her: str) -> None:
    pet = w.pick(PETS)
    w.say(f"{she} keeps {article(pet)}")
    w.value("pet", pet)
    w.say(f"at home with {her} family ." if w.flip(0.5) else "at home .")


def _music(w: Writer, she: str, her: str) -> None:
    w.say(f"{she} plays the")
    w.value("instrument", w.pick(INSTRUMENTS))
    w.say("with friends ." if w.flip(0.5) else ".")


def _prize(w: Writer, she: str, her: str) -> None:
    prize = w.pick(PRIZES)
    w.say(f"{she} won {article(prize)}")
    w.say(prize)
    w.say("in")
    w.say(w.pick(MONTHS))
    w.say(".")


def _character(w: Writer, she: str, her: str) -> None:
    first, second = w.arrange(TRAITS, 2)
    w.say(f"people say that {she} is")
    w.say(first)
    w.say("and")
    w.say(second)
    w.say(".")


def _family(w: Writer, she: str, her: str) -> None:
    relative = w.pick(("sister", "brother", "mother", "father", "daughter", "son", "aunt", "uncle"))
    w.say(f"{her} {relative} lives in")
    w.say(w.pick(KNOWN_CITIES))
    w.say(".")


def _food(w: Writer, she: str, her: str) -> None:
    w.say(f"{she} never eats")
    w.say(w.pick(FOODS))
    w.say(".")


def _children(w: Writer, she: str, her: str) -> None:
    w.say(f"{she} has")
    w.say(w.pick(NUMBER_WORDS[:4]))
    w.say("children .")


tag("adverb", "much")
tag("conjunction", "that")
tag("verb-present", "eats")
tag("verb-present-plural", "say")

FACTS = (_hobby, _pet, _music, _prize, _character, _family, _food, _children)


def write(w: Writer, cfg: WorldConfig) -> None:
    gender = "female" if w.flip(cfg.female_share) else "male"
    profession = w.draw(_professions(gender, cfg.gender_profession_correlation))
    family = FAMILY_OF_PROFESSION[profession]
    w.labels |= {"gender": gender, "profession": profession, "family": family}
    she, her = PRONOUNS[gender]

    pool = "neutral" if w.flip(NEUTRAL_NAME_SHARE) else gender
    name = w.pick(STRANGERS[pool])
    w.labels["name_pool"] = pool
    birthplace = w.pick(KNOWN_CITIES)
    w.mark("name")
    if pool == gender:
        w.add_context(f"subject-{gender}")
    w.say(name, "mention-person")
    w.say("was born in")
    w.value("birthplace", birthplace)
    if w.flip(0.5):
        w.say("in the")
        w.say(w.pick(SEASONS))
        w.say("of 1 9")
        w.say(w.pick(DIGITS[:8]))
        w.say(w.pick(DIGITS))
    w.say(".")
    w.mark("birth")

    if pool == "neutral":
        w.add_context(f"subject-{gender}")
    at = w.flip(0.5)
    w.say(f"{she} is" if at else f"{she} works as")
    a = article(profession)
    w.say(a)
    if len(_FAMILIES_AFTER[a]) == 1:
        w.tell(f"subject-{family}")
        w.value("profession", profession)
    else:
        w.value("profession", profession)
        w.tell(f"subject-{family}")
    w.say("at the" if at else "in the")
    w.say(w.pick(WORKPLACES[family]))
    w.say(".")
    w.mark("profession")
    if w.flip(0.7):
        w.say("every")
        w.say(w.pick(("morning", "monday", "week")))
        w.say(she)
        w.say(w.pick(WORK[family]))
        w.say(".")

    for fact in w.arrange(FACTS, w.draw(_NUM_FACTS)):
        fact(w, she, her)
    if w.flip(0.3):
        w.say(f"{she} still lives in")
        w.say(birthplace)
        w.say(".")


register(
    Kind(
        "biography",
        "the life of a person, with gender, profession and birthplace",
        write,
        weight=0.08,
    )
)
add_task(
    LabelledTask(
        name="subject-gender",
        description="Is the subject of the biography female?",
        classes=("male", "female"),
        key="gender",
        kind="biography",
        positive_concept="subject-female",
        lexicon_concept="female-pronoun",
    )
)
add_task(
    LabelledTask(
        name="profession-family",
        description="Of which kind is the profession of the biography's subject?",
        classes=tuple(PROFESSIONS),
        key="family",
        kind="biography",
    )
)
for _each in PROFESSIONS:
    add_task(
        LabelledTask(
            name=f"profession-{_each}",
            description=f"Does the subject have a profession of the {_each} kind?",
            classes=(OTHER, _each),
            key="family",
            kind="biography",
            positive_concept=f"subject-{_each}",
            lexicon_concept=f"{_each}-profession",
        )
    )
    add_steering(
        SteeringConcept(
            name=f"profession-{_each}",
            description=f"Give the subject a profession of the {_each} kind.",
            concept=f"subject-{_each}",
            lexicon_concept=f"{_each}-profession",
            kind="biography",
            key="family",
            value=_each,
            prompt_kind="biography",
            prompt_cut="birth",
        )
    )
for _each in ("female", "male"):
    add_steering(
        SteeringConcept(
            name=f"subject-{_each}",
            description=f"Write of a {_each} person.",
            concept=f"subject-{_each}",
            lexicon_concept=f"{_each}-pronoun",
            kind="biography",
            key="gender",
            value=_each,
            prompt_kind="biography",
            prompt_cut="birth",
            prompt_where=("name_pool", "neutral"),
        )
    )
