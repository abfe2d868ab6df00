"""The numbers of a loop's state, updated in place where nobody else can see them.

A training loop hands the state of one step to the next. Most of it is written by one kernel that also reads it last,
element by element, so that the new numbers may take the place of the old ones: a program's `aliases` say where.
Whether they may is a question of who can still look: a state that was shown to `report`, a tensor or a NumPy array that
somebody took out of it. Each of these holds a reference to the storage of the numbers, so CPython's reference counts
answer it, storage by storage and step by step; what somebody holds is left alone, and its successor goes to new memory.

An interrupt may strike between the native code and whatever line notes that it has run. So no line does: the native
code itself writes a word when all is written, and whoever asks for the storages looks at that word. The answer is the
state before the step or the one after it, never parts of both.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter
from sys import getrefcount
from typing import Generic, Protocol, TypeVar

from kaun.execution import CompiledProgram, Storage
from kaun.runtime.buffers import MAPPED_BYTES
from kaun.runtime.program import DONE

# What `getrefcount` tells of an object that only one list refers to, counted as below.
(_ALONE,) = map(getrefcount, [object()])

_address = attrgetter("address")
Form = TypeVar("Form")


class Runner(Protocol):
    """What runs a program, such as an `Executable`."""

    def record(self, arguments: Sequence[int]) -> array[int]: ...

    def start(self, record: array[int]) -> None: ...


class Row(Generic[Form]):
    """Storages that a loop owns, which a program takes as its first inputs and makes anew as its last results.

    `form` says what they are, for whoever uses the row.
    """

    __slots__ = ("_after", "_before", "_record")

    def __init__(self, storages: list[Storage], form: Form):
        self._before = self._after = storages, form
        self._record: array[int] | None = None

    def current(self) -> tuple[list[Storage], Form]:
        """The storages as the last program that ran left them, and their form.

        The list is not to be kept, nor what is in it while a program runs, which would look like an owner.
        """
        record = self._record
        return self._after if record is None or record[DONE] else self._before

    def run(
        self, compiled: CompiledProgram, others: list[Storage], form: Form, runner: Runner | None = None
    ) -> list[Storage]:
        """Run a program on the storages and `others`, which makes a row of `form`; the results before the new row.

        runner: what runs it, if not the program's executable.
        """
        now = self.current()
        # In this order, so that an interrupt anywhere in between finds the same storages.
        self._before, self._after, self._record = now, now, None
        row = now[0]
        if len(set(map(id, row))) < len(row):
            _unshare(row, compiled)
        outputs = _outputs(row, compiled)
        results = compiled.arranged(row + others, outputs)
        first = len(results) - len(row)
        executable: Runner = compiled.executable if runner is None else runner
        record = executable.record([*map(_address, row), *map(_address, others), *map(_address, outputs)])
        self._record = record
        self._after = results[first:], form
        executable.start(record)
        return results[:first]


def _unshare(row: list[Storage], compiled: CompiledProgram) -> None:
    """Give each place of the row that a program may write over a storage of its own, where the row alone has it.

    Moments start from zeros, which are one storage for all of a shape: the first step would read it, and write as many
    new ones as there are beside it.
    """
    counts = list(map(getrefcount, row))
    replaced = {donor for donor in compiled.donors if donor is not None}
    places: dict[int, list[int]] = {}
    for number, storage in enumerate(row):
        places.setdefault(id(storage), []).append(number)
    for numbers in places.values():
        shared = row[numbers[0]]
        alone = counts[numbers[0]] == _ALONE + len(numbers) - 1 and shared.is_ours
        if len(numbers) > 1 and alone and shared.nbytes >= MAPPED_BYTES and replaced.issuperset(numbers):
            for number in numbers[1:]:
                row[number] = Storage.copy_of(shared.array)


def _outputs(row: list[Storage], compiled: CompiledProgram) -> list[Storage]:
    """Storages for what the program computes: those of the row that it may overwrite, and new ones."""
    counts = list(map(getrefcount, row))
    outputs = []
    for output, donor in zip(compiled.outputs, compiled.donors, strict=True):
        if donor is not None and donor < len(row) and counts[donor] == _ALONE and row[donor].is_ours:
            outputs.append(row[donor])
        else:
            outputs.append(Storage(output))
    return outputs
