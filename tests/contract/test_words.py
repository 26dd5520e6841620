"""One word per concept: the glossary's terms are in use, names say what they hold, and no two public classes share one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import typer

from ops.cli.main import app
from tests.tree import PACKAGES, ROOT, TESTS, sources

GLOSSARY = ROOT / "docs/glossary.md"

EMPTY_NAMES = {"one", "told", "found", "asked"}
"""They say nothing about what they hold."""

BANNED_CLASSES = {"Standing", "Found", "Met", "Ours", "Wish", "Asked", "Opened", "Seen", "Unexpected"}

BANNED_WORDS = ("mend", "mends", "mended", "anew", "told", "ere", "lest", "once more", "in vain")
"""A newcomer stumbles over them: fix, again, notified, before. Not in help, errors, pages and alerts; an option's name may stay."""

_BANNED = re.compile(rf"(?<![\w-])({'|'.join(BANNED_WORDS)})(?!\w)", re.IGNORECASE)

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
    return [(name, line) for name, line in names_in(tree) if name.strip("_").lower() in EMPTY_NAMES]


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


def banned_words(text: str) -> list[str]:
    return _BANNED.findall(text)


def help_texts(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """Give what `--help` says of a command, of its options and of the commands below it."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, child in getattr(command, "commands", {}).items():
        yield from help_texts(child, f"{path} {name}")


def spoken(tree: ast.AST) -> Iterator[str]:
    """Give the texts of errors that are raised, of lines that are said, and of warnings that are logged."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call):
            continue
        logs = (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and "log" in call.func.value.id
        )
        says = isinstance(call.func, ast.Name) and call.func.id == "say"
        if isinstance(node, ast.Raise) or logs or says:
            yield from (
                part.value
                for argument in call.args
                for part in ast.walk(argument)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


def pages() -> Iterator[tuple[str, str]]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "ops/monitoring/alerts.yaml"]:
        if "adr" not in path.parts:
            yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted((ROOT / "ops/console/templates").glob("*.html")):
        yield path.name, re.sub(r"\{[{%].*?[%}]\}|<[^>]*>", " ", path.read_text())


def test_help_is_in_plain_words() -> None:
    texts = list(help_texts(typer.main.get_command(app), "payrelay"))
    assert len(texts) > 200
    assert {place: words for place, text in texts if (words := banned_words(text))} == {}


def test_errors_and_warnings_are_in_plain_words() -> None:
    texts = [(file, text) for file, tree in modules() for text in spoken(tree)]
    assert len(texts) > 300
    assert {f"{file}: {text}": words for file, text in texts if (words := banned_words(text))} == {}


def test_pages_and_alerts_are_in_plain_words() -> None:
    assert {place: words for place, text in pages() if (words := banned_words(text))} == {}


def test_a_banned_word_is_noticed() -> None:
    assert banned_words("Mend the handler, then run it once more.") == ["Mend", "once more"]
    assert banned_words("`--anew` starts over; an `untold` notification is amended; where it is listed") == []
    for source in (
        'raise Refused(f"{name}: mend it")',
        'say("begun anew")',
        'log.warning("nobody was told: %s", error)',
    ):
        assert [words for text in spoken(ast.parse(source)) if (words := banned_words(text))] != [], source
