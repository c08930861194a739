"""The real web server behind the guard: asked by programs, by a browser, by hostile pages."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest

from sae_lib.errors import BadInput, SaeError
from sae_workflows import ui as ui_module
from sae_workflows.home import adopt, dagster_home, experiment_files
from sae_workflows.ui import Settings, check_installed, is_loopback, policy_of, running, url_of
from sae_workflows.ui_cli import opened
from sae_workflows.watcher import Changes, changes, snapshot, watched_files

pytest.importorskip("dagster_webserver")

from sae_workflows._services import bind, only_one, token_file
from sae_workflows.guard import LOOPBACK, Guard, Policy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "t0ken"

DEFINITIONS = """
import dagster as dg

@dg.op
def nothing():
    pass

@dg.job
def quick():
    nothing()

defs = dg.Definitions(jobs=[quick])
"""

SELECTOR = '{repositoryLocationName: "tiny", repositoryName: "__repository__", jobName: "quick"}'


def launch(tag: str) -> str:
    """A mutation that starts a run, which can be told from others by its tag."""
    metadata = f'{{tags: [{{key: "way", value: "{tag}"}}]}}'
    params = f"{{selector: {SELECTOR}, runConfigData: {{}}, executionMetadata: {metadata}}}"
    return f"mutation {{ launchRun(executionParams: {params}) {{ __typename }} }}"


class Served(NamedTuple):
    """The same application twice, on two ports."""

    instance: dg.DagsterInstance
    open_port: int
    guarded_port: int


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import PythonFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    home = tmp_path_factory.mktemp("home")
    file = home / "tiny.py"
    file.write_text(DEFINITIONS)
    target = PythonFileTarget(str(file), None, str(home), "tiny")
    with (
        dg.DagsterInstance.from_config(str(dagster_home(home))) as instance,
        WorkspaceProcessContext(instance, target) as context,
        bind("127.0.0.1", 0) as one,
        bind("127.0.0.1", 0) as two,
    ):
        app = create_app_from_workspace_process_context(context)
        ports = one.getsockname()[1], two.getsockname()[1]
        with running(app, one), running(Guard(app, Policy(TOKEN)), two):
            yield Served(instance, *ports)


@pytest.fixture
def started(served: Served):
    """Tags of the runs that were started during this test."""
    for run in served.instance.get_runs():
        served.instance.delete_run(run.run_id)
    return lambda: {run.tags["way"] for run in served.instance.get_runs()}


def ask(port: int, query: str, **headers: str) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"query": query}).encode()
    headers = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_programs_may_ask_without_a_token_and_change_with_it(served, started):
    status, answer = ask(served.guarded_port, "{ repositoriesOrError { __typename } }")
    assert (status, answer["data"]["repositoriesOrError"]["__typename"]) == (
        200,
        "RepositoryConnection",
    )
    status, answer = ask(served.guarded_port, launch("without"))
    assert status == 403
    assert "token" in answer["errors"][0]["message"]
    assert started() == set()
    status, answer = ask(served.guarded_port, launch("with"), X_SAE_Token=TOKEN)
    assert (status, answer["data"]["launchRun"]["__typename"]) == (200, "LaunchRunSuccess")
    assert started() == {"with"}


def test_without_the_guard_a_run_is_started_by_get(served, started):
    query = urllib.parse.urlencode({"query": launch("get")})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{served.guarded_port}/graphql?{query}")
    with refused.value as answer:
        assert (answer.code, started()) == (405, set())
    urllib.request.urlopen(f"http://127.0.0.1:{served.open_port}/graphql?{query}").close()
    assert started() == {"get"}


HOSTILE = """<!doctype html><title>hostile</title><script>
const target = "TARGET", change = way => LAUNCH.replace("WAY", way)
const get = way => target + "/graphql?query=" + encodeURIComponent(change(way))
const seen = {}
const soon = (what, start) => new Promise(done => {
  setTimeout(() => done(seen[what] = seen[what] ?? "nothing"), 4000)
  start(answer => done(seen[what] = answer))
})
const fetched = (what, url, options) => soon(what, done => fetch(url, options).then(
  answer => done(answer.type), error => done("refused")))
const form = (way, type, url, fields) => soon(way, done => {
  const frame = document.createElement("iframe"); frame.name = way
  const form = document.createElement("form")
  Object.assign(form, {method: "post", enctype: type, action: url, target: way})
  for (const [name, value] of Object.entries(fields)) {
    const input = document.createElement("input")
    Object.assign(input, {type: "hidden", name, value}); form.append(input)
  }
  document.body.append(frame, form); frame.onload = () => done("sent"); form.submit()
})
addEventListener("load", async () => {
  const quiet = {mode: "no-cors", credentials: "include"}
  const json = way => JSON.stringify({query: change(way)})
  await Promise.all([
    fetched("fetch-get", get("fetch-get"), quiet),
    fetched("fetch-text", target + "/graphql", {...quiet, method: "POST",
      headers: {"content-type": "text/plain; application/json"}, body: json("fetch-text")}),
    fetched("fetch-json", target + "/graphql", {credentials: "include", method: "POST",
      headers: {"content-type": "application/json"}, body: json("fetch-json")}),
    fetched("fetch-read", target + "/graphql?query={version}", {credentials: "include"}),
    soon("img", done => { const img = new Image(); img.onerror = () => done("asked")
      img.src = get("img") }),
    form("form-url", "application/x-www-form-urlencoded", get("form-url"), {a: "b"}),
    form("form-multipart", "multipart/form-data", get("form-multipart"), {a: "b"}),
    form("form-text", "text/plain", get("form-text"), {a: "b"}),
    soon("websocket", done => {
      const socket = new WebSocket(target.replace("http", "ws") + "/graphql", "graphql-ws")
      socket.onerror = () => done("refused")
      socket.onopen = () => socket.send(JSON.stringify({type: "connection_init", payload: {}}))
      socket.onmessage = message => done(JSON.parse(message.data).type)
    }),
    soon("frame", done => {
      const frame = document.createElement("iframe"); frame.name = "framed"
      frame.src = target + "/runs"; document.body.append(frame)
      frame.onload = () => done("loaded")
    }),
  ])
  window.seen = seen
})
</script><body></body>"""

WAYS = {"fetch-get", "fetch-text", "img", "form-url", "form-multipart", "form-text"}
"""Ways in which a page of another origin starts a run where there is no guard."""


@contextmanager
def hostile_pages(ports: tuple[int, ...]) -> Iterator[int]:
    """A server on another port: `/PORT/NAME` holds a page that attacks PORT by that name."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            port, _, name = self.path.strip("/").partition("/")
            known = port.isdigit() and int(port) in ports
            page = HOSTILE.replace("TARGET", f"http://{name}:{port}")
            page = page.replace("LAUNCH", json.dumps(launch("WAY")))
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode() if known else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--host-resolver-rules=MAP rebound.example 127.0.0.1"]
    with sync_playwright() as browsers:
        chromium = browsers.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    with browser.new_context() as context, context.new_page() as page:
        yield page


def attack(page, served: Served, port: int, origin: str, name: str) -> dict[str, str]:
    """What a page of ``origin`` saw when it attacked ``port`` by ``name``."""
    with hostile_pages((port,)) as evil:
        page.goto(f"http://{origin}:{evil}/{port}/{name}")
        page.wait_for_function("window.seen", timeout=20_000)
        seen = page.evaluate("window.seen")
        seen["framed"] = page.frame("framed").url
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_no_page_of_another_origin_gets_through_even_where_the_user_is_let_in(
    page, served, started, origin, name
):
    page.goto(f"http://{name}:{served.guarded_port}/?token={TOKEN}")
    page.wait_for_url("**/overview/**", timeout=20_000)
    seen = attack(page, served, served.guarded_port, origin, name)
    assert started() == set()
    assert seen["fetch-read"] == seen["fetch-json"] == "refused"
    assert seen["websocket"] == "refused"
    assert seen["framed"].startswith("chrome-error:")


@pytest.mark.slow
def test_without_the_guard_the_same_page_starts_runs(page, served, started):
    seen = attack(page, served, served.open_port, "localhost", "127.0.0.1")
    assert started() == WAYS
    assert seen["websocket"] == "connection_ack"
    assert seen["framed"].endswith("/runs")


@pytest.mark.slow
def test_a_foreign_name_for_this_machine_gets_nothing(page, served):
    question = "/graphql?query={version}"
    for port, status in ((served.open_port, 200), (served.guarded_port, 421)):
        page.set_extra_http_headers({"Accept": "application/json"})
        answer = page.goto(f"http://rebound.example:{port}{question}")
        assert answer.status == status


START = """query => fetch("/graphql", {method: "POST", body: JSON.stringify({query}),
  headers: {"content-type": "application/json"}}).then(answer => answer.status)"""


@pytest.mark.slow
def test_the_printed_link_lets_a_browser_in_and_the_plain_address_only_looks(page, served, started):
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"http://127.0.0.1:{served.guarded_port}/jobs")
    page.get_by_text("quick").first.wait_for(timeout=20_000)  # the UI works, and shows the job
    assert page.evaluate(START, launch("plain")) == 403
    page.goto(f"http://127.0.0.1:{served.guarded_port}/jobs?token={TOKEN}")
    page.get_by_text("quick").first.wait_for(timeout=20_000)
    assert TOKEN not in page.url
    assert TOKEN not in page.evaluate("document.cookie + document.referrer")
    assert page.evaluate(START, launch("link")) == 200
    assert started() == {"link"}
    opened = """() => new Promise(done => {
      const socket = new WebSocket(`ws://${location.host}/graphql`, "graphql-ws")
      socket.onopen = () => done(true); socket.onerror = () => done(false) })"""
    assert page.evaluate(opened)
    assert faults == []


def test_the_web_server_runs_no_mutation_that_comes_by_websocket(served, started):
    from websockets.sync.client import connect

    url = f"ws://127.0.0.1:{served.open_port}/graphql"
    with connect(url, subprotocols=["graphql-ws"]) as socket:
        start = {"type": "start", "id": "1", "payload": {"query": launch("websocket")}}
        socket.send(json.dumps(start))
        assert json.loads(socket.recv(10))["type"] == "error"
    assert started() == set()


def test_a_snapshot_tells_what_came_changed_and_went(tmp_path: Path):
    stays, goes, comes = (tmp_path / name for name in ("stays", "goes", "comes"))
    stays.write_text("a")
    goes.write_text("b")
    before = snapshot([stays, goes, comes])
    assert changes(before, snapshot([stays, goes, comes])) == Changes()
    assert not any(changes(before, before))
    goes.unlink()
    comes.write_text("c")
    os.utime(stays, ns=(1, 1))  # same size, other time
    after = snapshot([stays, goes, comes])
    assert changes(before, after) == Changes((comes,), (stays,), (goes,))
    assert str(changes(before, after)) == "added: comes; edited: stays; removed: goes"
    stays.write_text("aa")
    os.utime(stays, ns=(1, 1))  # same time, other size
    assert changes(after, snapshot([stays, comes])).edited == (stays,)


def test_experiments_and_the_records_of_them_are_watched(tmp_path: Path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    own = tmp_path / "own.yaml"
    own.write_text("name: own")
    record = folder / "own.json"
    record.write_text(json.dumps({"file": str(own)}))
    (folder / ".own.json.123").write_text("{")  # being written
    watched = watched_files(tmp_path)
    assert set(watched) == {*experiment_files(tmp_path), own, record}


def test_the_link_names_an_address_that_a_browser_can_open(tmp_path: Path):
    plain = Settings(tmp_path)
    assert url_of(plain, "x") == "http://127.0.0.1:3000/?token=x"
    assert url_of(plain._replace(host="::1", port=1), "x") == "http://[::1]:1/?token=x"
    anywhere = plain._replace(host="0.0.0.0")
    assert url_of(anywhere, "x") == "http://127.0.0.1:3000/?token=x"
    named = anywhere._replace(allow_hosts=("sae.example",))
    assert url_of(named, "x") == "http://sae.example:3000/?token=x"


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_reading_is_free_only_where_no_other_machine_reaches(host, is_here, tmp_path):
    assert is_loopback(host) == is_here
    policy = policy_of(Settings(tmp_path, host=host, allow_hosts=("SAE.example",)), "x")
    assert policy.is_loopback == is_here
    assert policy.names >= LOOPBACK | {"sae.example"}
    assert {name for name in policy.names if name.strip("[]") == host.strip("[]")}


def test_each_ui_has_a_cookie_of_its_own(tmp_path: Path):
    settings = [Settings(tmp_path), Settings(tmp_path, port=3001), Settings(tmp_path / "other")]
    assert len({policy_of(one, "x").cookie for one in settings}) == 3


@pytest.mark.parametrize("name", ["https://sae.example", "sae.example:80", "sae.example/", ""])
def test_an_allowed_name_is_a_name(name, tmp_path):
    with pytest.raises(BadInput, match="--allow-host"):
        policy_of(Settings(tmp_path, allow_hosts=(name,)), "x")


def test_the_token_is_for_this_user_and_goes_with_the_server(tmp_path: Path):
    file = tmp_path / ".ui-token"
    file.write_text("old")
    file.chmod(0o644)
    with token_file(file, "new"):
        assert file.read_text() == "new"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


def test_the_browser_is_not_given_the_token_as_an_argument(tmp_path: Path, monkeypatch):
    given = []
    monkeypatch.setattr("webbrowser.open", given.append)
    with opened("http://127.0.0.1:1/?token=x", tmp_path):
        file = tmp_path / "dagster" / ".ui-open.html"
        assert given == [file.as_uri()]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "?token=x" in file.read_text()
    assert not file.exists()


def test_one_ui_per_home_can_change_things(tmp_path: Path):
    with only_one(tmp_path), pytest.raises(SaeError, match="--read-only"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_port_that_is_taken_is_an_error_of_one_sentence():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port.*{port}"):
            bind("127.0.0.1", port)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(ui_module, "find_spec", lambda name: None)
    with pytest.raises(SaeError, match=r"pip install 'sae-workflows\[ui\]'"):
        check_installed()


def group(pid: int) -> list[int]:
    """Processes of one process group that are not yet over."""
    members = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            rest = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[2]) == pid and rest[0] != "Z":
            members.append(int(file.parent.name))
    return members


def assets(port: int) -> set[tuple[str, ...]]:
    status, answer = ask(port, "{ assetNodes { assetKey { path } } }")
    assert status == 200
    return {tuple(node["assetKey"]["path"]) for node in answer["data"]["assetNodes"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Shared by both starts, since the outlines of experiments are remembered there."""
    return tmp_path_factory.mktemp("ui")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_comes_up_serves_and_leaves_no_process_behind(home: Path, number, write):
    file = write("added")
    command = [sys.executable, "-m", "sae_workflows.cli", "ui", "--port", "0", "--home", str(home)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # as a shell starts what runs in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    with process:
        try:
            assert process.stdout is not None
            address, token = process.stdout.readline().strip().split("/?token=")
            port = int(address.rpartition(":")[2])
            assert (home / "dagster" / ".ui-token").read_text() == token
            assert ("world-demo", "saes") in assets(port)
            assert ask(port, "mutation { setNuxSeen }")[0] == 403
            assert ask(port, "mutation { setNuxSeen }", Authorization=f"Bearer {token}")[0] == 200
            assert len(group(process.pid)) >= 4  # web server, code server and its child, daemon
            if number == signal.SIGTERM:
                adopt(home, file, "added")
                while ("added", "saes") not in assets(port):  # ended by the limit on a test
                    time.sleep(0.5)
            process.send_signal(number)
            assert process.wait(60) == 0
            assert group(process.pid) == []
        finally:
            for pid in group(process.pid):
                os.kill(pid, signal.SIGKILL)
    assert not (home / "dagster" / ".ui-token").exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)
