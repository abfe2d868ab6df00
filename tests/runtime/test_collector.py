"""While programs are compiled the garbage collector waits; afterwards it is as it was."""

import gc
import os
import threading
import warnings
from collections.abc import Iterator

import pytest
from kaun.runtime.collector import held_back


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
    with held_back(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: fork with threads
        child = os.fork()
        if child == 0:
            os._exit(0 if gc.isenabled() else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
