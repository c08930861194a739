import re
from xml.etree import ElementTree

import polars as pl
import pytest

from sae_lib.report import plots
from sae_lib.report.theme import PALETTE, to_png, to_svg

POINTS = pl.DataFrame(
    {
        "site": ["s"] * 3,
        "variant": ["a", "b", "</text><script>alert(1)</script>"],
        "kind": ["topk", "topk", "relu"],
        "objective": ["plain", "plain", None],
        "d_sae": [2048] * 3,
        "l0": [16.0, 32.0, 30.0],
        "fvu": [0.2, 0.1, 0.3],
        "fvu_stderr": [0.01, None, 0.02],
        "delta_lm_loss": [0.1, -0.01, None],
        "delta_lm_loss_stderr": [0.01, 0.01, None],
        "is_pareto": [True, True, True],
        "is_pareto_in_loss": [True, True, None],
    }
)
BOUNDARY = pl.DataFrame(
    {
        "site": ["s"] * 4,
        "definition": ["mean_predictor", "pca_in_sample", "pca_in_sample", "identity"],
        "l0": [0.0, 16.0, 32.0, 192.0],
        "value": [1.0, 0.5, 0.4, 0.0],
    }
)
CURVES = pl.DataFrame(
    {
        "site": ["s"] * 400,
        "variant": ["a"] * 200 + ["b"] * 200,
        "step": [*range(200), *range(200)],
        "tokens": [*range(0, 2000, 10), *range(0, 2000, 10)],
        "name": ["fvu"] * 400,
        "value": [1.0 / (1 + i % 200) for i in range(400)],
    }
)
BINS = pl.DataFrame(
    {
        "site": ["s"] * 4,
        "variant": ["a", "a", "b", "a"],
        "low": [-3.0, -2.8, -2.9, -10.0],
        "high": [-2.9, -2.7, -2.8, -9.9],
        "value": [0.4, 0.5, 1.0, 0.1],
    }
)
SWEEP = pl.DataFrame(
    {
        "label": ["latent", "latent", "random"],
        "name": ["overall"] * 3,
        "strength": [0.5, 1.0, 0.5],
        "value": [0.2, 0.6, None],
        "stderr": [0.1, None, None],
    }
)
BARS = pl.DataFrame(
    {
        "label": ["ours", "theirs"],
        "value": [0.8, 0.9],
        "stderr": [0.02, None],
        "is_sae": [True, False],
    }
)

CHARTS = {
    "frontier": lambda: plots.frontier(POINTS, boundary=BOUNDARY),
    "frontier in loss": lambda: plots.frontier(POINTS, "delta_lm_loss"),
    "curves": lambda: plots.training_curves(CURVES, "fvu"),
    "density": lambda: plots.density_histogram(BINS),
    "steering": lambda: plots.steering_sweep(SWEEP, "overall"),
    "selection": lambda: plots.selection_coverage(SWEEP.rename({"strength": "n"})),
    "probing": lambda: plots.probe_bars(BARS),
}


def _titles(svg):
    """Texts that appear when the pointer rests on a mark."""
    root = ElementTree.fromstring(svg)
    return [node.text for node in root.iter() if node.tag.endswith("title")]


def _texts(svg):
    root = ElementTree.fromstring(svg)
    return [node.text for node in root.iter() if node.tag.endswith("text") and node.text]


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_drawn_with_titles_on_its_axes(name):
    chart = CHARTS[name]()
    svg = to_svg(chart)
    spec = str(chart.to_dict())
    axes = re.findall(r"'title': '([^']+)'", spec)
    assert axes
    assert set(axes) <= set(_texts(svg))
    assert to_png(chart, scale=1.0).startswith(b"\x89PNG")


def test_the_frontier_draws_each_sae_once_and_names_it():
    titles = _titles(to_svg(CHARTS["frontier"]()))
    assert len(titles) == 3
    assert "a: L0 16, fvu 0.2" in titles


def test_a_hostile_name_stays_text():
    svg = to_svg(CHARTS["frontier"]())
    assert "<script" not in svg
    assert any(title.startswith("</text><script>") for title in _titles(svg))


def test_references_are_named_and_the_identity_is_not_on_a_log_axis():
    texts = _texts(to_svg(CHARTS["frontier"]()))
    assert {"mean predictor", "principal components"} <= set(texts)
    without = _texts(to_svg(plots.frontier(POINTS)))
    assert "mean predictor" not in without


def test_a_loss_without_values_has_no_chart():
    nothing = POINTS.with_columns(delta_lm_loss=pl.lit(None, pl.Float64))
    assert plots.frontier(nothing, "delta_lm_loss") is None
    assert plots.training_curves(CURVES, "l0") is None
    assert plots.density_histogram(BINS.clear()) is None
    assert plots.steering_sweep(SWEEP, "fluency") is None
    assert plots.probe_bars(BARS.clear()) is None


def test_missing_losses_are_left_out_and_the_others_drawn():
    assert len(_titles(to_svg(CHARTS["frontier in loss"]()))) == 2


def test_every_number_of_a_training_has_a_curve_the_known_ones_first():
    names = ["tokens_per_second", "aux", "dead_share", "grad_norm", "loss", "fvu", "empty"]
    rows = pl.DataFrame({"name": names, "value": [1.0] * 6 + [None]})
    assert plots.curve_names(rows) == [
        "fvu",
        "loss",
        "dead_share",
        "grad_norm",
        "tokens_per_second",
        "aux",
    ]
    for name in plots.curve_names(rows):
        curve = CURVES.with_columns(name=pl.lit(name))
        title = plots.CURVES.get(name, name)
        assert title in str(plots.training_curves(curve, name).to_dict())


def _curves_of(variants):
    return pl.concat(CURVES.filter(variant="a").with_columns(variant=pl.lit(v)) for v in variants)


def _encoding(chart):
    return chart.to_dict()["encoding"]


def test_few_saes_have_a_line_each_and_of_many_those_of_a_family_share_one():
    few = [f"topk-k{k}-s{seed}" for k in range(4) for seed in range(2)]
    many = [f"topk-k{k}-s{seed}" for k in range(10) for seed in range(3)]
    for variants, names in ((few, set(few)), (many, {f"topk-k{k}" for k in range(10)})):
        chart = plots.training_curves(_curves_of(variants), "fvu")
        assert names <= set(_texts(to_svg(chart)))
        assert _encoding(chart)["color"]["scale"]["domain"] == sorted(names)
        assert chart.data["variant"].n_unique() == len(variants)


def test_a_colour_that_comes_around_again_has_another_dash():
    chart = plots.training_curves(_curves_of(f"v{i:02}" for i in range(20)), "fvu")
    colours, dashes = (_encoding(chart)[name]["scale"]["range"] for name in ("color", "strokeDash"))
    assert len(set(zip(colours, map(tuple, dashes), strict=True))) == 20


@pytest.mark.parametrize("length", [8, 60, 200])
def test_long_names_do_not_make_a_picture_wider(length):
    names = [f"{'x' * length}-{i}" for i in range(5)]
    for chart in (
        plots.training_curves(_curves_of(names), "fvu"),
        plots.frontier(pl.concat(POINTS.with_columns(kind=pl.lit(name)) for name in names)),
    ):
        width = float(ElementTree.fromstring(to_svg(chart)).get("width"))
        assert width < 1.3 * plots.WIDTH


def test_training_strategies_are_families_of_their_own():
    other = POINTS.with_columns(objective=pl.lit("end_to_end"))
    texts = _texts(to_svg(plots.frontier(pl.concat([POINTS, other]))))
    assert {"topk 2048", "topk 2048, end_to_end", "relu 2048, end_to_end"} <= set(texts)


def test_curves_keep_the_first_and_the_last_point():
    data = plots.training_curves(CURVES, "fvu", max_points=10).data
    assert data.group_by("variant").len()["len"].to_list() == [11, 11]
    assert data["tokens"].min() == 0
    assert data["tokens"].max() == 1990


def test_the_histogram_fills_gaps_with_zeros_and_leaves_silent_latents_out():
    data = plots.density_histogram(BINS).data.filter(variant="a").sort("low")
    assert data["low"].to_list() == pytest.approx([-3.1, -3.0, -2.9, -2.8, -2.7])
    assert data["value"].to_list() == [0.0, 0.4, 0.0, 0.5, 0.0]


def test_several_sites_become_panels():
    two = pl.concat([POINTS, POINTS.with_columns(site=pl.lit("t"))])
    assert {"s", "t"} <= set(_texts(to_svg(plots.frontier(two))))
    assert len(_titles(to_svg(plots.frontier(two, boundary=BOUNDARY)))) == 6


def test_an_inherited_picture_takes_the_colour_of_its_page():
    svg = to_svg(CHARTS["curves"](), theme="inherit")
    assert "currentColor" in svg
    assert "xmlns" not in svg
    assert not re.search(r'(fill|stroke)="(#fff|white|#000|black)', svg)


def test_light_and_dark_differ_in_background():
    pictures = {theme: to_svg(CHARTS["curves"](), theme=theme) for theme in ("light", "dark")}
    assert 'fill="#ffffff"' in pictures["light"]
    assert 'fill="#0d1117"' in pictures["dark"]


def test_ids_of_two_pictures_differ():
    clipped = CHARTS["frontier"]()
    for layer in clipped.layer:
        layer.mark.clip = True
    a, b = (to_svg(clipped, prefix=prefix) for prefix in ("a-", "b-"))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (a, b)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", a)) <= ids[0]


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#0d1117"])
def test_every_colour_stands_out_from_both_backgrounds(background):
    for colour in PALETTE:
        low, high = sorted((_luminance(colour), _luminance(background)))
        assert (high + 0.05) / (low + 0.05) > 2.0, colour
