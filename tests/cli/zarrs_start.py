"""A signal at every so many lines that Zarr and asyncio run while a first group is made; prints what is said too much.

Each in a process of its own, forked, as importing Zarr takes a second.
"""

import faulthandler
import os
import signal
import sys
import tempfile
import time

import zarr
from zarr.storage import MemoryStore

from exact_ntk.cli import main

ROOMS = ("/asyncio/", "/zarr/core/sync.py", "/selectors.py", "/threading.py")


def make_a_group(at: int) -> None:
    """Hear SIGTERM at the at-th of those lines, and time to end."""
    seen = 0

    def line(frame, event, _):
        nonlocal seen
        seen += event == "line"
        if seen == at:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    sys.settrace(lambda frame, event, _: line if any(r in frame.f_code.co_filename for r in ROOMS) else None)
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


tried, every = 0, int(sys.argv[1])
while (found := said(1 + tried * every)) != (0, ""):
    tried += 1
    if found != (143, "stopped; run the same command to go on\n"):
        print(f"at {tried * every}:", *found)
        break
print(f"tried {tried} lines")
