"""Passwords are kept as scrypt hashes: `scrypt$N$r$p$salt$hash`, the last two in base64.

Source of the costs: OWASP Password Storage Cheat Sheet, scrypt with 2^15, 8, 3.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from hashlib import scrypt
from hmac import compare_digest

from schemas.numeric import parse_whole

COST, BLOCK, LANES = 2**15, 8, 3
COST_MAX = 2**24
MEMORY_BYTES_MAX = 64 * 1024 * 1024
SALT_BYTES, HASH_BYTES = 16, 32
LENGTH_MIN = 12


def generated() -> str:
    """Return a new password of 120 random bits."""
    return secrets.token_urlsafe(15)


def hashed(password: str, *, cost: int = COST) -> str:
    """Return a password's hash with a salt of its own; takes about a fifth of a second and 32 MiB."""
    salt = secrets.token_bytes(SALT_BYTES)
    digest = _digest(password, salt, cost, BLOCK, LANES)
    return "$".join(["scrypt", str(cost), str(BLOCK), str(LANES), b64encode(salt).decode(), b64encode(digest).decode()])


def matches(password: str, kept: str) -> bool:
    """Return whether a password has this hash, compared in constant time; raises ValueError for what is no hash.

    >>> matches("correct horse", hashed("correct horse", cost=2)), matches("wrong", hashed("correct horse", cost=2))
    (True, False)
    """
    kind, cost, block, lanes, salt, digest = kept.split("$")
    if kind != "scrypt":
        raise ValueError("not a hash of scrypt")
    wanted = b64decode(digest, validate=True)
    if len(wanted) != HASH_BYTES:
        raise ValueError("not a whole hash")
    given = _digest(
        password,
        b64decode(salt, validate=True),
        *(parse_whole(number, high=COST_MAX) for number in (cost, block, lanes)),
    )
    return compare_digest(given, wanted)


def _digest(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    return scrypt(password.encode(), salt=salt, n=cost, r=block, p=lanes, maxmem=MEMORY_BYTES_MAX, dklen=HASH_BYTES)
