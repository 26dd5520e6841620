"""Whatever answers at Kafka Connect's address, what the client raises is an error of ours."""

from __future__ import annotations

import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from connect.client import ConnectClient
from outbox.errors import PayrelayError


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
