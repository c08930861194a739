"""An endpoint that fails in every way: nothing is lost, nothing is asked twice, nothing leaks."""

import json
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from sae_lib.errors import BadInput
from sae_lib.explain import read_explainer
from sae_lib.llm import Endpoint, EndpointConfig, EndpointFailed
from sae_lib.llm.account import LEDGER
from sae_lib.llm.cache import default_folder
from sae_lib.llm.endpoint import SecretInConfig
from sae_lib.llm.transport import HIDDEN, LARGEST_ANSWER, retry_after

KEY = "sk-very/secret+123"


def echo(tools):
    """Answers every question by its number."""
    return lambda body, number: tools.told(tools.said(f"answer {tools.number(body)}"))


def everything_below(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_replies_come_in_order_and_equal_questions_are_asked_once(
    serve, tools, fake_clock, tmp_path
):
    server = serve(echo(tools))
    endpoint = tools.endpoint(server, tmp_path, fake_clock)
    asked = tools.questions(12)
    replies = endpoint.ask([*asked, *reversed(asked)])
    assert [r.text for r in replies] == [f"answer {i}" for i in [*range(12), *range(11, -1, -1)]]
    assert set(server.asked.values()) == {1}
    assert len(server.bodies) == endpoint.account.sent == endpoint.account.answered == 12
    assert server.bodies[0]["temperature"] == 0
    assert "seed" not in server.bodies[0]


def test_a_reply_is_kept_for_any_address_but_not_for_other_parameters(
    serve, tools, fake_clock, tmp_path
):
    first, second = serve(echo(tools)), serve(echo(tools))
    tools.endpoint(first, tmp_path, fake_clock).ask(tools.questions(3))
    again = tools.endpoint(second, tmp_path, fake_clock, num_retries=1, price_in=1.0)
    assert [reply.text for reply in again.ask(tools.questions(4))][-1] == "answer 3"
    assert (again.account.from_disk, len(second.bodies)) == (3, 1)
    for dials in ({"model": "n"}, {"temperature": 0.5}, {"seed": 1}, {"max_reply_tokens": 9}):
        before = len(second.bodies)
        tools.endpoint(second, tmp_path, fake_clock, **dials).ask(tools.questions(1))
        assert len(second.bodies) == before + 1


def test_each_passing_failure_is_tried_again_and_nothing_is_lost(
    serve, tools, fake_clock, tmp_path
):
    failures = [
        tools.told("slow down", 429, {"Retry-After": "7"}),
        tools.told("broken", 500),
        tools.told("gone", 503),
        tools.told("", reset=True),
        tools.told(tools.said("cut")[:20], length=500),  # the connection ends in the middle
        tools.told(tools.said("cut")[:20]),  # as many bytes as announced, but no JSON
    ]
    seen = {}

    def answer(body, number):
        name = tools.number(body)
        seen[name] = seen.get(name, 0) + 1
        return failures[name] if seen[name] == 1 else tools.told(tools.said(f"answer {name}"))

    server = serve(answer)
    endpoint = tools.endpoint(server, tmp_path, fake_clock)
    replies = endpoint.ask(tools.questions(len(failures)))
    assert [reply.text for reply in replies] == [f"answer {i}" for i in range(len(failures))]
    assert set(server.asked.values()) == {2}
    assert endpoint.account.sent == 12
    assert any(pause >= 7 for pause in fake_clock.slept)
    again = tools.endpoint(server, tmp_path, fake_clock)
    assert again.ask(tools.questions(len(failures))) == replies
    assert again.account.sent == 0


def test_an_answer_that_takes_too_long_is_a_passing_failure(serve, tools, fake_clock):
    never = threading.Event()
    server = serve(
        lambda body, number: tools.told(tools.said("yes"), hold=never if number == 1 else None)
    )
    endpoint = tools.endpoint(server, None, fake_clock, timeout_s=0.1)
    assert endpoint.ask(tools.questions(1))[0].text == "yes"
    never.set()
    assert len(server.bodies) == 2
    assert 1 <= fake_clock.slept[0] <= 1.25


def test_pauses_double_and_a_server_that_keeps_failing_is_quoted(serve, tools, fake_clock):
    server = serve(lambda body, number: tools.told("out of memory", 500))
    endpoint = tools.endpoint(server, None, fake_clock, num_retries=3, first_pause_s=2.0)
    with pytest.raises(EndpointFailed, match=r"failed 4 times.*HTTP 500: out of memory") as error:
        endpoint.ask(tools.questions(1))
    assert error.value.is_transient
    assert len(server.bodies) == 4
    for pause, least in zip(fake_clock.slept, (2, 4, 8), strict=True):
        assert least <= pause <= 1.25 * least


def test_a_killed_round_resumes_with_what_is_missing(serve, tools, fake_clock, tmp_path):
    is_down = True

    def answer(body, number):
        if is_down and tools.number(body) >= 5:
            return tools.told("no such model", 404)
        return tools.told(tools.said(f"answer {tools.number(body)}"))

    server = serve(answer)
    with pytest.raises(EndpointFailed, match="404"):
        tools.endpoint(server, tmp_path, fake_clock, num_at_once=1).ask(tools.questions(50))
    assert len(server.bodies) == 6  # what had not begun was not sent
    is_down = False
    second = tools.endpoint(server, tmp_path, fake_clock)
    replies = second.ask(tools.questions(50))
    assert [reply.text for reply in replies] == [f"answer {i}" for i in range(50)]
    assert (second.account.from_disk, second.account.sent) == (5, 45)
    assert max(server.asked.values()) == 2  # the one that failed
    lines = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert [line["sent"] for line in lines] == [6, 45]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "malformed"),
        ('{"choices": []}', "malformed"),
        ('{"choices": [{"message": {"content": 3}}]}', "malformed"),
        ("<html>sign in</html>", "malformed"),
        ("[" * 100_000, "malformed"),
    ],
)
def test_an_answer_of_another_form_is_asked_for_once_more(
    serve, tools, fake_clock, content, reason, tmp_path
):
    server = serve(lambda body, number: tools.told(content))
    [reply] = tools.endpoint(server, tmp_path, fake_clock).ask(tools.questions(1))
    assert (reply.text, reply.reason.split(":")[0]) == (None, reason)
    assert len(server.bodies) == 2
    assert not list(tmp_path.rglob("*.json"))  # so that a later run asks again


def test_replies_that_say_nothing_are_told_apart_and_kept(serve, tools, fake_clock, tmp_path):
    answers = [
        tools.said("half a sen", finish="length"),
        tools.said(None, refusal="I cannot"),
        tools.said("", finish="content_filter"),
        tools.said(" \n"),
        tools.said(None),
    ]
    server = serve(lambda body, number: tools.told(answers[tools.number(body)]))
    for _ in range(2):
        replies = tools.endpoint(server, tmp_path, fake_clock).ask(tools.questions(5))
        reasons = [(reply.reason or "").split(":")[0] for reply in replies]
        assert reasons == ["cut off", "refused", "refused", "empty", "empty"]
        assert replies[0].partial == "half a sen"
        assert not any(reply.text for reply in replies)
    assert set(server.asked.values()) == {1}


def test_a_question_that_is_too_long_does_not_end_the_others(serve, tools, fake_clock):
    too_long = json.dumps({"error": {"code": "context_length_exceeded", "message": "too long"}})

    def answer(body, number):
        is_first = tools.number(body) == 0
        return tools.told(too_long, 400) if is_first else tools.told(tools.said("yes"))

    replies = tools.endpoint(serve(answer), None, fake_clock).ask(tools.questions(3))
    assert [reply.text for reply in replies] == [None, "yes", "yes"]
    assert "HTTP 400" in replies[0].reason


def test_a_huge_answer_is_not_read_to_its_end(serve, tools, fake_clock):
    server = serve(lambda body, number: tools.told("x" * (LARGEST_ANSWER + 2**17)))
    [reply] = tools.endpoint(server, None, fake_clock).ask(tools.questions(1))
    assert reply.reason.startswith("too long")
    assert len(server.bodies) == 1


def test_the_key_is_in_the_header_and_nowhere_else(
    serve, tools, fake_clock, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    # an entry for the host that would otherwise take the key's place
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password stranger\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    cache = tmp_path / "cache"
    # the server repeats the key wherever it can
    server = serve(lambda body, number: tools.told(tools.said(f"your key is {KEY}")))
    endpoint = tools.endpoint(server, cache, fake_clock, api_key_env="SOME_KEY")
    [reply] = endpoint.ask(tools.questions(1))
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert reply.text == f"your key is {HIDDEN}"
    assert KEY not in everything_below(cache) + json.dumps(endpoint.account.summary())
    assert KEY not in endpoint.cfg.model_dump_json() + repr(endpoint.cfg) + json.dumps(
        server.bodies
    )
    rude = serve(lambda body, number: tools.told(json.dumps({"error": f"bad key {KEY}"}), 401))
    endpoint = tools.endpoint(rude, cache, fake_clock, api_key_env="SOME_KEY")
    with pytest.raises(EndpointFailed, match="HTTP 401") as error:
        endpoint.ask(tools.questions(2))
    chain, found = error.value, ""
    while chain is not None:
        found += f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__
    assert HIDDEN in found
    assert KEY not in found
    assert KEY not in everything_below(cache) + caplog.text + "".join(capsys.readouterr())


def test_a_redirect_takes_the_key_nowhere(serve, tools, fake_clock, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    other = serve(echo(tools))
    server = serve(lambda body, number: tools.told("", 307, {"Location": f"{other.url}/x"}))
    with pytest.raises(EndpointFailed, match="HTTP 307"):
        tools.endpoint(server, None, fake_clock, api_key_env="SOME_KEY").ask(tools.questions(1))
    assert not other.bodies


def test_secrets_are_refused_in_configs_and_not_repeated(monkeypatch):
    for dials in (
        {"base_url": "https://user:hunter2@host/v1"},
        {"base_url": "https://host/v1?key=hunter2"},
        {"api_key_env": "sk-hunter2"},
        {"api_key_env": "hunter2"},
        {"api_key": "hunter2"},
        {"Authorization": "hunter2"},
    ):
        entry = {"method": "llm", "chat": {"model": "m", **dials}}
        for read in (read_explainer, lambda e: EndpointConfig.model_validate(e["chat"])):
            with pytest.raises(
                SecretInConfig, match=rf"key {next(iter(dials))}: a secret"
            ) as error:
                read(entry)
            assert "hunter2" not in f"{error.value!r}{error.value.__cause__!r}"
    with pytest.raises(ValidationError, match="num_retrys"):
        EndpointConfig.model_validate({"model": "m", "num_retrys": 1})
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(BadInput, match=r"api_key_env.*SOME_KEY"):
        Endpoint(EndpointConfig(model="m", api_key_env="SOME_KEY"), None)
    monkeypatch.setenv("SOME_KEY", "hunter2\r\nX-Other: 1")
    with pytest.raises(BadInput, match="no header may have") as refused:
        Endpoint(EndpointConfig(model="m", api_key_env="SOME_KEY"), None)
    assert "hunter2" not in str(refused.value)


def test_costs_add_up(serve, tools, fake_clock, tmp_path):
    usages = [(100, 20), (300, 5), (50, 50)]
    server = serve(
        lambda body, number: tools.told(tools.said("yes", usage=usages[tools.number(body)]))
    )
    prices = {"price_in": 2.0, "price_out": 8.0}
    endpoint = tools.endpoint(server, tmp_path, fake_clock, **prices)
    endpoint.ask(tools.questions(3))
    # 450 tokens at 2 and 75 at 8 per million
    assert endpoint.account.cost == pytest.approx((450 * 2 + 75 * 8) / 1e6)
    assert (endpoint.account.prompt_tokens, endpoint.account.reply_tokens) == (450, 75)
    again = tools.endpoint(server, tmp_path, fake_clock, **prices)
    again.ask(tools.questions(3))
    assert (again.account.cost, again.account.from_disk) == (0.0, 3)
    assert tools.endpoint(server, None, fake_clock).account.cost is None


def test_a_cost_is_not_known_where_tokens_are_not_reported(serve, tools, fake_clock):
    server = serve(lambda body, number: tools.told(tools.said("yes", usage=None)))
    endpoint = tools.endpoint(server, None, fake_clock, price_in=1.0, price_out=1.0)
    endpoint.ask(tools.questions(2))
    assert (endpoint.account.cost, endpoint.account.uncounted) == (None, 2)


def test_nothing_is_sent_beyond_the_budget(serve, tools, fake_clock, tmp_path):
    server = serve(lambda body, number: tools.told(tools.said("yes", usage=(100_000, 0))))
    dials = {"price_in": 1.0, "price_out": 1.0, "num_at_once": 1}
    endpoint = tools.endpoint(server, tmp_path, fake_clock, most_cost=0.25, **dials)
    with pytest.raises(EndpointFailed, match=r"most_cost, 0.25, is used up"):
        endpoint.ask(tools.questions(10))
    assert len(server.bodies) == 3  # 0.1 each: the third passes the limit, and is kept
    with pytest.raises(EndpointFailed, match="most_requests, 2"):
        tools.endpoint(server, tmp_path, fake_clock, most_requests=2).ask(tools.questions(10))
    assert len(server.bodies) == 5
    with pytest.raises(ValidationError, match="most_cost needs"):
        EndpointConfig(model="m", most_cost=1.0)


def test_requests_keep_the_pace_that_was_set(serve, tools, fake_clock):
    times = []

    def answer(body, number):
        times.append(fake_clock.time)
        return tools.told(tools.said("yes"))

    endpoint = tools.endpoint(serve(answer), None, fake_clock, num_at_once=1, requests_per_minute=3)
    endpoint.ask(tools.questions(8))
    assert len(times) == 8
    assert all(late - early >= 60 for early, late in zip(times, times[3:], strict=False))
    assert fake_clock.time == 1120  # 3, 3, 2


def test_all_requests_wait_when_the_endpoint_asks_for_it(serve, tools, fake_clock):
    times = []

    def answer(body, number):
        times.append(fake_clock.time)
        is_first = number == 1
        return tools.told("", 429, {"Retry-After": "30"}) if is_first else tools.told(
            tools.said("yes")
        )  # fmt: skip

    endpoint = tools.endpoint(serve(answer), None, fake_clock, num_at_once=1)
    endpoint.ask(tools.questions(3))
    assert times == [1000, 1030, 1030, 1030]


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_it(serve, tools, fake_clock):
    server = serve(lambda body, number: tools.told("quota", 429, {"Retry-After": "86400"}))
    with pytest.raises(EndpointFailed, match=r"wait 86400 s, longer than longest_wait_s, 300"):
        tools.endpoint(server, None, fake_clock).ask(tools.questions(1))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        ("12", 12.0),
        ("0.5", 0.5),
        ("soon", None),
        ("-3", None),
        ("Fri, 02 Jan 2026 10:00:30 GMT", 30.0),
        ("Fri, 02 Jan 2026 09:00:00 GMT", 0.0),
    ],
)
def test_what_retry_after_says(value, wanted):
    assert retry_after(value, "Fri, 02 Jan 2026 10:00:00 GMT") == wanted


def test_the_folder_for_replies(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_LLM_CACHE", str(tmp_path / "a"))
    assert EndpointConfig(model="m").folder == default_folder() == tmp_path / "a"
    monkeypatch.delenv("SAE_LLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sae-workflows" / "llm"
    assert EndpointConfig(model="m", keep_replies=False).folder is None
    assert EndpointConfig(model="m", cache=str(tmp_path)).folder == tmp_path
    with pytest.raises(ValidationError, match="absolute"):
        EndpointConfig(model="m", cache="here")


def test_damaged_files_are_asked_for_again(serve, tools, fake_clock, tmp_path):
    server = serve(echo(tools))
    tools.endpoint(server, tmp_path, fake_clock).ask(tools.questions(3))
    files = sorted(tmp_path.rglob("*.json"))
    files[0].write_text("damaged")
    files[1].write_bytes(files[2].read_bytes())  # the reply to another question
    replies = tools.endpoint(server, tmp_path, fake_clock).ask(tools.questions(3))
    assert [reply.text for reply in replies] == ["answer 0", "answer 1", "answer 2"]
    assert len(server.bodies) == 5


def test_askers_at_the_same_time_ask_the_same_once(serve, tools, fake_clock, tmp_path):
    server = serve(echo(tools))
    found = []

    def work():  # locks are on files: to them a process is no other than this
        endpoint = tools.endpoint(server, tmp_path, fake_clock)
        found.append([reply.text for reply in endpoint.ask(tools.questions(10))])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[f"answer {i}" for i in range(10)]] * 3
    assert len(server.bodies) == 10
