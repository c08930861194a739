import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._judges import (
    Asked,
    Description,
    EndpointFailed,
    Excerpt,
    KeywordJudge,
    LocalConfig,
    LocalJudge,
    OpenAIConfig,
    OpenAIJudge,
    OracleConfig,
    OracleJudge,
    Sets,
    prompts,
)
from sae_lib.llm.pace import Clock
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model

DOGS = Description("fires on dogs", ("dog", "Hound"), (2.0, 1.0), concept="dog")
PLAIN = Excerpt(("a", "dog", "ran"), 0, (1, 2, 3), (False, True, False))
OTHER = Excerpt(("the", "tax", "law"), 1, (1, 2, 3), (False, True, True))


# --- prompts ---------------------------------------------------------------------------------


def test_marked_text_puts_one_pair_of_brackets_around_each_run():
    assert OTHER.marked_text == "the <<tax law>>"
    pieces = Excerpt((" the", " ta", "x", ".\n"), marked=(False, True, True, False))
    assert pieces.marked_text == "the <<tax>>.↵"
    assert pieces.text == "the tax.↵"


def test_each_prompt_shows_the_right_text_in_the_right_place():
    two = [PLAIN, OTHER]
    selection = prompts.selection_prompt(DOGS, two)
    assert selection.user == "Description: fires on dogs\n\n1. a dog ran\n2. the tax law"
    detection = prompts.detection_prompt(DOGS, two)
    assert detection.user == selection.user
    assert "2 numbers" in detection.system
    fuzzing = prompts.fuzzing_prompt(DOGS, two)
    assert fuzzing.user.endswith("1. a <<dog>> ran\n2. the <<tax law>>")
    simulation = prompts.simulation_prompt(DOGS, PLAIN)
    assert simulation.user.endswith('Tokens: ["a", "dog", "ran"]')
    assert "3 tokens" in simulation.system
    assert prompts.intruder_prompt(two).user == "1. a <<dog>> ran\n2. the <<tax law>>"
    assert "fires on dogs" not in prompts.intruder_prompt(two).user
    matching = prompts.matching_prompt(DOGS, [["a", "b"], ["c"]])
    assert matching.user.endswith("Set 1:\n- a\n- b\n\nSet 2:\n- c")
    assert "nothing to do with" in prompts.writing_prompt(DOGS, 5, fitting=False).system
    assert "clearly contains" in prompts.writing_prompt(DOGS, 5, fitting=True).system
    assert "1. a <<dog>>" in prompts.similar_prompt(["a <<dog>>"], 3).user


def test_no_prompt_tells_how_many_windows_are_active():
    fourteen = [PLAIN] * 4 + [OTHER] * 10
    for prompt in (
        prompts.selection_prompt(DOGS, fourteen),
        prompts.detection_prompt(DOGS, fourteen),
    ):
        said = prompt.system + prompt.user.split("\n\n")[0]
        assert not {"4", "10", "four", "ten"} & set(
            said.replace(",", " ").replace(".", " ").split()
        )
        assert "<<" not in prompt.user
    # what is not text, in particular the marks, does not change what is asked
    bare = [e._replace(marked=(), document=7, positions=()) for e in fourteen]
    assert prompts.selection_prompt(DOGS, bare) == prompts.selection_prompt(DOGS, fourteen)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("1, 3", [True, False, True]),
        ("1 and 3.", [True, False, True]),
        ("[2]", [False, True, False]),
        ("None", [False] * 3),
        ("4", None),
        ("0", None),
        ("", None),
        ("the first one", None),
        ("1, maybe 2", None),
    ],
)
def test_reading_a_selection(reply, wanted):
    assert prompts.read_selection(reply, 3) == wanted


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("[1, 0]", [1.0, 0.0]),
        ("```json\n[0, 0]\n```", [0.0, 0.0]),
        ("[1, 0, 1]", None),
        ("[1]", None),
        ("[1, 2]", None),
        ("[1, 0.5]", None),
        ("[true, false]", None),
        ('["1", "0"]', None),
        ("[1, 0", None),
        ("yes", None),
    ],
)
def test_a_batch_of_n_is_answered_by_exactly_n_bits(reply, wanted):
    assert prompts.read_bits(reply, 2) == wanted


def test_reading_levels_choices_and_texts():
    assert prompts.read_numbers("[0, 10, 2.5]", 3, 10) == [0.0, 10.0, 2.5]
    assert prompts.read_numbers("[0, 11, 2]", 3, 10) is None
    assert prompts.read_choice(" 2.", 3) == 1
    assert prompts.read_choice("4", 3) is None
    assert prompts.read_choice("set 2", 3) is None
    assert prompts.read_texts('["a", "b"]', 2) == ["a", "b"]
    assert prompts.read_texts('["a", ""]', 2) is None
    assert prompts.read_texts('["a"]', 2) is None


# --- keywords and oracle ---------------------------------------------------------------------


def test_the_keyword_judge_says_yes_exactly_where_a_keyword_is():
    judge = KeywordJudge()
    pieces = Excerpt((" My", " HOUND", " sat"), marked=(False, False, True))
    [[dog, tax, hound]] = judge.detect([Asked(DOGS, [PLAIN, OTHER, pieces])])
    assert (dog, tax) == (1.0, 0.0)
    assert hound == pytest.approx(0.75)  # half the score of the first keyword
    assert judge.select([Asked(DOGS, [PLAIN, OTHER])]) == [[True, False]]
    assert judge.simulate([Asked(DOGS, [PLAIN, pieces])]) == [[[0, 10, 0], [0, 5, 0]]]
    assert judge.fuzz([Asked(DOGS, [PLAIN, OTHER, pieces])]) == [[1.0, 0.0, 0.0]]
    [[near, far]] = judge.resemble([Asked(DOGS, [PLAIN, OTHER])])
    assert near == pytest.approx(10 / (125**0.5 * 3**0.5))
    assert far == 0
    assert judge.detect([Asked(Description("nothing"), [PLAIN])]) == [[0.0]]


def test_the_keyword_judge_reads_no_weak_and_no_late_keywords():
    words = Description("", ("a", "b", "c"), (1.0, 0.2, 0.05))
    assert set(KeywordJudge().weights(words)) == {"a", "b"}
    cfg = KeywordJudge().cfg.but(num_keywords=1)
    assert set(KeywordJudge(cfg).weights(words)) == {"a"}


def test_matching_counts_words_of_the_description():
    sets = [["cat cat dog"], ["tax law"], ["red blue"]]
    judge = KeywordJudge()
    for turn in range(3):
        turned = [*sets[turn:], *sets[:turn]]
        assert judge.match([Sets(Description("cats, animals"), turned)]) == [-turn % 3]


def test_the_intruder_has_least_in_common():
    def window(*marked):
        return Excerpt(marked, marked=(True,) * len(marked))

    group = [window("dog"), window("dog", "cat"), window("tax"), window("dog")]
    assert KeywordJudge().intrude([group]) == [2]


def test_the_oracle_looks_up_where_the_concept_holds():
    held = {0: [frozenset(), frozenset({"dog"}), frozenset()], 1: [frozenset()] * 3}
    judge = OracleJudge(held.__getitem__)
    asked = [Asked(DOGS, [PLAIN, OTHER])]
    assert judge.detect(asked) == [[1.0, 0.0]]
    assert judge.simulate(asked) == [[[0, 10, 0], [0, 0, 0]]]
    assert judge.fuzz(asked) == [[1.0, 0.0]]
    # a description that names no concept is not judged, rather than judged wrong
    assert judge.detect([Asked(Description("dogs"), [PLAIN])]) == [[None]]
    assert judge.select([Asked(Description("dogs"), [PLAIN])]) == [None]
    # a BOS in the window carries nothing
    first = Excerpt(("<bos>", "a"), 0, (0, 1), (False, True))
    assert judge.simulate([Asked(DOGS, [first])]) == [[[0, 0]]]


def test_the_oracle_needs_the_world():
    with pytest.raises(NotApplicable, match="world"):
        OracleConfig().start(SimpleNamespace(world=None))


# --- a local model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local():
    model = load_model(ModelConfig(id="world"))
    return LocalJudge(model, LocalConfig(model=ModelConfig(id="world"), batch_prompts=3))


def test_a_local_score_is_the_share_of_yes_among_yes_and_no(local):
    windows = [PLAIN, OTHER, Excerpt(("the", "dog", "saw", "a", "bird", "."))]
    [scores] = local.detect([Asked(DOGS, windows)])
    tokenizer = local.model.tokenizer
    yes, no = (tokenizer.get_vocab()[word] for word in ("yes", "no"))
    for excerpt, score in zip(windows, scores, strict=True):
        ids = local.token_ids(prompts.yes_no_prompt(DOGS, excerpt))
        p = local.model.logits(torch.tensor([ids]))[0, -1].softmax(-1)
        assert score == pytest.approx(float(p[yes] / (p[yes] + p[no])), abs=1e-5)
    assert len(set(scores)) == 3


def test_a_chat_template_is_used_where_there_is_one(local):
    prompt = prompts.yes_no_prompt(DOGS, PLAIN)
    shown = local.model.tokenizer.decode(local.token_ids(prompt))
    assert shown.startswith("<bos>")
    assert shown.endswith("<assistant>")
    template, local.model.tokenizer.chat_template = local.model.tokenizer.chat_template, None
    try:
        assert not local.model.tokenizer.decode(local.token_ids(prompt)).endswith("<assistant>")
    finally:
        local.model.tokenizer.chat_template = template


def test_local_answers_have_the_shape_that_was_asked_for(local):
    asked = [Asked(DOGS, [PLAIN, OTHER])]
    [levels] = local.simulate(asked)
    assert [len(own) for own in levels] == [3, 3]
    assert all(0 <= level <= 10 for own in levels for level in own)
    assert [len(own) for own in local.fuzz(asked)] == [2]
    assert all(-1 <= v <= 1 for v in local.resemble(asked)[0])
    assert local.intrude([[PLAIN, OTHER, PLAIN]])[0] in range(3)
    assert local.match([Sets(DOGS, [["a dog"], ["a bird"]])])[0] in range(2)
    assert local.write([DOGS], 2, fitting=True) == [None]  # this model writes no lists


def test_surprisal_is_the_fall_of_the_loss(local):
    text = Excerpt(("the", "dog", "saw", "a", "bird", "."))
    same = Description(f"{text.text} {text.text}")
    [[fall]] = local.surprise([Asked(same, [text])])
    plain = local._loss("Various texts that have nothing in common.\nText: ", text.text)
    told = local._loss(f"Texts with something in common: {same.text}\nText: ", text.text)
    assert fall == pytest.approx(plain - told)
    [[silent]] = local.surprise([Asked(Description("stone"), [text])])
    assert fall > silent  # a text that was just read twice is easier


def test_words_the_judge_does_not_know_are_refused(local):
    cfg = local.cfg.but(yes="qwertyuiop")
    with pytest.raises(BadInput, match=r"judge\.yes.*qwertyuiop"):
        LocalJudge(local.model, cfg)
    with pytest.raises(BadInput, match="same token"):
        LocalJudge(local.model, local.cfg.but(no="yes"))


# --- an endpoint -----------------------------------------------------------------------------


class Endpoint:
    """A local server that answers as it is told and remembers what it was sent."""

    def __init__(self, answer):
        self.answer, self.seen, self.headers = answer, [], []
        self.under_way = self.most_at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append((self.path, body))
                    outer.headers.append(dict(self.headers))
                    outer.under_way += 1
                    outer.most_at_once = max(outer.most_at_once, outer.under_way)
                    number = len(outer.seen)
                status, content = outer.answer(body, number)
                with lock:
                    outer.under_way -= 1
                try:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(content.encode())
                except OSError:
                    pass  # whoever asked has gone

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def endpoint(answer):
    found = Endpoint(answer)
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()


def says(text, finish="stop"):
    choice = {"message": {"content": text}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice]})


def judge_at(found, folder=None, pauses=None, **dials):
    dials = {"model": "m", "api_key_env": None, "first_pause_s": 1.0} | dials
    cfg = OpenAIConfig(base_url=found.url, **dials)
    pauses = pauses if pauses is not None else []
    return OpenAIJudge(cfg, folder, clock=Clock(sleep=pauses.append))


def test_an_endpoint_is_asked_in_batches_and_each_batch_must_be_whole():
    def answer(body, number):
        user = body["messages"][1]["content"]
        num = user.count("\n") - 1
        return says(json.dumps([1 if "dog" in line else 0 for line in user.split("\n")[2:]][:num]))

    with endpoint(answer) as found:
        judge = judge_at(found, windows_per_prompt=2)
        [scores] = judge.detect([Asked(DOGS, [PLAIN, OTHER, PLAIN])])
        assert scores == [1.0, 0.0, 1.0]
        assert [path for path, _ in found.seen] == ["/v1/chat/completions"] * 2
        body = found.seen[0][1]
        assert body["model"] == "m"
        assert body["temperature"] == 0
    with endpoint(lambda body, number: says("[1]")) as found:  # too few for the first batch
        judge = judge_at(found, windows_per_prompt=2)
        assert judge.detect([Asked(DOGS, [PLAIN, OTHER, PLAIN])]) == [[None, None, 1.0]]


@pytest.mark.parametrize(
    "reply",
    [
        (200, "this is no json"),
        (200, "{}"),
        (200, '{"choices": []}'),
        (200, '{"choices": [{"message": {"content": null}}]}'),
        says(""),
        says("I would rather not say."),
        says("[1, 0", "length"),
        says("1, 2", "length"),
    ],
)
def test_malformed_replies_are_unreadable_and_nothing_else(reply):
    with endpoint(lambda body, number: reply) as found:
        judge = judge_at(found)
        asked = [Asked(DOGS, [PLAIN, OTHER])]
        assert judge.select(asked) == [None]
        assert judge.detect(asked) == [[None, None]]
        assert judge.simulate(asked) == [[None, None]]
        assert judge.intrude([[PLAIN, OTHER]]) == [None]
        assert judge.match([Sets(DOGS, [["a"], ["b"]])]) == [None]
        assert judge.write([DOGS], 2, fitting=True) == [None]


def test_passing_failures_are_tried_again_after_growing_pauses():
    replies = {1: (500, "down"), 2: (429, "slow down"), 3: says("2")}
    pauses = []
    with endpoint(lambda body, number: replies[number]) as found:
        judge = judge_at(found, pauses=pauses)
        assert judge.select([Asked(DOGS, [PLAIN, OTHER])]) == [[False, True]]
        assert len(found.seen) == 3
    assert 1.0 <= pauses[0] <= 1.25
    assert 2.0 <= pauses[1] <= 2.5


def test_a_server_that_keeps_failing_ends_it_with_its_own_words():
    with endpoint(lambda body, number: (500, "out of memory")) as found:
        judge = judge_at(found, num_retries=2)
        with pytest.raises(EndpointFailed, match=r"3 times.*HTTP 500: out of memory"):
            judge.select([Asked(DOGS, [PLAIN])])
        assert len(found.seen) == 3


def test_a_refusal_is_not_tried_again():
    with endpoint(lambda body, number: (401, "wrong key")) as found:
        with pytest.raises(EndpointFailed, match="HTTP 401: wrong key"):
            judge_at(found).select([Asked(DOGS, [PLAIN])])
        assert len(found.seen) == 1


def test_no_answer_in_time_is_a_passing_failure():
    def answer(body, number):
        if number == 1:
            time.sleep(0.5)
        return says("none")

    with endpoint(answer) as found:
        judge = judge_at(found, timeout_s=0.15)
        assert judge.select([Asked(DOGS, [PLAIN])]) == [[False]]
        assert len(found.seen) == 2


def test_nobody_listening_is_a_passing_failure_that_is_told():
    judge = OpenAIJudge(
        OpenAIConfig(base_url="http://127.0.0.1:9/v1", model="m", api_key_env=None,
                     num_retries=1),
        None,
        clock=Clock(sleep=lambda seconds: None),
    )  # fmt: skip
    with pytest.raises(EndpointFailed, match=r"failed 2 times"):
        judge.select([Asked(DOGS, [PLAIN])])


def test_replies_are_kept_by_what_was_asked_and_the_key_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-123")
    with endpoint(lambda body, number: says("1")) as found:
        asked = [Asked(DOGS, [PLAIN])]
        judge = judge_at(found, tmp_path, api_key_env="JUDGE_KEY")
        assert judge.select(asked) == [[True]]
        assert found.headers[0]["Authorization"] == "Bearer secret-123"
        again = judge_at(found, tmp_path, api_key_env="JUDGE_KEY")
        assert again.select(asked) == [[True]]
        assert (judge.endpoint.account.sent, again.endpoint.account.sent) == (1, 0)
        warmer = judge_at(found, tmp_path, temperature=0.5)
        warmer.select(asked)
        assert warmer.endpoint.account.sent == 1
        files = list(tmp_path.rglob("*.json"))
        assert len(files) == 2
        assert not any("secret-123" in p.read_text() for p in tmp_path.rglob("*") if p.is_file())
        files[0].write_text("damaged")
        files[1].write_text("damaged")
        assert judge_at(found, tmp_path).select(asked) == [[True]]


def test_a_missing_key_is_told_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(BadInput, match=r"api_key_env.*JUDGE_KEY"):
        OpenAIJudge(OpenAIConfig(model="m", api_key_env="JUDGE_KEY"), None)


def test_requests_are_bounded_at_a_time_and_in_all():
    def answer(body, number):
        time.sleep(0.02)
        return says("none")

    asked = [Asked(Description(f"number {i}"), [PLAIN]) for i in range(12)]
    with endpoint(answer) as found:
        assert judge_at(found, num_at_once=3).select(asked) == [[False]] * 12
        assert 1 < found.most_at_once <= 3
        assert len(found.seen) == 12
        with pytest.raises(EndpointFailed, match="most_requests"):
            judge_at(found, most_requests=5).select(asked)
        assert len(found.seen) <= 17


def test_equal_questions_are_asked_once():
    with endpoint(lambda body, number: says("1")) as found:
        assert judge_at(found).select([Asked(DOGS, [PLAIN])] * 4) == [[True]] * 4
        assert len(found.seen) == 1


def test_embeddings_come_in_the_order_of_their_numbers():
    def answer(body, number):
        rows = [
            {"index": i, "embedding": [1.0, 0.0] if "dog" in text else [0.0, 1.0]}
            for i, text in enumerate(body["input"])
        ]
        return 200, json.dumps({"data": rows[::-1]})

    with endpoint(answer) as found:
        judge = judge_at(found, embedding_model="e")
        assert judge.resemble([Asked(DOGS, [PLAIN, OTHER])]) == [[1.0, 0.0]]
        assert found.seen[0][0] == "/v1/embeddings"
        with pytest.raises(NotApplicable, match="embedding_model"):
            judge_at(found).resemble([Asked(DOGS, [PLAIN])])
