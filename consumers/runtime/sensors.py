"""Faust's sensors count messages: what wakes the agent is a note that messages wait, and no message of anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faust
from faust.sensors.base import SensorDelegate
from faust.types import TP

from consumers.delivery.messages import Message, Slice


class BatchSensors(SensorDelegate):  # type: ignore[misc]
    """The app's sensors count each message that the agent takes, and each event that is done with.

    A `faust.Monitor` counts a slice in a few additions. A sensor with methods of its own, such as Faust's for StatsD, is called
    for each message, at its own cost: topic, partition and offset are the message's, Faust's message and event the note's.
    """

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._note: tuple[Any, Any] = (None, None)
        """The stream, and the event that woke its agent last."""

    def on_stream_event_in(self, tp: TP, offset: int, stream: Any, event: Any) -> None:  # noqa: ARG002 - Faust's signature
        """The agent is woken: nothing is counted yet."""
        self._note = (stream, event)

    def on_stream_event_out(self, *_: Any) -> None:
        """The agent has nothing more to take."""

    def took(self, slices: Sequence[Slice]) -> None:
        """The slices' messages were received, and are in work."""
        note = self._note[1].message
        for tp, messages in _by_partition(slices):
            for sensor in self:
                if _counts_as(sensor, "on_message_in"):
                    sensor.on_message_in(tp, messages[-1].offset, note)
                    more = len(messages) - 1
                    sensor.messages_received_total += more
                    sensor.messages_active += more
                    sensor.messages_received_by_topic[tp.topic] += more
                else:
                    for message in messages:
                        sensor.on_message_in(tp, message.offset, note)

    def handled(self, slices: Sequence[Slice], *, began: float) -> None:
        """The slices' events are done with: committed. The transaction began then, by the clock of `time.monotonic`."""
        stream, event = self._note
        for tp, messages in _by_partition(slices):
            for sensor in self:
                if _counts_as(sensor, "on_stream_event_in") and _counts_as(sensor, "on_stream_event_out"):
                    state = sensor.on_stream_event_in(tp, messages[-1].offset, stream, event)
                    more = len(messages) - 1
                    sensor.events_total += more
                    sensor.events_by_stream[sensor.stream_lookup[stream]] += more
                    sensor.events_by_task[sensor.task_lookup[stream.task_owner]] += more
                    state["time_in"] = began
                    sensor.on_stream_event_out(tp, messages[-1].offset, stream, event, state)
                else:
                    for message in messages:
                        state = sensor.on_stream_event_in(tp, message.offset, stream, event)
                        sensor.on_stream_event_out(tp, message.offset, stream, event, state)

    def let_go(self, slices: Sequence[Slice]) -> None:
        """The slices' messages are no longer in work, whatever has become of them."""
        note = self._note[1].message
        for tp, messages in _by_partition(slices):
            for sensor in self:
                if _counts_as(sensor, "on_message_out"):
                    sensor.on_message_out(tp, messages[-1].offset, note)
                    sensor.messages_active -= len(messages) - 1
                else:
                    for message in messages:
                        sensor.on_message_out(tp, message.offset, note)


def _by_partition(slices: Sequence[Slice]) -> list[tuple[TP, Sequence[Message]]]:
    return [(TP(slice_.log.topic, slice_.log.partition), slice_.messages) for slice_ in slices if slice_.messages]


def _counts_as(sensor: Any, name: str) -> bool:
    """Return whether a sensor counts the way that Faust's monitor does."""
    return getattr(type(sensor), name) is getattr(faust.Monitor, name)
