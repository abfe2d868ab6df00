"""Names of C: identifiers made of the paths of leaves, and the types of elements."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kaun.compiler.ir.dtypes import DType

# Of C99 and C++11: neither is a name of a member in a header for both.
_KEYWORDS = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t class compl const
    const_cast constexpr continue decltype default delete do double dynamic_cast else enum explicit export extern false
    float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
    protected public register reinterpret_cast restrict return short signed sizeof static static_assert static_cast
    struct switch template this thread_local throw true try typedef typeid typename union unsigned using virtual void
    volatile wchar_t while xor xor_eq
    """.split()
)

# What compilers and headers of the system define as macros in small letters. Those in capitals are too many to tell.
_MACROS = frozenset("errno i386 linux near far stdin stdout stderr typeof unix".split())

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def checked(name: str) -> str:
    """The name of an export, which is the name of its files and part of every symbol. ValueError if it cannot be."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"export: got the name {name!r}, expected letters, digits and underscores, a letter first")
    return name


def identifier(text: str) -> str:
    """The closest identifier of C that no header is likely to define as a macro."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "value"
    if word[0].isdigit():
        word = f"value_{word}"
    is_taken = word in _KEYWORDS or word in _MACROS or word == "I" or (len(word) > 1 and word == word.upper())
    return f"{word}_" if is_taken else word


def identifiers(texts: Iterable[str]) -> list[str]:
    """An identifier for each text, no two of which differ only in upper and lower case."""
    taken: set[str] = set()
    found = []
    for text in texts:
        word = base = identifier(text)
        number = 2
        while word.lower() in taken:
            word, number = f"{base}_{number}", number + 1
        taken.add(word.lower())
        found.append(word)
    return found


def c_type(dtype: DType) -> str:
    """The type of an element: that of its bits where C has none that means it."""
    if dtype.kind == "bool":
        return "uint8_t"
    if dtype.is_float:
        return {16: "uint16_t", 32: "float", 64: "double"}[dtype.bits]
    return f"{dtype.name}_t"
