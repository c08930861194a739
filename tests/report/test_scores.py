"""The section about scores: numbers, floors and ceilings, what is left out, hostile names."""

import re
from datetime import UTC, datetime
from html import unescape
from xml.etree import ElementTree

import polars as pl
import pytest
from scipy import stats

from sae_lib.evaluate import METRICS
from sae_lib.evaluate.base import role_of
from sae_lib.report.questions import QUESTIONS
from sae_lib.report.scores import (
    MAX_FAMILIES,
    MAX_LINES,
    forest,
    lines,
    scores,
    shortened,
    with_intervals,
)
from sae_lib.report.study import number, study_report
from sae_lib.report.theme import to_svg
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.write import Provenance, write_rows

SITE = "resid_post.2"
HOSTILE = "<img src=x onerror=alert(1)>"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
K = (1, 2, 5, 20)

DEFINITIONS = [
    ("fvu", "ratio_of_sums", "score", "lower", "reconstruction"),
    ("probing_accuracy", "top_k", "score", "higher", "probing"),
    ("probing_auc", "top_k", "score", "higher", "probing"),
    ("probing_accuracy", "random_sae", "floor", "higher", "probing"),
    ("probing_accuracy", "dense_probe", "ceiling", "higher", "probing"),
    ("absorbed", "v1", "score", "lower", "absorption"),
    ("absorbed", HOSTILE, "floor", "lower", "absorption"),
    ("likeness", "to_partner", "score", "neither", "stability"),
    ("likeness", "random_directions", "floor", "neither", "stability"),
    ("forgetting", "best", "score", "higher", "unlearning"),
]


def define(root, rows):
    names = ("name", "definition", "role", "better", "metric")
    defined = [{**dict(zip(names, row, strict=True)), "version": 1, "text": "t"} for row in rows]
    write_rows(root, "definitions", {}, defined, Provenance("", "", created_at=NOW))


def write(root, site, variant, rows, seed=None):
    where = {"experiment": "e", "site": site, "variant": variant}
    sae = f"id-{variant}" if variant else None
    seen = Provenance("world", "fp", sae, "art", seed, NOW)
    write_rows(root, "metrics", where, rows, seen)
    if variant:
        row = {
            "kind": "topk",
            "objective": "plain",
            "d_in": 8,
            "d_sae": 64,
            "config": {},
            "train": {},
            "status": "complete",
            "tokens": 1,
            "seconds": 1.0,
            "packages": {},
        }
        write_rows(root, "saes", where, [row], seen)


def measured(name, value, definition, stderr=None, n=None, unit=None, reason=None, **params):
    return Measurement(name, value, definition, 1, stderr, n, unit, params, reason)


def rows_of(shift):
    """Rows of one SAE that is so much better than the worst."""
    rows = [measured("fvu", 0.2, "ratio_of_sums")]
    for k in K:
        share = 0.7 + 0.05 * K.index(k) + shift
        rows += [
            measured("probing_accuracy", share, "top_k", 0.02, 6, "data sets", k=k),
            measured("probing_auc", 0.5, "top_k", k=k),
            measured("probing_accuracy", 0.6, "random_sae", k=k),
        ]
    rows += [
        measured("probing_accuracy", 0.95, "dense_probe"),
        measured("absorbed", 0.4 - shift, "v1", 0.03, 11, HOSTILE, place=HOSTILE),
        measured("absorbed", 0.61, HOSTILE),
        measured("forgetting", None, "best", reason=f"no questions {HOSTILE}"),
    ]
    return rows


VARIANTS = {
    "topk-w64-k8-s0": (0.10, 0),
    "topk-w64-k8-s1": (0.12, 1),
    "gated-w64-s0": (0.05, 0),
    f"a{HOSTILE}-s0": (0.0, 0),
}


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    root = tmp_path_factory.mktemp("scores") / "rows"
    db = root.parent / "results.duckdb"
    define(root, DEFINITIONS)
    for variant, (shift, seed) in VARIANTS.items():
        write(root, SITE, variant, rows_of(shift), seed)
    # what compares SAEs lands for the experiment
    between = []
    for variant in ("topk-w64-k8-s0", "topk-w64-k8-s1"):
        place = {"site": SITE, "variant": variant}
        between += [
            measured("likeness", 0.7, "to_partner", 0.01, 64, "latents", **place),
            measured("likeness", 0.2, "random_directions", **place),
        ]
    write(root, "", "", between)
    publish(root, db)
    return db


def asked(db, experiment="e"):
    names = ("scores", "scores_over_seeds")
    return {name: query(db, QUESTIONS[name], {"experiment": experiment}) for name in names}


@pytest.fixture(scope="module")
def answers(db):
    return asked(db)


@pytest.fixture(scope="module")
def html(db, tmp_path_factory):
    return study_report(db, "e", tmp_path_factory.mktemp("page") / "e.html").read_text("utf-8")


@pytest.fixture(scope="module")
def section(html):
    return html.split('<section id="scores">')[1].split("</section>")[0]


def panel(section, title):
    figures = re.findall(r"<figure>(.*?)</figure>", section, re.S)
    (found,) = [one for one in figures if f"<figcaption>{title}<" in one]
    return found


def over_seeds(answers, metric, **where):
    return with_intervals(answers["scores_over_seeds"].filter(metric=metric, **where))


def test_only_the_first_score_of_each_functional_metric_is_a_headline(answers):
    found = answers["scores"].select("metric", "name", "definition").unique(maintain_order=True)
    assert found.rows() == [
        ("probing", "probing_accuracy", "top_k"),
        ("absorption", "absorbed", "v1"),
        ("stability", "likeness", "to_partner"),
        ("unlearning", "forgetting", "best"),
    ]


def test_the_headlines_of_all_metrics_are_their_first_scores(tmp_path):
    rows = [
        (one.name, one.definition, role_of(one), one.better, name)
        for name, metric in METRICS.items()
        for one in metric.definitions()
    ]
    define(tmp_path / "rows", rows)
    plain = {"reconstruction", "sparsity", "model_loss", "weights", "frontier"}
    expected = {}
    for name, definition, role, _, metric in rows:
        if role == "score" and metric not in plain:
            expected.setdefault(metric, (name, definition))
    values = [measured(name, 0.5, definition) for name, definition in expected.values()]
    write(tmp_path / "rows", SITE, "v-s0", values, 0)
    publish(tmp_path / "rows", tmp_path / "x.duckdb")
    found = asked(tmp_path / "x.duckdb")["scores"]
    assert found.select("metric", "name", "definition").rows() == [
        (metric, *headline) for metric, headline in expected.items()
    ]


def test_the_table_has_every_number_of_the_scorecard(db, section):
    table = section.split('id="score-table">')[1].split("</table>")[0]
    shown = []
    for row in re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.S):
        cells = re.findall(r"<td([^>]*)>(.*?)</td>", row, re.S)
        shown.append([unescape(re.sub(r"<[^>]+>", " ", text)).split() for _, text in cells])
    sql = """
        select name, definition, dial, variant, value, stderr, n, unit, floor, floor_is, ceiling,
            ceiling_is, better
        from scorecard where experiment = 'e' and value is not null
            and name in ('probing_accuracy', 'absorbed', 'likeness')
    """
    expected = []
    for row in query(db, sql).iter_rows(named=True):
        error = ["±", number(row["stderr"], 2)]
        bounds = [
            [number(row[bound]), *row[f"{bound}_is"].replace("_", " ").split()]
            if row[bound] is not None
            else []
            for bound in ("floor", "ceiling")
        ]
        expected.append(
            [
                [row["name"], row["definition"]],
                row["dial"].replace("=", " = ").split(),
                row["variant"].split(),
                [number(row["value"]), *error],
                [number(row["n"]), *row["unit"].split()],
                *bounds,
                [row["better"]],
            ]
        )
    assert len(shown) == 4 * 4 + 4 + 2
    assert sorted(shown) == sorted(expected)


def test_families_are_the_means_of_the_scorecard_over_seeds(db, answers):
    view = query(
        db,
        "select family, name, dial, value, floor, ceiling, num_seeds from scorecard_over_seeds"
        " where experiment = 'e' and value is not null and definition in ('top_k', 'v1')"
        " and name <> 'probing_auc'",
    )
    ours = answers["scores_over_seeds"].filter(pl.col("metric") != "stability")
    assert sorted(ours.select(view.columns).rows()) == sorted(view.rows())


def test_an_interval_is_over_seeds_where_there_are_several(answers):
    rows = over_seeds(answers, "absorption")
    both = rows.filter(family="topk-w64-k8").row(0, named=True)
    low, high = stats.ttest_1samp([0.30, 0.28], 0).confidence_interval(0.95)
    assert (both["num_seeds"], both["value"]) == (2, pytest.approx(0.29))
    assert both["half"] == pytest.approx((high - low) / 2)
    alone = rows.filter(family="gated-w64").row(0, named=True)
    assert (alone["num_seeds"], alone["half"]) == (1, pytest.approx(1.96 * 0.03))


def test_floor_and_ceiling_are_drawn_and_named(section):
    probing = panel(section, "probing, by k")
    assert "top_k; floor: random sae; ceiling: dense probe" in probing
    assert "higher is better →" in probing
    absorbed = unescape(panel(section, "absorption"))
    assert "← lower is better" in absorbed
    assert f"floor: {HOSTILE}" in absorbed
    # three families, each with a floor of its own
    assert absorbed.count(f"floor ({HOSTILE}): 0.61") == 3
    assert "ceiling (" not in absorbed
    likeness = panel(section, "stability")
    assert "is better" not in likeness
    assert "topk-w64-k8 ×2" in likeness


def test_marks_stand_where_their_numbers_are(answers):
    rows = over_seeds(answers, "absorption")
    chart = forest(rows).to_dict()
    encodings = [layer["encoding"]["x"]["field"] for layer in chart["layer"]]
    assert encodings == ["floor", "ceiling", "low", "value"]
    low, high = chart["layer"][0]["encoding"]["x"]["scale"]["domain"]
    # the points and the floor; the interval over two seeds ends at the edge
    assert low < 0.29
    assert high > 0.61
    assert high - low < 2 * (0.61 - 0.29)
    # the best, here the lowest, is on top
    names = chart["layer"][0]["encoding"]["y"]["sort"]
    assert [name.removesuffix(" ×2") for name in names[:2]] == ["topk-w64-k8", "gated-w64"]


def test_a_dial_makes_lines(answers):
    rows = over_seeds(answers, "probing").with_columns(
        turned=pl.lit("k"), setting=pl.col("dial").str.strip_prefix("k=").cast(pl.Float64)
    )
    chart = lines(rows).to_dict()
    assert chart["layer"][0]["encoding"]["x"]["axis"]["values"] == list(map(float, K))
    drawn = ElementTree.fromstring(to_svg(lines(rows)))
    points = [one.text for one in drawn.iter() if one.tag.endswith("title")]
    assert "gated-w64, k=5: 0.85" in points


def test_hostile_names_are_shown_and_do_not_act(html, section):
    assert HOSTILE not in html
    assert HOSTILE in unescape(section)
    assert f"no questions {HOSTILE}" in unescape(section)
    for svg in re.findall(r"<svg role.*?</svg>", section, re.S):
        ElementTree.fromstring(svg)


def test_a_score_without_value_gives_its_reason(section):
    listed = unescape(re.sub(r"<[^>]+>", "", section.split("Without a value")[1]))
    assert "forgetting best, 4 SAEs" in listed
    assert ", …): no questions" in listed


def test_the_printed_sql_gives_the_numbers(html, db, answers):
    assert '<a href="#scores">' in html
    for name, answer in answers.items():
        printed = re.search(rf'id="sql-{name}"><summary>\w+</summary><pre>(.*?)</pre>', html, re.S)
        assert printed
        assert query(db, unescape(printed.group(1))).equals(answer)


def test_without_functional_metrics_there_is_no_section(tmp_path):
    define(tmp_path / "rows", DEFINITIONS)
    write(tmp_path / "rows", SITE, "v-s0", [measured("fvu", 0.2, "ratio_of_sums")], 0)
    publish(tmp_path / "rows", tmp_path / "x.duckdb")
    page = study_report(tmp_path / "x.duckdb", "e", tmp_path / "x.html").read_text("utf-8")
    assert 'id="scores"' not in page
    assert "#scores" not in page


def _many(num_families, num_metrics, dials=("",)):
    rows = [
        {
            "site": SITE,
            "family": f"topk-w{i}",
            "metric": f"metric_{m}",
            "name": f"score_{m}",
            "definition": "mean",
            "dial": dial,
            "better": "higher",
            "num_seeds": 1,
            "value": i / num_families,
            "stderr": 0.01,
            "floor": 0.0,
            "floor_is": "random",
            "ceiling": None,
            "ceiling_is": None,
        }
        for m in range(num_metrics)
        for dial in dials
        for i in range(num_families)
    ]
    kinds = {"ceiling": pl.Float64, "ceiling_is": pl.String}
    families = pl.DataFrame(rows, schema_overrides=kinds)
    one = families.with_columns(variant=pl.col("family"), reason=pl.lit(None, pl.String))
    best_first = one.sort("metric", "dial", "value", descending=[False, False, True])
    return {"scores_over_seeds": families, "scores": best_first}


def test_of_many_saes_the_best_are_drawn_and_the_others_counted():
    (found,) = scores(_many(80, 1)).panels
    assert f"the best {MAX_FAMILIES} of 80" in found.note
    assert "topk-w79" in found.svg
    assert ">topk-w67<" not in found.svg
    (found,) = scores(_many(80, 1, ("k=1", "k=2", "k=10"))).panels
    assert found.title == "metric 0, by k"
    assert f"the best {MAX_LINES} of 80" in found.note


def test_settings_without_order_have_a_picture_each():
    found = scores(_many(2, 1, ("method=a", "method=b", "method=c"))).panels
    assert [one.title for one in found] == [f"metric 0, method={name}" for name in "abc"]
    found = scores(_many(2, 1, ("k=1, f1=0.5", "k=2, f1=0.7", "k=3, f1=0.7"))).panels
    assert len(found) == 3
    found = scores(_many(2, 1, tuple(f"method={i}x" for i in range(6)))).panels
    assert len(found) == 4
    assert found[0].note.endswith("2 more settings in the table")


def test_pictures_end_somewhere(monkeypatch):
    monkeypatch.setattr("sae_lib.report.scores.MAX_PANELS", 2)
    found = scores(_many(1, 5))
    assert (len(found.panels), found.num_left_out) == (2, 3)


def test_of_a_long_table_the_best_at_each_setting_are_kept(monkeypatch):
    many = _many(10, 2, ("k=1", "k=2", "k=5"))
    assert scores(many).num_best is None
    assert len(scores(many).table) == scores(many).num_values == 60
    monkeypatch.setattr("sae_lib.report.scores.MAX_ROWS", 20)
    found = scores(many)
    assert (found.num_best, found.num_values, len(found.table)) == (3, 60, 18)
    assert {row["value"] for row in found.table} == {0.9, 0.8, 0.7}


def test_a_single_value_without_error_has_an_axis():
    rows = with_intervals(_many(1, 1)["scores_over_seeds"].with_columns(stderr=None, floor=None))
    chart = forest(rows.with_columns(pl.col("half", "floor").cast(pl.Float64))).to_dict()
    low, high = chart["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert low < 0 < high


def test_long_names_lose_their_middle_unless_they_would_look_alike():
    long = "jumprelu-w512-targetl016-formtarget_l0"
    assert shortened(["topk-w64", long]) == ["topk-w64", "jumprelu-w51…rmtarget_l0"]
    alike = [f"jumprelu-w51{i}-targetl016-formtarget_l0" for i in (2, 3)]
    assert shortened(alike) == alike
