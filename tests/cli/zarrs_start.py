"""A signal at each line that Zarr's `sync` runs while a first group is made, until a command ends otherwise.

Prints how it ended then, and how many lines were tried. Each process is forked, as importing Zarr takes a second.
"""

import faulthandler
import itertools
import os
import signal
import sys
import tempfile
import time

import zarr
from zarr.core import sync
from zarr.storage import MemoryStore

from exact_ntk.cli import main


def make_a_group(at: int) -> None:
    """Send SIGTERM at the at-th of those lines; what is left of the command then is long enough to hear it."""
    seen = 0

    def line(frame, event, _):
        nonlocal seen
        seen += event == "line"
        if seen == at:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    sys.settrace(lambda frame, event, _: line if frame.f_code.co_filename == sync.__file__ else None)
    zarr.open_group(MemoryStore(), mode="w")
    sys.settrace(None)
    if seen >= at:
        time.sleep(10)


def said(at: int) -> tuple[int, str]:
    """The command's exit status, negative for a signal, and what it prints. After 20 seconds: where it stands."""
    with tempfile.TemporaryFile("w+") as file:
        if not (child := os.fork()):
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            faulthandler.dump_traceback_later(20, exit=True, file=file)
            sys.argv[1:] = ["run"]
            main.app = lambda: make_a_group(at)
            main.main()
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        return status, file.read()


lines = itertools.count(1)
while (found := said(at := next(lines))) == (143, "stopped; run the same command to go on\n"):
    pass
if found != (0, ""):  # which says that there are no more lines
    print(f"at line {at}:", *found)
print(f"tried {at - 1} lines")
