"""What control groups (of containers, batch systems, systemd) leave this process: processor time and memory.

Both versions are read, at the process's own group and at every one above it: the tightest limit holds.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the process's groups under a controller, and of those above them."""
    names = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        names.update(dict.fromkeys(controllers.split(","), group))
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, kind = line.partition(" - ")
        top, place = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), word) for word in mount.split()[3:5])
        words = kind.split() or [""]
        key = {"cgroup2": "", "cgroup": controller}.get(words[0])
        if key is None or key not in names or (key and controller not in words[-1].split(",")):
            continue
        own = PurePosixPath(names[key])
        inside = own.relative_to(top) if own.is_relative_to(top) else PurePosixPath()
        at = PurePosixPath(place.lstrip("/"))
        for folder in (at / inside, *(at / inside).parents):
            if folder.is_relative_to(at):
                yield root / folder


def _number(path: Path, word: int = 0) -> int | None:
    """A number of a file's first line, or None: no such file, "max", -1."""
    with contextlib.suppress(IndexError, ValueError):
        value = int(_lines(path)[0].split()[word])
        return value if value >= 0 else None
    return None


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many processors' time the process may use, or None where no quota is set."""
    quotas = []
    for group in _groups("cpu", root):
        for quota, period in (
            (_number(group / "cpu.max"), _number(group / "cpu.max", 1)),
            (_number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")),
        ):
            if quota and period:
                quotas.append(quota / period)
    return min(quotas, default=None)


def _statistic(group: Path, names: tuple[str, ...]) -> int:
    found = dict(line.split() for line in _lines(group / "memory.stat"))
    return next((int(found[name]) for name in names if name in found), 0)


def memory_limit(root: Path = ROOT) -> int:
    """Bytes that the process may ever have: of the machine's, what its groups let it have."""
    most = [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemTotal:")]
    for group in _groups("memory", root):
        limits = (_number(group / name) for name in ("memory.max", "memory.limit_in_bytes"))
        most += [limit for limit in limits if limit is not None]
    return min(most, default=sys.maxsize)


def memory_left(root: Path = ROOT) -> int:
    """Bytes that the process can still get without swapping or being killed."""
    free = [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    for group in _groups("memory", root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None:
                # Pages of files read long ago go before anybody is killed.
                spare = _statistic(group, ("total_inactive_file", "inactive_file"))
                free.append(max(0, most - now + spare))
    return min(free, default=sys.maxsize)
