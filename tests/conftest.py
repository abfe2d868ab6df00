"""What all tests share: a kernel cache of their own, so that no test reads or writes the user's."""

from __future__ import annotations

import os
import tempfile

# Before anything imports the library: the cache folder is read once.
os.environ.setdefault("KAUN_CACHE_DIR", tempfile.mkdtemp(prefix="kaun-test-cache-"))

import sys
from pathlib import Path

import kaun  # noqa: F401

sys.path.append(str(Path(__file__).parent))
