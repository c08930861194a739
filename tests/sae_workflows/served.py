"""A served home for tests: `sae ui` in a process of its own, and questions to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SAE = Path(sys.executable).parent / "sae"
LOCATION = {"repositoryLocationName": "sae_workflows", "repositoryName": "__repository__"}

BACKFILL = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""

BACKFILL_STATUS = """
query($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status numPartitions error { message } runs(limit: 500) { id } }
  }
}
"""

START_SENSOR = """
mutation($selector: SensorSelector!) {
  startSensor(sensorSelector: $selector) { __typename ... on PythonError { message } }
}
"""

STALE = """
query($key: AssetKeyInput!, $partition: String) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      staleStatus(partition: $partition)
      staleCauses(partition: $partition) { reason key { path } }
    }
  }
}
"""


class Served:
    """A running `sae ui` and its GraphQL endpoint."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path, port: int) -> None:
        self.process, self.home, self.port = process, home, port

    def ask(self, query: str, **variables: Any) -> Any:
        """The answer to a GraphQL query or mutation; raises where the server names errors."""
        token = (self.home / "dagster" / ".ui-token").read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json", "X-SAE-Token": token},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            content = json.load(answer)
        if content.get("errors"):
            raise AssertionError(content["errors"])
        return content["data"]

    def backfill(self, *keys: str) -> str:
        """Ask for every partition of the assets ``keys`` (``experiment/stage``); its id."""
        params = {
            "assetSelection": [{"path": key.split("/")} for key in keys],
            "allPartitions": True,
        }
        answer = self.ask(BACKFILL, params=params)["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return answer["backfillId"]

    def backfill_status(self, backfill: str) -> Mapping[str, Any]:
        return self.ask(BACKFILL_STATUS, id=backfill)["partitionBackfillOrError"]

    def start_sensor(self, name: str) -> None:
        answer = self.ask(START_SENSOR, selector={**LOCATION, "sensorName": name})["startSensor"]
        assert answer["__typename"] == "Sensor", answer

    def staleness(self, key: str, partition: str | None = None) -> tuple[str, list[str]]:
        """Dagster's own verdict on an asset or one of its partitions, and the causes."""
        node = self.ask(STALE, key={"path": key.split("/")}, partition=partition)
        found = node["assetNodeOrError"]
        return found["staleStatus"], [
            f"{'/'.join(cause['key']['path'])} {cause['reason']}" for cause in found["staleCauses"]
        ]


def wait_for(what: str, is_so: Callable[[], Any], seconds: float) -> Any:
    """The first true answer of ``is_so``; fails naming ``what`` when none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = is_so()
        if answer:
            return answer
        time.sleep(1.0)
    raise AssertionError(f"within {seconds} s there was no: {what}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def served(home: Path, log: Path, **environment: str) -> Iterator[Served]:
    """`sae ui` on ``home`` while the block lasts; what it prints goes to ``log``."""
    port = free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [SAE, "ui", "--port", str(port), "--home", home],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    one = Served(process, home, port)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return bool(one.ask("{ version }"))
        except (OSError, urllib.error.URLError):
            return False

    try:
        wait_for("answer of the UI", answers, 300)
        yield one
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
