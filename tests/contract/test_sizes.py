"""Functions have at most 40 lines of code, modules at most 300 lines; what is longer is listed, with the reason, and may not grow."""

from __future__ import annotations

import ast
import io
import tokenize

import pytest

from tests.tree import sources

FUNCTION_MAX, MODULE_MAX = 40, 300

LONG_FUNCTIONS = {
    # One table each: to cut it up would hide what belongs together.
    "connect/connector.py:connector_config": 63,
    "outbox/migrations/versions/m0001_kernel.py:_kernel": 67,
    "ops/demo/proof.py:judge": 70,
    # A service's routes share its database and secrets.
    "producers/payments/api.py:create_app": 75,
    # A command with its options, of which each takes a line or two.
    "ops/cli/notify.py:resend": 51,
    "ops/cli/parked.py:retry": 42,
    "ops/cli/replay.py:redeliver": 51,
}

LONG_MODULES = {
    # Read in one sitting, with the tables and reasons that this needs.
    "consumers/delivery/loop.py": 330,
    "consumers/runtime/transport.py": 395,
    # The statements of one transaction, beside the code that runs them.
    "consumers/notification/notifier/claims.py": 530,
    "producers/payments/orders.py": 335,
    "producers/payments/settlement.py": 340,
    # A benchmark is read by itself.
    "benchmarks/holes.py": 420,
    "benchmarks/ledger.py": 350,
    "benchmarks/notifier.py": 320,
    # A group of commands, of which each option takes a line or two.
    "ops/cli/offsets.py": 510,
    "ops/cli/replay.py": 313,
    # To be split by subject.
    "connect/client.py": 305,
    "ops/console/edge.py": 310,
    "ops/kafka/reader.py": 320,
    "ops/ledger/reads.py": 335,
    "ops/pipeline/checks.py": 355,
    "ops/reconcile/run.py": 320,
    "ops/stack/control.py": 365,
    "ops/stack/parts.py": 477,
    "ops/stack/state.py": 335,
    "ops/stack/supervisor.py": 405,
    "ops/timeline/steps.py": 325,
    "outbox/http/protocol.py": 360,
}

NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: not those of docstrings, comments, and nothing."""
    documentation = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    return code - documentation


def long_functions(source: str) -> dict[str, int]:
    """Return the functions with more lines of code than a function may have, the head not counted."""
    code = code_lines(source)
    sizes = {
        node.name: len([line for line in code if node.lineno < line <= (node.end_lineno or node.lineno)])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name: size for name, size in sizes.items() if size > FUNCTION_MAX}


def test_functions_are_short() -> None:
    sizes = {
        f"{file}:{name}": size for file, source in sources().items() for name, size in long_functions(source).items()
    }
    assert {name: size for name, size in sizes.items() if size > LONG_FUNCTIONS.get(name, 0)} == {}
    assert LONG_FUNCTIONS.keys() == sizes.keys(), "what became short is taken off the list"


def test_modules_are_short() -> None:
    sizes = {
        file: lines
        for file, source in sources().items()
        if (lines := len(source.splitlines())) > MODULE_MAX and "/versions/" not in file
    }
    assert {file: lines for file, lines in sizes.items() if lines > LONG_MODULES.get(file, 0)} == {}
    assert LONG_MODULES.keys() == sizes.keys(), "what became short is taken off the list"


@pytest.mark.parametrize(("lines", "is_long"), [(FUNCTION_MAX, False), (FUNCTION_MAX + 1, True)])
def test_a_long_function_is_noticed(lines: int, is_long: bool) -> None:
    body = '    """Says what it does.\n\n    At length.\n    """\n\n    # why\n' + "    step()\n" * lines
    assert (long_functions(f"def f():\n{body}") == {"f": lines}) is is_long
