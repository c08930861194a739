"""The section about variants: intervals over seeds, groups of layers, chosen contexts."""

import json
import re
import shutil
from datetime import UTC, datetime
from html import unescape
from xml.etree import ElementTree

import polars as pl
import pytest
import yaml
from playwright.sync_api import sync_playwright
from scipy import stats

from sae_lib.errors import UnknownName
from sae_lib.report.figures import figures
from sae_lib.report.questions import QUESTIONS
from sae_lib.report.study import study_report
from sae_lib.report.survey import declared_table, measured, measured_table, row_of
from sae_lib.report.theme import to_svg
from sae_lib.report.variants import (
    are_compared,
    clusterings,
    families_at_l0,
    forest,
    with_intervals,
)
from sae_lib.training.survey import ROWS
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import ApplicationRow, Measurement
from sae_lib.warehouse.write import Provenance, write_rows

SITES = ("resid_post.1", "resid_post.2", "resid_post.3")
LONG = "topk-w64-k8-specialized-tiltbyspread1-retrievebm25-conceptarchery-contexts500-" + "x" * 90
GROUPED = "topk-w64-k8-layer_group-groups2"
FAMILIES = {
    "standard-w64-targetl08": ("standard", "plain", 0.30),
    "gated-w64-targetl08": ("gated", "plain", 0.20),
    LONG: ("topk", "specialized", 0.25),
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=alert(1)>"


def _write(root, table, site, variant, rows, sae=None):
    where = {"experiment": "e", "site": site, "variant": variant}
    seen = Provenance("world", "fp", sae, "art", 0, datetime(2026, 1, 1, tzinfo=UTC))
    write_rows(root, table, where, rows, seen)


def _sae(root, site, variant, kind, objective, fvu, seed):
    sae = f"id-{site}-{variant}"
    row = {
        "kind": kind,
        "objective": objective,
        "d_in": 8,
        "d_sae": 64,
        "config": {},
        "train": {},
        "packages": {},
        "status": "complete",
        "tokens": 1000,
        "cpu_seconds": 2.0 + seed,
        "flops": 2.0e6,
    }
    _write(root, "saes", site, variant, [row], sae)
    metrics = [
        Measurement("l0", 8 + 0.1 * seed, "mean_of_tokens"),
        Measurement("fvu", fvu + 0.01 * seed, "ratio_of_sums"),
        Measurement("loss_recovered", 1 - fvu - 0.01 * seed, "zero_ablation_kept"),
        Measurement("relative_reconstruction_bias", 0.75, "ratio_of_sums"),
    ]
    _write(root, "metrics", site, variant, metrics, sae)
    found = Measurement("coverage", 0.4375, "one_to_one", params={"f1": 0.8})
    rows = [ApplicationRow("concepts", "sae", "all", found)]
    _write(root, "applications", site, variant, rows, sae)


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Three families at a site with three seeds each, and a layer group at three sites."""
    folder = tmp_path_factory.mktemp("variants")
    root, db = folder / "rows", folder / "results.duckdb"
    for family, (kind, objective, fvu) in FAMILIES.items():
        for seed in range(3):
            _sae(root, "resid_post.2", f"{family}-s{seed}", kind, objective, fvu, seed)
    for site in SITES:
        _sae(root, site, f"{GROUPED}-s0", "topk", "layer_group", 0.4, 0)
    distances = [(0, 1, 0.1), (0, 2, 0.3), (1, 2, 0.25)]
    rows = [
        {"site_a": SITES[a], "site_b": SITES[b], "distance": d, "num_tokens": 500}
        for a, b, d in distances
    ]
    _write(root, "site_distances", "", "", rows)
    cuts = {1: ([0, 1, 2],), 2: ([0, 1], [2]), 3: ([0], [1], [2])}
    rows = [
        {"num_groups": number, "group": group, "member": SITES[place], "amad": 0.3 / number}
        for number, groups in cuts.items()
        for group, places in enumerate(groups)
        for place in places
    ]
    _write(root, "layer_groups", "", "", rows)
    for seed in (0, 1):
        rows = [
            {"rank": rank, "context": rank, "score": 9.5 - rank, "text": f"{rank} {HOSTILE}"}
            for rank in range(20)
        ]
        _write(root, "chosen_contexts", "resid_post.2", f"{LONG}-s{seed}", rows)
    saes = [
        {
            "variant": f"{GROUPED}-s0",
            "objective": {"kind": "layer_group", "groups": 2},
            "sites": SITES,
        },
        {"variant": f"{LONG}-s0", "objective": {"kind": "specialized"}, "sites": SITES[1:2]},
    ]
    seen = Provenance("world", "fp", created_at=datetime(2026, 1, 1, tzinfo=UTC))
    row = {"description": None, "config": {"saes": saes}, "packages": {}}
    write_rows(root, "experiments", {"experiment": "e"}, [row], seen)
    publish(root, db)
    return db


@pytest.fixture(scope="module")
def answers(db):
    found = {
        name: query(
            db, sql, {k: v for k, v in (("experiment", "e"), ("per_sae", 1)) if f"${k}" in sql}
        )
        for name, sql in QUESTIONS.items()
    }
    return {**found, "variants": with_intervals(found["variants"])}


@pytest.fixture(scope="module")
def html(db, tmp_path_factory):
    return study_report(db, "e", tmp_path_factory.mktemp("page") / "e.html").read_text("utf-8")


@pytest.fixture(scope="module")
def section(html):
    return html.split('<section id="variants">')[1].split("</section>")[0]


def test_half_an_interval_is_that_of_students_t_with_a_degree_less_than_seeds(answers):
    rows = answers["variants"].filter(family="gated-w64-targetl08").row(0, named=True)
    values = [0.20, 0.21, 0.22]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert rows["fvu"] == pytest.approx(0.21)
    assert rows["fvu_half"] == pytest.approx((high - low) / 2)
    assert rows["gamma_half"] == pytest.approx(0)


def test_one_seed_has_no_interval_and_families_are_numbered_by_site(answers):
    alone = answers["variants"].filter(family=GROUPED)
    assert alone["fvu_half"].to_list() == [None] * 3
    here = answers["variants"].filter(site="resid_post.2")
    assert here["number"].to_list() == [1, 2, 3, 4]
    assert here["fvu"].is_sorted()
    assert alone.filter(site="resid_post.3")["number"].to_list() == [1]


def _titles(svg):
    """Texts that appear when the pointer rests on a mark."""
    root = ElementTree.fromstring(svg)
    return [node.text or "" for node in root.iter() if node.tag.endswith("title")]


def _width(chart):
    return float(ElementTree.fromstring(to_svg(chart)).attrib["width"])


def _rows(chart):
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


@pytest.mark.parametrize("value", ["fvu", "loss_recovered"])
def test_the_picture_has_a_point_per_family_with_bars_both_ways(answers, value):
    here = answers["variants"].filter(site="resid_post.2")
    chart = families_at_l0(here, value)
    rows = {row["number"]: row for row in _rows(chart)}
    assert len(rows) == 4
    for row, family in zip(rows.values(), here.iter_rows(named=True), strict=True):
        half = family[f"{value}_half"]
        if half is None:
            assert row["low"] is None
            continue
        assert (row["low"] + row["high"]) / 2 == pytest.approx(family[value])
        assert row["high"] - row["low"] == pytest.approx(2 * half)
        assert row["left"] < row["l0"] < row["right"]
    svg = to_svg(chart)
    titles = _titles(svg)
    assert sum(title.startswith("no.") for title in titles) == 4
    for name in ("gated", "standard", "topk", "layer_group", "specialized"):
        assert f">{name}<" in svg
    assert chart.to_dict()["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"


def test_colour_is_the_architecture_and_shape_the_training(answers):
    encoding = families_at_l0(answers["variants"], "fvu").to_dict()["layer"][2]["encoding"]
    assert encoding["stroke"]["field"] == "kind"
    assert encoding["shape"]["field"] == "objective"
    assert len(set(encoding["shape"]["scale"]["range"])) == 3


def test_architectures_beyond_the_palette_are_hollow():
    kinds = [f"kind{i:02}" for i in range(12)]
    rows = pl.DataFrame(
        {"kind": kinds, "family": kinds, "fvu": [0.1 + 0.01 * i for i in range(12)]}
    )
    rows = rows.with_columns(
        site=pl.lit("s"),
        objective=pl.lit(None, pl.String),
        num_seeds=1,
        l0=16.0,
        fvu_stderr=pl.lit(None, pl.Float64),
        l0_stderr=pl.lit(None, pl.Float64),
    )
    encoding = families_at_l0(with_intervals(rows), "fvu").to_dict()["layer"][2]["encoding"]
    looks = list(
        zip(encoding["stroke"]["scale"]["range"], encoding["fill"]["scale"]["range"], strict=True)
    )
    assert len(set(looks)) == 12
    assert _width(families_at_l0(with_intervals(rows), "fvu")) < 400
    assert encoding["shape"]["legend"] is None


def test_what_was_not_measured_has_no_picture(answers):
    nothing = answers["variants"].with_columns(loss_recovered=pl.lit(None, pl.Float64))
    assert families_at_l0(nothing, "loss_recovered") is None
    assert forest(nothing, "loss_recovered") is None


def test_the_list_keeps_the_order_of_the_table(answers):
    here = answers["variants"].filter(site="resid_post.2")
    chart = forest(here, "loss_recovered").to_dict()
    (dots,) = [layer for layer in chart["layer"] if layer["mark"]["type"] == "point"]
    assert dots["encoding"]["y"]["sort"] == [
        "gated  1",
        "topk, specialized  2",
        "standard  3",
        "topk, layer_group  4",
    ]
    assert _width(forest(here, "fvu")) < 360


def test_the_tree_is_made_again_from_the_distances(answers):
    (one,) = clusterings(answers)
    assert one.sites == SITES
    assert one.divided == {GROUPED: (SITES[:2], SITES[2:])}
    assert one.cuts == (2,)
    assert one.found.linkage[:, 2].tolist() == pytest.approx([0.1, 0.3])


def test_groups_that_the_experiment_chose_itself_are_no_cut_of_the_tree(answers):
    saes = [
        {
            "variant": "own-s0",
            "objective": {"kind": "layer_group", "groups": [[SITES[0], SITES[2]], [SITES[1]]]},
            "sites": SITES,
        },
        {
            "variant": "other-s0",
            "objective": {"kind": "layer_group", "groups": 2},
            "sites": SITES[:2],
        },
    ]
    asked = answers["experiment"].with_columns(config=pl.lit(json.dumps({"saes": saes})))
    (one,) = clusterings({**answers, "experiment": asked})
    assert one.divided == {"own": ((SITES[0], SITES[2]), (SITES[1],))}
    assert one.cuts == (1,)


def test_the_section_has_pictures_of_the_site_with_several_families_only(answers):
    made = figures(answers, clusterings(answers))
    assert [figure.site for figure in made["variants"]] == ["resid_post.2"] * 4
    assert [figure.title for figure in made["layer_groups"]] == [
        "Cut into 2 groups",
        "What each number of groups costs",
    ]


def test_the_section_has_every_number(section):
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section)))
    half = stats.t.ppf(0.975, 2) * 0.01 / 3**0.5
    for expected in (
        f"0.21 ± {half:.2g}",
        f"8.1 ± {10 * half:.2g}",
        "0.75 ± 0",
        "3 ± 2.5",
        "2,000",
        "concept coverage",
        "0.438",
        "95 % intervals over seeds",
        f"{GROUPED}: resid_post.1, resid_post.2 – resid_post.3",
        "the 8 contexts nearest to the domain",
        f"0 {HOSTILE}",
        LONG,
    ):
        assert expected in text, expected
    assert "MMCS" not in text
    assert HOSTILE not in section


def test_contexts_of_one_seed_stand_for_the_family(answers):
    assert answers["chosen_contexts"]["rank"].to_list() == list(range(8))


def test_one_architecture_and_training_is_no_study_over_variants(answers):
    families = answers["variants"]
    assert are_compared(families)
    assert not are_compared(families.filter(family="gated-w64-targetl08"))
    assert not are_compared(families.clear())
    assert are_compared(families.filter(kind="topk"))


def test_names_without_end_do_not_make_the_page_wider_than_the_screen(html, tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    (tmp_path / "e.html").write_text(html)
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1300):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto((tmp_path / "e.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            # the picture with the longest name is as large as its neighbours
            sizes = page.eval_on_selector_all(
                "#variants .figures svg", "all => all.map(one => one.getBoundingClientRect().width)"
            )
            assert min(sizes) > 250
            name = page.locator("#leaderboard td.name", has_text=LONG[:20]).first
            box = name.bounding_box()
            assert box is not None
            assert box["width"] < 400
        browser.close()


def test_the_survey_table_finds_the_row_of_every_family(db):
    found = {(line["name"], line["site"]): line for line in measured(db, "e")}
    names = [name for name, _ in found]
    assert names == ["SAE", "Gated SAE", *["Layer Group SAE"] * 3, "Specialized SAE"]
    gated = found["Gated SAE", "resid_post.2"]
    assert (gated["seeds"], gated["fvu"]) == (3, pytest.approx(0.21))
    assert gated["fvu_half"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / 3**0.5)
    assert found["Layer Group SAE", "resid_post.3"]["fvu_half"] is None
    with pytest.raises(UnknownName, match="nothing"):
        measured(db, "nothing")


def test_the_survey_table_in_markdown_has_the_measured_columns_only(db):
    head, rule, first, *others = measured_table(db, "e").splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == [
        *("name", "site", "seeds", "L0", "FVU", "loss recovered", "γ", "concept coverage"),
        *("CPU s", "FLOPs / token"),
    ]
    assert rule.count("|") == head.count("|")
    assert first.startswith("| SAE | `resid_post.2` | 3 | 8.1 ± 0.25 | 0.31 ± 0.025 |")
    assert first.endswith("| 3 ± 2.5 | 2,000 |")
    assert len(others) == 5


@pytest.mark.parametrize(
    ("family", "kind", "objective", "config", "name"),
    [
        ("topk-w64-k8", "topk", "plain", {}, "TopK SAE"),
        ("gemma_scope-w64", "jumprelu", "plain", {}, "Gemma Scope recipe"),
        ("jumprelu-w64", "jumprelu", "plain", {}, "JumpReLU SAE"),
        ("x", "transcoder", "transcode", {"skip": False}, "Transcoder"),
        ("x", "transcoder", "transcode", {"skip": True}, "Skip transcoder"),
        ("x", "batch_topk", "end_to_end", {}, "End-to-end SAE"),
        ("x", "unheard", "plain", {}, None),
    ],
)
def test_a_family_is_a_row_by_preset_settings_and_training(family, kind, objective, config, name):
    row = row_of(family, kind, objective, json.dumps(config))
    assert (row.name if row else None) == name


def test_the_declared_table_has_every_row_with_its_dials():
    lines = declared_table().splitlines()[2:]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS, strict=True):
        assert line.startswith(f"| {row.name} | {'yes' if row.in_table else 'no'} | `{{")
        assert yaml.safe_load(re.findall("`({.*?})`", line)[0]) == row.entry
