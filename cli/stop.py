"""SIGINT and SIGTERM: a command unwinds, so that what it holds is let go, and ends with one line."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM)
SECONDS_UNTIL_AGAIN = 0.01


class Stopped(BaseException):
    """A signal that ends the command. No KeyboardInterrupt: the command line's parser catches that itself."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_status = 128 + number


class _Signals:
    """The signals caught so far, and whether they are to wait."""

    def __init__(self) -> None:
        self.caught: list[int] = []
        self.wait = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(number)
        for end in ENDS:
            signal.signal(end, signal.SIG_DFL)  # whoever sends a second one will not wait
        self.speak()

    def speak(self) -> None:
        if self.caught and not self.wait:
            raise Stopped(self.caught[0])

    def speak_again(self, ignored: "sys.UnraisableHookArgs") -> None:
        """In place of Python's note of an exception that it ignores, as from within a destructor: once that is left."""
        if not isinstance(ignored.exc_value, Stopped):
            sys.__unraisablehook__(ignored)
            return
        signal.signal(signal.SIGALRM, lambda number, frame: self.speak())
        signal.setitimer(signal.ITIMER_REAL, SECONDS_UNTIL_AGAIN)


_signals = _Signals()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped at the first SIGINT or SIGTERM. What a shell lets a job in the background ignore stays ignored."""
    _signals.caught, _signals.wait = [], False
    heard = [n for n in ENDS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    before = {number: signal.signal(number, _signals.stop) for number in heard}
    hook, sys.unraisablehook = sys.unraisablehook, _signals.speak_again
    try:
        yield
    except Exception as error:
        if _signals.caught:  # swallowed by what now fails in its stead
            raise Stopped(_signals.caught[0]) from error
        raise
    finally:
        sys.unraisablehook = hook
        if heard:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Have signals wait: compiled modules that are interrupted at their import swallow it, or abort the process."""
    _signals.wait = True
    try:
        yield
    finally:
        _signals.wait = False
        _signals.speak()
