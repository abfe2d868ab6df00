"""Context: named tensors that reach every layer of a model without passing through its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kaun import nx


class Context(Mapping[str, nx.Tensor]):
    """An immutable mapping from names to tensors, such as an attention mask, handed to every layer as `ctx`.

    `Context(attention_mask=mask)` or `Context({"attention_mask": mask})`; arrays and numbers become tensors.
    `ctx.set(name, value)` is a new context with one entry added or replaced. A missing name raises KeyError that
    lists the names there are.
    """

    __slots__ = ("_tensors",)

    _tensors: dict[str, nx.Tensor]

    def __init__(self, tensors: Mapping[str, object] | None = None, /, **named: object) -> None:
        entries = {**(tensors or {}), **named}
        for name in entries:
            if not isinstance(name, str) or not name:
                raise TypeError(f"context.Context: got the name {name!r}, expected a string that is not empty")
        self._tensors = {name: nx.asarray(value) for name, value in entries.items()}

    def set(self, name: str, value: object) -> Context:
        """This context with `value` under `name`."""
        return Context({**self._tensors, name: value})

    def __getitem__(self, name: str) -> nx.Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(f"context: no tensor named {name!r}; the names are {sorted(self._tensors)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Context({', '.join(f'{name}={tensor.dtype}{list(tensor.shape)}' for name, tensor in self.items())})"
