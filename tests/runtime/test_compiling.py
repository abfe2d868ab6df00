"""While programs are compiled the garbage collector waits and turns are short; afterwards all is as it was."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
from kaun.runtime.compiling import compiling
from promises import exit_code_in_child


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    before = sys.getswitchinterval()
    gc.enable()
    yield
    gc.enable()
    sys.setswitchinterval(before)


def test_the_collector_waits_and_goes_on_after() -> None:
    with compiling():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_threads_take_short_turns_meanwhile() -> None:
    sys.setswitchinterval(0.004)
    with compiling():
        assert sys.getswitchinterval() < 0.002
        with compiling():
            pass
        assert sys.getswitchinterval() < 0.002
    assert sys.getswitchinterval() == pytest.approx(0.004)


def test_turns_that_are_shorter_stay_so() -> None:
    sys.setswitchinterval(0.0001)
    before = sys.getswitchinterval()
    for _ in range(3):
        with compiling():
            assert sys.getswitchinterval() == before
    assert sys.getswitchinterval() == before


def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), compiling():
        raise KeyboardInterrupt
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with compiling():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_it_waits_for_the_last_of_several_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with compiling():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    with compiling():
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

    with compiling():
        kept, lost = [Circle() for _ in range(1000)], Circle()
        lost.itself = lost  # type: ignore[attr-defined]
        gone = weakref.ref(lost)
        del lost
    young = {id(thing) for generation in (0, 1) for thing in gc.get_objects(generation)}
    assert not young & {id(circle) for circle in kept}
    gc.collect()
    assert gone() is None


def test_what_others_have_frozen_stays_frozen() -> None:
    theirs = [object()]
    gc.freeze()
    try:
        with compiling():
            pass
        assert all(thing is not theirs for thing in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(thing is theirs for thing in gc.get_objects())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_child_does_not_wait_for_threads_that_it_does_not_have() -> None:
    turn = sys.getswitchinterval()

    def child() -> None:
        assert gc.isenabled()
        assert sys.getswitchinterval() == turn

    with compiling():
        assert exit_code_in_child(child) == 0
