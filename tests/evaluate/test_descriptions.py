import pytest
import torch

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput
from sae_lib.evaluate import read_metric
from sae_lib.evaluate._baselines import BaselineCoder, pca_coder
from sae_lib.evaluate._clamping import Clamp, find_strength
from sae_lib.evaluate._described import of_another
from sae_lib.evaluate._judges import Description, Judge, KeywordJudge
from sae_lib.evaluate._latent_windows import num_contexts_of, read_site
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.descriptions import (
    DescriptionsConfig,
    input_success,
    logit_rise,
    match_rate,
)
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.3"
CATS = Description("cats, animals")
SETS = [["cat cat dog"], ["tax law"], ["red blue"]]


# --- input -----------------------------------------------------------------------------------


def test_the_hand_test_of_input_success():
    fitting, neutral = torch.tensor([2.0, 1, 3, 0, 4]), torch.tensor([1.0, 0, 0, 0, 1])
    is_success, gap = input_success(fitting, neutral)
    assert is_success
    assert gap == pytest.approx(1.6)
    assert input_success(neutral, fitting)[0] is False


def test_a_tie_fails():
    assert input_success(torch.zeros(5), torch.zeros(5)) == (False, 0.0)


# --- output ----------------------------------------------------------------------------------


def test_the_hand_test_of_the_search():
    found = find_strength(lambda v: v / 100, 0.25, tolerance=0.1)
    assert found in range(25, 36)


@pytest.mark.parametrize("target", [0.02, 0.25, 3.0, 9.99])
def test_the_search_finds_the_target_wherever_it_is(target):
    found = find_strength(lambda v: v / 100, target, tolerance=0.01)
    assert target <= found / 100 <= target + 0.01


def test_where_kl_falls_again_the_grid_finds_a_value():
    tried = []

    def saturating(v):
        tried.append(v)
        return 0.3 if 3 <= v <= 6 else 0.05

    assert 3 <= find_strength(saturating, 0.25, tolerance=0.1) <= 6
    assert len(tried) < 60


def test_a_target_that_nothing_reaches_is_none():
    assert find_strength(lambda v: 0.01, 0.25, tolerance=0.1) is None
    assert find_strength(lambda v: 5.0, 0.25, tolerance=0.1) is None


def test_the_described_set_is_found_in_every_rotation():
    assert match_rate(KeywordJudge(), [(CATS, SETS)]) == [(1.0, 0)]
    assert match_rate(KeywordJudge(), [(Description("tax"), SETS)]) == [(0.0, 0)]


class SaysAlways(Judge):
    def __init__(self, *places):
        self.places = places

    def match(self, asked):
        return [self.places[i % len(self.places)] for i in range(len(asked))]


def test_a_judge_that_favours_a_place_is_at_chance():
    assert match_rate(SaysAlways(0), [(CATS, SETS)]) == [(pytest.approx(1 / 3), 0)]
    # where no word occurs, the keyword judge is such a one
    assert match_rate(KeywordJudge(), [(Description("sun"), SETS)])[0][0] == pytest.approx(1 / 3)


def test_unread_answers_are_left_out_and_counted():
    assert match_rate(SaysAlways(0, None, None), [(CATS, SETS)]) == [(1.0, 2)]
    assert match_rate(SaysAlways(None), [(CATS, SETS)]) == [(None, 3)]


def test_the_rise_of_keywords_is_beyond_that_of_all_words():
    rise = torch.tensor([9.0, 3.0, 1.0, -1.0])
    is_word = torch.tensor([False, True, True, True])
    assert logit_rise(rise, torch.tensor([1]), is_word) == pytest.approx(2.0)


def test_another_latent_is_never_the_same_one():
    own = [Description(str(i)) if i != 2 else None for i in range(7)]
    for by in range(1, 8):
        moved = of_another(own, by=by)
        assert moved[2] is None
        assert all(a != b for a, b in zip(own, moved, strict=True) if a is not None)
        assert {d for d in moved if d} == {d for d in own if d}
    assert of_another([CATS], by=3) == [None]


# --- the world -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A coder whose latents are principal directions, both signs: they do a bit of everything."""
    model = load_model(ModelConfig(id="world"))
    folder = tmp_path_factory.mktemp("tokens")
    build_tokens(
        CorpusConfig(id="world", tokens=8_000, eval_tokens=6_000, context=96),
        model.tokenizer, model.info, folder,
    )  # fmt: skip
    tokens = Tokens.open(folder)
    train = tokens.split("train")
    x = read_site(model, train, SITE, num_contexts=num_contexts_of(train, 8_000)).x
    lent = BaselineCoder(torch.eye(model.width(SITE)), x.mean(0), 8)  # its width and its L0
    with TextReader(model, SITE) as reader:
        yield Bench(
            model, SITE, {"pca": pca_coder(lent, x)}, reader, x.mean(0),
            train, tokens.split("eval"), WorldConfig(),
        )  # fmt: skip


CONFIG = DescriptionsConfig(
    num_latents=12, num_steered=5, min_activations=10, train_tokens=8_000, held_out_tokens=6_000,
    pool_texts=500, max_new_tokens=8, kl_targets=(0.25,),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(bench):
    return measure_task(CONFIG, bench)["pca"]


def found(rows, name, definition, **params):
    [row] = [
        r
        for r in rows
        if (r.name, r.definition) == (name, definition) and params.items() <= r.params.items()
    ]
    return row


def test_a_latent_held_at_a_value_has_that_value_and_the_kl_that_was_asked_for(bench):
    coder = bench.coders["pca"]
    clamp = Clamp(bench.model, SITE, ["once there was", "news from"])
    steered = clamp.steer(
        coder, 0, target=0.25, tolerance=0.1, step=0.1, max_new_tokens=6, temperature=0.75, seed=0
    )
    assert 0.25 <= steered.kl <= 0.35
    assert len(steered.texts) == 2
    before = bench.model.capture(clamp.batch.tokens, [SITE], mask=clamp.batch.mask)[SITE]
    with bench.model.intervene(clamp.edits(coder, 0, steered.value)):
        after = bench.model.capture(clamp.batch.tokens, [SITE], mask=clamp.batch.mask)[SITE]
    moved = (after - before)[clamp.batch.mask]
    z = coder.encode(before)[clamp.batch.mask][:, 0]
    wanted = (steered.value - z)[:, None] * coder.W_dec[0]
    torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=1e-4)  # the error is kept
    plain = bench.model.logits(clamp.batch.tokens, mask=clamp.batch.mask)[clamp.batch.mask]
    torch.testing.assert_close(clamp.plain, plain.float())
    down = clamp.steer(
        coder, 0, target=-0.25, tolerance=0.2, step=0.1, max_new_tokens=2, temperature=1.0, seed=0
    )
    assert down is None or down.value < 0


def test_the_headline_comes_first_and_every_row_is_defined(measured):
    rows = measured.measurements
    defined = {(d.name, d.definition): d for d in CONFIG.definitions()}
    assert (rows[0].name, rows[0].definition) == next(iter(defined))
    assert {(r.name, r.definition) for r in rows} == set(defined)
    for row in rows:
        limits = defined[row.name, row.definition]
        assert row.value is None or limits.low <= row.value <= limits.high
        assert (row.value is None) == (row.reason is not None)
    assert found(rows, "output_success", "chance").value == pytest.approx(1 / 3)
    assert 0 < found(rows, "output_reached", "share_of_targets").value <= 1


def test_descriptions_do_better_than_those_of_another_latent(measured):
    rows = measured.measurements
    own, other = (found(rows, "input_success", which) for which in ("own", "another_latent"))
    assert own.value > 0.7
    assert own.value > other.value + 0.2
    words = {"method": "vocab_proj"}  # what a decoder row promotes, rises when it is written
    rise = found(rows, "output_logit_rise", "own_of_one", **words).value
    assert rise > 0.2
    assert rise > found(rows, "output_logit_rise", "another_latent_of_one", **words).value + 0.2


def test_latents_have_rows_of_their_own(measured):
    rows = [r for r in measured.latents if (r.name, r.method) == ("input_success", "max_act")]
    assert len({r.latent for r in rows}) == 12
    assert {r.value for r in rows} <= {0.0, 1.0}


def test_without_steering_the_input_part_stays(bench, measured):
    rows = measure_task(CONFIG.but(num_steered=0), bench)["pca"].measurements
    assert found(rows, "output_success", "own").reason == "num_steered is 0."
    assert found(rows, "input_success", "own") == found(
        measured.measurements, "input_success", "own"
    )


def test_a_judge_may_write_the_texts(bench, monkeypatch):
    asked = []

    class Writes(KeywordJudge):
        def write(self, descriptions, num, *, fitting):
            asked.append((len(descriptions), num, fitting))
            word = "dog" if fitting else "sea"
            texts = [f"the {word} was here ." for _ in range(num)]
            return [None if i == 0 else texts for i in range(len(descriptions))]

    monkeypatch.setattr(type(CONFIG.judge), "start", lambda self, bench: Writes())
    cfg = CONFIG.but(writer="judge", num_steered=0, methods=("max_act",))
    rows = measure_task(cfg, bench)["pca"].measurements
    assert asked[:2] == [(12, 5, True), (12, 5, False)]
    assert found(rows, "input_success", "own").n == 11
    unread = found(rows, "descriptions_unreadable", "share_of_questions")
    assert unread.value == pytest.approx(1 / 12)
    # whatever the description, the texts were the same: so are the scores of its control
    own, other = (found(rows, "input_gap", which) for which in ("own", "another_latent"))
    assert own.value == other.value


def test_where_it_does_not_apply_there_is_a_reason(bench):
    rows = measure_task(CONFIG, bench._replace(split=None))["pca"].measurements
    assert {row.value for row in rows} == {None}
    assert "held-out" in rows[0].reason
    with pytest.raises(BadInput, match="kl_targets"):
        measure_task(CONFIG.but(kl_targets=(0.0,)), bench)
    with pytest.raises(BadInput, match=r"evaluate\.temperature"):
        read_metric({"name": "descriptions", "temperature": 0})
