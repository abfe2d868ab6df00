"""Writes what somebody asked for to a file: whole or not at all, and into devices and pipes as they are."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

from kaun.runtime.saved_file import replace_file

# Where what a process writes to is named, which must be written to and not replaced.
_SYSTEM = ("/dev/", "/proc/")


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Make this the content of the file. Where it cannot be written the old file stays, and OSError tells why."""
    name = os.path.abspath(os.fspath(path))
    if name.startswith(_SYSTEM) or (os.path.exists(name) and not os.path.isfile(name)):
        with open(name, "wb") as file:
            file.write(content)
        return
    name = os.path.realpath(name)  # a link stays one
    if not os.path.isdir(os.path.dirname(name)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    if os.path.exists(name) and not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    replace_file(name, [content])


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Write a figure of matplotlib: as a PNG, unless the name ends like another format that matplotlib writes."""
    ending = os.path.splitext(os.fspath(path))[1][1:].lower()
    drawn = io.BytesIO()
    figure.savefig(drawn, format=ending if ending in figure.canvas.get_supported_filetypes() else "png", dpi=130)
    write(path, drawn.getvalue())
