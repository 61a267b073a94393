"""Regular expressions as Prometheus has them (RE2's), matched whole and in linear time.

Python's ``re`` backtracks: an expression of ten characters can hold the event loop for ever. Here a
text is read once, each character moving a set of positions in the expression; what a set becomes
on a character is worked out once and kept.

References:
    https://github.com/google/re2/wiki/Syntax for the syntax; R. Cox, *Regular Expression Matching
    Can Be Simple And Fast*, 2007, for the method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_MOST_CHARACTERS: Final = 1000
_MOST_POSITIONS: Final = 500
_MOST_NESTED: Final = 30
_MOST_REPEATS: Final = 1000
# A sane expression needs some thousands for all the values that it will ever see; so many take a
# tenth of a second.
_MOST_WORK: Final = 50_000

Ranges = tuple[tuple[str, str], ...]
_ANY: Final[Ranges] = (("\0", chr(0x10FFFF)),)
_DIGIT: Final[Ranges] = (("0", "9"),)
_WORD: Final[Ranges] = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_SPACE: Final[Ranges] = (("\t", "\n"), ("\f", "\r"), (" ", " "))
_CLASS: Final = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_POSIX: Final = {
    "alnum": (("0", "9"), ("A", "Z"), ("a", "z")),
    "alpha": (("A", "Z"), ("a", "z")),
    "blank": (("\t", "\t"), (" ", " ")),
    "digit": _DIGIT,
    "lower": (("a", "z"),),
    "punct": (("!", "/"), (":", "@"), ("[", "`"), ("{", "~")),
    "space": (("\t", "\r"), (" ", " ")),
    "upper": (("A", "Z"),),
    "word": _WORD,
    "xdigit": (("0", "9"), ("A", "F"), ("a", "f")),
}
_CONTROL: Final = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_QUANTIFIER: Final = re.compile(r"[*+?]|\{(\d{1,9})(,(\d{0,9}))?\}")
_FLAGS: Final = re.compile(r"\(\?([A-Za-z]*)(?:-([A-Za-z]+))?([:)])")
_NAMED: Final = re.compile(r"\(\?P<\w+>")
_LOOKAROUND: Final = re.compile(r"\(\?<?[=!]")
_HEX: Final = re.compile(r"x(?:\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{2}))")


class RegexError(ValueError):
    """An expression that RE2 refuses, that is too large, or that has what is not supported here."""


@dataclass(frozen=True, slots=True)
class _Characters:
    ranges: Ranges
    negated: bool = False
    folded: bool = False

    def __contains__(self, character: str) -> bool:
        if self._within(character):
            return not self.negated
        if self.folded and (self._within(character.lower()) or self._within(character.upper())):
            return not self.negated
        return self.negated

    def _within(self, character: str) -> bool:
        return any(first <= character <= last for first, last in self.ranges)


@dataclass(frozen=True, slots=True)
class _Edge:
    """The beginning of the text, or its end."""

    begin: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _Characters | _Edge | _Sequence | _Choice | _Repeat


class Regex:
    """An expression that a whole text matches or does not.

    Raises:
        RegexError: It is not one of RE2's, or more than is worked on here; the message says which.
    """

    def __init__(self, text: str) -> None:
        self._program = _Program(_Parser(text).parse())
        self._sets: dict[frozenset[int], int] = {}
        self._members: list[frozenset[int]] = []
        self._accepting: list[bool] = []
        self._moves: list[dict[str, int]] = []
        self._work = 0
        start = self._program.closure((self._program.entry,), begin=True)
        self._start = self._add(start)
        self._matches_empty = self._program.accepts(start, begin=True)

    def __call__(self, text: str) -> bool:
        """Return whether it matches the whole text.

        Raises:
            RegexError: So many different texts were hard for it that it is not gone on with.
        """
        if not text:
            return self._matches_empty
        state = self._start
        for character in text:
            following = self._moves[state].get(character)
            if following is None:
                following = self._move(state, character)
            state = following
        return self._accepting[state]

    def _move(self, state: int, character: str) -> int:
        here = self._members[state]
        found = self._program.closure(self._program.step(here, character), begin=False)
        self._work += len(here) + len(found) + 1
        if self._work > _MOST_WORK:
            raise RegexError("the expression costs too much on the values that there are")
        following = self._sets.get(found)
        if following is None:
            following = self._add(found)
        self._moves[state][character] = following
        return following

    def _add(self, members: frozenset[int]) -> int:
        self._sets[members] = len(self._members)
        self._members.append(members)
        self._accepting.append(self._program.accepts(members, begin=False))
        self._moves.append({})
        return len(self._members) - 1


@dataclass(frozen=True, slots=True)
class _Position:
    """One place in the expression: what it asks for, and which places follow."""

    asks: _Characters | _Edge | None
    then: tuple[int, ...]


class _Program:
    """The expression as places, written from its end to its beginning."""

    def __init__(self, node: _Node) -> None:
        self._positions: list[_Position] = []
        self._written = 0
        self._end = self._add(None)
        self.entry = self._write(node, self._end)

    def _add(self, asks: _Characters | _Edge | None, *then: int) -> int:
        if len(self._positions) >= _MOST_POSITIONS:
            raise RegexError(f"the expression is too large: more than {_MOST_POSITIONS} positions")
        self._positions.append(_Position(asks, then))
        return len(self._positions) - 1

    def _write(self, node: _Node, then: int) -> int:
        # Repetitions of nothing add no position, and there can be many of them.
        self._written += 1
        if self._written > 10 * _MOST_POSITIONS:
            raise RegexError("the expression is too large: it repeats too much")
        match node:
            case _Characters() | _Edge():
                return self._add(node, then)
            case _Sequence(parts):
                for part in reversed(parts):
                    then = self._write(part, then)
                return then
            case _Choice(options):
                return self._add(None, *(self._write(option, then) for option in options))
            case _Repeat(part, least, most):
                return self._write_repeat(part, least, most, then)

    def _write_repeat(self, part: _Node, least: int, most: int | None, then: int) -> int:
        if most is None:
            loop = self._add(None)
            self._positions[loop] = _Position(None, (self._write(part, loop), then))
            then = loop
        else:
            after = then
            for _ in range(most - least):
                then = self._add(None, self._write(part, then), after)
        for _ in range(least):
            then = self._write(part, then)
        return then

    def step(self, members: Iterable[int], character: str) -> Sequence[int]:
        """Return the places after those that ask for this character."""
        positions = self._positions
        return [
            then
            for member in members
            if isinstance(asks := positions[member].asks, _Characters) and character in asks
            for then in positions[member].then
        ]

    def closure(self, places: Iterable[int], *, begin: bool) -> frozenset[int]:
        """Return the places reached without a character, those that ask for something or end."""
        return self._reach(places, begin=begin, end=False)

    def accepts(self, members: Iterable[int], *, begin: bool) -> bool:
        """Return whether the expression is through where the text ends here."""
        return self._end in self._reach(members, begin=begin, end=True)

    def _reach(self, places: Iterable[int], *, begin: bool, end: bool) -> frozenset[int]:
        seen: set[int] = set()
        open_ = list(places)
        while open_:
            place = open_.pop()
            if place in seen:
                continue
            seen.add(place)
            position = self._positions[place]
            asks = position.asks
            if asks is None or (isinstance(asks, _Edge) and (begin if asks.begin else end)):
                open_.extend(position.then)
        return frozenset(
            place
            for place in seen
            if place == self._end or isinstance(self._positions[place].asks, _Characters | _Edge)
        )


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > _MOST_CHARACTERS:
            raise RegexError(
                f"the expression has {len(text)} characters, want at most {_MOST_CHARACTERS}"
            )
        self._text = text
        self._at = 0
        self._nested = 0
        self._folded = False
        self._dot_matches_newline = False

    def parse(self) -> _Node:
        node = self._choice()
        if self._at < len(self._text):
            raise RegexError("unexpected )")
        return node

    def _choice(self) -> _Node:
        self._nested += 1
        if self._nested > _MOST_NESTED:
            raise RegexError(f"groups are nested deeper than {_MOST_NESTED}")
        options = [self._sequence()]
        while self._takes("|"):
            options.append(self._sequence())
        self._nested -= 1
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._atom()
            if part is not None:
                parts.append(self._repeated(part))
        return _Sequence(tuple(parts))

    def _repeated(self, part: _Node) -> _Node:
        quantifier = _QUANTIFIER.match(self._text, self._at)
        if quantifier is None:
            return part
        self._at = quantifier.end()
        # Which of several ways it takes makes no difference to whether the whole matches.
        self._takes("?")
        again = _QUANTIFIER.match(self._text, self._at)
        if again is not None:
            raise RegexError(f"invalid nested repetition operator: {quantifier[0]}{again[0]}")
        match quantifier[0]:
            case "*":
                return _Repeat(part, 0, None)
            case "+":
                return _Repeat(part, 1, None)
            case "?":
                return _Repeat(part, 0, 1)
        least = int(quantifier[1])
        most = least if quantifier[2] is None else int(quantifier[3]) if quantifier[3] else None
        if max(least, most or 0) > _MOST_REPEATS or (most is not None and most < least):
            raise RegexError(f"invalid repeat count: {quantifier[0]}")
        return _Repeat(part, least, most)

    def _atom(self) -> _Node | None:
        """Return the next thing that can be repeated; ``None`` where it only sets flags."""
        character = self._text[self._at]
        if character == "(":
            return self._group()
        if (quantifier := _QUANTIFIER.match(self._text, self._at)) is not None:
            raise RegexError(f"missing argument to repetition operator: {quantifier[0]}")
        self._at += 1
        match character:
            case "[":
                return self._characters()
            case ".":
                kept = _ANY if self._dot_matches_newline else (("\n", "\n"),)
                return _Characters(kept, negated=not self._dot_matches_newline)
            case "^" | "$":
                return _Edge(begin=character == "^")
            case "\\":
                return self._escaped_atom()
        return self._literal(character)

    def _literal(self, character: str) -> _Characters:
        return _Characters(((character, character),), folded=self._folded)

    def _group(self) -> _Node | None:
        if _LOOKAROUND.match(self._text, self._at):
            raise RegexError("lookaround is not supported: RE2 has none")
        before = (self._folded, self._dot_matches_newline)
        if (flags := _FLAGS.match(self._text, self._at)) is not None:
            self._at = flags.end()
            self._set_flags(flags)
            if flags[3] == ")":
                return None
        elif (named := _NAMED.match(self._text, self._at)) is not None:
            self._at = named.end()
        elif self._text.startswith("(?", self._at):
            raise RegexError(f"invalid or unsupported group: {self._text[self._at :][:4]}")
        else:
            self._at += 1
        node = self._choice()
        if not self._takes(")"):
            raise RegexError("missing closing )")
        # A flag that was set inside ends with its group.
        self._folded, self._dot_matches_newline = before
        return node

    def _set_flags(self, flags: re.Match[str]) -> None:
        off = flags[2] or ""
        if unknown := (set(flags[1]) | set(off)) - set("is"):
            raise RegexError(f"flag {min(unknown)} is not supported; there are: i, s")
        self._folded = (self._folded or "i" in flags[1]) and "i" not in off
        dot = self._dot_matches_newline or "s" in flags[1]
        self._dot_matches_newline = dot and "s" not in off

    def _escaped_atom(self) -> _Node:
        if self._at < len(self._text) and self._text[self._at] in "Az":
            self._at += 1
            return _Edge(begin=self._text[self._at - 1] == "A")
        found = self._escaped()
        if isinstance(found, str):
            return self._literal(found)
        return found

    def _escaped(self) -> str | _Characters:
        """Return what stands after a backslash: one character, or a class of them."""
        if self._at == len(self._text):
            raise RegexError("trailing backslash at end of expression")
        character = self._text[self._at]
        if (hexadecimal := _HEX.match(self._text, self._at)) is not None:
            self._at = hexadecimal.end()
            code = int(hexadecimal[1] or hexadecimal[2], 16)
            if code > 0x10FFFF:
                raise RegexError(f"invalid escape sequence: \\{hexadecimal[0]}")
            return chr(code)
        self._at += 1
        if character.lower() in _CLASS:
            return _Characters(_CLASS[character.lower()], negated=character.isupper())
        if character in _CONTROL:
            return _CONTROL[character]
        if character.isdigit():
            raise RegexError(f"backreference \\{character} is not supported: RE2 has none")
        if character.isascii() and not character.isalnum():
            return character
        raise RegexError(f"invalid or unsupported escape sequence: \\{character}")

    def _characters(self) -> _Characters:
        negated = self._takes("^")
        ranges: list[tuple[str, str]] = []
        first = True
        while first or not self._takes("]"):
            first = False
            if self._at == len(self._text):
                raise RegexError("missing closing ]")
            posix = re.match(r"\[:(\^?)(\w+):\]", self._text[self._at : self._at + 12])
            if posix is not None and posix[2] in _POSIX and not posix[1]:
                self._at += posix.end()
                ranges += _POSIX[posix[2]]
                continue
            if posix is not None:
                raise RegexError(f"invalid or unsupported character class: {posix[0]}")
            low = self._member()
            if isinstance(low, _Characters):
                ranges += _complement(low.ranges) if low.negated else low.ranges
                continue
            high: str | _Characters = low
            following = self._text[self._at : self._at + 2]
            if following[:1] == "-" and following != "-]":
                self._at += 1
                high = self._member()
            if isinstance(high, _Characters) or high < low:
                raise RegexError("invalid character class range")
            ranges.append((low, high))
        return _Characters(tuple(ranges), negated, self._folded)

    def _member(self) -> str | _Characters:
        if self._at == len(self._text):
            raise RegexError("missing closing ]")
        self._at += 1
        character = self._text[self._at - 1]
        return self._escaped() if character == "\\" else character

    def _takes(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False


def _complement(ranges: Ranges) -> Ranges:
    """Return the characters outside of ranges that are sorted and apart."""
    starts = ["\0", *(chr(ord(last) + 1) for _, last in ranges)]
    ends = [*(chr(ord(first) - 1) for first, _ in ranges), chr(0x10FFFF)]
    return tuple(zip(starts, ends, strict=True))
