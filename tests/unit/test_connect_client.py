"""Whatever answers at Kafka Connect's address, what the client raises is an error of ours."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from connect import client as connect_client
from connect.client import ConnectClient
from ops.pipeline import running
from outbox.errors import PayrelayError, Unreachable
from tests.misbehaving import listening


class Strange(BaseHTTPRequestHandler):
    """Answers as its path says."""

    def do_GET(self) -> None:
        how = self.path.split("/")[1]
        headers = {
            "cut-off": {"Content-Length": "100"},
            "chunks": {"Transfer-Encoding": "chunked"},
            "round": {"Location": self.path, "Content-Length": "0"},
            "html": {"Content-Length": "7"},
            "packed": {"Content-Length": "7", "Content-Encoding": "gzip"},
        }[how]
        self.send_response(302 if how == "round" else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if how != "round":
            self.wfile.write(b"<html/>")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the handler's own name for it
        """Requests are not logged."""


@pytest.fixture(scope="module")
def address() -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Strange)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("how", ["cut-off", "chunks", "round", "html", "packed"])
def test_an_answer_that_is_none_of_kafka_connects(address: str, how: str) -> None:
    client = ConnectClient(f"{address}/{how}", patience_s=0.0)
    with pytest.raises(PayrelayError):
        client.status("payrelay-outbox")


ENDLESS = {
    "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a status line": (b"HTTP/1.1 200 OK", b"!"),
    "headers": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b" "),
}
"""What comes first, and then piece by piece."""


@pytest.mark.parametrize("what", ENDLESS)
def test_an_answer_that_goes_on_and_on_is_waited_for_no_longer_than_its_time(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_client, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(running, "ANSWER_S", 0.5)
    first, piece = ENDLESS[what]

    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(first)
        gives_up = time.monotonic() + 5
        while time.monotonic() < gives_up:
            connection.sendall(piece)
            time.sleep(0.05)

    with listening(answer) as port:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="took longer than"):
            ConnectClient(f"http://127.0.0.1:{port}", patience_s=0.0).status("payrelay-outbox")
        assert time.monotonic() - began < 3
        began = time.monotonic()
        assert running._answers(f"http://127.0.0.1:{port}/health") is (what == "a body")
        assert time.monotonic() - began < 3
