"""Plain data read from a file, taken apart with a check at every step: numbers in their range, texts, lists, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plain:
    """A value of a JSON document and where it stands there, for errors. Every method raises ValueError that names it.

    Each reads the entry of a table under a key, and wants it to be of one kind.
    """

    value: Any
    where: str

    @classmethod
    def parsed(cls, content: bytes, where: str) -> Plain:
        """The document in these bytes."""
        try:
            return cls(json.loads(content, parse_constant=_refuse), where)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON: {error}") from None

    def at(self, key: str) -> Plain:
        """The entry under a key."""
        if not isinstance(self.value, dict) or key not in self.value:
            raise ValueError(f"{self.where}: expected a table with an entry {key!r}")
        return Plain(self.value[key], f"{self.where}.{key}")

    def text(self, key: str) -> str:
        return self.at(key).as_text()

    def number(self, key: str, low: int = 0, high: int = 1 << 47) -> int:
        return self.at(key).as_number(low, high)

    def flag(self, key: str) -> bool:
        found = self.at(key)
        if not isinstance(found.value, bool):
            raise found.unexpected("true or false")
        return found.value

    def items(self, key: str) -> list[Plain]:
        return self.at(key).as_items()

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(item.as_text() for item in self.items(key))

    def table(self, key: str) -> dict[str, Plain]:
        found = self.at(key)
        if not isinstance(found.value, dict):
            raise found.unexpected("a table")
        return {name: Plain(value, f"{found.where}.{printable(name)}") for name, value in found.value.items()}

    def as_text(self) -> str:
        if not isinstance(self.value, str):
            raise self.unexpected("a text")
        return self.value

    def as_number(self, low: int = 0, high: int = 1 << 47) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            raise self.unexpected(f"a number from {low} to {high}")
        return self.value

    def as_items(self, count: int | None = None) -> list[Plain]:
        if not isinstance(self.value, list) or count not in (None, len(self.value)):
            raise self.unexpected("a list" if count is None else f"a list of {count}")
        return [Plain(value, f"{self.where}[{number}]") for number, value in enumerate(self.value)]

    def unexpected(self, expected: str) -> ValueError:
        return ValueError(f"{self.where}: got {str(self.value)[:60]!r}, expected {expected}")


def written(value: Mapping[str, Any]) -> bytes:
    """Plain data as the bytes that `Plain.parsed` reads: the same for the same data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def printable(text: str) -> str:
    """The text with escapes for what a terminal obeys instead of showing it: control characters, turns of direction."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _refuse(name: str) -> Any:
    raise ValueError(f"got {name}, expected a number")
