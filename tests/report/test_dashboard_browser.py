"""The dashboard in a real browser: what people and keys do, and what hostile text cannot do."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sae_lib.report.dashboard import Dashboard, dashboard
from tests.report.synthetic_latents import Fixed, Synthetic

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")

WORDS = ["dog", "cat", "owl", "Elbe", "seven", "amber"]
EVIL = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
HOSTILE = [
    EVIL, "</script><script>alert(1)</script>", "--></style>", "\"'`><b>", "\u202egnp", "👨‍👩‍👧",
    "a\x00b", "**bold** [x](javascript:alert(1))", "y" * 5000, "\t\n\u00a0", "{{ 7 * 7 }}",
]  # fmt: skip
LABELS = [*WORDS, *HOSTILE]


def tables() -> dict[str, list[dict[str, Any]]]:
    """17 latents and a dead one; latent 2 is dense, 3 and 4 are duplicates, 0 is a concept."""
    found: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("latents", "explanations", "examples", "latent_pairs")
    }
    for i, word in enumerate(LABELS):
        found["latents"].append(
            {"latent": i, "density": 0.3 if i == 2 else 0.001 * (i + 1), "label": word,
             "max_activation": 2.0 + i, "mean_activation": 1.0, "std_activation": 0.5,
             "histogram": [3.0, 5.0, 1.0], "histogram_edges": [0.5, 1.0, 2.0, 4.0]}
        )  # fmt: skip
        # explained by the better method of each, so that scores go with the labels
        found["explanations"] += [
            {"latent": i, "method": "max_act", "text": f"fires on {word}", "keywords": [word],
             "keyword_scores": [1.0], "score": 0.9 - 0.05 * i, "score_definition": "f1"},
            {"latent": i, "method": "vocab_proj", "text": f"promotes {word}",
             "keywords": [word, "the"], "keyword_scores": [2.0, -1.0], "score": None,
             "score_definition": None},
        ]  # fmt: skip
        shared = {"latent": i, "document": i, "position": 1, "peak": 1,
                  "tokens": ["Once", f" {word}", " barked", "\n"]}  # fmt: skip
        more = {"kind": "top", "interval": None, "low": None, "high": None, "share": None,
                "other": None, "activations": [0.0, 2.0 + i, 1.0, 0.0]}  # fmt: skip
        silent = {"activations": [0.0] * 4, "max_activation": 0.0, "rank": 0}
        found["examples"] += [
            {**shared, **more, "rank": 0, "max_activation": 2.0 + i},
            {**shared, **more, "rank": 0, "max_activation": 1.0, "kind": "quantile", "interval": 1,
             "low": 0.5, "high": 1.0, "share": 0.25},
            {**shared, **more, **silent, "kind": "silent"},
            {**shared, **more, **silent, "kind": "near_miss", "other": (i + 1) % len(LABELS)},
        ]  # fmt: skip
        cosine = 0.95 if i in (3, 4) else 0.3
        other = {3: 4, 4: 3}.get(i, (i + 1) % len(LABELS))
        found["latent_pairs"] += [
            {"latent": i, "other": other, "kind": "decoder", "rank": 0, "value": cosine,
             "num_tokens": None, "share": None, "lift": None},
            {"latent": i, "other": 0 if i else 5, "kind": "cofire", "rank": 0, "value": 0.2,
             "num_tokens": 7, "share": 0.5, "lift": 3.0},
        ]  # fmt: skip
    found["latents"].append({"latent": len(LABELS), "density": 0.0, "label": None,
                             "max_activation": 0.0, "mean_activation": None,
                             "std_activation": None, "histogram": None,
                             "histogram_edges": None})  # fmt: skip
    params = {"latent": 0, "precision": 0.8, "recall": 0.6, "best_latent": 0, "best_f1": 0.7}
    found["applications"] = [{"application": "concepts", "method": "sae", "name": "f1",
                              "task": "animal-dog", "value": 0.7,
                              "params": json.dumps(params)}]  # fmt: skip
    found["latent_scores"] = [
        {"latent": i, "metric": "geometry", "name": name, "definition": "principal_axis",
         "value": value, "method": None}
        for i in range(len(LABELS))
        for name, value in (("map_x", float(i % 5)), ("map_y", float(i // 5)))
    ]  # fmt: skip
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dashboard") / "page.html"
    dashboard(Fixed(tables()), path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as browsers:
        found = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser, file: Path):
    """Opens the page; afterwards it must have said nothing, and asked the network for nothing."""
    opened: list[Page] = []
    said: list[str] = []

    def open_it(address: str = "", *, width: int = 1300, path: Path = file, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 850}, **options)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda one: said.append(one.url) if "file:" not in one.url else None)
        page.goto(path.as_uri() + address)
        page.wait_for_selector("html[data-ready]", timeout=30_000)
        page.wait_for_selector("#latent .tiles", state="attached")
        opened.append(page)
        return page

    yield open_it
    for page in opened:
        page.context.close()
    assert said == []


def listed(page: Page) -> list[int]:
    return page.evaluate("order.map(i => index.latent[i])")


def shown(page: Page) -> str:
    page.wait_for_selector("#latent:not([aria-busy])")
    return page.locator("#latent .step > span").inner_text()


def test_search_finds_labels_explanations_and_example_words(open_page):
    page = open_page()
    page.wait_for_selector("html[data-searchable]")
    page.keyboard.press("/")
    page.keyboard.type("DOG")
    expect(page.locator("#count")).to_contain_text("1 of 18")
    assert listed(page) == [0]
    page.fill("#query", "barked owl")
    expect(page.locator(".row")).to_have_count(1)
    assert listed(page) == [2]
    expect(page.locator(".row .facts")).to_contain_text("in examples")
    page.fill("#query", '"once owl"')  # across tokens, as it is read
    expect(page.locator(".row")).to_have_count(1)
    page.fill("#query", "animal-dog")  # by concept
    expect(page.locator(".row")).to_have_count(1)
    page.fill("#query", "#5")
    expect(page.locator(".row")).to_have_count(1)
    assert listed(page) == [5]
    page.fill("#query", "nowhere")
    expect(page.locator("#rows")).to_contain_text("Nothing found")
    page.keyboard.press("Escape")
    expect(page.locator("#query")).to_have_value("")


def test_sorting_puts_missing_values_last_in_either_direction(open_page):
    page = open_page("#dead=show")
    page.select_option("#sort", "density")
    assert listed(page)[:2] == [2, 16]
    page.click("#direction")
    assert listed(page)[0] == 17  # the dead one has a density
    page.select_option("#sort", "f1")
    assert listed(page)[0] == 0
    page.click("#direction")
    assert listed(page)[0] == 0
    page.select_option("#sort", "score")
    assert listed(page)[:3] == [0, 1, 2]
    page.select_option("#sort", "max")
    assert listed(page)[0] == 16
    page.select_option("#sort", "index")
    assert listed(page) == list(range(18))


def test_filters_and_the_brush_narrow_the_list(open_page):
    page = open_page("#sort=index")
    expect(page.locator("#count")).to_contain_text("17 of 18 latents, 1 dead hidden")
    page.click("#filters summary")
    page.select_option("[data-filter=dead]", "only")
    assert listed(page) == [17]
    page.click("#clear")
    page.select_option("[data-filter=dense]", "only")
    assert listed(page) == [2]
    page.select_option("[data-filter=dense]", "show")
    page.select_option("[data-filter=duplicate]", "only")
    assert listed(page) == [3, 4]
    page.click("#clear")
    page.select_option("[data-filter=concept]", "only")
    assert listed(page) == [0]
    page.click("#clear")
    page.fill("[data-filter=s0]", "0.84")
    page.keyboard.press("Enter")
    assert listed(page) == [0, 1]
    page.click("#clear")
    box = page.locator("#overview").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] - 1, steps=3)
    page.mouse.up()
    expect(page.locator("#brushed")).to_contain_text("selected")
    assert 2 in listed(page)
    assert len(listed(page)) < 17
    page.locator("#overview").click(position={"x": 5, "y": 5})
    assert len(listed(page)) == 17


def test_keys_walk_through_everything(open_page):
    page = open_page("#sort=index")
    assert shown(page) == "latent 0"
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#latent .step > span")).to_have_text("latent 2")
    page.keyboard.press("k")
    expect(page.locator("#latent .step > span")).to_have_text("latent 1")
    page.focus("#list")
    page.keyboard.press("End")
    expect(page.locator("#latent .step > span")).to_have_text("latent 16")
    assert page.get_attribute("#list", "aria-activedescendant") == "r16"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "latent"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("j")  # a dialog keeps its keys
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    expect(page.locator("#latent .step > span")).to_have_text("latent 0")
    page.keyboard.press("/")
    page.keyboard.type("amber")
    page.keyboard.press("Enter")
    expect(page.locator("#latent .step > span")).to_have_text("latent 5")


def test_values_of_tokens_are_shown_to_pointer_and_keyboard(open_page):
    page = open_page("#latent=1")
    peak = page.locator("#latent .example .peak").first
    peak.hover()
    expect(page.locator("#tip")).to_have_text("3 100 % of its maximum")
    page.mouse.move(5, 5)
    expect(page.locator("#tip")).to_be_hidden()
    peak.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_have_text("0.999 33.3 % of its maximum")
    weaker = page.locator("#latent .on:not(.peak)").first
    assert weaker.evaluate("one => one.style.getPropertyValue('--a')") == "0.333"
    assert "rgba(" in weaker.evaluate("one => getComputedStyle(one).backgroundColor")


def test_an_address_survives_reloading_and_the_way_back(open_page):
    page = open_page("#latent=3&q=barked&sort=density&dir=back")
    page.wait_for_selector("html[data-searchable]")
    assert shown(page) == "latent 3"
    assert page.input_value("#query") == "barked"
    assert listed(page)[0] == 0
    page.locator(".near a", has_text="#4").first.click()
    expect(page.locator("#latent .step > span")).to_have_text("latent 4")
    assert "latent=4&q=barked&sort=density&dir=back" in page.url
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#latent .step > span")).to_have_text("latent 4")
    page.go_back()
    expect(page.locator("#latent .step > span")).to_have_text("latent 3")
    page.goto(page.url.split("#")[0] + "#latent=999&sort=nonsense")
    assert shown(page)


def test_a_latent_shows_everything_that_is_known(open_page):
    page = open_page("#latent=3")
    text = page.locator("#latent").inner_text()
    for expected in (
        "Duplicate: cosine 0.95 with #4", "fires on Elbe", "f1 0.75", "promotes", "suppresses",
        "0.5 to 1", "25 % of its firing tokens", "3 × chance", "Near misses (1)", "Silent (1)",
    ):  # fmt: skip
        assert expected in text, expected
    assert page.locator("svg.histogram rect").count() == 3
    page.locator("[data-kind=near_miss] > summary").click()
    expect(page.locator("[data-kind=near_miss] .at a")).to_have_text("#4")
    page.locator("[data-panel=examples] .sql summary").click()
    sql = page.locator("[data-panel=examples] pre").inner_text()
    assert "experiment = 'e''x'" in sql
    assert sql.endswith("latent = 3;")
    page.goto(page.url.split("#")[0] + "#latent=0")
    expect(page.locator("[data-panel=concept]")).to_contain_text("animal-dog")
    expect(page.locator("[data-panel=concept]")).to_contain_text("F1 0.7")
    page.goto(page.url.split("#")[0] + "#latent=17")
    expect(page.locator(".warning")).to_contain_text("Dead")
    page.goto(page.url.split("#")[0] + "#latent=2")
    expect(page.locator(".warning")).to_contain_text("Dense: it fires on 30 %")


def test_points_of_the_map_open_their_latents(open_page):
    page = open_page("#latent=0")
    page.keyboard.press("m")
    expect(page.locator("#map-panel")).to_be_visible()
    spot = page.evaluate(
        "() => { const c = document.getElementById('map'); const [x, y] = "
        "placed(c.clientWidth, c.clientHeight)(7); return {x, y}; }"
    )
    page.locator("#map").click(position=spot)
    expect(page.locator("#latent .step > span")).to_have_text("latent 7")
    painted = page.evaluate(
        "() => { const c = document.getElementById('map'); return [...c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data].some(one => one > 0); }"
    )
    assert painted
    page.focus("#map")
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("view.zoom") > 1
    page.keyboard.press("0")
    assert page.evaluate("view.zoom") == 1
    page.keyboard.press("Enter")  # the middle of a grid of five by four
    expect(page.locator("#latent .step > span")).to_have_text(re.compile("latent (7|12)"))
    page.select_option("#colour", "concept")
    expect(page.locator("#legend")).to_contain_text("animal")
    page.select_option("#colour", "f1")
    expect(page.locator("#legend")).to_contain_text("0.7")
    page.keyboard.press("Escape")
    page.locator("#map").hover(position=spot)
    expect(page.locator("#tip")).to_contain_text("#7")


def test_hostile_text_stays_text(open_page):
    page = open_page()
    for i, word in enumerate(LABELS):
        page.goto(page.url.split("#")[0] + f"#latent={i}")
        expect(page.locator("#latent .step > span")).to_have_text(f"latent {i}")
        if word == EVIL:
            assert EVIL in page.locator("#latent h2").inner_text()
        assert page.locator("#latent img, #latent script, #latent b script, .row img").count() == 0
    assert "owned" not in page.title() or "<img" in page.title()
    for i, expected in ((10, "U+202E"), (12, "U+0000"), (14, "4,840 more characters"), (15, "⇥")):
        page.goto(page.url.split("#")[0] + f"#latent={i}")
        expect(page.locator("#latent h2")).to_contain_text(expected)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.wait_for_selector("html[data-searchable]")
    page.fill("#query", "</script><script>alert")
    expect(page.locator(".row")).to_have_count(1)


def test_light_and_dark_follow_the_system_until_told_otherwise(open_page):
    def background(page: Page) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert background(light) != background(dark)
    night = background(dark)
    dark.keyboard.press("t")
    assert background(dark) == background(light)
    dark.reload()
    dark.wait_for_selector("html[data-ready]")
    assert background(dark) == background(light)
    light.click("#theme-button")
    assert background(light) == night


def contrast(page: Page, selector: str) -> float:
    """WCAG contrast of the text of an element against the first background behind it."""
    return page.evaluate(
        """selector => {
        const rgb = text => text.match(/[\\d.]+/g).map(Number);
        const one = document.querySelector(selector), ink = rgb(getComputedStyle(one).color);
        let back = [255, 255, 255], layers = [];
        for (let at = one; at; at = at.parentElement) {
          const found = rgb(getComputedStyle(at).backgroundColor);
          layers.push(found);
          if ((found[3] ?? 1) === 1) break;
        }
        for (const layer of layers.reverse()) {
          const alpha = layer[3] ?? 1;
          back = back.map((value, i) => alpha * layer[i] + (1 - alpha) * value);
        }
        const light = color => color.slice(0, 3).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page, scheme):
    page = open_page("#latent=3", color_scheme=scheme)
    for selector in (
        *(".row .facts", "#count", "#latent h2", "h3", ".said p", ".method", ".peak", ".warning"),
        *(".tile span", ".near a", ".badge", ".chip", ".row[aria-selected=true] .facts"),
    ):
        assert contrast(page, selector) >= 4.5, selector


def test_a_phone_shows_the_list_then_the_latent(open_page):
    page = open_page("#sort=index", width=375, has_touch=True)
    expect(page.locator("#main")).to_be_hidden()
    page.locator(".row").nth(8).tap()
    expect(page.locator("#side")).to_be_hidden()
    assert shown(page) == "latent 8"
    for i in (6, 8, 14):
        page.goto(page.url.split("#")[0] + f"#latent={i}")
        expect(page.locator("#latent .step > span")).to_have_text(f"latent {i}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate("document.getElementById('latent').scrollWidth") <= 375
    page.click(".back")
    expect(page.locator("#side")).to_be_visible()
    page.click("#map-button")
    expect(page.locator("#map")).to_be_visible()


def test_names_and_roles_are_there_for_those_who_do_not_see(open_page):
    page = open_page("#latent=3")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[tabindex], a")]
        .filter(one => !(one.getAttribute("aria-label") || one.textContent.trim()
          || one.closest("label"))).map(one => one.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("#list").get_attribute("role") == "listbox"
    row = page.locator(".row").first
    assert row.get_attribute("aria-setsize") == "17"
    assert page.locator(".row[aria-selected=true]").count() == 1
    assert page.locator("svg.histogram").get_attribute("aria-label").startswith("Activations of 9")


def test_an_old_browser_is_told_what_is_missing(browser, file):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(file.as_uri())
    expect(page.locator("#problem")).to_contain_text("DecompressionStream is missing")
    page.close()


def test_little_movement_is_honoured(open_page):
    page = open_page(reduced_motion="reduce")
    assert (
        page.evaluate("getComputedStyle(document.getElementById('latent')).transitionDuration")
        == "0s"
    )


@pytest.mark.slow
def test_the_first_view_of_16384_latents_comes_within_two_seconds(open_page, wide_page: Dashboard):
    page = open_page(path=wide_page.path)
    assert int(page.get_attribute("html", "data-ready") or "99999") < 2000
    assert page.locator(".row").count() < 60  # only what can be seen is drawn
    page.wait_for_selector("html[data-searchable]", timeout=120_000)
    page.focus("#list")
    page.keyboard.press("End")
    expect(page.locator(".row[aria-selected=true]")).to_be_visible()


def test_many_latents_are_drawn_row_by_row(open_page, tmp_path):
    dashboard(Synthetic(512), tmp_path / "p.html")
    page = open_page("#sort=index&dead=show", path=tmp_path / "p.html")
    assert listed(page)[0] == 0
    page.evaluate("document.getElementById('list').scrollTop = 56 * 400")
    page.wait_for_function("document.getElementById('r400') !== null")
    assert page.locator(".row").count() < 60
