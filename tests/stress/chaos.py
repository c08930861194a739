"""Random kills of workers, the daemon and the server under a backfill; in the end all is there.

    python -m tests.stress.chaos [--minutes 30] [--seed 0]

Sixty small SAEs at three sites are built by a backfill through the real daemon, three runs at a
time, while a reader publishes and queries the database. Every few seconds something is killed
with SIGKILL. When the time is over the killing stops, what is missing is asked for again, and it is
checked by SQL that every partition is complete, no row is there twice and none is lost, and on
disk that nothing temporary is left. Prints what was killed and the verdict; the exit code is 1 if
something is wrong.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import dagster as dg

from assets.runs import worker_of
from sae_lib.artifacts import ArtifactStore
from sae_lib.warehouse.checks import check_tables
from sae_lib.warehouse.query import query
from sae_workflows.console import fresh_database
from sae_workflows.home import adopt, dagster_home, study_at
from tests.sae_workflows.served import Served, served

STUDY = """\
name: chaos
model: {{id: {model}}}
corpus: {{id: {corpus}}}
sites: [resid_post.0, resid_post.1, resid_post.2]
saes: [{{kind: topk, d_sae: 64, k: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], seed: [0, 1]}}]
train: {{batch_tokens: 256, tokens: {tokens}, checkpoint_every_seconds: 2}}
evaluate: [reconstruction, sparsity, frontier]
"""

STAGES = ("tokens", "activations", "saes", "metrics", "frontier", "claims")
KEYS = (*(f"chaos/{stage}" for stage in STAGES), "results/database")
NUM_SAES = 60

RUNS_BETWEEN_KILLS = (0.7, 2.5)
"""In units of what the shortest run takes here, from its start to its end: were everything killed
before it could have ended on an idle machine, this would test patience."""


WEIGHTS = {"worker": 7, "daemon": 2, "server": 1}
"""How often each is killed, where all are there."""


class Verdict(NamedTuple):
    """What the end looked like."""

    kills: Counter[str]
    reads: int
    problems: list[str]


def chaos(folder: Path, study: str, *, minutes: float, seed: int, patience: float) -> Verdict:
    """Run the whole thing in ``folder``; ``patience`` are seconds for the rest after the kills."""
    home, log = folder / "home", folder / "ui.log"
    file = folder / "chaos.yaml"
    file.write_text(study)
    adopt(home, file, "chaos")
    several_at_once(home)
    rng, kills = random.Random(seed), Counter[str]()
    problems: list[str] = []
    with polling_reader(home) as reader, Keeper(home, log) as keeper:
        pace = seconds_of_a_run(home, keeper)
        gaps = [pace * runs for runs in RUNS_BETWEEN_KILLS]
        end_of_kills = time.monotonic() + 60 * minutes
        backfill = keeper.backfill()
        next_kill = time.monotonic() + rng.uniform(*gaps)
        end = end_of_kills + patience
        while time.monotonic() < end:
            time.sleep(1)
            status = keeper.status(backfill)
            now = time.monotonic()
            if now < end_of_kills and now > next_kill:
                kills[kill_something(home, keeper, rng)] += 1
                next_kill = now + rng.uniform(*gaps)
            if status in ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"):
                if is_complete(home, file) and now >= end_of_kills:
                    break
                if not is_complete(home, file):
                    backfill = keeper.backfill()  # a rerun completes what a batch left out
                elif now < end_of_kills:
                    restart_work(home)
                    backfill = keeper.backfill()
        else:
            problems.append("the backfill was not complete in time")
    problems += reader.problems
    problems += what_is_wrong(home, file)
    return Verdict(kills, reader.reads, problems)


def several_at_once(home: Path) -> None:
    """Three runs at a time, as three concurrent writers."""
    settings = dagster_home(home) / "dagster.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("max_concurrent_runs: 1", "max_concurrent_runs: 3"))


class Keeper:
    """Keeps a `sae ui` alive: what was killed is started again."""

    def __init__(self, home: Path, log: Path) -> None:
        self.home, self.log = home, log
        self._stack, self._ui = ExitStack(), None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def ui(self) -> Served:
        if self._ui is None or self._ui.process.poll() is not None:
            self._stack.close()
            self._ui = self._stack.enter_context(served(self.home, self.log))
        return self._ui

    def status(self, backfill: str) -> str:
        """Of a backfill; empty while the server is down."""
        try:
            return self.ui.backfill_status(backfill)["status"]
        except (OSError, AssertionError, KeyError):
            return ""

    def backfill(self, *keys: str) -> str:
        """Ask for everything, or for ``keys``; its id."""
        while True:
            with suppress(OSError, AssertionError):
                return self.ui.backfill(*(keys or KEYS))
            time.sleep(2)


def seconds_of_a_run(home: Path, keeper: Keeper) -> float:
    """How long the shortest run takes here, from the moment it is launched."""
    backfill = keeper.backfill(KEYS[0])
    while keeper.status(backfill) != "COMPLETED_SUCCESS":
        time.sleep(1)
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        (record,) = instance.get_run_records()
    assert record.end_time is not None
    return record.end_time - record.create_timestamp.timestamp()


def kill_something(home: Path, keeper: Keeper, rng: random.Random) -> str:
    """SIGKILL to a run's process, the daemon, or the server; what it was."""
    processes = {"worker": workers(home), "daemon": children(keeper.ui.process.pid, "._daemon")}
    processes["server"] = [keeper.ui.process.pid]
    there = {what: weight for what, weight in WEIGHTS.items() if processes[what]}
    what = rng.choices(list(there), list(there.values()))[0]
    with suppress(ProcessLookupError):
        os.kill(rng.choice(processes[what]), signal.SIGKILL)
    return what


def workers(home: Path) -> list[int]:
    """Processes of the runs that are under way."""
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        found = [worker_of(instance, run.run_id) for run in started]
    return [one[0] for one in found if one is not None]


def children(pid: int, word: str) -> list[int]:
    """Children of ``pid`` whose command line has ``word`` in it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def restart_work(home: Path) -> None:
    """Delete some finished SAEs and results, so that there is something to kill again."""
    for kind in ("sae", "metrics", "measurements"):
        for folder in sorted((home / "artifacts" / kind).glob("[!.]*"))[::2]:
            shutil.rmtree(folder)


@contextmanager
def polling_reader(home: Path) -> Iterator[Any]:
    """A thread that publishes and reads all the time; every error of its is a problem."""
    reader = Reader(home)
    reader.thread.start()
    try:
        yield reader
    finally:
        reader.stop.set()
        reader.thread.join(120)


class Reader:
    def __init__(self, home: Path) -> None:
        self.home, self.reads = home, 0
        self.problems: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        while not self.stop.wait(1.0):
            if not (self.home / "warehouse").is_dir():
                continue
            try:
                database = fresh_database(self.home)
                twice = query(
                    database,
                    "select count(*) from (select 1 from stored.metrics group by experiment, site, "
                    "variant, model_fingerprint, name, definition, params having count(*) > 1)",
                ).item()
                if twice:
                    self.problems.append(f"a reader met {twice} rows that stand twice")
                self.reads += 1
            except Exception as error:  # noqa: BLE001  (a reader must meet none)
                self.problems.append(f"a reader met {type(error).__name__}: {error}")


def is_complete(home: Path, file: Path) -> bool:
    study, artifacts = study_at(home, file), ArtifactStore(home)
    return not study.missing(artifacts, "sae") and not study.missing(artifacts, "metrics")


def what_is_wrong(home: Path, file: Path) -> list[str]:
    """Everything at the end that should not be so."""
    problems = []
    study = study_at(home, file)
    if not is_complete(home, file):
        problems.append("some partitions are not complete")
    database = fresh_database(home)
    for table in ("saes", "metrics", "curves"):
        cells = query(
            database, f"select distinct site, variant from {table} where variant <> ''"
        ).height
        if cells != NUM_SAES:
            problems.append(f"table {table} has rows of {cells} SAEs and not of {NUM_SAES}")
    expected = {
        row["name"]: row["cells"]
        for row in query(
            database,
            "select name, count(distinct site || variant) as cells from metrics "
            "where variant <> '' group by name",
        ).to_dicts()
    }
    problems += [f"{name}: {n} SAEs have it" for name, n in expected.items() if n != NUM_SAES]
    for outcome in check_tables(database):
        if outcome.check.is_error and outcome.broken:
            problems.append(f"{outcome.check.name}: {outcome.broken} rows, such as {outcome.some}")
    landed = [study.measured("metrics", site, variant).hash for site, variant in study.cells()]
    held = query(database, "select distinct artifact_id from metrics where variant <> ''")
    if set(held["artifact_id"]) != set(landed):
        problems.append("the warehouse holds other artefacts than the study asks for")
    problems += [f"left over: {path}" for path in temporary(home)]
    return problems


def temporary(home: Path) -> list[Path]:
    """What a killed writer left: unfinished directories and files beside their place."""
    found = [path for path in (home / "artifacts").glob("*/.*") if path.suffix != ".lock"]
    for folder in ("warehouse", "experiments", "lineage"):
        found += [
            path
            for path in (home / folder).rglob(".*")
            if path.is_file() and path.suffix != ".lock" and ".landed" not in path.name
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to work in, kept for a look")
    args = parser.parse_args()
    study = STUDY.format(
        model="world",
        corpus="world, tokens: 20000, context: 128, eval_tokens: 4000",
        tokens=200_000,
    )
    with TemporaryDirectory() as temporary_folder:
        folder = args.keep or Path(temporary_folder)
        folder.mkdir(parents=True, exist_ok=True)
        verdict = chaos(folder, study, minutes=args.minutes, seed=args.seed, patience=1800)
    killed = ", ".join(f"{number} {what}" for what, number in sorted(verdict.kills.items()))
    lines = [f"killed: {killed}; {verdict.reads} reads"]
    lines += [f"WRONG: {problem}" for problem in verdict.problems]
    lines += ["failed"] if verdict.problems else ["all complete, no row twice, none lost"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
