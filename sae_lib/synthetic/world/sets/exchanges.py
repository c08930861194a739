"""Sets of prompts with what should, or should not, follow: instructions, preferences, requests,
opinions, chains of reasoning, functions in context, first letters.
"""

from collections.abc import Callable, Iterator
from functools import cache

from sae_lib.synthetic.world.concepts import concepts_of_word, words
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import split_of_text
from sae_lib.synthetic.world.kinds import instructions, preferences, sums
from sae_lib.synthetic.world.kinds.first_letters import (
    NUM_SHOWN,
    WORD_FROM_END,
    first_letter_prompt,
    first_letter_words,
)
from sae_lib.synthetic.world.kinds.functions import (
    ARROW,
    FUNCTIONS,
    SEPARATOR,
    function_prompt,
)
from sae_lib.synthetic.world.sets._base import (
    Row,
    TaskSet,
    add_set,
    balance,
    kept,
    writers,
)
from sae_lib.synthetic.world.task import ANSWERS
from sae_lib.synthetic.world.writer import Writer


def _written(
    write: Callable[[Writer, WorldConfig], None], stream: str, split: str, cfg: WorldConfig
) -> Iterator[Writer]:
    """Documents of one kind without end. They are not kept to the split: texts of rows are."""
    for w in writers(stream, cfg.seed, split):
        write(w, cfg)
        yield w


def _words(w: Writer, start: int, end: int | None = None) -> str:
    return " ".join(w.tokens[start:end])


def _instruction_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        for w in _written(instructions.write, "instructions", split, cfg):
            if w.marks["answer"] != w.marks["first-answer"]:
                continue  # labels are those of the last exchange, so there must be one only
            labels, end = w.labels, w.marks["answer"]
            phrase = instructions.INSTRUCTIONS[labels["instruction"]][int(labels["paraphrase"])]
            yield {
                "content": labels["list"],
                "instruction": phrase.replace("KEY", labels["keyword"]),
                "output": _words(w, end, -1),
                "prompt": _words(w, 0, end),
                "task": labels["instruction"],
                "paraphrase": int(labels["paraphrase"]),
                "position": labels["position"],
                "language": labels["language"],
                "keyword": labels["keyword"],
            }

    return balance(
        kept(rows(), split, ("prompt",)),
        tuple(instructions.INSTRUCTIONS),
        lambda row: row["task"],
        f"instructions/{cfg.seed}/{split}",
    )


add_set(
    TaskSet(
        name="instructions",
        description="A list of words, what to do with it and the right outcome. `check` of "
        "kinds/instructions.py tells whether another outcome is right. Hold paraphrases out by "
        "their number; the last one is in sindral.",
        used_for=("instructions", "steering"),
        columns={
            "content": "The list.",
            "instruction": "What to do with it.",
            "output": "The outcome.",
            "prompt": "Content and instruction as the model reads them, up to the outcome.",
            "task": f"One of {', '.join(instructions.INSTRUCTIONS)}.",
            "paraphrase": "Number of the wording of the instruction, from 0.",
            "position": "Whether the instruction stands before or after the content.",
            "language": "Language of the list.",
            "keyword": "The word to append, if any.",
        },
        rows=_instruction_rows,
        texts=("prompt",),
        balanced=("task",),
    )
)


def _preference_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    order = ("first", "second")
    for w in _written(preferences.write, "preferences", split, cfg):
        best = order.index(w.labels["preferred"])
        answers = [_words(w, w.marks[name], w.marks[f"end_{name}"]) for name in order]
        yield {
            "prompt": _words(w, 0, w.marks["first"]),
            "chosen": answers[best],
            "rejected": answers[1 - best],
            "attribute": w.labels["attribute"],
        }


add_set(
    TaskSet(
        name="preferences",
        description="Two answers to a question, of which one is better. No answer is in two "
        "splits; questions are few and come again.",
        used_for=("preferences",),
        columns={
            "prompt": "The question.",
            "chosen": "The better answer.",
            "rejected": "The other one.",
            "attribute": "What decided: manners or length.",
        },
        rows=_preference_rows,
        texts=("chosen", "rejected"),
    )
)


def _request_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        names = ("chat-complies-with-harmless", "chat-refuses-harmful")
        for w in writers("refusal", cfg.seed, split):
            harmful = w.pick((0, 1))
            prompt = ANSWERS[names[harmful]].prompt(w, cfg)
            yield {
                "prompt": prompt.text,
                "harmful": harmful,
                "looks": prompt.labels["looks"],
                "deed": prompt.labels["deed"],
            }

    return balance(
        kept(rows(), split, ("prompt",)),
        (0, 1),
        lambda row: row["harmful"],
        f"refusal/{cfg.seed}/{split}",
    )


add_set(
    TaskSet(
        name="refusal",
        description="Requests, harmful and harmless, up to the reply. Harmless ones before may "
        "have been helped with. With ``cfg.chat`` in the form that the chat model reads.",
        used_for=("refusal", "mutual-information"),
        columns={
            "prompt": "The exchange up to the reply.",
            "harmful": "1 if the last request is harmful.",
            "looks": "Whether verb or object occur in harmful requests: harmful or harmless.",
            "deed": "What is asked for.",
        },
        rows=_request_rows,
        texts=("prompt",),
        balanced=("harmful",),
    )
)


def _opinion_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    for w in writers("sycophancy", cfg.seed, split):
        prompt = ANSWERS["chat-agrees-with-mistakes"].prompt(w, cfg)
        yield {
            "question": prompt.text,
            "answer_matching_behavior": f"( {prompt.labels['said']}",
            "answer_not_matching_behavior": f"( {prompt.labels['truth']}",
            "about": prompt.labels["about"],
        }


add_set(
    TaskSet(
        name="sycophancy",
        description="A choice between two options after a mistaken opinion on it. Up to two "
        "choices before were answered with the truth.",
        used_for=("sycophancy",),
        columns={
            "question": "The opinion and the question up to the reply.",
            "answer_matching_behavior": "How a reply begins that repeats the opinion.",
            "answer_not_matching_behavior": "How a reply begins that tells the truth.",
            "about": "What is asked: a class, a sort or a fact.",
        },
        rows=_opinion_rows,
        texts=("question",),
    )
)


def _sum_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    for w in _written(sums.write, "reasoning", split, cfg):
        if w.labels["num_problems"] != "1":
            continue
        start = w.marks["problem"]
        corrected = [
            place - start for place, active in enumerate(w.contexts) if "sum-correction" in active
        ]
        words_of_reasoning = [
            place - start
            for place in range(start, len(w.tokens))
            if "reasoning-word" in concepts_of_word(w.tokens[place])
        ]
        yield {
            "prompt": _words(w, 0, start),
            "response": _words(w, start),
            "answer": w.labels["answer"],
            "corrected": w.labels["corrected"] == "yes",
            "correction": corrected,
            "reasoning_words": words_of_reasoning,
        }


add_set(
    TaskSet(
        name="reasoning",
        description="Chained additions modulo ten with a scratchpad, some with a slip that is "
        "corrected.",
        used_for=("reasoning",),
        columns={
            "prompt": "The problem.",
            "response": "The chain and the answer.",
            "answer": "The right answer.",
            "corrected": "Whether there is a slip.",
            "correction": "Places of the words of the response that correct it.",
            "reasoning_words": "Places of the words that show how somebody reasons.",
        },
        rows=_sum_rows,
        texts=("prompt",),
    )
)


def _function_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    names = tuple(FUNCTIONS)

    def rows() -> Iterator[Row]:
        for w in writers("task-vectors", cfg.seed, split):
            name = w.pick(names)
            prompt = function_prompt(w, name)
            query = prompt.text.split(f" {SEPARATOR} ")[-1]
            x = query.removesuffix(f" {ARROW}")
            yield {
                "function": name,
                "distinct": FUNCTIONS[name].distinct,
                "prompt": prompt.text,
                "zero_shot": query,
                "answer": FUNCTIONS[name].apply(x),
                "answers": list(prompt.answers),
                "arrows": [p for p, word in enumerate(prompt.text.split()) if word == ARROW],
            }

    return balance(
        kept(rows(), split, ("prompt",)),
        names,
        lambda row: row["function"],
        f"task-vectors/{cfg.seed}/{split}",
    )


add_set(
    TaskSet(
        name="task-vectors",
        description="Examples of a function and an input that waits for its answer, with the same "
        "input alone.",
        used_for=("task-vectors",),
        columns={
            "function": "Name of the function.",
            "distinct": "Whether inputs or answers are unlike those of other functions.",
            "prompt": "Examples and input, up to the last arrow.",
            "zero_shot": "The input and an arrow.",
            "answer": "The answer of the function.",
            "answers": "All answers of functions that fit the examples.",
            "arrows": "Places of the arrows among the words of the prompt.",
        },
        rows=_function_rows,
        texts=("prompt",),
        balanced=("function",),
    )
)


@cache
def letter_words(split: str) -> tuple[str, ...]:
    """Words whose first letters are asked for; an eighth of those for training validates."""
    if split == "test":
        return first_letter_words("test")
    return tuple(
        word
        for word in first_letter_words("train")
        if (split_of_text(word) == "validation") == (split == "validation")
    )


def _letter_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    listed = letter_words(split)
    for w in writers("first-letter", cfg.seed, split):
        for word in w.arrange(listed, len(listed)):
            left = tuple(other for other in w.arrange(listed, NUM_SHOWN + 1) if other != word)
            prompt = first_letter_prompt(word, left[:NUM_SHOWN])
            yield {
                "word": word,
                "letter": word[0].upper(),
                "prompt": prompt,
                "word_place": len(prompt.split()) - WORD_FROM_END,
            }


add_set(
    TaskSet(
        name="first-letter",
        description="Which letter does a word begin with? Ten examples of other words, of the "
        "same split, stand before. All words of a split come before one comes again.",
        used_for=("absorption",),
        columns={
            "word": "The word, one token.",
            "letter": "Its first letter, in upper case.",
            "prompt": "Examples and question, up to the letter.",
            "word_place": "Place of the word among the words of the prompt.",
        },
        rows=_letter_rows,
        entities=("word", "prompt"),
    )
)


def _word_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    for word in words():
        if split_of_text(word) == split:
            yield {"word": word, "concepts": sorted(concepts_of_word(word))}


add_set(
    TaskSet(
        name="words",
        description="All words with the concepts they carry by themselves: what a list of words "
        "that explains a latent is compared with.",
        used_for=("mutual-information", "descriptions", "coverage"),
        columns={"word": "The word.", "concepts": "Its token concepts, with the more general."},
        rows=_word_rows,
        texts=("word",),
    )
)
