"""What a reconciliation finds: a hole, the event it is a hole of, and the command that mends it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from consumers.notification.queues import QUEUES
from consumers.processors import EFFECTS
from outbox.quoting import positional, quoted


class Kind(StrEnum):
    """What is wrong, from the first station of a payment's way to the last."""

    UNRECORDED = "unrecorded"
    """A fact of a service, and no outbox row tells of it."""
    CONTRADICTED = "contradicted"
    """An outbox row tells of a fact that its service does not have, or has otherwise."""
    UNPUBLISHED = "unpublished"
    """An outbox row, and no record of it on its topic."""
    UNDELIVERED = "undelivered"
    """A record that its consumer has passed by: not applied, not parked."""
    PARKED = "parked"
    NO_EFFECT = "no_effect"
    """The consumer's inbox knows the event, and its effect is not there."""
    WRONG_EFFECT = "wrong_effect"
    """The effect is another one than the event calls for."""
    STRAY_EFFECT = "stray_effect"
    """An effect that no event calls for: of no payment, or one too many."""
    FORGOTTEN = "forgotten"
    """The effect is there, and the consumer's inbox does not know the event: a redelivery would be taken for another one."""
    UNTOLD = "untold"
    """The notification is written, and was not answered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A hole. What of it does not apply is empty."""

    kind: Kind
    service: str
    """Whose rows are meant, or whose outbox the event is in."""
    consumer: str = ""
    event_id: UUID | None = None
    type: str = ""
    key: str = ""
    order_no: str = ""
    business_no: str = ""
    """What the effect hangs on: the payment's number, the bank's transaction of money in suspense, or the deposit's."""
    effect: str = ""
    """Which of several, e.g. the account."""
    place: str = ""
    """Where its record lies, e.g. payment.order/2@4711."""
    found: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes it the same finding in a later run."""
        return (self.kind, self.consumer, str(self.event_id or ""), self.business_no, self.effect)

    @property
    def mend(self) -> str:
        """The command that mends it."""
        return mend_of(self)


def mend_of(finding: Finding) -> str:
    """Return the command that mends a finding; where none does, what an operator is to look at."""
    match finding.kind:
        case Kind.UNPUBLISHED:
            return f"payrelay connect snapshot --event {finding.event_id} --execute"
        case Kind.UNDELIVERED:
            return (
                f"payrelay replay redeliver --consumer {quoted(finding.consumer)} --event {finding.event_id} --execute"
            )
        case Kind.PARKED:
            return f"payrelay parked retry {quoted(finding.effect)} --execute"
        case Kind.UNRECORDED | Kind.NO_EFFECT | Kind.FORGOTTEN:
            return "payrelay reconcile --fix --execute"
        case Kind.WRONG_EFFECT | Kind.STRAY_EFFECT if is_correctable(finding.consumer):
            return "payrelay reconcile --fix --execute"
        case Kind.UNTOLD if finding.found == "it is FAILED":
            return f"payrelay notify resend --order {quoted(finding.order_no)} --reason … --execute"
        case Kind.UNTOLD:
            queue = next((queue for queue, service in QUEUES.items() if service == finding.service), "merchant")
            return f"the notifier sends it: payrelay status, payrelay logs worker:notifier:{queue}"
        case _:
            return "by hand: payrelay timeline " + positional(finding.order_no or finding.business_no)


def is_correctable(consumer: str) -> bool:
    """Return whether a consumer, under whatever prefix, states that its effects are corrected by rows of their own.

    >>> is_correctable("funds"), is_correctable("prefix-funds"), is_correctable("settlement"), is_correctable("")
    (True, True, False, False)
    """
    names = [name for name in EFFECTS if consumer.endswith(name)]
    return bool(names) and EFFECTS[max(names, key=len)].correctable
