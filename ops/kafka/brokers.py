"""What Kafka's client raises, as errors of ours. One rule for every call: a broker that is away, hangs or changes hands is Unreachable."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from outbox.errors import Refused, Unreachable
from outbox.settings import Settings

TIMEOUT_S = 20.0

AWAY = (
    "REQUEST_TIMED_OUT",
    "BROKER_NOT_AVAILABLE",
    "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION",
    "NETWORK_EXCEPTION",
    "NOT_CONTROLLER",
    "COORDINATOR_NOT_AVAILABLE",
    "COORDINATOR_LOAD_IN_PROGRESS",
    "NOT_COORDINATOR",
)
"""What brokers answer while one of them is away; the client's own errors begin with an underscore."""


@contextmanager
def asking(settings: Settings) -> Generator[None]:
    """What Kafka answers instead is Unreachable where it does not answer, Refused where it refuses.

    The client raises KafkaException in a call, and TimeoutError where a future's result does not come in time: a broker that hangs.
    """
    try:
        yield
    except TimeoutError as error:
        raise Unreachable(
            f"Kafka does not answer at {settings.kafka_bootstrap} within {TIMEOUT_S:.0f} s. Is it up? payrelay status"
        ) from error
    except KafkaException as error:
        code = error.args[0]
        if code.name() in ("UNKNOWN_MEMBER_ID", "NON_EMPTY_GROUP"):
            raise Refused("the group has members again, so nothing was moved: stop them first") from error
        if is_away(code):
            raise Unreachable(f"Kafka does not answer at {settings.kafka_bootstrap}: {code.str()}") from error
        raise Refused(f"Kafka refuses: {code.str()}") from error


def is_away(code: KafkaError) -> bool:
    """Return whether an error says that a broker does not answer, rather than that it refuses.

    >>> [is_away(KafkaError(code)) for code in (KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT, KafkaError.TOPIC_ALREADY_EXISTS)]
    [True, True, False]
    """
    name = code.name()
    return name.startswith("_") or name in AWAY
