"""What the Kafka client makes of a connection that has just broken."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

import consumers.runtime.transport

assert consumers.runtime.transport.TRANSPORTS


def test_a_request_on_a_connection_that_broke_a_moment_ago_is_one_to_try_again() -> None:
    async def break_and_send() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            connection = AIOKafkaConnection("127.0.0.1", port)
            connection._reader, connection._writer = reader, writer
            connection._read_task = asyncio.ensure_future(reader.read())
            writer.transport.abort()
            await writer.wait_closed()
            with pytest.raises(KafkaConnectionError):
                connection.send(ApiVersionRequest())
            assert not connection.connected()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(break_and_send())
