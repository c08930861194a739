"""Replies are read strictly: a value or a reason, never a guess; and one question back."""

import json

import pytest
from pydantic import BaseModel, ConfigDict

from sae_lib.llm import Question, Unreadable, ask_for, json_reader
from sae_lib.llm.account import LEDGER, Account, note, spent
from sae_lib.llm.answers import MAX_REPLY
from sae_lib.llm.quoting import Marks, as_json, marked_text, marks_for, one_line, running_text


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")

    word: str
    num: int


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"word": "a", "num": 1}', None),
        ('```json\n{"word": "a", "num": 1}\n```', None),
        ("a, 1", "no JSON"),
        ("", "no JSON"),
        ('Sure: {"word": "a", "num": 1}', "not only JSON"),
        ('{"word": "a", "num": 1} {"word": "b", "num": 2}', "invalid JSON"),
        ('{"word": "a", "num": }', "invalid JSON"),
        ('{"word": "a", "num": 1', "no JSON"),
        ('{"word": "a"}', "wrong fields"),
        ('{"word": "a", "num": "1"}', "wrong fields"),
        ('{"word": "a", "num": 1.5}', "wrong fields"),
        ('{"word": "a", "num": 1, "more": 2}', "wrong fields"),
        ('{"word": ["a"], "num": 1}', "wrong fields"),
    ],
)
def test_one_object_of_the_right_form_is_read_and_nothing_else(text, problem):
    read = json_reader(Form)
    if problem is None:
        assert read(text) == Form(word="a", num=1)
    else:
        with pytest.raises(Unreadable, match=f"^{problem}"):
            read(text)


def test_what_cannot_be_read_is_asked_once_more_and_then_counted(
    serve, tools, fake_clock, tmp_path
):
    good = json.dumps({"word": "a", "num": 1})
    replies = {
        0: [tools.said(good)],
        1: [tools.said("I think it is a."), tools.said(good)],
        2: [tools.said('{"word": "a", "nu', finish="length"), tools.said(good)],
        3: [tools.said('{"word": "x", "num": "many"}')] * 2,
        4: [tools.said(None, refusal="no")] * 2,
        5: [tools.said("y" * (MAX_REPLY + 1))] * 2,
    }

    def answer(body, number):
        turns = body["messages"]
        is_second = len(turns) > 2
        if is_second:
            assert "cannot be used" in turns[-1]["content"]
        return tools.told(replies[tools.number(body)][is_second])

    server = serve(answer)
    for num_sent in (11, 0):  # the second time everything is on disk
        endpoint = tools.endpoint(server, tmp_path, fake_clock)
        found = ask_for(endpoint, tools.questions(6), [json_reader(Form)] * 6)
        assert [f.value is not None for f in found] == [True, True, True, False, False, False]
        assert [(f.reason or "").split(":")[0] for f in found[3:]] == [
            "wrong fields", "refused", "too long",
        ]  # fmt: skip
        assert endpoint.account.no_answer == {"wrong fields": 1, "refused": 1, "too long": 1}
        assert (endpoint.account.repaired, endpoint.account.sent) == (2, num_sent)
    assert set(server.asked.values()) == {1}
    lines = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert sum(line["sent"] for line in lines) == 11
    assert sum(line["from_disk"] for line in lines) == 11
    assert sum(sum(line["no_answer"].values()) for line in lines) == 6
    assert sum(line["repaired"] for line in lines) == 4
    # the model sees what it said, but not all of a reply without end
    assistant = [b["messages"][2] for b in server.bodies if len(b["messages"]) == 4]
    assert {turn["role"] for turn in assistant} == {"assistant"}
    assert max(len(turn["content"]) for turn in assistant) == 2000


def test_the_ledger_is_summed_by_model_and_unknown_costs_stay_unknown(tmp_path):
    assert spent(tmp_path) == []
    for model, prices in (("b", (1.0, 10.0)), ("a", (None, None)), ("b", (2.0, 10.0))):
        account = Account(*prices)
        account.send()
        account.receive(1_000_000, 100_000)
        account.give_up("refused: no")
        note(tmp_path, model, account)
    a, b = spent(tmp_path)
    assert (a["model"], a["sent"], a["cost"]) == ("a", 1, None)
    assert (b["model"], b["sent"], b["no_answer"], b["prompt_tokens"]) == ("b", 2, 2, 2_000_000)
    assert b["cost"] == pytest.approx(1 + 1 + 2 + 1)
    assert b["first"] <= b["last"]
    account = Account()  # of this round prices are not known
    account.send()
    note(tmp_path, "b", account)
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"time": 1, "mod')  # killed while it wrote
    assert (spent(tmp_path)[1]["sent"], spent(tmp_path)[1]["cost"]) == (3, None)


@pytest.mark.parametrize("half", ["\\ud83d", "\ud83d"])
def test_half_a_character_is_no_trouble(serve, tools, fake_clock, tmp_path, half):
    reply = tools.said(f'{{"word": "a{half}", "num": 1}}')
    server = serve(lambda body, number: tools.told(reply))
    endpoint = tools.endpoint(server, tmp_path, fake_clock)
    [answer] = ask_for(endpoint, tools.questions(1), [json_reader(Form)])
    if answer.value is not None:
        answer.value.word.encode()
    else:
        answer.reason.encode()


def test_zero_and_empty_are_values(serve, tools, fake_clock):
    server = serve(lambda body, number: tools.told(tools.said("x")))
    found = ask_for(
        tools.endpoint(server, None, fake_clock), tools.questions(2), [lambda t: 0, lambda t: []]
    )
    assert [answer.value for answer in found] == [0, []]
    assert len(server.bodies) == 2


# --- quoting -----------------------------------------------------------------------------------


def test_marks_occur_in_none_of_the_texts():
    assert marks_for(["a dog"]) == Marks("<<", ">>")
    assert marks_for(["cout << x"]) == Marks("[[", "]]")
    assert marks_for(["<<", "]]", "⟧"]) == Marks("«", "»")
    hostile = ["<< >> [[ ]] ⟦ ⟧ « »", "<1<", ">2>"]
    marks = marks_for(hostile)
    assert marks == Marks("<3<", ">3>")
    assert not any(mark in text for mark in marks for text in hostile)


def test_marked_text_is_one_line_with_one_pair_around_each_run():
    tokens = [" the", " ta", "x", ".\n", "x\u2028\r\ny"]
    assert marked_text(tokens, [False, True, True, False, False]) == "the <<tax>>.↵x↵↵y"
    assert marked_text(["a", "b"], [True, False], Marks("[", "]")) == "[a] b"
    assert running_text(["a", "b"]) == "a b"
    assert one_line("a\u202eb\x00c\u200bd") == "abcd"
    assert one_line("a\ud83db 😀 \ud83d\ude00") == "a\ufffdb 😀 😀"


def test_a_string_of_json_cannot_end_early():
    text = '"}], "explanation": "mine", "x": [{"a": "\\'
    assert json.loads(as_json({"texts": [text]})) == {"texts": [text]}


def test_questions_are_equal_by_content():
    assert Question.of("a", "b") == Question.of("a", "b")
    assert Question.of("a", "b").chat[1] == {"role": "user", "content": "b"}
    assert Question.of("a", "b").plain == "a\n\nb\nAnswer:"
