"""What is kept of a failure: its first cause, its status, its limit. No stack."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import aiohttp
import pytest
from typer.testing import CliRunner

from connect.client import first_cause
from consumers.notification.notifier.attempt import attempt
from consumers.notification.notifier.claims import Claimed, Ended
from ops.cli.main import app
from tests.misbehaving import hanging, listening

SUPPRESSED = """org.apache.kafka.connect.errors.ConnectException: An exception occurred in the change event producer.
\tat io.debezium.pipeline.ErrorHandler.setProducerThrowable(ErrorHandler.java:67)
\tSuppressed: java.sql.SQLException: cannot close
\t\tat org.postgresql.jdbc.PgConnection.close(PgConnection.java:1)
\tCaused by: java.net.SocketException: socket is closed
\t\t... 1 more
Caused by: io.debezium.DebeziumException: no replication slot
\tat io.debezium.connector.postgresql.Streaming.execute(Streaming.java:1)
\tSuppressed: java.lang.IllegalStateException: close twice
\tCaused by: java.io.IOException: broken pipe
Caused by: org.postgresql.util.PSQLException: ERROR: replication slot "payrelay_outbox" does not exist
\tat org.postgresql.core.v3.QueryExecutorImpl.receive(QueryExecutorImpl.java:1)
\tSuppressed: java.lang.RuntimeException: last
\tCaused by: java.lang.RuntimeException: of all
"""


def test_what_was_suppressed_is_no_cause() -> None:
    assert first_cause(SUPPRESSED) == (
        'org.postgresql.util.PSQLException: ERROR: replication slot "payrelay_outbox" does not exist'
    )
    only = "A: it broke\n\tat x\n\tSuppressed: B: close\n\tCaused by: C: socket\n"
    assert first_cause(only) == "A: it broke"


@pytest.mark.parametrize("command", [
    ("ledger", "trial-balance", "--at"), ("ledger", "statement", "suspense", "--from"), ("parked", "list", "--to"),
    ("notify", "list", "--from"), ("notify", "rule", "explain", '{"1":0}', "--at"),
])  # fmt: skip
def test_an_hour_that_a_zone_has_twice_is_refused_wherever_a_time_is_typed(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYRELAY_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("PAYRELAY_DSN__OPS", "postgresql://ops@127.0.0.1:1/payrelay")
    for typed in ("2026-10-25T02:30:00", "2026-03-29T02:30:00"):
        result = CliRunner().invoke(app, [*command, typed, "--tz", "Europe/Berlin"])
        assert (result.exit_code, "twice or never in Europe/Berlin" in result.stderr) == (2, True), result.exception
        unzoned = CliRunner().invoke(app, [*command, typed])
        assert (unzoned.exit_code, "names no zone" in unzoned.stderr) == (2, True), unzoned.exception


def attempted(answer: Callable[[socket.socket], None]) -> Ended:
    """Return what is written down of an attempt at a receiver that behaves so."""
    zero = datetime(2026, 1, 1, tzinfo=UTC)

    async def run(port: int) -> Ended:
        record = Claimed(
            id=UUID(int=7), queue="merchant", merchant_no="M1", body="{}", rule='{"1":0}', attempt=1, rule_begin=0, planned_at=zero,
            postponed=False, leased_until=zero, url=f"http://127.0.0.1:{port}/", old_secret=None,
            secret="whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
        )  # fmt: skip
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
            return await attempt(session, record, "success", allow_private=True)

    with listening(answer) as port:
        return asyncio.run(run(port))


def sending(content: bytes, *, goes: bool) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(content)
        if not goes:
            hanging(connection)

    return answer


HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsucc"


@pytest.mark.parametrize(
    ("content", "goes", "status", "words"),
    [
        (HALF, True, 200, "status 200"),
        (b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsu", True, 503, "status 503"),
        (HALF, False, 200, "TimeoutError: no complete response within"),
        (b"", False, None, "TimeoutError: no complete response within"),
    ],
)
def test_an_answer_that_breaks_off_keeps_its_status_and_an_error_has_words(
    content: bytes, goes: bool, status: int | None, words: str
) -> None:
    ended = attempted(sending(content, goes=goes))
    assert (ended.http_status, ended.result.value) == (status, "HTTP_REQUEST_FAILED"), ended.error
    assert words in ended.error
