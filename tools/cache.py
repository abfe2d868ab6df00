"""`kaun cache`: shows where compiled kernels are kept and how much there is of them, or deletes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kaun.runtime.cache import KernelCache, default_cache
from kaun.tools.files import size_in_words


def main(arguments: Sequence[str], prog: str = "kaun cache") -> int:
    """Show the cache, or clear it. The exit status is 1 if there were entries and none could be deleted."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Show the cache of compiled kernels on disk, or delete its entries (they are compiled again).",
        epilog="KAUN_CACHE_DIR sets the folder, KAUN_CACHE_SIZE its largest size (512M), KAUN_CACHE=0 switches it off.",
    )
    parser.add_argument("action", nargs="?", choices=["show", "clear"], default="show", help="default: show")
    action = parser.parse_args(arguments).action
    cache = default_cache()
    if cache.folder is None:
        print("The kernel cache on disk is switched off (KAUN_CACHE=0).")
        return 0
    return _clear(cache) if action == "clear" else _show(cache)


def _show(cache: KernelCache) -> int:
    print(f"folder   {cache.folder}")
    print(f"entries  {cache.count():,}")
    print(f"size     {size_in_words(cache.size())}")
    return 0


def _clear(cache: KernelCache) -> int:
    count, size = cache.count(), cache.size()
    cache.clear()
    left = cache.count()
    print(f"Deleted {count - left:,} kernels ({size_in_words(size - cache.size())}) from {cache.folder}.")
    if left:
        print(f"{left:,} are left: they could not be deleted, or were written meanwhile.")
    return 1 if count and left >= count else 0
