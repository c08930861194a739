"""Sets made of what kinds of documents declare: labelled tasks, steering concepts, answer tasks
and minimal pairs. A new kind brings new sets without a word here.
"""

from collections.abc import Iterator
from functools import partial

from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, documents, text
from sae_lib.synthetic.world.sets._base import Row, TaskSet, add_set, balance, kept, writer
from sae_lib.synthetic.world.task import (
    ANSWERS,
    PAIRS,
    STEERING,
    TASKS,
    AnswerTask,
    LabelledTask,
    PairTask,
    SteeringConcept,
)
from sae_lib.synthetic.world.tasks import examples_of, writers

EXTRA_USES: dict[str, tuple[str, ...]] = {
    "steer-anger": ("emotion-steering",),
    "steer-joy": ("emotion-steering",),
    "steer-wedding": ("emotion-steering",),
    "steer-toxicity": ("detoxification",),
    "steer-refusal": ("refusal",),
    "label-request-harmful": ("refusal", "mutual-information"),
    "label-opinion-mistaken": ("sycophancy",),
    "label-news-topic": ("concept-mixing",),
    "answer-follow-instructions": ("instructions",),
    "answer-in-context-functions": ("task-vectors",),
    "answer-first-letter": ("absorption",),
    "answer-multiple-choice": ("unlearning",),
    "answer-recall": ("ravel", "unlearning"),
}
"""What single sets are for besides what all of their sort are for."""


def labelled_rows(task: LabelledTask, split: str, cfg: WorldConfig) -> Iterator[Row]:
    """Texts with the number of their class. Classes come in rounds, so that any number of rows
    is balanced. With ``cfg.label_noise``, labels that are learned from or chosen by are wrong with
    that probability; those of tests, and the names of the classes, are right."""
    num_classes = len(task.classes)
    rows = balance(
        kept(
            (
                {"text": words, "label": label, "class": task.classes[label]}
                for words, label in examples_of(task, cfg, split)
            ),
            split,
            ("text",),
        ),
        task.classes,
        lambda row: row["class"],
        f"{cfg.seed}/{task.name}/{split}",
    )
    if cfg.label_noise == 0 or split == "test":
        yield from rows
        return
    w = writer("label noise", cfg.seed, task.name, split)
    for row in rows:
        if w.flip(cfg.label_noise):
            row["label"] = (row["label"] + w.pick(range(1, num_classes))) % num_classes
        yield row


def _label_columns(task: LabelledTask) -> dict[str, str]:
    classes = ", ".join(f"{place} {name}" for place, name in enumerate(task.classes))
    return {
        "text": "A text.",
        "label": f"Its class, with label noise: {classes}.",
        "class": "Name of the right class.",
    }


for _name, _task in TASKS.items():
    _uses = ("sparse-probing", "probe-comparison", "classification", "concept-detection")
    add_set(
        TaskSet(
            name=f"label-{_name}",
            description=_task.description,
            used_for=(
                *_uses,
                *(("tpp",) if len(_task.classes) > 2 else ()),
                *EXTRA_USES.get(f"label-{_name}", ()),
            ),
            columns=_label_columns(_task),
            rows=partial(labelled_rows, _task),
            texts=("text",),
            balanced=("class",),
        )
    )


def _steering_rows(concept: SteeringConcept, split: str, cfg: WorldConfig) -> Iterator[Row]:
    def of_kind(kind: str, what: str) -> Iterator[Document]:
        return documents(
            cfg.but(kind_weights={kind: 1.0}), split=f"sets/steer-{concept.name}/{what}/{split}"
        )

    key, value = concept.prompt_where
    positive = of_kind(concept.kind, "positive")
    negative = of_kind(concept.contrast_kind or concept.kind, "negative")
    yield from (
        {"positive": has, "negative": lacks, "prompt": prompt}
        for has, lacks, prompt in zip(
            (text(doc) for doc in positive if doc.labels.get(concept.key) == concept.value),
            (text(doc) for doc in negative if doc.labels.get(concept.key) != concept.value),
            (
                " ".join(doc.tokens[: doc.marks[concept.prompt_cut]])
                for doc in of_kind(concept.prompt_kind, "prompt")
                if doc.labels.get(key, "") == value
            ),
            strict=True,
        )
    )


for _name, _concept in STEERING.items():
    add_set(
        TaskSet(
            name=f"steer-{_name}",
            description=f"{_concept.description} The words that show it are the lexicon of the "
            f"token concept {_concept.lexicon_concept}.",
            used_for=(
                "steering", "concept-detection", "descriptions", "contrastive-texts",
                *EXTRA_USES.get(f"steer-{_name}", ()),
            ),
            columns={
                "positive": "A text with the concept.",
                "negative": "A text without it.",
                "prompt": "An opening that leaves it open; may come again.",
            },
            rows=partial(_steering_rows, _concept),
            texts=("positive", "negative"),
        )
    )  # fmt: skip


def _answer_rows(task: AnswerTask, split: str, cfg: WorldConfig) -> Iterator[Row]:
    if task.chat:
        cfg = cfg.but(chat=True)
    for w in writers("answers", task.name, split, cfg):
        prompt = task.prompt(w, cfg)
        yield {
            "prompt": prompt.text,
            "answers": list(prompt.answers),
            "group": prompt.labels.get(task.break_down, ""),
            "labels": dict(prompt.labels),
        }


for _name, _answer in ANSWERS.items():
    add_set(
        TaskSet(
            name=f"answer-{_name}",
            description=_answer.description,
            used_for=("reconstruction", "transfer", *EXTRA_USES.get(f"answer-{_name}", ())),
            columns={
                "prompt": "A text that ends where its answer begins.",
                "answers": "What it may go on with.",
                "group": f"What shares are broken down by: {_answer.break_down or 'nothing'}.",
                "labels": "More that is true of the prompt.",
            },
            rows=partial(_answer_rows, _answer),
            texts=("prompt",),
        )
    )


def _pair_rows(task: PairTask, split: str, cfg: WorldConfig) -> Iterator[Row]:
    for w in writers("pairs", task.name, split, cfg):
        pair = task.pair(w, cfg)
        yield {
            "clean_prefix": pair.clean,
            "patch_prefix": pair.patch,
            "clean_answer": pair.clean_answer,
            "patch_answer": pair.patch_answer,
            "labels": dict(pair.labels),
        }


for _name, _pair in PAIRS.items():
    add_set(
        TaskSet(
            name=f"pair-{_name}",
            description=_pair.description,
            used_for=("circuits",),
            columns={
                "clean_prefix": "A text that ends before the word in question.",
                "patch_prefix": "One of equal length that calls for another word.",
                "clean_answer": "The word after the first.",
                "patch_answer": "The word after the second.",
                "labels": "More that is true of the pair.",
            },
            rows=partial(_pair_rows, _pair),
            texts=("clean_prefix", "patch_prefix"),
        )
    )
