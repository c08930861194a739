"""What the `sae world formal` commands print and do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def sample_rows(name: str, num_strings: int, seed: int) -> list[Row]:
    """Test strings of a language with what is true at each of their tokens."""
    from sae_lib.synthetic.formal.language import formal_strings, surprises
    from sae_lib.synthetic.formal.languages import named_language

    language = named_language(name).but(seed=seed)
    strings = list(formal_strings(language, 0, num_strings, split="test"))
    rows: list[Row] = []
    for one, nats in zip(strings, surprises(language, [s.tokens for s in strings]), strict=True):
        truth = language.truth(one.tokens)
        rows.append(
            {
                "string": one.index,
                "text": " ".join(one.tokens),
                "nats": nats,
                "measures": {name: list(values) for name, values in truth.measures.items()},
                "concepts": [sorted(found) for found in truth.concepts],
            }
        )
    return rows


def train(
    name: str,
    folder: Path,
    *,
    tokens: int,
    seed: int,
    threads: int,
    show: Callable[[int, int], None],
) -> None:
    """Train a model on the language into ``folder``; checkpoints go beside it."""
    from sae_lib.synthetic.formal.languages import named_language
    from sae_lib.synthetic.formal.train import FormalTrainConfig, Step, train_formal

    def on_progress(step: Step) -> None:
        show(step.step, step.num_steps)

    train_formal(
        folder,
        FormalTrainConfig.model_validate(
            {"language": named_language(name), "num_tokens": tokens, "seed": seed}
        ),
        work_dir=folder.with_name(f".{folder.name}.training"),
        threads=threads,
        on_progress=on_progress,
    )
