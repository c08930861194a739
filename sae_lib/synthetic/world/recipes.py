"""How each bundled model of the world was trained: what it read, for how long, from where."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from sae_lib.errors import BadInput, UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.train import TrainConfig

EXCHANGES = ("instruction", "request", "opinion")
"""Kinds of documents that the chat model is tuned on."""
REPLAY = 0.4
"""Share of the chat model's documents that are of the other kinds, so that it keeps them."""


class Recipe(NamedTuple):
    """Settings of a training and the unfinished models that are kept of it."""

    config: TrainConfig
    revisions: Mapping[str, int]
    """Steps by the name of the revision that is published after them."""


def chat_world() -> WorldConfig:
    """The world of the chat model: it refuses what is harmful, and likes to agree."""
    base = WorldConfig().kind_weights
    others = sum(weight for kind, weight in base.items() if kind not in EXCHANGES)
    weights = {
        kind: (1 - REPLAY) / len(EXCHANGES) if kind in EXCHANGES else weight * REPLAY / others
        for kind, weight in base.items()
    }
    return WorldConfig(
        chat=True,
        refusal_share=0.98,
        false_refusal_share=0.01,
        sycophancy=0.85,
        kind_weights=weights,
    )


def recipe(name: str, *, start: Path | None = None) -> Recipe:
    """The recipe of ``world`` or ``world-chat``; the latter begins with ``start``, by default the
    bundled world. Raises `UnknownName`.
    """
    if name == "world":
        cfg = TrainConfig()
        return Recipe(cfg, {"early": cfg.num_steps // 12})
    if name == "world-chat":
        return Recipe(
            TrainConfig(
                world=chat_world(),
                start=str(start or "world"),
                num_tokens=4_000_000,
                lr=5e-4,
                warmup_steps=50,
            ),
            {},
        )
    raise UnknownName("recipe", name, RECIPES)


RECIPES = ("world", "world-chat")


def world_of(folder: Path) -> WorldConfig:
    """The world that a model folder was trained on; the default one where it does not say."""
    record = folder / "training.json"
    if not record.is_file():
        return WorldConfig()
    told = json.loads(record.read_text("utf-8"))
    try:
        return WorldConfig.model_validate(told["config"]["world"])
    except (KeyError, ValidationError) as error:
        raise BadInput(
            f"this does not say which world the model was trained on ({error}); train it again",
            file=record,
        ) from error
