"""The same experiment by Ray and in one process: are all tables and all SAEs the same?

    python -m benchmarks.ray_agreement [--experiment world-demo] [--threads 1] [--keep FOLDER]

Starts a Ray of its own on this machine (2 cores, job server on loopback, a token that only its
children know), runs the experiment through the graph with ``SAE_EXECUTOR=ray`` into one home and
with ``in_process`` into another, with the same number of torch threads, and compares every table
of both databases and every tensor file of both stores, to the bit. What a clock or this run's
place says (seconds, paths, memory) is left out, and named. Without ``--experiment`` it is a tiny
one on the bundled model. Exits with 1 where something differs. Needs the extra ``ray``.
"""

import argparse
import hashlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl

from sae_lib.warehouse.query import query

TINY = """\
name: ray-tiny
model: {id: world}
corpus: {id: world, tokens: 20_000, context: 64, eval_tokens: 2_000}
sites: [resid_post.1, resid_post.2]
saes: [{kind: topk, d_sae: 64, k: [2, 4]}]
train: {batch_tokens: 512, tokens: 16_384}
explain: [max_act]
evaluate: [reconstruction, model_loss, sparsity, frontier]
apply: [probing]
"""

OF_THE_RUN = {"runs"}
"""Tables that say what the orchestrator did."""

OF_THE_CLOCK = {
    "created_at",
    "cpu_seconds",
    "packages",
    "path",
    "peak_memory_bytes",
    "seconds",
    "updated_at",
    "wall_seconds",
}
"""Columns that no two runs have in common, or that say where something lies."""

CLOCKED = "tokens_per_second"
"""The row of a curve that is a speed."""

SECONDS_TO_START = 120


class Difference(NamedTuple):
    """Of one table: how many rows each side has, and the columns that differ."""

    table: str
    rows: tuple[int, int]
    columns: list[str]


@contextmanager
def local_ray(cpus: int, **also: str) -> Iterator[dict[str, str]]:
    """A Ray of this machine, ended with the block; the settings with which its jobs are sent.

    ``also`` are environment variables that its processes, and so the steps, have.

    Ray listens on all interfaces for its own processes, so it is told to ask for a token.
    """
    port, head, client = free_port(), free_port(), free_port()
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 by default: on a busy machine its steps would starve
    }
    # short: the paths of Ray's sockets are below it, and have to have fewer than 108 characters
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
            *(
                "--num-cpus",
                str(cpus),
                "--port",
                str(head),
                "--ray-client-server-port",
                str(client),
            ),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(port)),
            *("--object-store-memory", "100000000", "--temp-dir", folder),
            *("--disable-usage-stats", "--log-color", "false"),
        ]
        with (Path(folder) / "start.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | env | also, start_new_session=True
            )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(f"{address}/api/version", env["RAY_AUTH_TOKEN"], process, Path(log.name))
            yield env | {"SAE_EXECUTOR": "ray", "SAE_RAY_ADDRESS": address}
        finally:
            process.terminate()  # it ends what it started
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port below those that Ray deals out to its workers (10002 to 19999)."""
    for port in range(8000 + os.getpid() % 1000, 10_000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in _given:
                _given.add(port)
                return port
    raise RuntimeError("no port is free")


_given: set[int] = set()


def wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"Ray did not start:\n{log.read_text('utf-8')[-2000:]}")


def run(experiment: str, home: Path, env: Mapping[str, str]) -> float:
    """Run the experiment by the command line; seconds on the wall."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "sae_workflows.cli", "run", experiment, "--home", str(home)]
    done = subprocess.run([*command, "--json"], env=os.environ | dict(env), capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-3000:] + done.stdout.decode()[-1000:])
    return time.perf_counter() - began


def differences(one: Path, other: Path) -> tuple[list[Difference], dict[str, tuple[int, int]]]:
    """Tables that differ, and of those that do not how many rows and columns were compared."""
    names = "select table_name from duckdb_tables() where schema_name = 'stored' order by all"
    tables = [set(query(home, names)["table_name"]) for home in (one, other)]
    found = [Difference(name, (-1, -1), []) for name in sorted(tables[0] ^ tables[1])]
    same: dict[str, tuple[int, int]] = {}
    for name in sorted((tables[0] & tables[1]) - OF_THE_RUN):
        left, right = (query(home, f'select * from stored."{name}"') for home in (one, other))
        kept = [column for column in left.columns if column not in OF_THE_CLOCK]
        if name == "curves":
            left, right = (frame.filter(pl.col("name") != CLOCKED) for frame in (left, right))
        left, right = (rows_in_order(frame.select(kept)) for frame in (left, right))
        if left.height != right.height:
            found.append(Difference(name, (left.height, right.height), []))
            continue
        differ = [one for one in kept if not left[one].equals(right[one], null_equal=True)]
        if differ:
            found.append(Difference(name, (left.height, right.height), differ))
        else:
            same[name] = (left.height, len(kept))
    return found, same


def rows_in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows sorted by all they hold; lists and structs by their text."""
    keys = [
        pl.col(name).map_elements(repr, return_dtype=pl.String).alias(f"_{number}")
        if dtype.is_nested()
        else pl.col(name).alias(f"_{number}")
        for number, (name, dtype) in enumerate(frame.schema.items())
    ]
    sorted_by = [f"_{number}" for number in range(frame.width)]
    return frame.with_columns(keys).sort(sorted_by).select(frame.columns)


def tensor_files(home: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file of finished artefacts, by its path in the store."""
    root = home / "artifacts"
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*.safetensors"))
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ray and one process, table by table.")
    parser.add_argument("--experiment", help="file or name; a tiny one unless given")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every step")
    parser.add_argument("--keep", type=Path, help="folder for both homes; a temporary one")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.experiment is None:
            (folder / "ray-tiny.yaml").write_text(TINY)
        experiment = args.experiment or str(folder / "ray-tiny.yaml")
        asked = folder / "resources.yaml"
        asked.write_text(f"default: {{cpu: {args.threads}}}\n")
        shared = {
            "SAE_THREADS": str(args.threads),
            "OMP_NUM_THREADS": str(args.threads),
            "SAE_RESOURCES": str(asked),
        }
        alone = run(experiment, folder / "alone", shared | {"SAE_EXECUTOR": "in_process"})
        write(f"in one process: {alone:.0f} s")
        with local_ray(max(2, args.threads)) as env:
            by_ray = run(experiment, folder / "ray", shared | env)
        write(f"by Ray:         {by_ray:.0f} s")
        homes = folder / "alone", folder / "ray"
        found, same = differences(*(home / "results.duckdb" for home in homes))
        one, other = (tensor_files(home) for home in homes)
    for name, (rows, columns) in same.items():
        write(f"  same: {name}, {rows} rows, {columns} columns")
    for line in found:
        write(f"  DIFFERENT: {line.table}, rows {line.rows}, columns {', '.join(line.columns)}")
    changed = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    for name in changed:
        write(f"  DIFFERENT: {name}")
    write(
        f"not compared: {', '.join(sorted(OF_THE_RUN))}; {CLOCKED} of curves; columns "
        f"{', '.join(sorted(OF_THE_CLOCK))}"
    )
    rows = sum(rows for rows, _ in same.values())
    if found or changed or not rows or not one:
        write(f"Ray and one process DIFFER in {len(found)} tables and {len(changed)} files.")
        sys.exit(1)
    write(
        f"Ray and one process agree to the bit, each with {args.threads} thread(s): {len(same)} "
        f"tables, {rows} rows, {len(one)} tensor files."
    )


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
