"""`kaun cache` shows what is on disk and deletes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kaun.runtime.cache import KernelCache
from kaun.tools import cache


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    kernels = KernelCache(tmp_path / "kernels")
    for number in range(3):
        kernels.store(f"{number:064x}", b"x" * 1000)
    monkeypatch.setattr(cache, "default_cache", lambda: kernels)
    return kernels


def test_it_shows_folder_entries_and_size(filled: KernelCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache.main([]) == 0
    text = capsys.readouterr().out
    assert str(filled.folder) in text
    assert "entries  3" in text
    assert "3.1 KiB" in text


def test_it_clears(filled: KernelCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache.main(["clear"]) == 0
    assert filled.count() == 0
    assert "Deleted 3 kernels (3.1 KiB)" in capsys.readouterr().out


def test_entries_that_stay_are_reported(
    filled: KernelCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(filled, "clear", lambda: None)
    assert cache.main(["clear"]) == 1
    assert "3 are left" in capsys.readouterr().out


def test_a_cache_that_is_switched_off_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "default_cache", lambda: KernelCache(None))
    assert cache.main(["clear"]) == 0
    assert "switched off" in capsys.readouterr().out
