"""Faust's sensors, told of records: what wakes the agent is a note that records wait, and no message of anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faust
from faust.sensors.base import SensorDelegate
from faust.types import TP

from consumers.delivery.loop import Record, Slice


class BatchSensors(SensorDelegate):  # type: ignore[misc]
    """The app's sensors count each record that the agent takes, and each event that is done with.

    A `faust.Monitor` is told of a slice in a few additions. A sensor with methods of its own, such as Faust's for StatsD, is
    called once a record, at its own cost: topic, partition and offset are the record's, message and event the note's.
    """

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._note: tuple[Any, Any] = (None, None)
        """The stream, and the event that woke its agent last."""

    def on_stream_event_in(self, tp: TP, offset: int, stream: Any, event: Any) -> None:  # noqa: ARG002 - Faust's signature
        """The agent is woken: nothing is counted yet."""
        self._note = (stream, event)

    def on_stream_event_out(self, *_: Any) -> None:
        """The agent has found nothing more to take."""

    def took(self, slices: Sequence[Slice]) -> None:
        """The slices' records were received, and are in work."""
        message = self._note[1].message
        for tp, records in _by_partition(slices):
            for sensor in self:
                if _counts_as(sensor, "on_message_in"):
                    sensor.on_message_in(tp, records[-1].offset, message)
                    more = len(records) - 1
                    sensor.messages_received_total += more
                    sensor.messages_active += more
                    sensor.messages_received_by_topic[tp.topic] += more
                else:
                    for record in records:
                        sensor.on_message_in(tp, record.offset, message)

    def handled(self, slices: Sequence[Slice], *, began: float) -> None:
        """The slices' events are done with: committed. The transaction began then, by the clock of `time.monotonic`."""
        stream, event = self._note
        for tp, records in _by_partition(slices):
            for sensor in self:
                if _counts_as(sensor, "on_stream_event_in") and _counts_as(sensor, "on_stream_event_out"):
                    state = sensor.on_stream_event_in(tp, records[-1].offset, stream, event)
                    more = len(records) - 1
                    sensor.events_total += more
                    sensor.events_by_stream[sensor.stream_lookup[stream]] += more
                    sensor.events_by_task[sensor.task_lookup[stream.task_owner]] += more
                    state["time_in"] = began
                    sensor.on_stream_event_out(tp, records[-1].offset, stream, event, state)
                else:
                    for record in records:
                        state = sensor.on_stream_event_in(tp, record.offset, stream, event)
                        sensor.on_stream_event_out(tp, record.offset, stream, event, state)

    def let_go(self, slices: Sequence[Slice]) -> None:
        """The slices' records are no longer in work, whatever has become of them."""
        message = self._note[1].message
        for tp, records in _by_partition(slices):
            for sensor in self:
                if _counts_as(sensor, "on_message_out"):
                    sensor.on_message_out(tp, records[-1].offset, message)
                    sensor.messages_active -= len(records) - 1
                else:
                    for record in records:
                        sensor.on_message_out(tp, record.offset, message)


def _by_partition(slices: Sequence[Slice]) -> list[tuple[TP, Sequence[Record]]]:
    return [(TP(one.log.topic, one.log.partition), one.records) for one in slices if one.records]


def _counts_as(sensor: Any, name: str) -> bool:
    """Return whether a sensor counts the way that Faust's monitor does."""
    return getattr(type(sensor), name) is getattr(faust.Monitor, name)
