"""What would be done about findings: step by step, in an order in which each finds what it needs; and what is left to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ops.delivery.outcomes import batched
from ops.delivery.registry import Consumer, known_consumers
from ops.reconcile import state
from ops.reconcile.findings import RECORDABLE, Finding, Kind
from ops.reconcile.present import effects_under
from outbox.settings import Settings


@dataclass(frozen=True, kw_only=True)
class FixStep:
    """Something to be done about findings of one kind, at one place."""

    what: str
    kind: Kind
    at: str
    """The consumer, or the service."""
    findings: Sequence[Finding]
    by_hand: bool = False
    """Nothing is done: an operator has to look."""


WHAT = {
    Kind.UNRECORDED: "record the event from the fact's row",
    Kind.UNPUBLISHED: "publish the outbox row again, through the connector",
    Kind.UNDELIVERED: "redeliver the event",
    Kind.NO_EFFECT: "apply the event, which counts as applied, once",
    Kind.FORGOTTEN: "note the event in the inbox",
    Kind.PARKED: "retry the event's key",
    Kind.WRONG_EFFECT: "correct the effect",
    Kind.STRAY_EFFECT: "take the effect back",
}
"""In this order: what comes later may need what comes before. The last two in the words of the consumer's correction."""


def plan(settings: Settings, findings: Sequence[Finding]) -> list[FixStep]:
    """Return what would be done, in order; last, what only an operator can fix. Reads only."""
    announced = _announced(settings, [finding for finding in findings if finding.kind is Kind.UNRECORDED])
    consumers = known_consumers(settings)
    steps: list[FixStep] = []
    left: list[Finding] = []
    by_kind: dict[tuple[Kind, str], list[Finding]] = {}
    for finding in findings:
        if _is_fixable(finding, announced, consumers):
            by_kind.setdefault((finding.kind, finding.consumer or finding.service), []).append(finding)
        else:
            left.append(finding)
    for kind in WHAT:
        steps += [
            FixStep(what=_what(kind, consumers.get(at)), kind=kind, at=at, findings=group)
            for (of, at), group in by_kind.items()
            if of is kind
        ]
    groups: dict[tuple[Kind, str], list[Finding]] = {}
    for finding in left:
        groups.setdefault((finding.kind, finding.consumer or finding.service), []).append(finding)
    return steps + [
        FixStep(what=_by_hand(kind), kind=kind, at=at, findings=group, by_hand=True)
        for (kind, at), group in groups.items()
    ]


def _is_fixable(finding: Finding, announced: set[str], consumers: Mapping[str, Consumer]) -> bool:
    match finding.kind:
        case Kind.UNRECORDED:
            return finding.type in RECORDABLE and finding.business_no not in announced
        case Kind.WRONG_EFFECT | Kind.STRAY_EFFECT:
            return finding.consumer in consumers and consumers[finding.consumer].effects.corrects(finding.effect)
        case _:
            return finding.kind in WHAT


def _what(kind: Kind, consumer: Consumer | None) -> str:
    correction = consumer.effects.correction if consumer is not None else None
    if correction is not None and kind in (Kind.WRONG_EFFECT, Kind.STRAY_EFFECT):
        return correction.wrong if kind is Kind.WRONG_EFFECT else correction.stray
    return WHAT[kind]


def _by_hand(kind: Kind) -> str:
    if kind is Kind.UNTOLD:
        return "nothing: the notifier sends it"
    if kind is Kind.UNRECORDED:
        return "by hand: the row says too little to record the event, or its effects are there already"
    return "by hand"


def _announced(settings: Settings, findings: Sequence[Finding]) -> set[str]:
    """Return the business numbers that some consumer has an effect of: their event was recorded, and its row is gone."""
    numbers = sorted({finding.business_no for finding in findings})
    announced: set[str] = set()
    if not numbers:
        return announced
    engine = state.engine_of(settings)
    try:
        with engine.connect() as connection:
            for consumer in (known for known in known_consumers(settings).values() if known.effects.changed):
                for part in batched(numbers, 4_000):
                    announced |= effects_under(connection, consumer.effects, part).keys()
    finally:
        engine.dispose()
    return announced
