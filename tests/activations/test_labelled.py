"""Labelled texts and one vector per text."""

import json
import sys
from collections import Counter
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from sae_lib.activations.labelled import LabelledConfig, load_labelled, pooled, text_in_test
from sae_lib.errors import BadInput, MissingFile, UnknownName

ROWS = [(f"text {i}", "good" if i % 3 else "bad") for i in range(120)]


def write(path, rows, columns=("text", "label")):
    frame = pl.DataFrame(dict(zip(columns, zip(*rows, strict=True), strict=True)))
    match path.suffix:
        case ".csv":
            frame.write_csv(path)
        case ".parquet":
            frame.write_parquet(path)
        case _:
            frame.write_ndjson(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_gives_its_texts_and_labels_divided_by_a_hash(tmp_path, suffix):
    cfg = LabelledConfig(id=str(write(tmp_path / f"t{suffix}", ROWS)))
    train, test = load_labelled(cfg, "train"), load_labelled(cfg, "test")
    assert train.classes == test.classes == ["bad", "good"]
    labels = dict(ROWS)
    for found in (train, test):
        assert [found.classes[i] for i in found.labels] == [labels[text] for text in found.texts]
    assert sorted(train.texts + test.texts) == sorted(labels)
    assert 15 < len(test.texts) < 45  # a quarter of 120, within three standard deviations
    assert load_labelled(cfg, "test") == test
    assert load_labelled(cfg.but(seed=1), "test").texts != test.texts


def test_copies_of_a_text_are_on_one_side(tmp_path):
    cfg = LabelledConfig(id=str(write(tmp_path / "t.csv", ROWS * 3)))
    train, test = (load_labelled(cfg, split) for split in ("train", "test"))
    assert not set(train.texts) & set(test.texts)
    assert len(train.texts) + len(test.texts) == 360
    assert all(text_in_test(cfg, text) for text in test.texts)


def test_a_split_column_or_files_named_after_splits_decide(tmp_path):
    rows = [(text, label, ("train", "test", "dev")[i % 3]) for i, (text, label) in enumerate(ROWS)]
    rows = [(text, "good" if i % 2 else "bad", split) for i, (text, _, split) in enumerate(rows)]
    path = write(tmp_path / "all.csv", rows, ("text", "label", "part"))
    cfg = LabelledConfig(id=str(path), split_column="part")
    (tmp_path / "two").mkdir()
    for name in ("train", "test", "dev"):
        mine = [row[:2] for row in rows if row[2] == name]
        write(tmp_path / "two" / f"{name}.csv", mine)
        if name != "dev":
            assert load_labelled(cfg, name).texts == [text for text, _ in mine]
    folder = LabelledConfig(id="two")
    for name in ("train", "test"):
        assert load_labelled(folder, name, relative_to=tmp_path)[1:] == load_labelled(cfg, name)[1:]


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    rows = [(f"text {i}", i % 11) for i in range(220)]
    for suffix in (".csv", ".parquet"):
        cfg = LabelledConfig(id=str(write(tmp_path / f"t{suffix}", rows)))
        found = load_labelled(cfg, "train")
        assert found.classes == [str(i) for i in range(11)]
        assert all(
            int(text.split()[1]) % 11 == label for text, label in zip(*found[1:3], strict=True)
        )


def test_balanced_classes_are_of_equal_size_and_drawn_at_random(tmp_path):
    cfg = LabelledConfig(id=str(write(tmp_path / "t.csv", ROWS)), balanced=True)
    everything = load_labelled(cfg.but(balanced=False), "train")
    found = load_labelled(cfg, "train")
    sizes = Counter(found.labels)
    assert sizes[0] == sizes[1] == Counter(everything.labels)[0]
    assert found == load_labelled(cfg, "train")
    good = [text for text, label in zip(everything.texts, everything.labels, strict=True) if label]
    kept = [text for text, label in zip(found.texts, found.labels, strict=True) if label]
    assert kept != good[: len(kept)]
    assert [text for text in good if text in set(kept)] == kept  # in the order of the table
    few = load_labelled(cfg.but(num_texts=10), "train")
    assert Counter(few.labels) == {0: 5, 1: 5}


def test_a_number_of_texts_is_a_random_part_of_them(tmp_path):
    cfg = LabelledConfig(id=str(write(tmp_path / "t.csv", sorted(ROWS, key=lambda row: row[1]))))
    found = load_labelled(cfg.but(num_texts=20), "train")
    assert len(found.texts) == 20
    assert set(found.labels) == {0, 1}  # the first 20 rows are all bad
    assert set(found.texts) <= set(load_labelled(cfg, "train").texts)


def test_wrong_files_and_columns_are_named(tmp_path):
    path = write(tmp_path / "tasks.csv", ROWS, ("text", "label"))
    with pytest.raises(BadInput, match=r"tasks\.csv, key label, value 'labl'.*mean 'label'"):
        load_labelled(LabelledConfig(id=str(path), label="labl"), "train")
    with pytest.raises(BadInput, match=r"tasks\.csv, key text, value 'body'.*text, label"):
        load_labelled(LabelledConfig(id=str(path), text="body"), "train")
    with pytest.raises(BadInput, match=r"key split_column, value 'part'"):
        load_labelled(LabelledConfig(id=str(path), split_column="part"), "train")
    with pytest.raises(MissingFile, match=r"task\.csv.*mean 'tasks\.csv'"):
        load_labelled(LabelledConfig(id="task.csv"), "train", relative_to=tmp_path)
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(BadInput, match=r"\.txt is not a format"):
        load_labelled(LabelledConfig(id="t.txt"), "train", relative_to=tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "label": None}, "line 3 has no label"),
        ({"text": "x", "label": ""}, "line 3 has no label"),
        ({"text": " ", "label": "a"}, "line 3 has no text"),
        ({"text": 5, "label": "a"}, "line 3 has no text"),
    ],
)
def test_a_row_without_text_or_label_is_named(tmp_path, row, message):
    path = tmp_path / "t.jsonl"
    good = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    path.write_text("\n".join(map(json.dumps, [*good, row])))
    with pytest.raises(BadInput, match=rf"t\.jsonl.*{message}"):
        load_labelled(LabelledConfig(id=str(path)), "train")


def test_a_split_must_hold_every_class_and_there_must_be_two(tmp_path):
    one = write(tmp_path / "one.csv", [(f"t{i}", "a") for i in range(20)])
    with pytest.raises(BadInput, match=r"two classes.*has 1 \(a\)"):
        load_labelled(LabelledConfig(id=str(one)), "train")
    rows = [(f"t{i}", "a", "train") for i in range(5)] + [("u", "a", "test"), ("v", "b", "test")]
    path = write(tmp_path / "t.csv", rows, ("text", "label", "part"))
    with pytest.raises(BadInput, match="train split has no text of b"):
        load_labelled(LabelledConfig(id=str(path), split_column="part"), "train")


def test_a_hub_dataset_gives_its_own_splits(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, revision, streaming):
        asked.append((name, config, split, revision, streaming))
        if split not in ("train", "test"):
            raise ValueError(f"Bad split: {split}")
        return iter({"text": f"{split} {i}", "label": i % 2} for i in range(10))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    cfg = LabelledConfig(id="some/one", revision="abc")
    found = load_labelled(cfg, "test")
    assert found.texts == [f"test {i}" for i in range(10)]
    assert found.labels == [0, 1] * 5
    assert asked[0] == ("some/one", None, "train", "abc", True)
    only_train = load_labelled(cfg.but(test_split="train", test_share=0.5), "test")
    assert all(text.startswith("train") for text in only_train.texts)
    with pytest.raises(BadInput, match=r"some/one.*Bad split: tst"):
        load_labelled(cfg.but(test_split="tst"), "test")
    with pytest.raises(BadInput, match=r"key label, value 'y'.*Columns: text, label"):
        load_labelled(cfg.but(label="y"), "test")


def test_tasks_of_the_world_are_split_and_labelled():
    cfg = LabelledConfig(id="world:review-sentiment", num_texts=60)
    train, test = (load_labelled(cfg, split) for split in ("train", "test"))
    assert len(train.classes) == 2
    assert len(train.texts) == len(test.texts) == 60
    assert not set(train.texts) & set(test.texts)
    with pytest.raises(UnknownName, match="review-sentiment"):
        load_labelled(cfg.but(id="world:review-sentimnt"), "train")


TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w5", "w2 w1"]
SITES = ["resid_post.0", "mlp_act.1"]


def by_hand(model, text, site):
    """Rows of the words; BOS stands before them and is left out."""
    ids = torch.tensor([[1, *(int(word[1:]) + 4 for word in text.split())]])
    return model.by_hand(ids, site)[0, 1:]


@pytest.mark.parametrize("batch_texts", [1, 3, 10])
@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("mean", lambda x: x.mean(0)),
        ("max", lambda x: x.amax(0)),
        ("last", lambda x: x[-1]),
    ],
)
def test_a_text_becomes_one_vector_without_special_tokens_and_padding(
    model, pool, expected, batch_texts
):
    found = pooled(model, TEXTS, SITES, pool=pool, batch_texts=batch_texts)
    for site in SITES:
        exact = torch.stack([expected(by_hand(model, text, site)) for text in TEXTS])
        torch.testing.assert_close(found[site], exact)
    assert len(model.calls) == -(-len(TEXTS) // batch_texts)


def test_a_tokenizer_that_puts_bos_itself_does_not_give_two(model, bos_adding_tokenizer):
    plain = pooled(model, TEXTS, SITES)
    encode = model.encode_text

    def with_bos(texts, **options):
        tokens, mask = encode(texts, **options)
        ones = torch.ones(len(texts), 1, dtype=torch.int64)
        return torch.cat([ones, tokens], 1), torch.cat([ones.bool(), mask], 1)

    model.encode_text = with_bos
    for site, x in pooled(model, TEXTS, SITES).items():
        torch.testing.assert_close(x, plain[site])


def test_rows_are_encoded_before_they_are_pooled(model):
    def encode(x):
        return torch.cat([x.relu(), -x], 1)

    found = pooled(model, TEXTS, SITES, encode=encode)
    for site in SITES:
        exact = torch.stack([encode(by_hand(model, text, site)).mean(0) for text in TEXTS])
        torch.testing.assert_close(found[site], exact)
    per_site = pooled(model, TEXTS, SITES, encode={SITES[0]: encode, SITES[1]: torch.abs})
    torch.testing.assert_close(per_site[SITES[0]], found[SITES[0]])
    exact = torch.stack([by_hand(model, text, SITES[1]).abs().mean(0) for text in TEXTS])
    torch.testing.assert_close(per_site[SITES[1]], exact)


def test_long_texts_are_cut_behind_bos(model):
    found = pooled(model, TEXTS, SITES, pool="last", max_tokens=3)
    exact = by_hand(model, "w5 w6", SITES[0])[-1]
    torch.testing.assert_close(found[SITES[0]][2], exact)


def test_a_text_without_a_token_of_its_own_is_named(model):
    with pytest.raises(BadInput, match=r"value '<eos>': text 2 has no token"):
        pooled(model, ["w1", "w2", "<eos>"], SITES, batch_texts=2)
    with pytest.raises(BadInput, match="no texts"):
        pooled(model, [], SITES)
