import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest

from sae_lib.errors import MissingFile, UnknownName
from sae_lib.report.questions import QUESTIONS
from sae_lib.report.study import count, number, study_report
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import ApplicationRow, Measurement
from sae_lib.warehouse.write import Provenance, write_rows

VOID = {"meta", "link", "br", "img", "hr", "input"}
LOADS = {"src", "href", "srcset", "data", "action", "xlink:href", "poster", "background"}
VARIANT = "topk-w2048-k16-s0"
HOSTILE = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would see: text, tags, links, scripts; fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.references, self.texts, self.scripts = [], [], [], [], []
        self.ids, self.handlers = [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in LOADS:
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append((name, value))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def html(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    assert study_report(study.db, "world-variants", out) == out
    return out.read_text("utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_is_well_formed_and_small(html, page):
    assert html.startswith("<!doctype html>")
    assert page.tags.count("svg") > 10
    assert len(html.encode()) < 5_000_000
    assert len(page.ids) == len(set(page.ids))


def test_the_page_loads_nothing_from_anywhere(html, page):
    assert all(reference.startswith("#") for reference in page.references)
    assert set(reference[1:] for reference in page.references) <= set(page.ids)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.S))
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in "".join(page.scripts)


def test_only_the_pages_own_script_may_run(html, page):
    assert page.tags.count("script") == 1
    assert not page.handlers
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html).group(1)
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "'unsafe-eval'" not in policy


def test_hostile_tokens_are_shown_and_do_not_act(html, page):
    assert HOSTILE not in html
    assert HOSTILE in "".join(page.texts)
    assert "U+200B" in page.text
    assert "↵" in page.text


def test_every_section_has_its_numbers(page):
    text = page.text
    for expected in (
        "world-variants",
        "TopK against ReLU",
        "fp-4be1c09a77d2",
        "8 all that were declared; 2 did not finish",
        "0.085 ± 0.0028",
        "diverged",
        "loss not finite at step 900",
        "0.061 ± 0.008",
        "principal components",
        "whole activation",
        "difference in means",
        "Documents covering the latents of topk-w2048-k64-s0",
        "animals: cat, dog",
        "suppresses",
        "sum |e|^2 / sum |x - mean(x)|^2",
        "torch 2.13",
        "00c0ffee",
    ):
        assert expected in text, expected


def test_the_printed_sql_runs_as_it_is_and_gives_rows(html, study):
    page = re.findall(r'<details id="sql-(\w+)"><summary>\w+</summary><pre>(.*?)</pre>', html, re.S)
    assert [name for name, _ in page] == list(QUESTIONS)
    empty = {"stale", "not_measured", "not_applied"}
    empty |= {"layer_groups", "site_distances", "chosen_contexts", "claims"}
    empty |= {"scores", "scores_over_seeds"}
    for name, sql in page:
        found = query(study.db, unescape(sql))
        assert (found.height > 0) == (name not in empty), name


def test_a_token_is_as_dark_as_it_is_strong(html):
    shares = re.findall(r'class="on(?: peak)?" style="--a:([\d.]+)" title="([\d.]+)"', html)
    assert ("1.00", "4") in shares
    assert ("0.75", "3") in shares
    assert all(0 <= float(share) <= 1 for share, _ in shares)


def test_without_a_language_model_head_the_page_says_so(build_study, tmp_path):
    study = build_study("loss")
    out = study_report(study.db, "world-variants", tmp_path / "r.html")
    text = Page(out.read_text("utf-8")).text
    assert "There is no plot of the loss added: the model has no language-model head." in text
    assert "L0 and unexplained variance" in text
    assert "Loss recovered" not in text


def test_missing_parts_say_why_they_are_missing(build_study, tmp_path):
    everything = ("applications", "explanations", "examples", "curves", "experiments", "metrics")
    study = build_study(*everything, "saes", "latents", "models", "selections", "definitions")
    out = study_report(study.db, "world-variants", tmp_path / "r.html")
    page = Page(out.read_text("utf-8"))
    assert "svg" not in page.tags
    for expected in (
        "The resolved experiment was not recorded",
        "No SAE has both an L0 and an unexplained variance yet",
        "There are no training curves",
        "Densities were not measured",
        "does not ask for probing, or it has not run yet",
        "does not ask for steering, or it has not run yet",
        "does not ask for selection, or it has not run yet",
        "No latent has been explained",
        "Nothing has been measured yet",
        "No SAE of this experiment has been built yet",
        "not built",
    ):
        assert expected in page.text, expected


def test_an_application_that_does_not_apply_says_why(build_study, tmp_path):
    study = build_study("applications")
    reason = "the model is an encoder; it does not write text."
    row = ApplicationRow("steering", "latent", "all", Measurement("x", None, "d", reason=reason))
    where = {"experiment": "world-variants", "site": "resid_post.2", "variant": VARIANT}
    write_rows(study.root, "applications", where, [row], Provenance("world", "fp"))
    publish(study.root, study.db)
    out = study_report(study.db, "world-variants", tmp_path / "r.html")
    assert f"No value: {reason}" in Page(out.read_text("utf-8")).text


def test_a_misspelt_experiment_is_answered_with_the_right_one(study, tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'world-variants'"):
        study_report(study.db, "world-variant", tmp_path / "r.html")
    with pytest.raises(MissingFile):
        study_report(tmp_path / "none.duckdb", "x", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0.12345, "0.123"),
        (2_000_000, "2,000,000"),
        (123456.7, "123,457"),
        (0.0, "0"),
        (-0.04, "-0.04"),
        (1.23e-7, "1.23e-07"),
    ],
)
def test_numbers_are_written_for_people(value, expected):
    assert number(value) == expected


def test_things_are_counted_in_words():
    assert (count(1, "site"), count(2, "site")) == ("1 site", "2 sites")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


def _opened(folder, page, anchor=""):
    """The document after a browser has opened ``page`` and run what it may run."""
    (folder / "page.html").write_text(page)
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            (folder / "page.html").as_uri() + anchor,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@in_a_browser
def test_the_content_policy_lets_the_pages_script_run_and_no_other(html, tmp_path):
    other = "<script>document.title = 'hacked'</script></body>"
    dom = _opened(tmp_path, html.replace("</body>", other), "#sql-frontier")
    assert '<details id="sql-frontier" open="">' in dom
    assert "<title>hacked</title>" not in dom


@in_a_browser
def test_a_click_on_a_heading_sorts_the_table_with_gaps_last(html, tmp_path):
    """In a real browser, with the page's content policy replaced so that a test script may run."""
    script = """
    <script>
    const table = document.getElementById("leaderboard");
    const button = [...table.querySelectorAll("th button")].find(b => b.textContent === "FVU");
    const column = button.parentElement.cellIndex;
    const read = () => [...table.tBodies[0].rows].map(r => r.cells[column].dataset.value);
    table.tBodies[0].rows[3].cells[column].dataset.value = "";
    button.click(); const up = read();
    button.click(); const down = read();
    document.title = JSON.stringify([up, down, button.parentElement.getAttribute("aria-sort")]);
    </script></body>"""
    loose = re.sub(r"<meta http-equiv[^>]+>", "", html).replace("</body>", script)
    dom = _opened(tmp_path, loose)
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found
    up, down, state = json.loads(found.group(1))
    numbers = [float(value) for value in up[:-1]]
    assert numbers == sorted(numbers)
    assert down[:-1] == up[:-1][::-1]
    assert up[-1] == down[-1] == ""
    assert state == "descending"


def test_every_curve_of_a_training_is_on_the_page(html):
    section = html.split('<section id="training">')[1].split("</section>")[0]
    first, others = section.split("<details><summary>Loss terms")
    captions = [re.findall("<figcaption>(.*?)</figcaption>", part) for part in (first, others)]
    assert captions[0] == ["Unexplained variance", "Latents on", "Dead latents"] * 2
    assert captions[1] == ["Gradient norm", "Speed", "aux"] * 2
