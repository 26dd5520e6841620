"""A finding of reconcile: its kind, its event, and the command that fixes it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from consumers.effects import Effects
from consumers.notification.queues import QUEUES
from outbox.quoting import positional, quoted


class Kind(StrEnum):
    """Kinds of findings, in the order of a payment's way."""

    UNRECORDED = "unrecorded"
    """A service has a fact that no outbox row records."""
    CONTRADICTED = "contradicted"
    """An outbox row records a fact that its service does not have, or has otherwise."""
    UNPUBLISHED = "unpublished"
    """An outbox row has no message on its topic."""
    UNDELIVERED = "undelivered"
    """A consumer has passed a message by: not applied, not parked."""
    PARKED = "parked"
    NO_EFFECT = "no_effect"
    """The event counts as applied, but its effect is not there."""
    WRONG_EFFECT = "wrong_effect"
    """The effect differs from the one that the event calls for."""
    STRAY_EFFECT = "stray_effect"
    """No event calls for the effect: it belongs to no payment, or is one too many."""
    FORGOTTEN = "forgotten"
    """The effect is there, but the event does not count as applied. If it came again it would be parked as DUPLICATE_FACT."""
    UNTOLD = "untold"
    """The notification is written, but not answered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A difference between what should be there and what is. Fields that do not apply are empty."""

    kind: Kind
    service: str
    """The service whose rows are meant, or whose outbox holds the event."""
    consumer: str = ""
    event_id: UUID | None = None
    type: str = ""
    key: str = ""
    order_no: str = ""
    business_no: str = ""
    """The number that the effect belongs to: the payment's, the deposit's, or the bank transaction's of money in suspense."""
    effect: str = ""
    """Which of several, e.g. the account."""
    place: str = ""
    """Where its message is, e.g. payment.order/2@4711."""
    found: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """The values that identify the same finding in a later run."""
        return (self.kind, self.consumer, str(self.event_id or ""), self.business_no, self.effect)


RECORDABLE = ("payment.settled", "payment.failed", "payment.suspense_recorded", "funds.deposited")
"""Facts whose rows say all that their events did."""


def fix_of(finding: Finding, effects: Effects | None = None) -> str:
    """Return the command that fixes a finding, given its consumer's effects; where none does, what an operator is to look at."""
    match finding.kind:
        case Kind.UNPUBLISHED:
            return f"payrelay connect snapshot --event {finding.event_id} --execute"
        case Kind.UNDELIVERED:
            return (
                f"payrelay replay redeliver --consumer {quoted(finding.consumer)} --event {finding.event_id} --execute"
            )
        case Kind.PARKED:
            return f"payrelay parked retry {quoted(finding.effect)} --execute"
        case Kind.UNRECORDED if finding.type not in RECORDABLE:
            return "by hand: its row says too little: payrelay timeline " + positional(
                finding.order_no or finding.business_no
            )
        case Kind.UNRECORDED | Kind.NO_EFFECT | Kind.FORGOTTEN:
            return "payrelay reconcile --fix --execute"
        case Kind.WRONG_EFFECT | Kind.STRAY_EFFECT if effects is not None and effects.corrects(finding.effect):
            return "payrelay reconcile --fix --execute"
        case Kind.UNTOLD if finding.found == "it is FAILED":
            return f"payrelay notify resend --order {quoted(finding.order_no)} --reason … --execute"
        case Kind.UNTOLD:
            queue = next((queue for queue, service in QUEUES.items() if service == finding.service), "merchant")
            return f"the notifier sends it: payrelay status, payrelay logs worker:notifier:{queue}"
        case _:
            return "by hand: payrelay timeline " + positional(finding.order_no or finding.business_no)
