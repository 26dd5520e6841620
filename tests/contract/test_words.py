"""One word per concept: the glossary's terms are in use, names say what they hold, and no two public classes share one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest

from tests.tree import PACKAGES, ROOT, TESTS, sources

GLOSSARY = ROOT / "docs/glossary.md"

EMPTY_NAMES = {"one", "told", "found", "asked"}
"""They say nothing about what they hold."""

BANNED_CLASSES = {"Standing", "Found", "Met", "Ours", "Wish", "Asked", "Opened", "Seen", "Unexpected"}

_TERM = re.compile(r"^- \*\*(?P<term>[^*]+)\*\*.*`(?P<place>[^`]+)`$", re.MULTILINE)


def modules(packages: Sequence[str] = PACKAGES) -> Iterator[tuple[str, ast.Module]]:
    for file, source in sources(packages).items():
        yield file, ast.parse(source)


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Give each name of a variable, parameter or function, and its line; a dataclass's field is a column of what is shown."""
    fields = {
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def empty_names(tree: ast.AST) -> list[tuple[str, int]]:
    return [(name, line) for name, line in names_in(tree) if name in EMPTY_NAMES]


def shared_classes(trees: dict[str, ast.AST]) -> dict[str, list[str]]:
    """Return the public classes of which there is more than one, with their modules."""
    places = defaultdict(list)
    for place, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(place)
    return {name: where for name, where in places.items() if len(where) > 1}


def test_names_say_what_they_hold() -> None:
    trees = modules([*PACKAGES, *TESTS])
    assert not [f"{file}:{line} {name}" for file, tree in trees for name, line in empty_names(tree)]


@pytest.mark.parametrize(
    "source", ["one = 1", "[one for one in []]", "def told(): ...", "def f(asked): ...", "for found in []: ..."]
)
def test_an_empty_name_is_noticed(source: str) -> None:
    assert empty_names(ast.parse(source))


def test_no_two_public_classes_share_a_name() -> None:
    assert not shared_classes(dict(modules()))


def test_a_shared_name_is_noticed() -> None:
    twin = ast.parse("class Plan: ...")
    assert shared_classes({"ops/a.py": twin, "ops/b.py": twin}) == {"Plan": ["ops/a.py", "ops/b.py"]}


def test_no_class_has_a_banned_name() -> None:
    trees = modules([*PACKAGES, *TESTS])
    classes = {node.name for _, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert not classes & BANNED_CLASSES


def test_the_glossary_has_one_meaning_for_each_of_its_terms_and_they_are_in_use() -> None:
    terms = [(match["term"], match["place"]) for match in _TERM.finditer(GLOSSARY.read_text())]
    assert len(terms) >= 25
    assert len({term for term, _ in terms}) == len(terms)
    for term, place in terms:
        where = ROOT / place
        assert where.exists(), f"{term}: there is no {place}"
        files = [where] if where.is_file() else sorted(where.rglob("*.py"))
        text = " ".join(path.read_text().lower() for path in files)
        words = [re.escape(word.rstrip("e")) for word in term.lower().split()]
        assert all(re.search(rf"{word}", text) for word in words), f"{place} does not speak of {term}"


def test_the_first_screen_of_the_readme_links_the_glossary() -> None:
    assert "(docs/glossary.md)" in "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
