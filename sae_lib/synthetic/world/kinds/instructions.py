"""A list of words with an instruction, and a reply that carries it out.

The instruction is put in one of several ways, one of them in sindral, after the list or before
it. What is right follows from instruction and list alone (`answer`).
"""

from collections.abc import Sequence

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.exchange import reply_turn, user_turn
from sae_lib.synthetic.world.foreign import FROM_SINDRAL, TO_SINDRAL
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds._exchanges import num_exchanges, told_at
from sae_lib.synthetic.world.lexicon import (
    ANIMAL_WORDS,
    CLIMATES,
    COLORS,
    DAYS,
    FAMILY_OF_PROFESSION,
    FOODS,
    INSTRUMENTS,
)
from sae_lib.synthetic.world.task import (
    OTHER,
    AnswerTask,
    LabelledTask,
    Prompt,
    add_answers,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

LONGEST = 27
"""Words of the longest exchange."""
BEFORE_SHARE = 0.25
TOPICAL_SHARE = 0.4
"""Share of lists of one category, where the instruction does not decide that."""
FOREIGN_SHARE = 0.15
"""Share of lists in sindral, where the instruction allows it and does not decide."""

# KEY is the keyword; the last paraphrase is in sindral
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "translate": (
        "translate these words into sindral", "write these words in sindral",
        "say this in sindral", "give the sindral for these words",
        "tradelu la vortoi alu sindral"),
    "english": (
        "translate these words into english", "write these words in english",
        "say this in english", "give the english for these words",
        "tradelu la vortoi alu english"),
    "reverse": (
        "reverse the order of these words", "write these words backwards",
        "say the words from last to first", "turn this list around",
        "renvelu la vortoi"),
    "first": (
        "repeat the first word", "write only the first word", "say which word comes first",
        "give the word that begins the list", "unelu la vorto"),
    "last": (
        "repeat the last word", "write only the last word", "say which word comes last",
        "give the word that ends the list", "finelu la vorto"),
    "category": (
        "say in one word what these are", "name the category of these words",
        "give one word for all of these", "write what kind of thing these are",
        "klaselu la vortoi"),
    "count": (
        "count these words", "say how many words there are", "give the number of words",
        "write how long this list is", "kontelu la vortoi"),
    "letter": (
        "give the first letter of the first word", "write the letter that begins the list",
        "say which letter comes first", "name the letter at the start", "literelu la vorto"),
    "append": (
        "repeat the words and end with KEY", "write this list and add KEY",
        "say these words and then KEY", "copy the list and put KEY last",
        "aldelu KEY alu la vortoi"),
    "copy": (
        "repeat these words", "copy this list", "say the same words again",
        "write all of these words", "ripetelu la vortoi"),
}  # fmt: skip
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ANIMAL_WORDS,
    "food": FOODS,
    "color": COLORS,
    "profession": tuple(FAMILY_OF_PROFESSION),
    "instrument": INSTRUMENTS,
    "climate": CLIMATES,
    "day": DAYS,
}
"""Words of the lists, by the word that names their category."""
CATEGORY_OF = {word: name for name, members in CATEGORIES.items() for word in members}
_COUNTS = {3: "three", 4: "four", 5: "five"}
_TOLD_AT = told_at(INSTRUCTIONS)


def _possible(*, foreign: bool, topical: bool) -> dict[str, tuple[str, ...]]:
    """The instructions that can be given about a list, with their paraphrases."""
    ruled_out = {"translate", "letter"} if foreign else {"english"}
    if not topical:
        ruled_out.add("category")
    return {name: forms for name, forms in INSTRUCTIONS.items() if name not in ruled_out}


_TOLD_AFTER_LIST = {
    (foreign, topical): told_at(_possible(foreign=foreign, topical=topical))
    for foreign in (False, True)
    for topical in (False, True)
}
"""The same where a list stands before the instruction and rules some out: in sindral?, topical?"""
_NAMES = tuple(INSTRUCTIONS)
_CATEGORY_NAMES = tuple(CATEGORIES)
_OTHER_CATEGORIES = {
    name: tuple(other for other in CATEGORIES if other != name) for name in CATEGORIES
}
_COMMANDS = tuple(dict.fromkeys(forms[-1].split()[0] for forms in INSTRUCTIONS.values()))

declare("instruction-verb", "The verb says what is to be done with a list of words.",
        words="translate write say give reverse turn repeat name count add copy put")  # fmt: skip
declare("sindral-command", "The word is a command in sindral.",
        parents=("sindral-word",), words=_COMMANDS)  # fmt: skip
tag("verb-base", "translate write say give reverse turn repeat name count add copy put end")
tag("verb-present", "comes begins ends")
tag("auxiliary", "are is")
tag("sindral-word", "vorto vortoi la alu")
tag("noun-singular", "word order list category kind thing number letter start animal food vorto")
tag("noun-plural", "words vortoi")
tag("language", "english sindral")
tag("noun-singular", "english sindral")
tag("determiner", "this these all")
tag("question-word", "what which how")
tag("adjective", "first last same many long")
tag("adverb", "backwards around only then again")
tag("conjunction", "and")

declare("instruction-given", "It is known what is to be done with the list.", scope="context")
for _name, _says in {
    "translate": "to translate the list into sindral",
    "english": "to translate the list into English",
    "reverse": "to write the list backwards",
    "first": "to repeat the first word of the list",
    "last": "to repeat the last word of the list",
    "category": "to name the category of the list",
    "count": "to count the words of the list",
    "letter": "to give the first letter of the list",
    "append": "to repeat the list and add a keyword",
    "copy": "to repeat the list",
}.items():
    declare(
        f"instruction-{_name}",
        f"The instruction is {_says}.",
        parents=("instruction-given",),
        scope="context",
    )
declare("instruction-text", "The word belongs to an instruction.", scope="context")
declare("instruction-in-sindral", "The word belongs to an instruction put in sindral.",
        parents=("instruction-text",), scope="context")  # fmt: skip
declare("instruction-keyword", "The word is the keyword of an instruction.", scope="context")
declare("instruction-before-list", "The instruction stands before its list.", scope="context")
declare("instruction-list", "The word belongs to the list that an instruction is about.",
        scope="context")  # fmt: skip
declare("instruction-list-topical", "The list has words of one category only, two so far.",
        parents=("instruction-list",), scope="context")  # fmt: skip
declare("instruction-answer", "The word belongs to the answer to an instruction.",
        scope="context")  # fmt: skip
declare("instruction-next-item", "The next word follows from one word of the list.",
        scope="context")  # fmt: skip
for _place in range(1, 6):
    declare(
        f"instruction-next-item-{_place}",
        f"The next word follows from word {_place} of the list.",
        parents=("instruction-next-item",),
        scope="context",
    )

_NUM_WORDS = Table((3, 4, 5), (0.4, 0.35, 0.25))


def answer(instruction: str, words: Sequence[str], keyword: str = "") -> tuple[str, ...]:
    """The words of the right reply to ``instruction`` about the list ``words``."""
    match instruction:
        case "translate":
            return tuple(TO_SINDRAL[word] for word in words)
        case "english":
            return tuple(FROM_SINDRAL[word] for word in words)
        case "reverse":
            return tuple(words[::-1])
        case "first":
            return (words[0],)
        case "last":
            return (words[-1],)
        case "category":
            return (CATEGORY_OF[FROM_SINDRAL.get(words[0], words[0])],)
        case "count":
            return (_COUNTS[len(words)],)
        case "letter":
            return (words[0][0].upper(),)
        case "append":
            return (*words, keyword)
        case _:
            return tuple(words)


def check(
    instruction: str, content_words: Sequence[str], reply_words: Sequence[str], keyword: str = ""
) -> bool:
    """Whether ``reply_words`` carry the instruction out, exactly; a full stop may follow."""
    given = tuple(reply_words)
    if given and given[-1] == ".":
        given = given[:-1]
    return given == answer(instruction, content_words, keyword)


def _sources(instruction: str, num: int) -> Sequence[int]:
    """Per word of the reply, which word of the list (from 1) it follows from."""
    match instruction:
        case "reverse":
            return range(num, 0, -1)
        case "first" | "letter":
            return (1,)
        case "last":
            return (num,)
        case "category" | "count":
            return ()
        case _:
            return range(1, num + 1)


def _content(w: Writer, instruction: str) -> tuple[list[str], bool]:
    """The list, and whether it is of one category; the first two words tell that."""
    topical = instruction == "category" or w.flip(TOPICAL_SHARE)
    num = w.draw(_NUM_WORDS)
    category = w.pick(_CATEGORY_NAMES)
    if topical:
        words = w.arrange(CATEGORIES[category], num)
    else:
        words = [w.pick(CATEGORIES[category])]
        words.append(w.pick(CATEGORIES[w.pick(_OTHER_CATEGORIES[category])]))
        while len(words) < num:
            left = [x for x in CATEGORIES[w.pick(_CATEGORY_NAMES)] if x not in words]
            words.append(w.pick(left))
    foreign = instruction == "english" or (
        instruction not in {"translate", "letter"} and w.flip(FOREIGN_SHARE)
    )
    return [TO_SINDRAL[word] for word in words] if foreign else words, topical


def _say_list(w: Writer, words: list[str], *, topical: bool) -> None:
    w.say(words[0], "instruction-list")
    about = "instruction-list-topical" if topical else "instruction-list"
    for word in words[1:]:
        w.say(word, about)


def _say_instruction(w: Writer, instruction: str, phrase: str, keyword: str, told: int) -> None:
    """Write the instruction; it holds from word ``told``, counted from 1."""
    about = "instruction-in-sindral" if phrase == INSTRUCTIONS[instruction][-1] else (
        "instruction-text")  # fmt: skip
    for place, word in enumerate(phrase.split(), 1):
        if place == told:
            w.add_context(f"instruction-{instruction}")
        if word == "KEY":
            w.say(keyword, about, "instruction-keyword")
        else:
            w.say(word, about)
    if told > len(phrase.split()):
        w.add_context(f"instruction-{instruction}")


def _exchange(w: Writer, cfg: WorldConfig) -> None:
    kind = w.around[:1]
    w.around = kind
    user_turn(w, cfg)
    instruction = w.pick(_NAMES)
    phrases = INSTRUCTIONS[instruction]
    form = int(w.pick(range(len(phrases))))
    words, topical = _content(w, instruction)
    keyword = ""
    if instruction == "append":
        # English, so that lists in sindral end with a word of the other language
        listed = {FROM_SINDRAL.get(word, word) for word in words}
        category = w.pick(_CATEGORY_NAMES)
        keyword = w.pick([word for word in CATEGORIES[category] if word not in listed])
    before = w.flip(BEFORE_SHARE)
    phrase = phrases[form]
    if before:
        w.add_context("instruction-before-list")
        _say_instruction(w, instruction, phrase, keyword, _TOLD_AT[phrase])
        w.say(":")
        _say_list(w, words, topical=topical)
    else:
        _say_list(w, words, topical=topical)
        w.say(":")
        told = _TOLD_AFTER_LIST[words[0] in FROM_SINDRAL, topical][phrase]
        _say_instruction(w, instruction, phrase, keyword, told)
    w.say(".")
    reply_turn(w, cfg)
    w.labels |= {
        "instruction": instruction,
        "paraphrase": str(form),
        "position": "before" if before else "after",
        "language": "sindral" if words[0] in FROM_SINDRAL else "english",
        "list": " ".join(words),
        "keyword": keyword,
    }
    w.mark("answer")
    right = answer(instruction, words, keyword)
    sources = _sources(instruction, len(words))
    for place, word in enumerate(right):
        if place < len(sources):
            w.contexts[-1] += (f"instruction-next-item-{sources[place]}",)
        if word == keyword:
            w.say(word, "instruction-answer", "instruction-keyword")
        else:
            w.say(word, "instruction-answer")
    w.say(".")


def write(w: Writer, cfg: WorldConfig) -> None:
    """Several exchanges; labels tell of the last one, and ``first_instruction`` of the first."""
    for place in range(w.draw(num_exchanges(cfg.length_factor, LONGEST))):
        _exchange(w, cfg)
        if place == 0:
            w.labels["first_instruction"] = w.labels["instruction"]
            w.marks["first-answer"] = w.marks["answer"]


register(
    Kind("instruction", "lists of words with instructions that are carried out", write, weight=0.06)
)
add_task(
    LabelledTask(
        name="instruction",
        description="Which instruction is given? The text ends before the answer to it.",
        classes=_NAMES,
        key="first_instruction",
        kind="instruction",
        cut="first-answer",
    )
)
for _name in ("translate", "reverse", "category", "count"):
    add_task(
        LabelledTask(
            name=f"instruction-{_name}",
            description=f"Is the instruction {_name}? The text ends before the answer to it.",
            classes=(OTHER, _name),
            key="first_instruction",
            kind="instruction",
            cut="first-answer",
            positive_concept=f"instruction-{_name}",
        )
    )


def _last(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    start = w.marks["answer"]
    return Prompt(" ".join(w.tokens[:start]), (" ".join(w.tokens[start:]),), w.labels)


for _chat in (False, True):
    add_answers(
        AnswerTask(
            name="chat-follows-instructions" if _chat else "follow-instructions",
            description="Is the instruction carried out exactly?",
            prompt=_last,
            goal=0.9,
            break_down="instruction",
            chat=_chat,
        )
    )
