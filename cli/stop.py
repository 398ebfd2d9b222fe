"""SIGINT and SIGTERM: a command unwinds, so that what it holds is let go, and ends with one line."""

import contextlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM)
SECONDS_UNTIL_AGAIN = 0.01
# Modules that are left before a signal is heard. Compiled modules that are interrupted at their import swallow it, or
# abort the process. Zarr would never end if it were interrupted where it starts the thread that reads and writes.
WAITED_FOR = {"_frozen_importlib", "importlib._bootstrap", "zarr.core.sync"}


class Stopped(BaseException):
    """A signal that ends the command. No KeyboardInterrupt: the command line's parser catches that itself."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_status = 128 + number


class _Signals:
    """The signals caught so far."""

    def __init__(self) -> None:
        self.caught: list[int] = []

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(number)
        for end in ENDS:
            signal.signal(end, signal.SIG_DFL)  # whoever sends a second one will not wait
        self.speak(number, frame)

    def speak(self, number: int, frame: FrameType | None) -> None:
        if _is_waited_for(frame):
            self.speak_again()
        else:
            raise Stopped(self.caught[0])

    def speak_again(self) -> None:
        signal.signal(signal.SIGALRM, self.speak)
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_UNTIL_AGAIN)

    def ignored(self, it: "sys.UnraisableHookArgs") -> None:
        """In place of Python's note of an exception that it ignores, as in a destructor: a signal is heard once that is
        left, and after a signal the failures of what was only half made are no news.
        """
        if isinstance(it.exc_value, Stopped):
            self.speak_again()
        elif not self.caught:
            sys.__unraisablehook__(it)


def _is_waited_for(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_globals.get("__name__") not in WAITED_FOR:
        frame = frame.f_back
    return frame is not None


_signals = _Signals()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped at the first SIGINT or SIGTERM. What a shell lets a job in the background ignore stays ignored."""
    _signals.caught = []
    heard = [n for n in ENDS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    before = {number: signal.signal(number, _signals.stop) for number in heard}
    hook, sys.unraisablehook = sys.unraisablehook, _signals.ignored
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


def be_silent() -> None:
    """What a library was in the middle of is no news, such as a coroutine that nothing will await now."""
    warnings.simplefilter("ignore")
    logging.disable()
    sys.unraisablehook = lambda it: None
