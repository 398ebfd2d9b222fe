"""SIGINT and SIGTERM: a command unwinds, so that what it holds is let go, and ends with one line."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal that ends the command. No KeyboardInterrupt: the command line's parser catches that itself."""

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_status = 128 + number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped at the first SIGINT or SIGTERM. What a shell lets a job in the background ignore stays ignored."""
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for end in ENDS:
            signal.signal(end, signal.SIG_DFL)  # whoever sends a second one will not wait
        raise Stopped(number)

    heard = [n for n in ENDS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except Exception as error:
        if caught:  # compiled modules swallow what is raised while they are imported, and are then half there
            raise Stopped(caught[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
