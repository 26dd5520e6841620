"""What clients may hold of a service, shown on `payrelay serve` as a process, with real sockets; no database is needed.

Addresses of 127.0.0.0/8 stand for different clients.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from outbox.clock import utc_now
from schemas.bank import PaymentLink, link_address
from tests.pipeline import ROOT
from tests.scrape import Scrape, free_port
from tests.waiting import eventually

SECRET = "whsec_" + "bGluazEy" * 5
PROXY = "127.0.0.9"
FILES, OF_ONE = 300, 50
CONNECTIONS = FILES // 2
HEAD_S, BODY_S = 1.5, 3.0
ASK = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
SOON_S = 10.0
"""Within which a deadline of a second or so is seen to have passed, on a machine that has other work."""


@dataclass
class Served:
    """The services' process, and where they are."""

    process: subprocess.Popen[bytes]
    payments: int
    bank: int
    metrics: int

    def connect(self, *, source: str = "127.0.0.1", port: int = 0, send: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", port or self.bank), SOON_S, source_address=(source, 0))
        made.sendall(send)
        return made

    def idle(self, *, source: str = "127.0.0.1") -> socket.socket:
        """Return a connection that has had its answer and says nothing more: it may for thirty seconds."""
        made = self.connect(source=source, send=ASK)
        assert answer(made)[0] == 200
        return made

    def healthy_s(self, source: str = "127.0.0.2") -> float:
        """Return how long a plain request of another client takes; it must succeed."""
        begun = time.monotonic()
        with self.connect(source=source, send=b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as made:
            assert answer(made)[0] == 200
        return time.monotonic() - begun

    def memory_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak
        return int(peak[1])

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    payments, bank, metrics = free_port(), free_port(), free_port()
    given = {
        "PAYRELAY_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "PAYRELAY_DSN__PAYMENTS": "postgresql://payments:x@127.0.0.1:1/x",
        "PAYRELAY_DSN__BANK": "postgresql://bank:x@127.0.0.1:1/x",
        "PAYRELAY_BANK_LINK_SECRET": SECRET,
        "PAYRELAY_BANK_NOTIFY_SECRET": SECRET,
        "PAYRELAY_PAYMENTS_PORT": str(payments),
        "PAYRELAY_BANK_PORT": str(bank),
        "PAYRELAY_METRICS_PORT": str(metrics),
        "PAYRELAY_HTTP_CONNECTIONS_PER_ADDRESS": str(OF_ONE),
        "PAYRELAY_HTTP_HEAD_TIMEOUT_S": str(HEAD_S),
        "PAYRELAY_HTTP_BODY_TIMEOUT_S": str(BODY_S),
        "PAYRELAY_HTTP_IDLE_TIMEOUT_S": "30",
        "PAYRELAY_TRUSTED_PROXIES": f"{PROXY}, 10.0.0.0/8",
    }
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli.main", "serve", "payments", "bank"],
            env={**os.environ, **given}, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES // 2, FILES)),
        )  # fmt: skip
    made = Served(process, payments, bank, metrics)

    def up() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", bank)) == 0

    try:
        eventually(up, what="the services listen")
        yield made
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-3000:]
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body of the next answer; fails where none comes in time."""
    content = b""
    while b"\r\n\r\n" not in content:
        try:
            part = connection.recv(65536)
        except TimeoutError:
            raise AssertionError(f"no answer within {connection.gettimeout()} s") from None
        if not part:
            raise AssertionError(f"closed without an answer; it began with {content[:80]!r}")
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return int(head.split()[1]), body


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server has closed a connection; what it sent before is read away."""
    try:
        while select.select([connection], [], [], 0)[0]:
            if not connection.recv(65536):
                return True
    except OSError:
        return True
    return False


@contextmanager
def many(count: int, connect: Callable[[int], socket.socket]) -> Iterator[list[socket.socket]]:
    """Give so many connections; closed with the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(number)) for number in range(count)]


def link(number: int) -> str:
    """Return the path of a payment link that the platform signed."""
    made = PaymentLink(
        payment_no=f"P{number}",
        account_no="A",
        amount_fen=1,
        currency="CNY",
        expires_at=int(utc_now().timestamp()) + 60,
    )
    return link_address("", SECRET, made)


def test_a_service_answers_while_520_connections_send_nothing_or_one_byte(served: Served) -> None:
    with many(520, lambda number: served.connect(send=b"G" * (number % 2))) as idle:
        took = [served.healthy_s() for _ in range(20)]
        assert max(took) < 2.0
        assert served.files() < CONNECTIONS + 60
        eventually(lambda: all(map(is_closed, idle)), within_s=SOON_S, what="idle connections are closed")
        assert requests.get(f"http://127.0.0.1:{served.payments}/health", timeout=5).status_code == 200


@pytest.mark.parametrize("begin", [
    b"GET /health HTTP/1.1\r\n", b"POST /payments HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
])  # fmt: skip
def test_endless_headers_take_no_memory(served: Served, begin: bytes) -> None:
    before_kb = served.memory_kb()
    headers = b"".join(b"x%d: %b\r\n" % (number, b"y" * 60) for number in range(1_000))
    with served.connect(port=served.payments, send=begin) as hostile:
        _send(hostile, headers, times=1_000)  # 70 MB, or until it is cut off
        assert served.memory_kb() - before_kb < 16 * 1024
        assert served.healthy_s() < 2.0
        assert (answer(hostile)[0], is_closed(hostile)) == (431, True)


def test_a_header_of_40_mb_is_refused_early_and_holds_up_nobody(served: Served) -> None:
    before_kb, took = served.memory_kb(), list[float]()
    ending = threading.Event()

    def ask() -> None:
        while not ending.is_set():
            took.append(served.healthy_s())

    asking = threading.Thread(target=ask)
    with served.connect(send=b"GET /health HTTP/1.1\r\nx: ") as hostile:
        asking.start()
        try:
            sent = _send(hostile, b"y" * 1_000_000, times=40)
            status, body = answer(hostile)
        finally:
            ending.set()
            asking.join()
    assert (status, b"head_too_large" in body) == (431, True)
    assert max(took) < 1.0
    assert served.memory_kb() - before_kb < 16 * 1024
    assert sent


def _send(connection: socket.socket, part: bytes, *, times: int) -> int:
    """Send until the other side answers or hangs up; returns how often it did neither."""
    for number in range(times):
        if select.select([connection], [], [], 0)[0]:
            return number
        try:
            connection.sendall(part)
        except OSError:
            return number
    return times


def test_a_hundred_headers_are_served_and_more_are_not(served: Served) -> None:
    for count, expected in ((99, 200), (101, 431)):
        with served.connect(send=b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * count + b"\r\n") as made:
            assert answer(made)[0] == expected
    with served.connect(send=b"GET /health?" + b"q" * 17_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n") as made:
        assert answer(made)[0] == 431
    with served.connect(send=b"GET /health?" + b"q" * 15_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n") as made:
        assert answer(made)[0] == 200


@pytest.mark.parametrize("begin", [
    b"POST /payments HTTP/1.1\r\ncontent-length: 9\r\n\r\n{",
    b"POST /payments HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    b"GET /health HTTP/1.1\r\nx: ",
])  # fmt: skip
def test_what_comes_too_slowly_is_answered_and_closed(served: Served, begin: bytes) -> None:
    with served.connect(port=served.payments, send=begin) as slow:
        assert answer(slow)[0] == 408
        assert slow.recv(1) == b""


@pytest.mark.parametrize("drip", [b"x: y\r\n", b"\r\n"])
def test_a_deadline_is_for_the_whole_head_however_it_drips(served: Served, drip: bytes) -> None:
    def closed() -> bool:
        try:
            slow.sendall(drip)
        except OSError:
            return True
        return is_closed(slow)

    with served.connect(send=b"GET / HTTP/1.1\r\n" if drip != b"\r\n" else b"") as slow:
        eventually(closed, within_s=SOON_S, what="closed at the deadline")


def test_an_endless_body_is_cut_off_after_an_early_answer(served: Served) -> None:
    with served.connect(send=b"POST /nowhere HTTP/1.1\r\ncontent-length: 999999999\r\n\r\n") as hostile:
        assert answer(hostile)[0] == 404
        eventually(lambda: _send(hostile, b"y" * 65536, times=10) < 10, within_s=SOON_S, what="cut off")


def test_an_address_has_its_share_and_its_newest_connections(served: Served) -> None:
    with many(OF_ONE + 30, lambda _: served.idle()) as held:
        eventually(lambda: sum(map(is_closed, held)) == 30, within_s=SOON_S, what="too many of one address")
        assert [is_closed(connection) for connection in held] == [True] * 30 + [False] * OF_ONE
        held[-1].sendall(ASK)
        assert answer(held[-1])[0] == 200


def test_all_together_have_so_many_and_the_oldest_make_room(served: Served) -> None:
    with many(CONNECTIONS + 40, lambda number: served.idle(source=f"127.0.1.{number + 1}")) as held:
        assert served.healthy_s() < 2.0
        closed = [is_closed(connection) for connection in held]
        assert closed[:30] == [True] * 30
        assert closed[-10:] == [False] * 10
        assert served.files() < CONNECTIONS + 60


def test_who_has_sent_a_valid_signature_does_not_count(served: Served) -> None:
    def signed(number: int) -> socket.socket:
        made = served.connect(source="127.0.0.3", send=f"GET {link(number)} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert answer(made)[0] == 200
        return made

    with many(OF_ONE + 20, signed) as merchants, many(OF_ONE, lambda _: served.idle(source="127.0.0.3")) as others:
        assert served.healthy_s() < 2.0
        assert not any(map(is_closed, (*merchants, *others))), "the share of their address is for the others alone"


def test_behind_a_trusted_proxy_the_last_address_that_is_not_trusted_counts(served: Served) -> None:
    def begin(forwarded: str, source: str) -> Callable[[int], socket.socket]:
        head = f"POST /payments HTTP/1.1\r\nx-forwarded-for: {forwarded}\r\ncontent-length: 9\r\n\r\n{{".encode()
        return lambda _: served.connect(port=served.payments, source=source, send=head)

    with many(OF_ONE + 20, begin("6.6.6.6, 203.0.113.9, 10.1.2.3", PROXY)) as of_a_client:
        with served.connect(port=served.payments, source=PROXY) as another:
            another.sendall(b"GET /health HTTP/1.1\r\nx-forwarded-for: 203.0.113.10\r\n\r\n")
            assert answer(another)[0] == 200
        assert sorted(map(end_of, of_a_client)) == [b""] * 20 + [b"HTTP/1.1 408"] * OF_ONE
    with many(OF_ONE + 20, begin("203.0.113.9", "127.0.0.4")) as pretending:
        assert sorted(map(end_of, pretending)) == [b""] * 20 + [b"HTTP/1.1 408"] * OF_ONE


def end_of(connection: socket.socket) -> bytes:
    """Return how the answer begins, once the server has closed the connection; nothing if there was none."""
    content = b""
    try:
        while part := connection.recv(65536):
            content += part
    except TimeoutError:
        return b"still open"
    except OSError:
        pass
    return content[:12]


@pytest.mark.parametrize(
    ("service", "request_line", "status", "error"),
    [
        ("payments", "GET /nowhere", 404, "no_route"),
        ("payments", "GET /payments/", 404, "no_route"),
        ("payments", "GET /payments", 405, "method_not_allowed"),
        ("payments", "DELETE /payments/P1", 405, "method_not_allowed"),
        ("payments", "GET /bank/notifications", 405, "method_not_allowed"),
        ("bank", "PUT /pay", 405, "method_not_allowed"),
        ("bank", "POST /pay", 403, "bad_link"),
        ("bank", "G\x01T /pay", 400, "bad_request"),
        ("bank", "GET /pay\r\ncontent-length: +5", 400, "bad_request"),
        ("bank", f"GET /pay\r\ncontent-length: {'9' * 4_400}", 400, "bad_request"),
        ("metrics", "GET /", 404, "no_route"),
    ],
)
def test_every_error_has_the_same_body(
    served: Served, service: str, request_line: str, status: int, error: str
) -> None:
    line, _, header = request_line.partition("\r\n")
    request = f"{line} HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n" if header else f"{line} HTTP/1.1\r\nhost: x\r\n\r\n"
    with served.connect(port=getattr(served, service), send=request.encode()) as made:
        given, body = answer(made)
    assert (given, body[:1]) == (status, b"{")
    content = json.loads(body)
    assert (content.keys(), content["error"]) == ({"error", "message"}, error)


def test_405_names_what_is_possible(served: Served) -> None:
    with requests.put(f"http://127.0.0.1:{served.bank}/pay", timeout=5) as refused:
        assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_the_link_opened_in_a_browser_is_a_page_that_pays_by_post(served: Served) -> None:
    with requests.get(f"http://127.0.0.1:{served.bank}{link(7)}", headers={"accept": "text/html"}, timeout=5) as page:
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert '<form method="post"><button>Pay</button></form>' in page.text
        assert "0.01 CNY for payment P7" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert (page.headers["referrer-policy"], page.headers["cache-control"]) == ("no-referrer", "no-store")
    with requests.get(f"http://127.0.0.1:{served.bank}/pay?link=%7B%7D&signature=x", timeout=5) as refused:
        assert (refused.status_code, "not the platform" in refused.text) == (403, True)


def test_metrics_are_scraped_while_connections_send_nothing(served: Served) -> None:
    with many(20, lambda number: served.connect(port=served.metrics, send=b"G" * (number % 2))) as idle:
        assert "http_requests" in Scrape(served.metrics).families
        eventually(lambda: all(map(is_closed, idle)), within_s=SOON_S, what="idle connections are closed")


def test_requests_behind_one_another_are_answered_in_order_and_garbage_does_not_cut_them_off(served: Served) -> None:
    ask = b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n"
    with served.connect(send=ask % b"health" + ask % b"nowhere" + ask % b"health" + b"\x00garbage\r\n\r\n") as made:
        content = b""
        while part := made.recv(65536):
            content += part
    assert re.findall(rb"HTTP/1.1 (\d+)", content)[:3] == [b"200", b"404", b"200"]


def test_a_client_that_offers_http_2_is_served_in_http_1(served: Served) -> None:
    ask = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
    with served.connect(send=ask + ask.replace(b"/health", b"/nowhere") + ask.replace(b"upgrade,", b"close,")) as made:
        content = b""
        while part := made.recv(65536):
            content += part
    assert re.findall(rb"HTTP/1.1 (\d+)", content) == [b"200", b"404", b"200"]
