"""Errors at the user's call: who was called, what was given, what was expected, and in which layer."""

from __future__ import annotations

from kaun.compiler.ir import Node, source


def located(message: str) -> str:
    """`message`, followed by the path of the layer being applied, if any."""
    path = source.layer_path()
    return f"{message} (in layer {path})" if path else message


def invalid_value(function: str, message: str) -> ValueError:
    """The ValueError to raise: `function` is the public name ("nx.add")."""
    return ValueError(located(f"{function}: {message}"))


def invalid_type(function: str, message: str) -> TypeError:
    """The TypeError to raise: `function` is the public name ("nx.add")."""
    return TypeError(located(f"{function}: {message}"))


def restated(function: str, error: Exception) -> Exception:
    """An error of a primitive op, told in terms of the public function that used it."""
    _, colon, rest = str(error).partition(": ")
    message = located(f"{function}: {rest if colon else error}")
    return TypeError(message) if isinstance(error, TypeError) else ValueError(message)


def describe(*nodes: Node) -> str:
    """Types as text: "float32[2, 3] and float32[4]"."""
    return " and ".join(f"{node.dtype}{list(node.shape)}" for node in nodes)
