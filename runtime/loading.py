"""Object code in, addresses out: laid out and mapped here where that is simple, and by LLVM's linker where it is not.

Kernels are code, constants and calls of a few functions of the C library. LLVM's linker can do much more, and takes a
hundred kilobytes of memory for each, beside megabytes of its own code.
"""

from __future__ import annotations

from collections.abc import Collection

from kaun.runtime.flat_image import flat_image
from kaun.runtime.mapped_image import map_image

__all__ = ["load"]


def load(object_bytes: bytes, names: Collection[str]) -> dict[str, int]:
    """Symbol name to address for each of `names`. The code stays mapped until the process ends.

    Raises ValueError when the bytes are not an object file for this machine, or lack a name.
    """
    try:
        image = flat_image(object_bytes, names)
        image.check()
        base = map_image(image)
    except (ValueError, OSError):
        from kaun.runtime import engine

        return engine.load(object_bytes, names)
    return {name: base + image.symbols[name] for name in names}
