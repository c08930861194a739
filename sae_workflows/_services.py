"""Parts of the web UI that stand by themselves: sockets, secrets, signals and child processes."""

import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sae_lib.errors import BadInput, SaeError
from sae_workflows.home import dagster_home

if TYPE_CHECKING:
    import dagster as dg

SECONDS_TO_STOP = 30
"""That a child may take to end by itself."""

SECONDS_TO_START = 300
"""That the code server may take to load the graph."""

SECONDS_WITHOUT_US = 120
"""After which the code server ends when it hears nothing of us; a reload may take long."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or an error that says why not."""
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((name, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInput(
            f"The UI cannot listen there ({error}). Stop what does, or name another port.",
            key="--port",
            value=f"{host}:{port}",
        ) from None
    return listener


def write_private(file: Path, text: str) -> None:
    """Replace ``file`` by one that nobody but this user could ever read."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as to:
        to.write(text)
    fresh.replace(file)


@contextmanager
def token_file(file: Path, token: str) -> Iterator[None]:
    """Keep ``token`` in ``file``, for this user only, for as long as it is good."""
    write_private(file, token)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Two daemons would do everything twice: one UI that can change things per home."""
    lock = FileLock(dagster_home(home) / ".ui.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SaeError(
            f"Another `sae ui` serves {home} already. Stop it, or look on with --read-only."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for the sockets, which only this user can open; children put theirs there too."""
    # what torch compiles is worth more than one run of the UI
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    with tempfile.TemporaryDirectory(prefix="sae-ui-", ignore_cleanup_errors=True) as folder:
        before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), folder
        tempfile.tempdir = None  # read the variable again
        try:
            yield Path(folder)
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before
            tempfile.tempdir = None


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and the end of the terminal set.

    A shell starts what it runs in the background with SIGINT ignored, and ignoring is inherited;
    a handler is not, so children that are started inside of this can be interrupted.
    """
    stop = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` wants it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def child(name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The Python module ``name`` as a process that is interrupted, and waited for, at the end."""
    command = (sys.executable, "-m", "sae_workflows._child", str(os.getpid()), name)
    process = subprocess.Popen([*command, *arguments])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class CodeServer:
    """Dagster's process that reads the definitions, and starts runs as its own children."""

    def __init__(self, process: subprocess.Popen[bytes], socket_: Path) -> None:
        from dagster._grpc.client import DagsterGrpcClient

        self.process, self.socket = process, socket_
        self._client = DagsterGrpcClient(socket=str(socket_))

    def is_alive(self) -> bool:
        """Whether it runs; tells it that we do, without which it would end."""
        from dagster._core.errors import DagsterUserCodeUnreachableError

        if self.process.poll() is not None:
            return False
        try:
            self._client.heartbeat("")
        except DagsterUserCodeUnreachableError:
            return self.process.poll() is None
        return True

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Return when it answers, or when ``stop`` is set."""
        from dagster._core.errors import DagsterUserCodeUnreachableError

        end = time.monotonic() + SECONDS_TO_START
        while not stop.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SaeError("The code server did not start; what it printed says why.")
            try:
                self._client.ping("")
            except DagsterUserCodeUnreachableError:
                continue
            return

    def stop_runs(self, instance: "dg.DagsterInstance", log: Callable[[str], None]) -> None:
        """Cancel what this server runs; other programs may have runs of their own at this home."""
        import dagster as dg
        from dagster._core.errors import DagsterUserCodeUnreachableError
        from dagster._core.storage.tags import GRPC_INFO_TAG

        running = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
        for run in instance.get_runs(dg.RunsFilter(statuses=running)):
            if str(self.socket) in run.tags.get(GRPC_INFO_TAG, ""):
                log(f"Stopping run {run.run_id}; what it finished is kept.")
                try:
                    instance.run_launcher.terminate(run.run_id)
                except DagsterUserCodeUnreachableError:  # interrupted together with us
                    return


@contextmanager
def code_server(folder: Path, module: str, location: str) -> Iterator[CodeServer]:
    """A code server for ``module`` on a socket in ``folder``."""
    from dagster._core.errors import DagsterUserCodeUnreachableError

    where = folder / "code.sock"
    with child(
        "dagster",
        *("code-server", "start", "--socket", str(where), "--log-level", "warning"),
        *("--module-name", module, "--working-directory", str(Path(__file__).parents[1])),
        *("--location-name", location),
        *("--heartbeat", "--heartbeat-timeout", str(SECONDS_WITHOUT_US)),
    ) as process:
        server = CodeServer(process, where)
        try:
            yield server
        finally:
            try:
                server._client.shutdown_server()
                process.wait(SECONDS_TO_STOP)
            except (DagsterUserCodeUnreachableError, subprocess.TimeoutExpired):
                pass  # `child` insists
