"""The tutorial as a program, on a copy of this checkout: its files are written, its edits applied and its commands run, in the page's order.

Create `PATH`:         and the block after it: the file's whole content
```diff                an edit of existing files, applied by `git apply`
```console             commands and their output, as in the how-to pages (tests/howto.py)
<!-- name -->          a hook of the test's
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.howto import replayed
from tests.tree import ROOT

PAGE = ROOT / "docs/tutorial.md"

_PART = re.compile(
    r"Create\s+`(?P<path>[^`\n]+)`:\n```\w+\n(?P<content>.*?)^```$"
    r"|^```diff\n(?P<edit>.*?)^```$"
    r"|^```console(?P<numbers> numbers)?\n(?P<block>.*?)^```$"
    r"|^<!-- (?P<hook>\w+) -->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Copy:
    """A copy of what git tracks here, committed: what the tutorial changes shows by `git diff`."""

    root: Path

    @classmethod
    def of_this_checkout(cls, root: Path) -> Copy:
        """Return the copy in a folder, which is made."""
        root.mkdir()
        for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if name and (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        git(root, "init", "--quiet")
        git(root, "add", "--all")
        git(root, "-c", "user.name=reader", "-c", "user.email=reader@localhost", "commit", "--quiet", "-m", "a clone")
        return cls(root)

    def create(self, path: str, content: str) -> None:
        """The file is there, and was not. Raises AssertionError if it was."""
        target = self.root / path
        assert not target.exists(), f"{path} is there already"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)

    def edit(self, diff: str) -> None:
        """The edit is applied, wherever in the file its lines are. Raises AssertionError where they are not."""
        done = subprocess.run(
            ["git", "apply", "-"], cwd=self.root, input=diff, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{diff}\ndoes not apply: {done.stderr}"

    def changed(self) -> list[str]:
        """Return the existing files that are others now."""
        return git(self.root, "diff", "--name-only").split()


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def parts(text: str) -> Iterator[re.Match[str]]:
    """Give the page's files, edits, console blocks and hooks, in order."""
    return _PART.finditer(text)


def write_code(copy: Copy, text: str) -> None:
    """Every file of the page is written and every edit applied; no command is run."""
    for part in parts(text):
        if part["path"]:
            copy.create(part["path"], part["content"])
        elif part["edit"]:
            copy.edit(part["edit"])


def follow(
    page: Path,
    copy: Copy,
    run: Callable[[str], str],
    hooks: Mapping[str, Callable[[], object]],
    *,
    code_changed: Callable[[], object],
    write: bool,
) -> None:
    """Every step of the page was done, in its order, and each output is the page's; with `write` the page has the outputs instead."""
    text = page.read_text()
    written, end = [], 0
    for part in parts(text):
        written.append(text[end : part.start()])
        end = part.end()
        shown = part[0]
        if part["hook"]:
            hooks[part["hook"]]()
        elif part["path"]:
            copy.create(part["path"], part["content"])
            code_changed()
        elif part["edit"]:
            copy.edit(part["edit"])
            code_changed()
        else:
            shown = replayed(part["block"], run, numbers=part["numbers"] or "", write=write)
        written.append(shown)
        if write:
            page.write_text("".join(written) + text[end:])
