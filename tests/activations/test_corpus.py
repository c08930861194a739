"""Documents, their fingerprints and their sides."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from pydantic import ValidationError

from sae_lib.activations.corpus import (
    CorpusConfig,
    check_corpus,
    corpus_fingerprint,
    documents,
    held_out,
    split_documents,
)
from sae_lib.errors import BadInput, MissingFile

TEXTS = ["one two", "drei vier fünf", 'with "quotes", a comma\nand a line break', "last"]


def corpus(path: Path | str, **changes) -> CorpusConfig:
    return CorpusConfig(id=str(path), tokens=1000, **changes)


@pytest.fixture
def tables(tmp_path):
    """The same column in every format that has columns."""
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))
    )
    frame = pl.DataFrame({"n": range(len(TEXTS)), "text": TEXTS})
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=2)
    frame.write_csv(tmp_path / "t.csv")
    return tmp_path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_every_table_format_gives_the_same_documents(tables, suffix):
    cfg = corpus(tables / f"t.{suffix}")
    check_corpus(cfg)
    assert list(documents(cfg)) == TEXTS


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_a_column_that_does_not_exist_is_answered_with_those_that_do(tables, suffix):
    cfg = corpus(tables / f"t.{suffix}", column="texts")
    with pytest.raises(BadInput, match=r"corpus\.column.*'texts'.*n, text.*mean 'text'"):
        check_corpus(cfg)
    with pytest.raises(BadInput, match="Columns: n, text"):
        list(documents(cfg))


def test_a_column_that_holds_no_text_is_refused_with_its_line(tables):
    for suffix in ("jsonl", "parquet"):
        with pytest.raises(BadInput, match=r"line 1 holds int, not text"):
            list(documents(corpus(tables / f"t.{suffix}", column="n")))
    # csv has no types: a column of numbers is a column of texts
    assert list(documents(corpus(tables / "t.csv", column="n"))) == ["0", "1", "2", "3"]


def test_empty_and_missing_texts_are_left_out_and_not_counted(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"text": "a"}, {"text": ""}, {"text": None}, {"text": " \n"}, {"text": "b"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    cfg = corpus(path)
    assert list(documents(cfg)) == ["a", "b"]
    assert [document.number for document in split_documents(cfg)] == [0, 1]


def test_a_text_file_is_cut_at_blank_lines_once_a_document_is_long_enough(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffaaaa\nbbbb\n\ncc\n\n\ndddd\n\neeeeee\n\nf\n".encode())
    assert list(documents(corpus(path, document_chars=8))) == [
        "aaaa\nbbbb",
        "cc\n\ndddd",
        "eeeeee\n\nf",
    ]
    # nine are too few now, two short ones join, and f is too short to stand alone
    assert list(documents(corpus(path, document_chars=10))) == [
        "aaaa\nbbbb\n\ncc",
        "dddd\n\neeeeee\n\nf",
    ]
    assert list(documents(corpus(path, document_chars=1000))) == [
        "aaaa\nbbbb\n\ncc\n\ndddd\n\neeeeee\n\nf"
    ]


def test_no_text_of_a_text_file_is_lost(tmp_path):
    path = tmp_path / "t.txt"
    lines = [f"line {i}" if i % 3 else "" for i in range(200)]
    path.write_text("\r\n".join(lines))
    for chars in (1, 30, 100, 10_000):
        found = list(documents(corpus(path, document_chars=chars)))
        assert " ".join(found).split() == " ".join(lines).split()
        assert len(found) == 1 or all(len(text) >= chars for text in found)


def test_a_folder_is_read_in_the_order_of_names_without_hidden_and_foreign_files(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / "b.txt").write_text("second")
    (folder / "a.jsonl").write_text('{"text": "first"}\n')
    (folder / "sub" / "c.txt").write_text("third")
    (folder / "empty.txt").write_text("")
    (folder / "README.md").write_text("not this")
    (folder / ".hidden.txt").write_text("not this")
    (folder / ".cache" / "d.txt").write_text("not this")
    cfg = corpus("texts")
    check_corpus(cfg, tmp_path)
    assert list(documents(cfg, tmp_path)) == ["first", "second", "third"]


def test_what_cannot_be_read_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "tales.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "data.xml").write_text("<x/>")
    (tmp_path / "void.txt").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.md").write_text("x")
    with pytest.raises(MissingFile, match=r"corpus\.id.*tale\.jsonl.*mean 'tales\.jsonl'"):
        check_corpus(corpus("tale.jsonl"), tmp_path)
    with pytest.raises(BadInput, match=r"\.xml is not a format.*\.txt"):
        check_corpus(corpus("data.xml"), tmp_path)
    with pytest.raises(BadInput, match=r"void\.txt.*empty"):
        check_corpus(corpus("void.txt"), tmp_path)
    with pytest.raises(MissingFile, match=r"holds no .*found: \.md"):
        check_corpus(corpus("folder"), tmp_path)
    with pytest.raises(MissingFile, match="no such file"):
        check_corpus(corpus("./nothing/here"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl.*line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl.*line 2 holds list"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a\.jsonl.*line 2 has no such column"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl.*line 2 is not UTF-8"),
        ("a.txt", b"fine\n\xff\n", r"a\.txt.*line 2 is not UTF-8"),
        ("a.csv", b'text,n\n"x",1\n"y",2,3\n', r"a\.csv.*Expected 2 columns, got 3"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet.*not a readable Parquet"),
    ],
)
def test_an_unreadable_line_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        list(documents(corpus(tmp_path / name)))


def test_a_big_jsonl_is_streamed(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "good"}\n' * 1000 + "broken\n")
    assert list(islice(documents(corpus(path)), 1000)) == ["good"] * 1000


def test_sides_are_disjoint_deterministic_and_of_the_right_size(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"text": "d{i}"}}\n' for i in range(4000)))
    cfg = CorpusConfig(id=str(path), tokens=9000, eval_tokens=1000)
    sides = list(split_documents(cfg))
    assert [document.text for document in sides] == [f"d{i}" for i in range(4000)]
    held = {document.number for document in sides if document.split == "eval"}
    assert 320 < len(held) < 480  # a tenth of 4000, within four standard deviations
    assert held == {i for i in range(4000) if held_out(cfg, i)}
    again = {document.number for document in split_documents(cfg) if document.split == "eval"}
    assert again == held
    other = {i for i in range(4000) if held_out(cfg.but(seed=1), i)}
    assert 10 < len(other & held) < 80  # another seed, another tenth: a hundredth in common


def test_the_world_has_two_streams_that_share_no_document():
    cfg = CorpusConfig(id="world", tokens=4096, eval_tokens=4096)
    found = list(islice(split_documents(cfg), 200))
    by_side = {
        side: [document for document in found if document.split == side]
        for side in ("train", "eval")
    }
    for side, mine in by_side.items():
        assert [document.number for document in mine] == list(range(len(mine))), side
        assert len(mine) > 60
    texts = {side: {document.text for document in mine} for side, mine in by_side.items()}
    assert not texts["train"] & texts["eval"]
    assert list(islice(documents(cfg), 5)) == [document.text for document in by_side["train"][:5]]
    other = [document.text for document in islice(split_documents(cfg.but(seed=1)), 50)]
    assert other != [document.text for document in found[:50]]


def test_the_fingerprint_follows_the_text_and_nothing_else(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "body": "y"}\n')
    cfg = corpus("a.jsonl")
    before = corpus_fingerprint(cfg, tmp_path)
    assert corpus_fingerprint(cfg.but(tokens=5, context=9, eval_tokens=3), tmp_path) == before
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert corpus_fingerprint(corpus("b.jsonl"), tmp_path) == before
    assert corpus_fingerprint(corpus("b.jsonl", column="body"), tmp_path) != before
    (tmp_path / "b.jsonl").write_text('{"text": "z", "body": "y"}\n')
    assert corpus_fingerprint(corpus("b.jsonl"), tmp_path) != before


def test_the_fingerprint_of_a_text_file_knows_how_it_is_cut_and_ignores_the_column(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    before = corpus_fingerprint(corpus("a.txt"), tmp_path)
    assert corpus_fingerprint(corpus("a.txt", column="other"), tmp_path) == before
    assert corpus_fingerprint(corpus("a.txt", document_chars=7), tmp_path) != before


def test_the_fingerprints_of_hub_and_world_follow_what_picks_their_text():
    hub = corpus("someone/texts")
    prints = {
        corpus_fingerprint(cfg)
        for cfg in (
            hub,
            hub.but(revision="abc"),
            hub.but(config="en"),
            hub.but(split="test"),
            corpus("someone/other"),
            corpus("world"),
            corpus("world", seed=1),
        )
    }
    assert len(prints) == 7
    assert corpus_fingerprint(hub.but(seed=3)) == corpus_fingerprint(hub)


def test_a_hub_dataset_is_streamed_and_its_errors_name_key_and_value(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        if args[0] == "no/where":
            raise FileNotFoundError("404")
        return iter([{"text": "a"}, {"text": ""}, {"text": "b"}, {"other": "c"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    cfg = corpus("some/one", revision="abc", config="en", split="validation")
    check_corpus(cfg)
    stream = documents(cfg)
    assert [next(stream), next(stream)] == ["a", "b"]
    assert asked == [
        (
            ("some/one", "en"),
            {"split": "validation", "revision": "abc", "streaming": True},
        )
    ]
    with pytest.raises(BadInput, match=r"corpus\.column.*row 3 of some/one.*Columns: other"):
        next(stream)
    with pytest.raises(BadInput, match=r"corpus\.id.*'no/where'.*404"):
        next(documents(corpus("no/where")))


def test_a_corpus_is_described_without_loading_torch_or_datasets():
    code = (
        "import sys, sae_lib.activations.corpus;"
        "sys.exit(bool({'torch', 'datasets', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_are_written_with_underscores_and_the_rest_is_derived():
    cfg = CorpusConfig.model_validate({"id": "world", "tokens": "2_000_000"})
    assert cfg.tokens == 2_000_000
    assert cfg.held_out_tokens == 65_536
    assert cfg.but(tokens=10_000).held_out_tokens == 4096
    assert cfg.but(tokens=100_000).held_out_tokens == 10_000
    assert cfg.but(eval_tokens=77).held_out_tokens == 77
    assert cfg.but(tokens=129).wanted_contexts("train") == 2


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": 0}, {"context": 7}, {"eval_tokens": 0}, {"seed": -1}, {"id": ""}, {"tokns": 5}],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CorpusConfig.model_validate({"id": "world", "tokens": 1000, **wrong})


@pytest.mark.parametrize("name", ["dyck", "expr", "pcfg-english"])
def test_formal_languages_are_corpora_with_sides_of_their_own(name: str):
    cfg = CorpusConfig(id=f"formal:{name}", tokens=800, eval_tokens=200, context=32)
    found = list(islice(split_documents(cfg), 60))
    train = {one.text for one in found if one.split == "train"}
    held = {one.text for one in found if one.split == "eval"}
    assert train
    assert held
    assert not train & held
    other = cfg.model_copy(update={"seed": 1})
    assert corpus_fingerprint(cfg) != corpus_fingerprint(other)
    assert corpus_fingerprint(cfg) == corpus_fingerprint(cfg.model_copy(update={"tokens": 9}))


def test_an_unknown_formal_language_is_refused():
    with pytest.raises(BadInput, match="pcfg-english"):
        check_corpus(CorpusConfig(id="formal:english", tokens=800))
