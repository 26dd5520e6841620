"""What the transport changes in aiokafka, and every touch of its internals.

Written against the versions below; `require_versions` refuses others. `install` patches the process, `commit_as_member` and
`gather_fetches` patch one consumer. Everything here that takes a consumer runs in the consumer's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import CommitFailedError, KafkaConnectionError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import TopicPartition

from consumers.runtime import batches
from outbox.errors import Refused

VERSIONS = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0", "mode-streaming": "0.7.1"}


def require_versions() -> None:
    """Raises Refused unless the libraries whose internals this package touches are the ones it was written against."""
    for name, wanted in VERSIONS.items():
        if (installed := version(name)) != wanted:
            raise Refused(
                f"{name} {installed} is installed, but consumers/runtime was written for {wanted}: install that version with make setup"
            )


def install() -> None:
    """aiokafka's clients of this process survive a broken connection and an unreadable batch. May be repeated."""
    AIOKafkaConnection.send = _send
    batches.install()


def _send(
    connection: AIOKafkaConnection,
    *arguments: Any,
    _send: Callable[..., Any] = AIOKafkaConnection.send,
    **options: Any,
) -> Any:
    """Send, or raise KafkaConnectionError, which aiokafka tries again.

    On a connection that broke a moment ago uvloop raises RuntimeError, where asyncio would drop what is written and aiokafka
    expects an OSError: the client's coordination would end for good.
    """
    try:
        return _send(connection, *arguments, **options)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"the connection is closed: {error}") from error


def commit_as_member(consumer: Any) -> None:
    """The aiokafka consumer commits nothing, with CommitFailedError, while its group does not know it as a member.

    A member that the group has let go forgets its generation, and commits like a tool from outside: a broker takes that once
    the group is empty. One that thaws after its siblings have ended would set Kafka's offset back.
    """
    coordinator = consumer._coordinator
    commit = coordinator._do_commit_offsets

    async def as_member(assignment: Any, offsets: Any) -> None:
        if coordinator.generation == OffsetCommitRequest.DEFAULT_GENERATION_ID:
            raise CommitFailedError("the group does not know this member")
        await commit(assignment, offsets)

    coordinator._do_commit_offsets = as_member


def gather_fetches(consumer: Any, not_before: Callable[[], float]) -> None:
    """The consumer's fetch requests go out no earlier than this time, by the clock of `time.monotonic`."""
    fetcher = consumer._fetcher
    request = fetcher._proc_fetch_request

    async def gathering(*arguments: Any) -> bool:
        try:
            if (wait_s := not_before() - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            brought: bool = await request(*arguments)
        except asyncio.CancelledError:
            # By the fetcher's close, which awaits this task: passed on, it would cancel the end of the thread too.
            return False
        return brought

    fetcher._proc_fetch_request = gathering


class PartitionSet(set[TopicPartition]):
    """Partitions to take messages of. aiokafka reads an empty set as all partitions; this one is never false."""

    def __bool__(self) -> bool:
        return True


def is_closed(consumer: Any) -> bool:
    """Return whether the consumer was closed."""
    closed: bool = consumer._closed
    return closed


def check_errors(consumer: Any) -> None:
    """Raises what the group's coordination has failed at since it was last asked."""
    consumer._coordinator.check_errors()


def ended_tasks(consumer: Any) -> dict[str, BaseException | None]:
    """Return which of the client's own tasks have ended though it is not closed, each with its error."""
    tasks = {"coordination": consumer._coordinator._coordination_task, "fetching": consumer._fetcher._fetch_task}
    return {
        name: None if task.cancelled() else task.exception()
        for name, task in tasks.items()
        if task.done() and not consumer._closed
    }


async def fetched_messages(
    consumer: Any, wanted: PartitionSet, *, timeout_s: float, messages_max: int
) -> Mapping[TopicPartition, tuple[Sequence[Any], int]]:
    """Return what has come in of the wanted partitions, each with the fetch position after it."""
    subscription = consumer._subscription
    # aiokafka's own context manager would count a fetch for ever once an error leaves it.
    context = subscription.fetch_context()
    context.__enter__()
    try:
        fetched = await consumer._fetcher.fetched_records(wanted, timeout_s, messages_max)
    finally:
        context.__exit__(None, None, None)
    assignment = subscription.subscription.assignment
    # The position counts control records too, so that they never look like a gap.
    return {tp: (messages, assignment.state_value(tp).position) for tp, messages in fetched.items()}


def wake_fetch(consumer: Any) -> None:
    """A call of `fetched_messages` that waits looks at its wanted partitions again."""
    for waiter in list(consumer._fetcher._fetch_waiters):
        consumer._fetcher._notify(waiter)
