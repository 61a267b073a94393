"""What a PromQL query is made of: names, numbers, strings and signs, each with its position.

References:
    https://prometheus.io/docs/prometheus/latest/querying/basics/#literals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_MOST_CHARACTERS: Final = 8000
_MOST_TOKENS: Final = 500
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_TOKEN: Final = re.compile(
    r"""
      (?P<duration>\d+(?:ms|[smhdwy])(?:\d+(?:ms|[smhdwy]))*(?![\w.]))
    | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*'|`[^`]*`)
    | (?P<operator>=~|!~|==|!=|<=|>=|[-+*/%^<>=(){}\[\],:@])
    """,
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(
    r"""\\(?:([abfnrtv\\'"])|([0-3][0-7]{2})|x([0-9a-fA-F]{2})"""
    r"""|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))"""
)
_PLAIN: Final = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))


class PromqlError(ValueError):
    """A query that cannot be read; the message begins with where."""


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a query.

    Attributes:
        kind: ``name``, ``number``, ``string``, ``operator``, ``duration`` or ``end``.
        text: As it is written.
        place: Line and column, from 1.
    """

    kind: str
    text: str
    place: str

    def error(self, message: str) -> PromqlError:
        """Return what is wrong here."""
        return PromqlError(f"{self.place}: parse error: {message}")

    @property
    def described(self) -> str:
        """What it is, for a person."""
        return "end of input" if self.kind == "end" else f"{self.kind} {self.text}"

    @property
    def number(self) -> float:
        """The value of a number."""
        digits = self.text.lower()
        if digits.startswith("0x"):
            return float(int(digits, 16))
        if re.fullmatch("0[0-7]+", digits):
            return float(int(digits, 8))
        return float(digits)

    @property
    def string(self) -> str:
        """What is between the quotes of a string, its escapes resolved.

        Raises:
            PromqlError: There is no such escape.
        """
        quote, inside = self.text[0], self.text[1:-1]
        if quote == "`":
            return inside
        parts = []
        at = 0
        for escape in _ESCAPE.finditer(inside):
            parts.append(inside[at : escape.start()].encode())
            parts.append(self._resolved(escape, quote))
            at = escape.end()
        parts.append(inside[at:].encode())
        return b"".join(parts).decode(errors="replace")

    def _resolved(self, escape: re.Match[str], quote: str) -> bytes:
        plain, octal, byte, short, long, _ = escape.groups()
        if plain is not None and (plain not in "'\"" or plain == quote):
            return _PLAIN[plain].encode()
        if octal is not None:
            return bytes((int(octal, 8),))
        if byte is not None:
            return bytes((int(byte, 16),))
        code = int(short or long or "110000", 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self.error(f"invalid escape sequence {escape[0]} in a string")
        return chr(code).encode()


def tokens(query: str) -> tuple[Token, ...]:
    """Return the pieces of a query, the last of kind ``end``.

    Raises:
        PromqlError: A character belongs to nothing, a string does not end, or it is too long.
    """
    if len(query) > _MOST_CHARACTERS:
        raise PromqlError(
            f"1:1: parse error: the query has {len(query)} characters, "
            f"want at most {_MOST_CHARACTERS}"
        )
    found: list[Token] = []
    at = _skip(query, 0)
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None:
            raise Token("character", query[at], _place(query, at)).error(_problem(query[at]))
        found.append(Token(match.lastgroup or "", match[0], _place(query, at)))
        if len(found) > _MOST_TOKENS:
            raise found[-1].error(f"the query is longer than {_MOST_TOKENS} words and signs")
        at = _skip(query, match.end())
    return (*found, Token("end", "", _place(query, at)))


def _skip(query: str, at: int) -> int:
    match = _BLANK.match(query, at)
    return at if match is None else match.end()


def _place(query: str, at: int) -> str:
    before = query[:at]
    return f"{before.count(chr(10)) + 1}:{at - before.rfind(chr(10))}"


def _problem(character: str) -> str:
    if character in "\"'`":
        return "unterminated string, or one with a line's end in it"
    if character.isdigit() or character == ".":
        return "bad number or duration syntax"
    return f"unexpected character: {character!r}"
