"""Three minutes of `tests.stress.chaos` on a tiny model."""

from pathlib import Path

import pytest

from tests.stress.chaos import STUDY, chaos


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_three_minutes_of_kills_lose_nothing(tmp_path: Path, tiny_model: Path, text: Path):
    corpus = f"{text}, tokens: 4000, context: 32, eval_tokens: 1000"
    study = STUDY.format(model=tiny_model, corpus=corpus, tokens=60_000)
    verdict = chaos(tmp_path, study, minutes=3, seed=0, patience=1500)
    assert not verdict.problems, verdict
    assert verdict.kills.total() >= 2
    assert verdict.reads > 0
