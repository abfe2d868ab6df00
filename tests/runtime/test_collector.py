"""While programs are compiled the garbage collector waits; afterwards it is as it was."""

import gc
import os
import threading
from collections.abc import Iterator

import pytest
from kaun.runtime.collector import held_back
from promises import exit_code_in_child


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_the_collector_waits_and_goes_on_after() -> None:
    with held_back():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), held_back():
        raise KeyboardInterrupt
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with held_back():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_it_waits_for_the_last_of_several_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with held_back():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    with held_back():
        thread.start()
        inside.wait()
    try:
        assert not gc.isenabled()
    finally:
        leave.set()
        thread.join()
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_child_does_not_wait_for_threads_that_it_does_not_have() -> None:
    def child() -> None:
        assert gc.isenabled()

    with held_back():
        assert exit_code_in_child(child) == 0
