"""Which code a running stack was started from, so that `payrelay up` and `status` know what runs older code than is here now."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

from ops.stack.state import ROOT

CODE = "code.json"
"""In a stack's folder: `supervisor`, the files that the supervisor has loaded with their hashes; `parts`, each part's fingerprint."""

DATA_PLANE = ("schemas", "outbox", "producers", "consumers")
PACKAGES = (*DATA_PLANE, "connect", "ops")
NAMED_MAX = 3


def packages_of(part: str) -> tuple[str, ...]:
    """Return where the code of a part lies."""
    return DATA_PLANE if part.startswith(("worker:", "service:")) else PACKAGES


def fingerprint(part: str, root: Path = ROOT) -> str:
    """Return a hash of all code that a part may run, as it is on the disk now."""
    return _fingerprint(packages_of(part), root)


def _fingerprint(packages: Sequence[str], root: Path) -> str:
    whole = sha256()
    for name in packages:
        for path in sorted((root / name).rglob("*.py")):
            whole.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def loaded(root: Path = ROOT) -> dict[str, str]:
    """Return the files of ours that this process has loaded, with their hashes as they are now."""
    files = [Path(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))]
    ours = sorted(path for path in files if path.is_relative_to(root) and path.relative_to(root).parts[0] in PACKAGES)
    return {str(path.relative_to(root)): file_hash(path) for path in ours}


def file_hash(path: Path) -> str:
    """Return a file's hash; empty for one that is gone."""
    try:
        return sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return ""


def outdated_files(code: Mapping[str, Mapping[str, str]], root: Path = ROOT) -> list[str]:
    """Return the files that the supervisor has loaded and that are others now."""
    return [name for name, known in code.get("supervisor", {}).items() if file_hash(root / name) != known]


def outdated_parts(code: Mapping[str, Mapping[str, str]], root: Path = ROOT) -> list[str]:
    """Return the parts that were started from other code than is here now."""
    now = cache(partial(_fingerprint, root=root))
    return [part for part, known in code.get("parts", {}).items() if now(packages_of(part)) != known]


def named(files: Sequence[str]) -> str:
    """Return the first files by name, and how many more there are."""
    more = f" and {len(files) - NAMED_MAX} more" if len(files) > NAMED_MAX else ""
    return ", ".join(files[:NAMED_MAX]) + more
