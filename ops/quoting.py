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
        sign if sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in text.replace("\\", "\\\\").replace("'", "\\'")
    )
    return f"$'{written}'"
