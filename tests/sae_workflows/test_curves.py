"""What a user sees of trainings: while they run, when they are stopped, and when they fail."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from assets import progress as progress_module
from assets.progress import training_progress, watched_by
from sae_lib.artifacts import ArtifactStore
from sae_lib.warehouse.query import query
from sae_workflows.curves import bars, is_over, point_rows, state_rows
from sae_workflows.display import Display
from sae_workflows.experiment import load_experiment
from sae_workflows.home import memo_file

SAE = Path(sys.executable).parent / "sae"
NUMBERS = {"loss": 0.5, "fvu": 0.25, "l0": 31.9, "dead_share": 0.0, "tokens_per_second": 123456.0}


def start(*arguments: object, home: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "SAE_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [SAE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, "COLUMNS": "250"},
        # a shell makes its jobs in the background ignore Ctrl-C, and they hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def sae(*arguments: object, home: Path) -> tuple[int, str, str]:
    process = start(*arguments, home=home)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_curves_are_there_while_training_runs_survive_ctrl_c_and_end_as_rows(write, tmp_path: Path):
    home = tmp_path / "home"
    file = write(
        sites="[resid_post.0]",
        train="{batch_tokens: 64, tokens: 60000, checkpoint_every_seconds: 0}",
        activations="{store: stream}",
        explain="[]",
        evaluate="[sparsity]",
    )
    study = load_experiment(file, memo=memo_file(home))
    assert {row["state"] for row in state_rows(study, home)} == {"not begun"}
    process = start("run", file, home=home)
    try:
        deadline = time.monotonic() + 200
        while not all(row["step"] > 60 for row in state_rows(study, home)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while_running = state_rows(study, home)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "What was finished is kept" in err
    for row in while_running:
        assert row["state"] == "under way"
        assert 60 < row["step"] < row["steps"]
        assert 0 < row["fvu"] < 3
        assert row["seconds_left"] > 0
        assert row["seconds_ago"] < 100
        assert len(row["fvu so far"]) > 1
    assert not is_over(while_running)
    stopped = point_rows(study, home)
    assert {row["name"] for row in stopped} > {"fvu", "l0", "dead_share", "grad_norm", "loss"}
    code, _, err = sae("run", file, home=home)
    assert code == 0, err
    rows = state_rows(study, home)
    assert {row["state"] for row in rows} == {"complete"}
    assert is_over(rows)
    finished = point_rows(study, home, names=["fvu"])
    in_rows = query(home / "results.duckdb", "select variant, step, value from curves "
                    "where name = 'fvu' order by all").rows()  # fmt: skip
    assert sorted((r["variant"], r["step"], r["value"]) for r in finished) == in_rows
    # what was seen before the interruption is what is there in the end
    kept = {(row["variant"], row["step"]): row["value"] for row in finished}
    early = [row for row in stopped if row["name"] == "fvu"]
    assert early
    for row in early:
        assert kept[row["variant"], row["step"]] == row["value"]
    for folder in (home / "artifacts" / "sae").glob("*"):
        assert not (folder / "checkpoint").exists()
    code, out, err = sae("curves", file, "--points", "--name", "l0", "--json", home=home)
    assert code == 0, err
    assert {row["name"] for row in json.loads(out)} == {"l0"}
    code, out, err = sae("curves", file, "--follow", "--sae", "topk-w32-k2*", home=home)
    assert code == 0, err  # nothing to wait for
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["complete"]
    code, _, err = sae("curves", file, "--sae", "nothing", home=home)
    assert code == 2
    assert "topk-w32-k2-s0" in err


@pytest.mark.slow
def test_an_sae_that_diverges_says_where_and_a_second_run_says_so_again(write, tmp_path: Path):
    home = tmp_path / "home"
    file = write(
        sites="[resid_post.0]",
        saes="[{kind: topk, d_sae: 32, k: 2, train: {lr: 1.0e+30}}, {kind: topk, d_sae: 32, k: 4}]",
        explain="[]",
        evaluate="[sparsity]",
    )
    code, out, err = sae("run", file, home=home)
    assert code == 0, err
    study = load_experiment(file, memo=memo_file(home))
    states = {row["variant"]: row for row in state_rows(study, home)}
    bad, good = states.pop(next(name for name in states if "k2" in name)), *states.values()
    assert good["state"] == "complete"
    assert bad["state"] == "diverged"
    assert f"in step {bad['step'] + 1} the gradient of " in bad["problem"]
    assert f"the weights after step {bad['step']} are kept" in bad["problem"]
    row = query(
        home / "results.duckdb", "select status, reason, steps from saes where status <> 'complete'"
    ).rows()
    assert row == [("diverged", bad["problem"], bad["step"])]
    page = (home / "reports" / "study.html").read_text()
    assert bad["problem"] in page
    assert f"stopped: {bad['problem']}" in err, "it was not said at once"
    before = {
        manifest["name"]: manifest["created_at"]
        for manifest in ArtifactStore(home).manifests("sae")
    }
    code, out, err = sae("run", file, home=home)
    assert code == 0, err
    assert "Nothing to do" in out
    assert bad["problem"] in err
    after = {
        manifest["name"]: manifest["created_at"]
        for manifest in ArtifactStore(home).manifests("sae")
    }
    assert after == before
    code, out, _ = sae("run", file, "--json", home=home)
    assert [one["reason"] for one in json.loads(out)["unfinished"]] == [bad["problem"]]


def test_a_terminal_shows_a_bar_for_each_sae_with_its_numbers():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200)
    with Display(console) as display, watched_by(display):
        update = training_progress("training 2 SAEs at here", lambda line: None)
        update("topk[k2]", 5, 10, NUMBERS, None)
        update("other", 3, 10, NUMBERS, None)
        update("other", 4, 10, {}, "in step 5 the gradient of W_enc was not finite")
    said = text.getvalue()
    assert "topk[k2]" in said, "brackets of a name are not markup"
    assert "5/10" in said
    assert "fvu 0.25  l0 31.9  dead share 0  tokens per second 123,456" in said
    assert "other stopped: in step 5 the gradient of W_enc" in said


@pytest.mark.parametrize("where", ["log", "console"])
def test_where_nobody_sees_bars_there_is_a_message_every_so_often(where, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    said: list[str] = []
    text = io.StringIO()
    if where == "log":
        update = training_progress("training", said.append)
    else:
        update = Display(Console(file=text, width=200)).training("training")

    def messages() -> list[str]:
        return said if where == "log" else text.getvalue().split("\n  training: ")

    update("a", 100, 200, NUMBERS, None)  # taken up from a checkpoint: says nothing of the speed
    assert "".join(messages()) == ""
    now = 20.0
    update("a", 110, 200, NUMBERS, None)
    assert "110 of 200 steps, 180 s left" in messages()[-1]
    assert "a: step 110 of 200  loss 0.5  fvu 0.25" in messages()[-1]
    count = len(messages())
    now = 21.0
    update("a", 111, 200, NUMBERS, None)
    assert len(messages()) == count
    update("b", 3, 100, {}, "in step 4 the gradient of W_enc was not finite")
    assert "b stopped: in step 4" in "".join(messages())
    now = 22.0
    update("a", 200, 200, NUMBERS, None)
    assert "203 of 203 steps" in "".join(messages())


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([1.0], "▁"), ([2.0, 2.0], "▁▁"), ([8.0, 4.0, 1.0], "█▄▁"), ([0.0, 7.0], "▁█")],
)
def test_a_curve_on_one_line(values: list[float], drawn: str):
    assert bars(values) == drawn
    many: list[Any] = [float(i) for i in range(1000)]
    assert len(bars(many)) == 16
    assert bars(many)[-1] == "█"
