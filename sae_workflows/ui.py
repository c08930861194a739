"""The web UI of a home: code server, daemon and guarded web server, started and stopped together.

The web server runs inside this process (`serve`) behind a `Guard`; the code server and the daemon
are child processes in the same process group, which talk over Unix sockets in a folder that only
this user can open. Both read the graph from one code server, so that a reload reaches both.
"""

import hashlib
import ipaddress
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from sae_lib.errors import BadInput, SaeError
from sae_workflows._services import (
    bind,
    child,
    code_server,
    only_one,
    private_folder,
    stopped_by_signals,
    token_file,
)
from sae_workflows.home import dagster_home
from sae_workflows.watcher import changes, snapshot, watched_files

if TYPE_CHECKING:
    from dagster._core.workspace.context import WorkspaceProcessContext
    from starlette.types import ASGIApp

    from sae_workflows.guard import Policy

MODULE = "sae_workflows.definitions"
LOCATION = "sae_workflows"

SECONDS_BETWEEN_LOOKS = 3
"""At the experiment files."""

SECONDS_FOR_REQUESTS = 3
"""That open requests and websockets get when the server stops."""


class Settings(NamedTuple):
    """What `sae ui` was asked for."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 3000
    allow_hosts: Sequence[str] = ()
    is_private: bool = False
    is_read_only: bool = False
    has_daemon: bool = True


def check_installed() -> None:
    """Raise unless the web server, which is optional, is there."""
    if find_spec("dagster_webserver") is None:
        raise SaeError(
            "The web UI needs dagster-webserver, which is not installed. Install it with: "
            "pip install 'sae-workflows[ui]'"
        )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(settings: Settings, token: str) -> str:
    """The link that lets a browser in."""
    name = settings.host.strip("[]")
    if name in ("0.0.0.0", "::"):
        name = settings.allow_hosts[0] if settings.allow_hosts else "127.0.0.1"
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{settings.port}/?token={token}"


def serve(
    settings: Settings, *, on_ready: Callable[[str], None], log: Callable[[str], None]
) -> int:
    """Serve the UI until a signal comes; the exit code, 0 unless a part of it fell over.

    ``on_ready`` gets the link when the server answers, ``log`` a line for every reload.
    """
    check_installed()
    home = settings.home
    os.environ.update(
        SAE_HOME=str(home),
        DAGSTER_HOME=str(dagster_home(home)),
        DAGSTER_DISABLE_TELEMETRY="1",
        SAE_POOLS=str(int(settings.has_daemon and not settings.is_read_only)),
    )
    with ExitStack() as stack:
        if not settings.is_read_only:
            stack.enter_context(only_one(home))
        listener = stack.enter_context(bind(settings.host, settings.port))
        settings = settings._replace(port=listener.getsockname()[1])
        stop = stack.enter_context(stopped_by_signals())
        folder = stack.enter_context(private_folder())
        return _serve(settings, listener, folder, stop, on_ready, log)


def _serve(
    settings: Settings,
    listener: socket.socket,
    folder: Path,
    stop: threading.Event,
    on_ready: Callable[[str], None],
    log: Callable[[str], None],
) -> int:
    import dagster as dg
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    from sae_workflows.guard import Guard

    home, token = settings.home, secrets.token_urlsafe(32)
    policy = policy_of(settings, token)
    seen = snapshot(watched_files(home))
    workspace = folder / "workspace.yaml"
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        code = stack.enter_context(code_server(folder, MODULE, LOCATION))
        code.wait_until_ready(stop)
        if stop.is_set():
            return 0
        target = {"socket": str(code.socket), "location_name": LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": target}]}))
        context = stack.enter_context(
            WorkspaceProcessContext(
                instance, WorkspaceFileTarget([str(workspace)]), read_only=settings.is_read_only
            )
        )
        _say_if_broken(context, log)
        if not settings.is_read_only:
            stack.callback(code.stop_runs, instance, log)
        parts: list[tuple[str, Callable[[], bool]]] = [("code server", code.is_alive)]
        if settings.has_daemon and not settings.is_read_only:
            arguments = ("--log-level", "warning", "--workspace", str(workspace))
            daemon = stack.enter_context(child("dagster._daemon", "run", *arguments))
            parts.append(("daemon", lambda: daemon.poll() is None))
        app = Guard(create_app_from_workspace_process_context(context, "", 2000), policy)
        server = stack.enter_context(running(app, listener))
        parts.append(("web server", server.is_alive))
        if not settings.is_read_only:
            stack.enter_context(token_file(dagster_home(home) / ".ui-token", token))
        on_ready(url_of(settings, token))
        while not stop.wait(SECONDS_BETWEEN_LOOKS):
            for name, is_alive in parts:
                if not is_alive() and not stop.wait(1):  # Ctrl-C reaches children before us
                    log(f"The {name} ended by itself; so does the UI.")
                    return 1
            try:
                now = snapshot(watched_files(home))
            except (ValueError, KeyError, OSError):  # a record that is being written
                continue
            what = changes(seen, now)
            if any(what):
                seen = now
                context.reload_code_location(LOCATION)
                log(f"Experiments read again ({what}).")
                _say_if_broken(context, log)
    return 0


def _say_if_broken(context: "WorkspaceProcessContext", log: Callable[[str], None]) -> None:
    if context.has_code_location_error(LOCATION):
        log("The experiments cannot be shown; the UI says why, under Deployment.")


def policy_of(settings: Settings, token: str) -> "Policy":
    """What the guard lets through under ``settings``."""
    from sae_workflows._requests import name_of
    from sae_workflows.guard import LOOPBACK, Policy

    for name in settings.allow_hosts:
        if name_of(name) != name.lower():
            raise BadInput(
                "Give the name alone, such as sae.example.org, without scheme, port or path.",
                key="--allow-host",
                value=name,
            )
    host = settings.host.lower()
    named = {f"[{host.strip('[]')}]" if ":" in host else host}
    place = f"{socket.gethostname()} {settings.home} {settings.port}"
    return Policy(
        token=token,
        names=LOOPBACK | named | {name.lower() for name in settings.allow_hosts},
        is_loopback=is_loopback(settings.host),
        is_private=settings.is_private,
        is_read_only=settings.is_read_only,
        cookie=f"sae-ui-{hashlib.sha256(place.encode()).hexdigest()[:8]}",
    )


@contextmanager
def running(app: "ASGIApp", listener: socket.socket) -> Iterator[threading.Thread]:
    """Serve ``app`` in a thread of its own, so that signals stay with the main thread."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would show the token
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_FOR_REQUESTS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="webserver", daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            thread.join(0.05)
        yield thread
    finally:
        server.should_exit = True
        thread.join(SECONDS_FOR_REQUESTS + 5)
