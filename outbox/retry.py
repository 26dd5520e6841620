"""How long to wait before trying again. Pure."""

from __future__ import annotations


def backoff_s(attempt: int, *, first_s: float = 0.1, cap_s: float = 5.0, jitter: float = 1.0) -> float:
    """Return the delay before attempt `attempt` + 1: doubling, capped, halved to full by `jitter` in [0, 1].

    >>> [backoff_s(n) for n in range(1, 8)]
    [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    >>> backoff_s(3, jitter=0.0)
    0.2
    """
    whole_s = min(cap_s, first_s * 2.0 ** min(attempt - 1, 30))
    return whole_s / 2 + whole_s / 2 * jitter
