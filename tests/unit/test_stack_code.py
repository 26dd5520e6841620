"""Which code a stack runs, and what is reported when files change."""

from __future__ import annotations

from pathlib import Path

from ops.stack.code import fingerprint, loaded, outdated_files, outdated_parts
from ops.stack.state import ROOT


def tree(root: Path) -> None:
    for name in ("consumers/a.py", "ops/console.py", "outbox/inbox.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")


def test_a_change_makes_outdated_what_may_run_it(tmp_path: Path) -> None:
    tree(tmp_path)
    parts = {part: fingerprint(part, tmp_path) for part in ("worker:funds", "service:bank", "exporter")}
    assert outdated_parts({"parts": parts}, tmp_path) == []
    (tmp_path / "ops/console.py").write_text("x = 2\n")
    assert outdated_parts({"parts": parts}, tmp_path) == ["exporter"], "workers run none of it"
    (tmp_path / "consumers/a.py").rename(tmp_path / "consumers/b.py")
    assert outdated_parts({"parts": parts}, tmp_path) == [*parts]


def test_a_supervisor_is_outdated_by_the_files_that_it_has_loaded(tmp_path: Path) -> None:
    here = loaded()
    assert "ops/stack/code.py" in here
    assert not any(name.startswith("tests") for name in here)
    assert outdated_files({"supervisor": here}, ROOT) == []
    tree(tmp_path)
    known = {"outbox/inbox.py": "another", "ops/gone.py": "gone"}
    assert outdated_files({"supervisor": known}, tmp_path) == [*known]
