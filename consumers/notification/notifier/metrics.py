"""Metrics of the notifier. Counted per attempt: an attempt is an HTTP request, beside which counting costs nothing."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from outbox.metrics import SECONDS

ATTEMPTS = Counter(
    "notify_attempts",
    "Notifications sent, by rule (the queue) and result: success (2xx and the agreed word) or failure.",
    ["rule", "result"],
)
ATTEMPT = Histogram(
    "notify_attempt_seconds", "Duration of one attempt to notify, to the end of the answer.", ["rule"], buckets=SECONDS
)
LATENESS = Histogram(
    "notify_lateness_seconds",
    "From when an attempt was last planned to when it began; postponed says whether it had been put off (pause, breaker, bound …).",
    ["rule", "postponed"],
    buckets=SECONDS,
)
