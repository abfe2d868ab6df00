"""Reads the scalars of TensorBoard's event files.

A file is a row of records: length (8 bytes) | masked CRC-32C of it (4) | an Event as protocol buffer | its masked
CRC-32C (4). A record that is cut off ends a file: it is being written, or its writer was stopped.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# More than any event has: a length beyond it is damage.
_LONGEST = 256 << 20


def runs(folder: str | os.PathLike[str]) -> list[dict[str, list[tuple[int, float]]]]:
    """(step, value) pairs by name of each run, in the order of the steps.

    A file that goes on where the one before ended belongs to its run; one that starts earlier begins another.
    ValueError, naming the file, for damage; and if tensorboardX is missing or the folder holds no event file.
    """
    try:
        from tensorboardX.proto.event_pb2 import Event
    except ImportError as error:
        raise ValueError("tensorboardX is not installed; install it with pip install 'kaun[log]'") from error
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {os.fspath(folder)!r}")
    files = sorted(Path(folder).glob("*tfevents*"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not files:
        raise ValueError(f"{folder} holds no event files; kn.train.fit(..., log_dir={str(folder)!r}) writes them")
    found: list[dict[str, list[tuple[int, float]]]] = []
    last = -1
    for file in files:
        values: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for record in _records(file):
            try:
                event = Event.FromString(record)
            except Exception as error:  # protobuf's DecodeError has no public name that all its versions share
                raise ValueError(f"{file} holds a record that is no event: {error}") from error
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    values[value.tag].append((event.step, value.simple_value))
        steps = [step for pairs in values.values() for step, _ in pairs]
        if not steps:
            continue
        if not found or min(steps) <= last:
            found.append({})
        for name, pairs in values.items():
            found[-1].setdefault(name, []).extend(pairs)
        last = max(steps)
    return found


def scalars(folder: str | os.PathLike[str]) -> dict[str, list[tuple[int, float]]]:
    """The pairs of the last run of a folder; errors as of `runs`."""
    found = runs(folder)
    return found[-1] if found else {}


def _records(file: Path) -> Iterator[bytes]:
    from tensorboardX.crc32c import crc32c

    def masked(data: bytes) -> int:
        crc = int(crc32c(data))
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    content = file.read_bytes()
    place = 0
    while place + 12 <= len(content):
        head = content[place : place + 8]
        (length,), (check,) = struct.unpack("<Q", head), struct.unpack("<I", content[place + 8 : place + 12])
        if masked(head) != check or length > _LONGEST:
            raise ValueError(f"{file} is damaged at byte {place}")
        data = content[place + 12 : place + 12 + length]
        end = content[place + 12 + length : place + 16 + length]
        if len(data) < length or len(end) < 4:
            return
        if masked(data) != struct.unpack("<I", end)[0]:
            raise ValueError(f"{file} is damaged at byte {place + 12}")
        yield data
        place += 16 + length
