"""Files from the network: fetched once from the first mirror that has them, checked, and kept in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import platformdirs

_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 18
# Only a process that was killed leaves a partial file; one younger than this may belong to a process that still writes.
_ABANDONED_SECONDS = 24 * 3600


class DownloadError(OSError):
    """No mirror has given the whole, right file; the message says what each of them did."""


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A published file: it is known by its size and checksum, so where it comes from need not be trusted."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""
    urls: tuple[str, ...]
    """Where to ask, in this order."""


class _MirrorError(Exception):
    """What is wrong with one mirror; the next is asked."""


def cache_folder() -> Path:
    """Where data sets are kept: the environment's KAUN_DATA_DIR, else `datasets` in the user's cache folder."""
    chosen = os.environ.get("KAUN_DATA_DIR", "").strip()
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("kaun") / "datasets"


def fetch(function: str, file: RemoteFile, folder: Path, *, timeout: float = _TIMEOUT_SECONDS) -> Path:
    """The path of `file` in `folder`, downloaded if it is not there yet or its content is not the published one.

    `function` is the public name that errors start with; `timeout`, in seconds, is for connecting and for each read.
    The file appears under its name whole and checked, or not at all, whatever other processes do meanwhile.

    Raises DownloadError if no mirror gives the right file, and OSError if `folder` cannot be written; whatever was
    under the name is then still there, and nothing else is left behind.
    """
    path = folder / file.name
    if path.is_file() and _is_right(path, file):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    failures = []
    for url in file.urls:
        try:
            _download(url, file, path, timeout)
            return path
        except _MirrorError as error:
            failures.append(f"\n  {url}: {error}")
    raise DownloadError(
        f"{function}: could not download {file.name} ({file.size:,} bytes, sha256 {file.sha256}); you may put it "
        f"into {folder} yourself. Got:{''.join(failures)}"
    )


def _is_right(path: Path, file: RemoteFile) -> bool:
    # Checked at every use, not only after the download: hashing costs a small part of decoding.
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


def _partial_prefix(path: Path) -> str:
    return f".{path.name}."


def _remove_abandoned(path: Path) -> None:
    now = time.time()
    for partial in path.parent.glob(f"{_partial_prefix(path)}*.partial"):
        with contextlib.suppress(OSError):  # another process may be cleaning up too
            if now - partial.stat().st_mtime > _ABANDONED_SECONDS:
                partial.unlink()


def _download(url: str, file: RemoteFile, path: Path, timeout: float) -> None:
    """Make the file at `url` appear at `path`; _MirrorError if it is not the published one."""
    partial = path.with_name(f"{_partial_prefix(path)}{secrets.token_hex(8)}.partial")
    digest = hashlib.sha256()
    try:
        with (
            partial.open("xb") as output,
            contextlib.closing(_chunks(url, file.size, timeout)) as chunks,
            _progress(file) as advance,
        ):
            for chunk in chunks:
                output.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
            if digest.hexdigest() != file.sha256:
                raise _MirrorError(f"wrong checksum: got sha256 {digest.hexdigest()}, expected {file.sha256}")
            output.flush()
            os.fsync(output.fileno())
        os.replace(partial, path)
    except BaseException:  # an interrupt from the keyboard too must not leave a partial file
        partial.unlink(missing_ok=True)
        raise


def _chunks(url: str, size: int, timeout: float) -> Generator[bytes, None, None]:
    """The content at `url`, which is exactly `size` bytes; whatever goes wrong on the way is a _MirrorError."""
    # Imported here: they are slow to load, and needed once.
    import http.client
    import urllib.error
    import urllib.request

    from kaun import __version__

    request = urllib.request.Request(url, headers={"User-Agent": f"kaun/{__version__}"})
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            offered = response.headers.get("Content-Length")
            if offered is not None and offered.strip() != str(size):
                raise _MirrorError(f"offers {offered} bytes, expected {size}")
            while chunk := response.read(_CHUNK_BYTES):
                received += len(chunk)
                if received > size:
                    raise _MirrorError(f"sends more than the expected {size} bytes")
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP status {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _MirrorError(f"{error or type(error).__name__} after {received} of {size} bytes") from error
    if received < size:
        raise _MirrorError(f"the connection ended after {received} of {size} bytes")


@contextlib.contextmanager
def _progress(file: RemoteFile) -> Iterator[Callable[[int], None]]:
    """A function that is told the number of bytes received, and draws a bar if somebody is looking."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(file.name, total=file.size)
        yield lambda count: bar.update(task, advance=count)
