"""The command `sae ui`: the graph in a browser, for the one who started it."""

import html
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sae_workflows.console import Home, err, home_of


def ui(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 3000,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than this machine's warn.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Another name that the UI is asked by; repeatable."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="The token is needed for reading as well.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Nothing can be changed; starts no daemon.")
    ] = False,
    no_daemon: Annotated[
        bool, typer.Option("--no-daemon", help="Runs are queued but not started.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the link in the browser.")] = False,
    home: Home = None,
):
    """Serve the graph in a browser, guarded: only the printed link can start anything."""
    from sae_workflows.ui import Settings, check_installed, is_loopback, serve

    check_installed()
    settings = Settings(
        home=home_of(home),
        host=host,
        port=port,
        allow_hosts=tuple(allow_host or ()),
        is_private=private,
        is_read_only=read_only,
        has_daemon=not no_daemon,
    )
    if not is_loopback(host):
        err.print(
            Text(
                f"Warning: {host} can be reached from other machines, and what is sent is not "
                "encrypted. Everything needs the token. Better: listen here, and use `ssh -L`.",
                style="yellow",
            )
        )

    with ExitStack() as stack:

        def ready(link: str) -> None:
            err.print(Text("The UI is ready. This link lets a browser in; keep it to yourself:"))
            typer.echo(link)
            if open_:
                stack.enter_context(opened(link, settings.home))

        code = serve(settings, on_ready=ready, log=lambda line: err.print(Text(line)))
    raise typer.Exit(code)


@contextmanager
def opened(link: str, home: Path) -> Iterator[None]:
    """Open ``link`` through a file: other users can see the arguments of a process."""
    from sae_workflows._services import write_private
    from sae_workflows.home import dagster_home

    page = dagster_home(home) / ".ui-open.html"
    url = html.escape(link)
    write_private(page, f'<!doctype html><meta http-equiv="refresh" content="0;url={url}">')
    try:
        webbrowser.open(page.as_uri())
        yield
    finally:
        page.unlink(missing_ok=True)
