"""While programs are compiled the garbage collector waits; afterwards it is as it was."""

import gc
import os
import threading
import weakref
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


def test_what_was_made_meanwhile_is_not_young_and_yet_collected_when_it_is_garbage() -> None:
    class Circle:
        pass

    with held_back():
        kept, lost = [Circle() for _ in range(1000)], Circle()
        lost.itself = lost  # type: ignore[attr-defined]
        gone = weakref.ref(lost)
        del lost
    young = {id(thing) for generation in (0, 1) for thing in gc.get_objects(generation)}
    assert not young & {id(circle) for circle in kept}
    gc.collect()
    assert gone() is None


def test_what_others_have_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with held_back():
            pass
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_child_does_not_wait_for_threads_that_it_does_not_have() -> None:
    def child() -> None:
        assert gc.isenabled()

    with held_back():
        assert exit_code_in_child(child) == 0
