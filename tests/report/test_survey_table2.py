"""The survey's Table 2: what is published, and the same rows for an experiment."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from sae_lib.errors import UnknownName
from sae_lib.report import survey_table2 as table2
from sae_lib.report.survey_table2 import LINES, SAES, cells, land, measured, readable
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.write import Provenance, write_rows

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Home(NamedTuple):
    root: Path
    db: Path

    def write(self, variant: str, rows: list[Measurement], site: str = "resid_post.2") -> None:
        where = {"experiment": "e", "site": site, "variant": variant}
        sae = {
            "kind": "topk",
            "d_in": 8,
            "d_sae": 32,
            "config": {},
            "train": {},
            "status": "complete",
            "packages": {},
        }
        made = Provenance("m", "f", "id", "a", 0, NOW)
        write_rows(self.root, "saes", where, [sae], made)
        write_rows(self.root, "metrics", where, rows, made)

    def publish(self) -> "Home":
        publish(self.root, self.db)
        return self

    def ask(self, sql: str) -> list[dict[str, Any]]:
        return query(self.db, sql).to_dicts()


def measurements() -> list[Measurement]:
    return [
        Measurement("l0", 16.0, "mean_of_tokens"),
        Measurement("loss_recovered", 0.9, "zero_ablation_all"),
        Measurement("loss_recovered", 0.95, "zero_ablation_kept"),
        Measurement("loss_recovered", 0.5, "mean_ablation_kept"),
        Measurement("scr", 0.1, "metric_direction", params={"n": 5}),
        Measurement("scr", 0.2, "metric_direction", params={"n": 50}),
        Measurement("scr", 0.9, "random_sae", params={"n": 50}),
        Measurement("sparse_probing_accuracy", 0.8, "dense_probe"),
        Measurement("sparse_probing_accuracy", 0.7, "top_k", params={"k": 1}),
        Measurement("kl_score", None, "zero_ablation_kept", reason="no gap"),
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("table2")
    found = Home(folder / "rows", folder / "results.duckdb")
    found.write("topk-w32-k4-s0", measurements())
    found.write("gemma-scope-l0-41-w16384-s0", [Measurement("l0", 40.0, "mean_of_tokens")])
    land(found.root)
    return found.publish()


def test_all_84_numbers_are_there_as_printed():
    found = {(cell.line.name, cell.sae.name): cell for cell in cells()}
    assert len(found) == len(cells()) == 12 * 7
    assert all(cell.value == float(cell.printed) for cell in found.values())
    sums = {sae.name: sum(cell.value for cell in found.values() if cell.sae == sae) for sae in SAES}
    # of the printed columns, typed a second time: a slip in any cell shows
    assert sums == pytest.approx(
        {
            "Llama Scope": 873.994319,
            "Pythia": 117.014,
            "Gemma Scope L0:22": 30.467,
            "Gemma Scope L0:41": 49.44,
            "Gemma Scope L0:82": 87.949,
            "Gemma Scope L0:176": 181.78,
            "Gemma Scope L0:445": 478.9487,
        },
        abs=1e-6,
    )


def test_what_is_no_score_cannot_be_compared():
    found = {(cell.line.name, cell.sae.name): cell for cell in cells()}
    sentinel = found["KL divergence score", "Pythia"]
    assert not sentinel.is_comparable
    assert "NaN" in sentinel.caveat
    assert not any(cell.is_comparable for cell in cells() if cell.line.name == "MSE")
    assert not any(cell.is_comparable for cell in cells() if cell.sae.name == "Llama Scope")
    good = found["Sparsity (L0)", "Gemma Scope L0:82"]
    assert (good.is_comparable, good.caveat) == (True, "")
    assert "bfloat16" in found["MSE", "Gemma Scope L0:22"].caveat
    assert "March 2025" in found["Absorption, full", "Gemma Scope L0:41"].caveat
    assert "March 2025" not in found["Absorption, full", "Gemma Scope L0:82"].caveat


def test_numbers_said_to_be_bfloat16_are():
    said = [cell for cell in cells() if "bfloat16" in cell.caveat]
    assert len(said) == 10
    for cell in said:
        nearest = float(torch.tensor(cell.value, dtype=torch.bfloat16))
        assert round(nearest, 3) == cell.value
    others = [cell for cell in cells() if cell.line.name == "Sparsity (L0)"]
    assert any(
        round(float(torch.tensor(c.value, dtype=torch.bfloat16)), 3) != c.value for c in others
    )


def test_every_line_names_a_definition_of_its_metric():
    from sae_lib.evaluate import METRICS  # loads torch

    for line in LINES:
        if line.metric not in METRICS:
            pytest.skip(f"there is no metric {line.metric} yet")
        defined = {(one.name, one.definition) for one in METRICS[line.metric].definitions()}
        assert {(line.measured, one) for one in line.definitions} <= defined, line.name


def test_the_table_shows_an_experiments_saes_by_the_same_lines(home):
    found = measured(home.db, "e")
    assert [sae.variant for sae in found] == ["gemma-scope-l0-41-w16384-s0", "topk-w32-k4-s0"]
    rows = {row[""]: row["topk-w32-k4-s0"] for row in readable(found)}
    assert list(rows) == [line.name for line in LINES]
    assert rows == {
        "Sparsity (L0)": "16",
        "MSE": "–",
        "CE loss (recovered)": "0.95",
        "KL divergence score": "–",
        "Explained variance": "–",
        "Absorption, mean": "–",
        "Absorption, full": "–",
        "SCR top 5": "0.1",
        "SCR top 50": "0.2",
        "SCR top 500": "–",
        "Sparse probing, LLM": "0.8",
        "Sparse probing, SAE": "–",
    }


def test_a_released_sae_stands_beside_its_published_numbers(home):
    rows = {row[""]: row["gemma-scope-l0-41-w16384-s0"] for row in readable(measured(home.db, "e"))}
    assert rows["Sparsity (L0)"] == "40 (41.422)"
    assert rows["MSE"] == "– (1.836*)", "not comparable"
    text = table2.markdown_table(readable(measured(home.db, "e")))
    assert text.splitlines()[0] == "|  | gemma-scope-l0-41-w16384-s0 | topk-w32-k4-s0 |"
    assert len(text.splitlines()) == 2 + 12


def test_the_view_says_why_there_is_no_number_and_lists_what_nobody_imported(home):
    reasons = home.ask(
        "select line, reason from survey_table2 where variant = 'topk-w32-k4-s0' "
        "and value is null and place < 5 order by place"
    )
    assert reasons == [
        {"line": "MSE", "reason": "not measured"},
        {"line": "KL divergence score", "reason": "no gap"},
        {"line": "Explained variance", "reason": "not measured"},
    ]
    alone = home.ask(
        "select distinct variant from survey_table2 where experiment is null order by all"
    )
    assert [row["variant"] for row in alone] == sorted(
        sae.variant for sae in SAES if sae.variant != "gemma-scope-l0-41"
    )
    (count,) = home.ask("select count(*) as n from survey_table2")
    assert count["n"] == 12 * (2 + 6)
    (sentinel,) = home.ask(
        "select published from survey_table2 where variant = 'pythia-70m-standard' "
        "and line = 'KL divergence score'"
    )
    assert sentinel["published"] is None, "-1 stands for NaN"


def test_several_sites_are_told_apart(tmp_path):
    home = Home(tmp_path / "rows", tmp_path / "results.duckdb")
    home.write("v", [], site="resid_post.1")
    home.write("v", [], site="resid_post.2")
    land(home.root)
    heads = list(readable(measured(home.publish().db, "e"))[0])
    assert heads == ["", "v @ resid_post.1", "v @ resid_post.2"]


def test_landing_again_changes_nothing(tmp_path):
    before = land(tmp_path).read_bytes()
    assert land(tmp_path).read_bytes() == before


def test_an_experiment_without_results_is_answered_with_those_there_are(home):
    with pytest.raises(UnknownName, match="Known: e"):
        measured(home.db, "f")


def test_the_published_table_and_its_caveats():
    rows = table2.published_table()
    assert rows[1]["Pythia"] == "0.015*"
    assert rows[0]["Gemma Scope L0:22"] == "22.141"
    said = table2.caveats()
    assert any("stands for NaN" in one for one in said)
    assert len(said) == len(set(said))


HUB = Path(__file__).parents[2] / "sae_workflows" / "experiments" / "hub"


def test_the_experiments_import_exactly_the_seven_saes():
    from sae_lib.evaluate import METRICS, read_metric  # loads torch

    found = {}
    for file in sorted(HUB.glob("survey-table2-*.yaml")):
        said = yaml.safe_load(file.read_text())
        assert said["name"] == file.stem
        for sae in said["saes"]:
            assert sae["kind"] == "pretrained"
            found[sae["name"]] = (said["model"]["id"], *said["sites"], sae)
        for metric in said["evaluate"]:
            name = metric if isinstance(metric, str) else metric["name"]
            assert name not in METRICS or read_metric(metric).name == name
    assert found.keys() == {sae.variant for sae in SAES}
    for sae in SAES:
        model, site, said = found[sae.variant]
        assert (model, site) == (sae.language_model, sae.site)
        if sae.format != "dictionary_learning":  # released as a pickle: converted before
            assert (said["path"], said["folder"]) == (sae.repository, sae.folder)
            assert (said["format"], said["d_sae"]) == (sae.format, sae.d_sae)
