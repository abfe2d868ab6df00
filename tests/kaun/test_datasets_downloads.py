"""Downloaded data sets: true file formats become the documented tensors; what is broken is named, nothing is lost."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import re
import signal
import struct
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from kaun import datasets
from kaun.datasets import cifar, download, idx

CONTENT = bytes(range(256)) * 4000


@dataclasses.dataclass
class Mirror:
    """A server on this machine; `answers` maps a path to its content or to a function that answers by itself."""

    url: str
    answers: dict = dataclasses.field(default_factory=dict)
    requests: list = dataclasses.field(default_factory=list)

    def give(self, name, answer):
        self.answers["/" + name] = answer
        return self.url + name


@pytest.fixture
def mirror(monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self):
            served.requests.append((self.path, self.headers["User-Agent"]))
            answer = served.answers.get(self.path)
            if answer is None:
                self.send_error(404, "Not Found")
            elif callable(answer):
                answer(self)
            else:
                send(self, answer, len(answer))

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.finished = threading.Event()  # what handlers that never answer wait for
    served = Mirror(f"http://127.0.0.1:{server.server_address[1]}/")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    server.finished.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def send(handler, content, declared):
    handler.send_response(200)
    if declared is not None:
        handler.send_header("Content-Length", str(declared))
    handler.end_headers()
    handler.wfile.write(content)


def remote(name, content, *urls):
    return download.RemoteFile(name, len(content), hashlib.sha256(content).hexdigest(), urls)


def names_in(folder):
    return sorted(os.listdir(folder))


# --- formats -------------------------------------------------------------------------------------------------------


def idx_bytes(array, type_code=8):
    header = struct.pack(">BBBB", 0, 0, type_code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def drawn(seed, count, *extents):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, *extents), np.uint8), random.integers(0, 10, count, np.uint8)


def cifar_archive(members, *, folder="cifar-10-batches-bin/"):
    """A .tar.gz as the published one: its folder, a text file, then the members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        top = tarfile.TarInfo(folder.rstrip("/"))
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, content in [("batches.meta.txt", b"airplane\n"), *members]:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def cifar_records(images, labels):
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def cifar_members():
    """Batches in the order in which the published archive has them, which is not the order of their numbers."""
    return [
        (name, cifar_records(*drawn(seed, 2, 3, 32, 32)))
        for name, seed in [
            ("data_batch_1.bin", 1), ("data_batch_5.bin", 5), ("data_batch_4.bin", 4), ("data_batch_2.bin", 2),
            ("test_batch.bin", 6), ("data_batch_3.bin", 3),
        ]
    ]  # fmt: skip


@pytest.fixture
def published(mirror, monkeypatch, tmp_path):
    """MNIST, Fashion-MNIST and CIFAR-10 of a few images each, at the mirror, with an empty cache folder."""
    monkeypatch.setenv("KAUN_DATA_DIR", str(tmp_path / "data"))
    for constant, prefix, seed in (("MNIST", "mnist/", 10), ("FASHION_MNIST", "fashion/", 20)):
        train, test = drawn(seed, 5, 28, 28), drawn(seed + 1, 3, 28, 28)
        contents = [gzip.compress(idx_bytes(array)) for array in (*train, *test)]
        files = getattr(idx, constant)
        names = [file.name for file in files]
        smaller = tuple(
            remote(name, content, mirror.give(prefix + name, content))
            for name, content in zip(names, contents, strict=True)
        )
        monkeypatch.setattr(idx, constant, smaller)
    content = cifar_archive(cifar_members())
    url = mirror.give("cifar-10-binary.tar.gz", content)
    monkeypatch.setattr(cifar, "CIFAR10", remote("cifar-10-binary.tar.gz", content, url))
    return tmp_path / "data"


def check(data, train, test, data_format, normalize):
    for x, y, (pixels, labels) in ((data.x_train, data.y_train, train), (data.x_test, data.y_test, test)):
        expected = pixels if data_format == "NCHW" else np.moveaxis(pixels, 1, -1)
        assert x.shape == expected.shape and y.shape == labels.shape
        if normalize:
            assert x.numpy().dtype == np.float32
            np.testing.assert_allclose(x.numpy(), expected / 255.0, rtol=1e-7)
        else:
            assert x.numpy().dtype == np.uint8
            np.testing.assert_array_equal(x.numpy(), expected)
        assert y.numpy().dtype == np.int32
        np.testing.assert_array_equal(y.numpy(), labels)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("fashion", "seed", "folder"), [(False, 10, "mnist"), (True, 20, "fashion-mnist")])
def test_idx_files_become_the_documented_tensors(published, data_format, normalize, fashion, seed, folder):
    data = datasets.mnist(fashion=fashion, normalize=normalize, data_format=data_format)
    train, test = drawn(seed, 5, 28, 28), drawn(seed + 1, 3, 28, 28)
    check(data, (train[0][:, None], train[1]), (test[0][:, None], test[1]), data_format, normalize)
    assert names_in(published) == [folder] and names_in(published / folder) == sorted(f.name for f in idx.MNIST)
    x_train, y_train, x_test, y_test = data
    assert (x_train, y_train, x_test, y_test) == tuple(data)


@pytest.mark.parametrize("data_format", ["NCHW", "NHWC"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_cifar_archive_becomes_the_documented_tensors(published, data_format, normalize):
    batches = [drawn(seed, 2, 3, 32, 32) for seed in range(1, 7)]
    train = tuple(np.concatenate(parts) for parts in zip(*batches[:5], strict=True))
    check(
        datasets.cifar10(normalize=normalize, data_format=data_format), train, batches[5], data_format, normalize
    )
    assert names_in(published / "cifar10") == ["cifar-10-binary.tar.gz"]


def test_files_are_downloaded_once_and_then_need_no_network(published, mirror):
    datasets.mnist(), datasets.cifar10()
    assert len(mirror.requests) == 5
    assert all(re.fullmatch(r"kaun/\d+\.\d+\.\d+\S*", agent) for _, agent in mirror.requests)
    mirror.answers.clear()
    datasets.mnist(), datasets.cifar10()
    assert len(mirror.requests) == 5


def test_another_layout_is_refused_before_anything_is_downloaded(published, mirror):
    with pytest.raises(ValueError, match=r"datasets.mnist: got data_format 'CHWN', expected 'NCHW' or 'NHWC'"):
        datasets.mnist(data_format="CHWN")
    with pytest.raises(ValueError, match=r"datasets.cifar10: got data_format 'nchw'"):
        datasets.cifar10(data_format="nchw")
    assert not mirror.requests and not published.exists()


def test_the_published_files_are_asked_for_over_https_and_known_by_their_checksums():
    files = [*idx.MNIST, *idx.FASHION_MNIST, cifar.CIFAR10]
    for file in files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 4000 and len(file.urls) >= 2
        assert all(url.startswith("https://") and url.endswith("/" + file.name) for url in file.urls)
    assert len({file.sha256 for file in files}) == 9
    # The sums that the data sets' own pages tell: 11.06 MiB of MNIST, 29.45 MiB of Fashion-MNIST, 162 MiB of CIFAR-10.
    sums = [sum(file.size for file in part) / 2**20 for part in (files[:4], files[4:8], files[8:])]
    assert [round(total, 2) for total in sums] == [11.06, 29.45, 162.17]


def test_the_cache_folder_is_the_users_unless_the_environment_names_one(monkeypatch):
    monkeypatch.setenv("KAUN_DATA_DIR", "~/sets")
    assert download.cache_folder() == Path.home() / "sets"
    monkeypatch.delenv("KAUN_DATA_DIR")
    assert download.cache_folder() == platformdirs.user_cache_path("kaun") / "datasets"


# --- downloads -----------------------------------------------------------------------------------------------------


def hang(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:1000])
    handler.wfile.flush()
    handler.server.finished.wait(10)


BROKEN = {
    "missing": (None, "HTTP status 404 Not Found"),
    "refused": (lambda handler: handler.send_error(403, "Forbidden"), "HTTP status 403 Forbidden"),
    "altered": (b"x" + CONTENT[1:], "wrong checksum: got sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
    "another length": (CONTENT[:-1], f"offers {len(CONTENT) - 1} bytes, expected {len(CONTENT)}"),
    "cut": (lambda handler: send(handler, CONTENT[:5000], len(CONTENT)), f"after 5000 of {len(CONTENT)} bytes"),
    "cut without a length": (lambda handler: send(handler, CONTENT[:5000], None), "ended after 5000 of"),
    "too long": (lambda handler: send(handler, CONTENT + b"x", None), f"more than the expected {len(CONTENT)} bytes"),
    "a page instead": (b"<html>moved</html>", "offers 18 bytes"),
    "no HTTP": (lambda handler: handler.wfile.write(b"SSH-2.0\r\n\r\n"), "SSH-2.0"),
    "nothing": (lambda handler: handler.connection.close(), "after 0 of"),
    "silence": (hang, f"timed out after 0 of {len(CONTENT)} bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_mirror_is_named_and_the_next_one_is_asked(mirror, tmp_path, kind):
    answer, message = BROKEN[kind]
    broken = mirror.give("broken/file.bin", answer)
    with pytest.raises(datasets.DownloadError) as caught:
        download.fetch("datasets.some", remote("file.bin", CONTENT, broken), tmp_path / "a", timeout=0.5)
    assert str(caught.value).startswith("datasets.some: could not download file.bin (1,024,000 bytes, sha256 ")
    assert isinstance(caught.value, OSError) and re.search(f"{re.escape(broken)}: .*{message}", str(caught.value))
    assert names_in(tmp_path / "a") == []
    good = mirror.give("good/file.bin", CONTENT)
    path = download.fetch("datasets.some", remote("file.bin", CONTENT, broken, good), tmp_path / "b", timeout=0.5)
    assert path.read_bytes() == CONTENT and names_in(tmp_path / "b") == ["file.bin"]


def test_an_unreachable_mirror_is_named(tmp_path):
    with pytest.raises(datasets.DownloadError, match="Connection refused"):
        download.fetch("datasets.some", remote("f", CONTENT, "http://127.0.0.1:1/f"), tmp_path, timeout=2)


def test_whatever_was_there_stays_until_the_right_file_has_arrived(mirror, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"an older edition")
    file = remote("file.bin", CONTENT, mirror.give("file.bin", CONTENT[::-1]))
    with pytest.raises(datasets.DownloadError, match="wrong checksum"):
        download.fetch("datasets.some", file, tmp_path)
    assert path.read_bytes() == b"an older edition" and names_in(tmp_path) == ["file.bin"]
    mirror.give("file.bin", CONTENT)
    assert download.fetch("datasets.some", file, tmp_path).read_bytes() == CONTENT


def test_a_file_damaged_in_the_cache_is_downloaded_again(mirror, tmp_path):
    file = remote("file.bin", CONTENT, mirror.give("file.bin", CONTENT))
    path = download.fetch("datasets.some", file, tmp_path)
    path.write_bytes(CONTENT[:-1] + b"?")
    assert download.fetch("datasets.some", file, tmp_path).read_bytes() == CONTENT
    assert len(mirror.requests) == 2


def test_an_interrupt_leaves_no_partial_file_and_passes_on(mirror, tmp_path):
    seen = []

    def interrupt(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT[: len(CONTENT) // 2])
        for _ in range(500):
            if len(names_in(tmp_path)) == 2:
                break
            time.sleep(0.01)
        seen.extend(names_in(tmp_path))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        handler.server.finished.wait(10)

    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        download.fetch("datasets.some", remote("file.bin", CONTENT, mirror.give("file.bin", interrupt)), tmp_path)
    assert len(seen) == 2 and names_in(tmp_path) == ["file.bin"] and path.read_bytes() == b"old"


def test_a_full_disk_is_not_blamed_on_the_mirrors(mirror, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    url = mirror.give("file.bin", CONTENT)
    with pytest.raises(OSError, match="No space left on device") as caught:
        download.fetch("datasets.some", remote("file.bin", CONTENT, url, url), tmp_path)
    assert not isinstance(caught.value, datasets.DownloadError)
    assert len(mirror.requests) == 1 and names_in(tmp_path) == []


def test_partial_files_of_processes_long_dead_are_removed(mirror, tmp_path):
    old, new, other = (tmp_path / name for name in (".f.0.partial", ".f.1.partial", ".g.0.partial"))
    for path in (old, new, other):
        path.write_bytes(b"part")
    for path in (old, other):
        os.utime(path, (time.time() - 90_000,) * 2)
    download.fetch("datasets.some", remote("f", CONTENT, mirror.give("f", CONTENT)), tmp_path)
    assert names_in(tmp_path) == [".f.1.partial", ".g.0.partial", "f"]


def test_simultaneous_downloads_of_one_file_all_get_it_whole(mirror, tmp_path):
    file = remote("file.bin", CONTENT, mirror.give("file.bin", CONTENT))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(download.fetch("datasets.some", file, tmp_path).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [CONTENT] * 4 and names_in(tmp_path) == ["file.bin"]


def test_progress_is_shown_to_a_terminal_and_to_nobody_else(mirror, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    url = mirror.give("file.bin", CONTENT)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        download.fetch("datasets.some", remote("file.bin", CONTENT, url), tmp_path / str(shown))
        assert ("file.bin" in stream.getvalue()) is shown


# --- damaged files -------------------------------------------------------------------------------------------------


def claimed(*extents):
    return struct.pack(">BBBB", 0, 0, 8, len(extents)) + struct.pack(f">{len(extents)}I", *extents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short: got 0 bytes where 4"),
        (b"\0\0\x08", "cut short: got 3 bytes where 4"),
        (claimed(2, 3, 3)[:10], "cut short: got 6 bytes where 12"),
        (claimed(2, 3, 3) + bytes(17), "cut short: got 17 bytes where 18"),
        (claimed(2, 3, 3) + bytes(19), r"goes on after the 18 elements of \[2, 3, 3\]"),
        (claimed(2, 9) + bytes(18), "starts with 00 00 08 02, expected 00 00 08 03"),
        (b"\0\0\x0d\x03" + claimed(2, 3, 3)[4:] + bytes(72), "starts with 00 00 0d 03, expected 00 00 08 03"),
        (b"\x1f\x8b" * 20, "starts with 1f 8b 1f 8b"),
        (claimed(2**32 - 1, 2**32 - 1, 2**32 - 1), "says it has the shape"),
        (claimed(2**30, 1, 1), "cut short: got 0 bytes where 1,073,741,824"),
    ],
)
def test_an_idx_file_is_checked_before_its_sizes_are_used(tmp_path, content, message):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=rf"datasets.mnist: {path} .*{message}"):
        idx.read_idx(path, rank=3)


def test_a_gzip_file_cut_or_altered_anywhere_is_an_error(tmp_path):
    whole = gzip.compress(idx_bytes(drawn(0, 1, 6, 6)[0]))
    path = tmp_path / "images.gz"
    path.write_bytes(whole)
    assert idx.read_idx(path, rank=3).shape == (1, 6, 6)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"datasets.mnist: .* is (not a whole gzip file|cut short)"):
            idx.read_idx(path, rank=3)
    for position in (0, 1, 2, *range(10, len(whole))):  # the rest of gzip's own header may be anything
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"^datasets\.mnist: "):
            idx.read_idx(path, rank=3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((3, 28, 27), [1, 2, 3], r"images of \[28, 27\] pixels, expected \[28, 28\]"),
        ((3, 28, 28), [1, 2], "got 3 images and 2 labels"),
        ((3, 28, 28), [1, 10, 3], "got the label 10, expected at most 9"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_an_error(tmp_path, images, labels, message):
    for name, array in (("images", np.zeros(images, np.uint8)), ("labels", np.array(labels, np.uint8))):
        (tmp_path / name).write_bytes(gzip.compress(idx_bytes(array)))
    with pytest.raises(ValueError, match=f"datasets.mnist: .*{message}"):
        idx.read_pair(tmp_path / "images", tmp_path / "labels")


def replaced(name, content):
    return [(member, content if member == name else old) for member, old in cifar_members()]


def link(name):
    info = tarfile.TarInfo("cifar-10-batches-bin/" + name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


RECORD = bytes(3073)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (cifar_members()[:-1], "has no cifar-10-batches-bin/data_batch_3.bin; it is cut short or another archive"),
        ([], "has no cifar-10-batches-bin/data_batch_1.bin"),
        ([*cifar_members()[:2], *cifar_members()], "holds cifar-10-batches-bin/data_batch_1.bin twice"),
        (replaced("test_batch.bin", RECORD[:-1]), "test_batch.bin in .* has 3,072 bytes, expected a multiple of 3,073"),
        (replaced("test_batch.bin", RECORD * 10_001), "has 30,733,073 bytes, expected .* at most 30,730,000"),
        (replaced("test_batch.bin", b"\x0a" + RECORD[1:]), "got the label 10, expected at most 9"),
        (replaced("test_batch.bin", link("test_batch.bin")), "test_batch.bin in .* is not a regular file"),
    ],
)
def test_a_cifar_archive_of_another_form_is_an_error(tmp_path, members, message):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(cifar_archive(members))
    with pytest.raises(ValueError, match=f"datasets.cifar10: .*{message}"):
        cifar.read_archive(path)
    assert names_in(tmp_path) == ["archive.tar.gz"]


def test_an_archive_cut_anywhere_or_no_archive_at_all_is_an_error(tmp_path):
    whole = cifar_archive(cifar_members())
    path = tmp_path / "archive.tar.gz"
    cut = [whole[: len(whole) * part // 12] for part in range(12)]
    for content in (*cut, b"PK\x03\x04" * 1000, gzip.compress(b"")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"datasets.cifar10: .* (is not a whole archive|is cut short|has no)"):
            cifar.read_archive(path)


def test_members_that_would_leave_the_folder_are_never_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(cifar_archive([("../../escaped.bin", b"x"), ("../escaped.bin", b"x"), *cifar_members()]))
    (images, labels), _ = cifar.read_archive(path)
    assert images.shape == (10, 3, 32, 32) and labels.shape == (10,)
    assert names_in(tmp_path) == ["archive.tar.gz"] and not (tmp_path.parent / "escaped.bin").exists()
