import json
import re
import shutil
import subprocess

import pytest

from sae_lib.report.world import world_page
from sae_lib.synthetic.world.concepts import CONCEPTS
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document
from sae_lib.synthetic.world.kinds import KINDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROWS = [
    {"what": what, "part": "all", "value": value, "stderr": None, "n": 9, "unit": unit,
     "goal": goal, "reached": reached, "description": "a <b>test</b>"}
    for what, value, unit, goal, reached in (
        ("floor", 0.7, "nats per token", None, None),
        ("excess", 0.0123, "nats per token", 0.1, True),
        ("recall", 0.5, "share", 0.95, False),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("page") / "world.html"
    concepts = [{"concept": "animal", "frequency": 0.0321}]
    world_page(file, concepts, {"world": ROWS}, per_kind=1, cfg=WorldConfig(chat=True))
    return file.read_text()


def test_every_kind_has_a_document_and_every_concept_a_line(page):
    for kind in KINDS.values():
        assert f"<h3>{kind.name}" in page
    assert page.count('class="doc"') == len(KINDS)
    assert page.count("data-k=") == len(CONCEPTS)
    assert "0.0321" in page


def test_words_carry_the_places_of_their_concepts(page):
    (names,) = re.findall(r'id="names">(.*?)</script>', page, re.DOTALL)
    names = json.loads(names)
    assert names == list(CONCEPTS)
    doc = document(WorldConfig(kind_weights={"story": 1.0}), 0, split="test")
    (section,) = re.findall(r"<h3>story.*?</div></div>", page, re.DOTALL)
    words = re.findall(r'data-c="([\d ]*)">([^<]*)<', section)
    assert [word for _, word in words] == [w.replace("'", "&#39;") for w in doc.tokens]
    for (places, _), concepts in zip(words, doc.concepts, strict=True):
        assert {names[int(place)] for place in places.split()} == concepts


def test_markers_and_descriptions_stay_text(page):
    assert "&lt;user&gt;" in page
    assert "<user>" not in page
    assert "a &lt;b&gt;test&lt;/b&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', page), "nothing is fetched"


def test_what_was_measured_is_shown_and_what_was_missed_is_marked(page):
    assert "0.0123 nats per token" in page
    assert re.search(r'<td class="num warn" data-value="0.5">', page)


def test_a_page_without_measurements_says_how_to_make_them(tmp_path):
    file = world_page(tmp_path / "w.html", [], {}, per_kind=1)
    assert "sae world report" in file.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_a_word_shows_its_concepts_and_a_concept_its_words(page, tmp_path):
    script = """
    <script>
    const word = [...document.querySelectorAll(".doc button")].find(b => b.textContent === "once");
    word.click();
    const chips = [...document.querySelectorAll("#panel .chip")];
    const story = chips.find(c => c.textContent === "kind-story");
    story.click();
    const on = [...document.querySelectorAll(".doc button.on")].length;
    document.title = JSON.stringify([chips.map(c => c.textContent), on]);
    </script></body>"""
    (tmp_path / "page.html").write_text(
        re.sub(r"<meta http-equiv[^>]+>", "", page).replace("</body>", script)
    )
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
         "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (title,) = re.findall(r"<title>(\[.*?)</title>", done.stdout)
    chips, on = json.loads(title)
    doc = document(WorldConfig(kind_weights={"story": 1.0}), 0, split="test")
    assert set(chips) == doc.concepts[0]
    assert on == len(doc.tokens)
