"""A chat endpoint on this machine that behaves as badly as it is told to."""

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from sae_lib.llm import Endpoint, EndpointConfig, Question
from sae_lib.llm.pace import Clock


class Told(NamedTuple):
    """What the endpoint does with a request."""

    content: str
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    length: int | None = None
    """Length that is announced, where it is not the true one."""

    reset: bool = False
    """Whether the connection is reset instead."""

    hold: threading.Event | None = None
    """What is waited for before the answer."""


def said(text: str | None, *, finish: str = "stop", usage: Any = (10, 5), **message: Any) -> str:
    """The JSON of a completion."""
    choice = {"message": {"content": text, **message}, "finish_reason": finish}
    counted = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return json.dumps({"choices": [choice], **counted})


class FakeClock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.time, self.slept = 1000.0, []
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.time += seconds

    @property
    def clock(self) -> Clock:
        return Clock(self.now, self.sleep)


class Server:
    """Answers by ``answer(body, number)``; remembers what it was sent."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Told]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    told = outer.answer(body, len(outer.bodies))
                if told.hold is not None:
                    told.hold.wait(5)
                self.close_connection = True
                if told.reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return
                raw = told.content.encode()
                try:
                    self.send_response(told.status)
                    for name, value in told.headers.items():
                        self.send_header(name, value)
                    self.send_header("Connection", "close")
                    self.send_header("Content-Length", str(told.length or len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    pass  # whoever asked has gone

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            request_queue_size = 64

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def asked(self) -> Counter[str]:
        """How often each content was asked."""
        return Counter(json.dumps(body, sort_keys=True) for body in self.bodies)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started = []

    def start(answer: Callable[[dict[str, Any], int], Told]) -> Server:
        server = Server(answer)
        thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@pytest.fixture
def fake_clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tools() -> Any:
    """What answers are made of."""

    class Tools:
        told, said, clock = Told, staticmethod(said), FakeClock

        @staticmethod
        def endpoint(server: Server, folder: Any, clock: FakeClock, **dials: Any) -> Endpoint:
            dials = {"model": "m", "api_key_env": None} | dials
            return Endpoint(EndpointConfig(base_url=server.url, **dials), folder, clock=clock.clock)

        @staticmethod
        def questions(num: int) -> list[Question]:
            return [Question.of("be brief", f"question {i}") for i in range(num)]

        @staticmethod
        def number(body: dict[str, Any]) -> int:
            return int(body["messages"][1]["content"].split()[-1])

    return Tools
