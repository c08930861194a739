import json
import re
from base64 import b64encode
from hashlib import sha256

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from sae_lib.errors import BadInput, NotApplicable, UnknownName
from sae_lib.report import _dashboard_data as data
from sae_lib.report._dashboard_geometry import feature_map, nearest
from sae_lib.report._dashboard_source import questions, shaped
from sae_lib.report.dashboard import MAX_BYTES, Cell, Landed, Published, dashboard, find_cell
from sae_lib.warehouse.query import query
from tests.report.synthetic_latents import Fixed, Synthetic

CELL = Cell("world-variants", "resid_post.2", "topk-w2048-k16-s0")
HOSTILE = [
    "<script>alert(1)</script>", "</script>", "--></style>", "\"'`", "\u202eevil", "👨‍👩‍👧",
    "a\x00b", "**bold** [x](javascript:1)", "x" * 5000, "{{ 7 * 7 }}", "\u2028", "\u200b",
]  # fmt: skip


def opened(file):
    """What a browser reads out of the page: its list, and its chunks."""
    html = file.read_text("utf-8")
    found = dict(
        re.findall(r'<script type="text/plain" id="(\w+)">([A-Za-z0-9+/=]*)</script>', html)
    )
    index = data.unpacked(found.pop("index"))
    return html, index, [data.unpacked(found[f"c{i}"]) for i in range(len(found))]


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    made = dashboard(Published(study.db, CELL), file)
    return made, *opened(file)


def test_the_page_has_every_latent_with_what_is_known_of_it(page):
    made, _, index, chunks = page
    assert made.num_latents == len(index["latent"]) == 9
    assert made.left_out == []
    assert index["label"][0] == "animals: cat, dog"
    assert index["label"][8] is None
    assert index["density"][8] == 0
    assert index["score"][0] == pytest.approx(0.9)
    assert index["whats"] == ["f1"]
    first = chunks[0]["l"][0]
    assert [one[0] for one in first["e"]] == ["max_act", "vocab_proj"]
    kind, ids, shares, peak, value, document, position = first["x"][0]
    assert (kind, peak, value, document, position) == ("top", 2, 4.0, 0, 30)
    tokens = [chunks[0]["t"][i] for i in ids]
    assert tokens[:5] == ["Once", " the", " cat", " stood", " near\n"]
    # of the latent's maximum 4: .1, 4, .6 and .2 in thousandths
    assert shares == [1, 25, 2, 1000, 3, 150, 7, 50]


def test_rows_an_older_version_wrote_are_shown_and_what_is_absent_is_said(page):
    made, html, index, chunks = page
    said = " ".join(made.absent)
    assert "Histograms of activations were not recorded" in said
    assert "Examples of near misses were not recorded" in said
    assert {"histogram", "quantile", "silent", "near_miss", "map", "concept"} <= set(
        index["absent"]
    )
    assert "h" not in chunks[0]["l"][0]
    assert "Not there" in html
    assert index["map"] is None


def test_text_is_only_ever_inside_packed_data(page):
    html = page[1]
    assert "alert(1)" not in html
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)[0]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0]
        own = b64encode(sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{own}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r'(?:src|href)="(?!#)', html)
    assert not re.search(r"\.(innerHTML|outerHTML|insertAdjacentHTML|write)\b|\beval\(", html)


def hostile_tables(words=HOSTILE):
    explanations = [
        {
            "latent": i,
            "method": word[:40],
            "text": word,
            "keywords": [word],
            "keyword_scores": [1.0],
        }
        for i, word in enumerate(words)
    ]
    return {
        "latents": [
            {"latent": i, "density": 0.01, "max_activation": 2.0, "label": word}
            for i, word in enumerate(words)
        ],
        "explanations": explanations,
        "examples": [
            {"latent": i, "rank": 0, "document": 0, "position": 0, "peak": 1,
             "tokens": ["a", word, "\n"], "activations": [0.0, 2.0, 0.0], "max_activation": 2.0}
            for i, word in enumerate(words)
        ],
    }  # fmt: skip


def test_every_string_comes_back_as_it_was(tmp_path):
    dashboard(Fixed(hostile_tables()), tmp_path / "p.html")
    _, index, chunks = opened(tmp_path / "p.html")
    assert index["label"] == HOSTILE
    for own, word in zip(chunks[0]["l"], HOSTILE, strict=True):
        assert own["e"][0][1] == word
        assert [chunks[0]["t"][i] for i in own["x"][0][1]] == ["a", word, "\n"]


def test_half_a_surrogate_pair_is_carried_in_plain_ascii():
    text = data.packed(["a\ud800b", "\udfff", "\x00"])
    assert data.unpacked(text) == ["a\ud800b", "\udfff", "\x00"]
    assert data.packed([1]) == data.packed([1])  # no time of making in it


def test_numbers_are_short_and_nulls_stay():
    given = [0.123456, 123456.0, 0.0, -1.9996, None, 1e-7 / 3]
    assert data.significant(given) == [0.123, 123000.0, 0.0, -2.0, None, 3.33e-8]
    assert data.significant([], 2) == []


def test_less_is_kept_of_each_latent_where_the_page_would_be_too_large(tmp_path):
    source = Synthetic(128)
    whole = dashboard(source, tmp_path / "whole.html")
    assert whole.left_out == []
    small = dashboard(source, tmp_path / "small.html", max_bytes=260_000)
    assert small.num_bytes <= 260_000 < whole.num_bytes
    assert small.num_latents == 128
    assert "of the strongest examples" in small.left_out[0]
    html, _, chunks = opened(tmp_path / "small.html")
    assert "Left out" in html
    top = [one for one in chunks[0]["l"][1]["x"] if one[0] == "top"]
    assert 1 <= len(top) < 10


def test_latents_are_left_out_last_and_the_page_says_so(tmp_path):
    made = dashboard(Synthetic(128), tmp_path / "p.html", max_bytes=190_000)
    assert made.num_bytes <= 190_000
    assert 1 < made.num_latents < 128
    assert f"{made.num_latents} of 128 latents are on this page" in made.left_out[0]
    with pytest.raises(BadInput, match="more than the page may have"):
        dashboard(Synthetic(64), tmp_path / "p.html", max_bytes=1000)


def test_asked_for_some_latents_those_worth_a_look_are_shown(tmp_path):
    latents = [(0.0, 5.0), (0.5, 5.0), (0.01, 1.0), (0.01, 9.0), (1e-7, 9.0)]
    tables = {"latents": [
        {"latent": i, "density": density, "max_activation": strongest, "label": "x"}
        for i, (density, strongest) in enumerate(latents)
    ]}  # fmt: skip
    dashboard(Fixed(tables), tmp_path / "p.html", latents=3)
    assert opened(tmp_path / "p.html")[1]["latent"] == [2, 3, 4]
    with pytest.raises(BadInput, match="latents"):
        dashboard(Fixed(tables), tmp_path / "p.html", latents=0)
    with pytest.raises(NotApplicable):
        dashboard(Fixed({}), tmp_path / "p.html")


def test_examples_are_cut_around_the_peak(tmp_path):
    tokens = [str(i) for i in range(21)]
    values = [0.0] * 10 + [-1.0, 2.0] + [0.0] * 9
    example = {"latent": 0, "rank": 0, "document": 1, "position": 9, "peak": 10, "tokens": tokens,
               "activations": values, "max_activation": 4.0}  # fmt: skip
    rows = data.Rows(
        latents=shaped(pl.DataFrame([dict(latent=0, density=0.1, max_activation=4.0)]), "latents"),
        explanations=shaped(pl.DataFrame(), "explanations"),
        examples=shaped(pl.DataFrame([example]), "examples"),
        pairs=shaped(pl.DataFrame(), "latent_pairs"),
        scores=shaped(pl.DataFrame(), "latent_scores"),
    )
    found = data.chunk(rows, [0], data.Level(1, 0, 0, 0, 2, 5), {})
    _, ids, shares, peak, *_ = found["l"][0]["x"][0]
    assert [found["t"][i] for i in ids] == ["8", "9", "10", "11", "12"]
    assert peak == 2
    assert shares == [2, -250, 3, 500]  # a coder may have negative codes


def test_of_promoted_and_suppressed_words_each_so_many_are_kept():
    words, scores = ["a", "b", "c", "x", "y", "z"], [3.0, 2.0, 1.0, -1.0, -2.0, -3.0]
    assert data._listed("vocab_proj", words, scores, 2) == (["a", "b", "x", "y"], [3, 2, -1, -2])
    assert data._listed("max_act", words, scores, 2) == (["a", "b"], [3.0, 2.0])


def test_a_score_is_the_explanations_own_or_the_best_judges_and_never_a_controls():
    said = pl.DataFrame({
        "latent": [0, 0, 1], "method": ["a", "b", "a"], "text": ["", "", ""],
        "keywords": [["x", "y"], ["q"], ["z"]], "score": [0.5, None, None],
        "score_definition": ["own", None, None],
    })  # fmt: skip
    scores = pl.DataFrame({
        "latent": [0, 0, 0, 0, 1, 1], "method": ["a", "b", "b", "b", "a", "c"],
        "name": ["embedding_auc", "embedding_auc", "detection_balanced_accuracy", "other",
                 "embedding_auc", "embedding_auc"],
        "definition": ["held_out"] * 4 + ["another_latent", "held_out"],
        "value": [0.9, 0.6, 0.7, 1.0, 0.99, 0.98],
    })  # fmt: skip
    found = data.explanation_scores(said, scores)
    assert found.rows() == [
        (0, "a", 0.5, "own"),
        (0, "b", 0.7, "detection_balanced_accuracy"),
    ]
    latents = pl.DataFrame({"latent": [0, 1], "label": ["x, y", "nobody's"]})
    assert data.labelled_by(latents, said).rows() == [(0, "a")]


def test_judges_come_in_the_order_of_the_warehouse(study):
    sql = "select name from stored.explanation_score_names order by rank"
    assert tuple(query(study.db, sql)["name"]) == data.JUDGED


def test_true_concepts_come_from_the_matching_and_from_the_best_latents():
    def row(task, value, **params):
        return {"application": "concepts", "method": "sae", "name": "f1", "task": task,
                "value": value, "params": json.dumps(params)}  # fmt: skip

    frame = pl.DataFrame([
        row("dog", 0.5, latent=3, precision=0.25, recall=1.0, best_latent=3, best_f1=0.5),
        row("cat", 0.1, latent=4, precision=0.1, recall=0.1, best_latent=3, best_f1=0.8),
        row("eel", 0.0, latent=5, precision=0.0, recall=0.0, best_latent=0, best_f1=0.0),
        row("owl", None, latent=6, best_latent=6, best_f1=0.9),
    ])  # fmt: skip
    assert data.true_concepts(frame) == {
        3: [["cat", 0.8, None, None, "best"], ["dog", 0.5, 0.25, 1.0, "own"]],
        4: [["cat", 0.1, 0.1, 0.1, "own"]],
    }


def test_the_map_puts_rows_that_point_alike_together_and_is_the_same_again():
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:3] * 4
    rows = np.repeat(centres, 20, axis=0) + rng.normal(0, 0.1, (60, 8))
    for limit, how in ((100, "t-SNE"), (10, "two principal axes")):
        found = feature_map(rows, max_tsne=limit)
        assert found is not None
        assert how in found.how
        assert (found.xy.min(), found.xy.max()) == (0, 1)
        middles = found.xy.reshape(3, 20, 2).mean(1)
        apart = min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        inside = found.xy.reshape(3, 20, 2).std(1).max()
        assert apart > 3 * inside
        again = feature_map(rows, max_tsne=limit)
        assert again is not None
        np.testing.assert_array_equal(found.xy, again.xy)
    longer = feature_map(rows * rng.uniform(0.5, 2, (60, 1)), max_tsne=10)  # length plays no part
    assert longer is not None
    np.testing.assert_allclose(longer.xy, feature_map(rows, max_tsne=10).xy, atol=1e-8)  # pyright: ignore
    assert feature_map(rows[:2]) is None


def test_neighbours_are_computed_where_none_were_recorded():
    rows = np.array([[1, 0], [1, 1], [0, 2], [9, 9]], np.float32)
    found = nearest(rows, np.array([0, 1, 2]), 2)
    assert found.filter(latent=0, rank=0).select("other", "value").row(0) == (
        1,
        pytest.approx(0.5**0.5),
    )
    assert set(found["other"]) == {0, 1, 2}  # the dead one is nobody's neighbour


def test_an_sae_is_found_by_what_people_call_it(study):
    assert find_cell(study.db, [*CELL]) == CELL
    found = query(
        study.db, "select sae_id, path from stored.saes where variant = ?", [CELL.variant]
    )
    sae_id = found["sae_id"][0]
    assert find_cell(study.db, [sae_id]).variant == CELL.variant
    assert find_cell(study.db, [CELL.variant], site="resid_post.3").site == "resid_post.3"
    with pytest.raises(BadInput, match="several SAEs are called so"):
        find_cell(study.db, [CELL.variant])
    with pytest.raises(UnknownName, match="Did you mean 'topk-w2048-k16-s0'"):
        find_cell(study.db, ["topk-w2048-k16-s1"])
    with pytest.raises(UnknownName, match="world-variants"):
        find_cell(study.db, [CELL.variant], experiment="world-variant")
    with pytest.raises(BadInput, match="EXPERIMENT SITE VARIANT"):
        find_cell(study.db, ["a", "b"])


def test_an_sae_that_nobody_explained_says_how_to(build_study):
    with pytest.raises(NotApplicable, match="no explained latents"):
        find_cell(build_study("latents").db, [CELL.variant])


def test_the_sql_of_every_panel_gives_its_rows(study):
    for name, sql in questions(CELL).items():
        found = query(study.db, sql + "0;")
        assert len(found) or name in ("scores", "near", "concept")
    quoted = questions(Cell("it's", "s", "v"))["examples"]
    assert "experiment = 'it''s'" in quoted


def test_rows_of_the_warehouse_are_those_of_the_database(study):
    landed, published = Landed(study.root, CELL, "f1"), Published(study.db, CELL)
    for table in ("latents", "explanations", "examples", "latent_pairs"):
        both = landed.rows(table, 1, 4), published.rows(table, 1, 4)
        assert_frame_equal(*both, check_row_order=False)
        assert len(landed.rows(table)) == len(published.rows(table))
    assert landed.of_sae()["variant"] == CELL.variant


@pytest.mark.slow
def test_an_sae_of_16384_latents_with_all_default_examples_fits(wide_page):
    assert wide_page.num_bytes <= MAX_BYTES
    assert wide_page.num_latents == 16384
    assert "of the strongest examples" in wide_page.left_out[0]
