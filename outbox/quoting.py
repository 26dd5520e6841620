"""Names in commands that an operator is to run: as a shell takes them, whatever is in them."""

from __future__ import annotations

import shlex


def quoted(name: object) -> str:
    r"""Return a name as one word of a shell's.

    >>> print(quoted("M1"), quoted("o'clock; rm -r x"), quoted("two\nlines"), quoted(""))
    M1 'o'"'"'clock; rm -r x' $'two\nlines' ''
    """
    text = str(name)
    if text.isprintable():
        return shlex.quote(text)
    written = "".join(
        sign if sign.isprintable() else _escaped(sign) for sign in text.replace("\\", "\\\\").replace("'", "\\'")
    )
    return f"$'{written}'"


def positional(name: object) -> str:
    """Return a name as a command's last argument, which must not pass for an option.

    >>> print(positional("M1"), positional("-rf"))
    M1 -- -rf
    """
    return f"-- {quoted(name)}" if str(name).startswith("-") else quoted(name)


def _escaped(sign: str) -> str:
    """Return a sign as a shell reads it between $' and ': there \\x80 is a byte, and no letter."""
    return f"\\u{ord(sign):04x}" if 0x80 <= ord(sign) <= 0xFF else sign.encode("unicode_escape").decode()
