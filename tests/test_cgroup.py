"""Quotas and limits of control groups, in trees of files like those of containers, batch systems and hosts."""

from pathlib import Path

import pytest

from exact_ntk.cgroup import cpu_quota, memory_left, memory_limit

HYBRID = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 {top} /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
"""
UNIFIED = "31 23 0:28 {top} {place} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def machine(root: Path, groups: str, mounts: str, files: dict[str, str], free: int = 64 << 20) -> Path:
    """A root with /proc and the files of control groups; free: KiB."""
    written = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    written["proc/meminfo"] = f"MemTotal: {2 * free} kB\nMemAvailable: {free} kB\n"
    for name, text in {**written, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GROUP = "sys/fs/cgroup"
CPU = "sys/fs/cgroup/cpu,cpuacct"
QUOTAS = {
    "container, version 2": ("0::/", UNIFIED, "/", {f"{GROUP}/cpu.max": "150000 100000\n"}, 1.5),
    "no quota, version 2": ("0::/", UNIFIED, "/", {f"{GROUP}/cpu.max": "max 100000\n"}, None),
    "a group above is tighter": (
        "0::/a/b/c",
        UNIFIED,
        "/",
        {
            f"{GROUP}/a/b/c/cpu.max": "max 100000\n",
            f"{GROUP}/a/b/cpu.max": "400000 100000\n",
            f"{GROUP}/a/cpu.max": "200000 50000\n",
        },
        4.0,
    ),
    "the host's tree, of which the container sees its part": (
        "0::/docker/1/job",
        UNIFIED,
        "/docker/1",
        {f"{GROUP}/job/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "a group outside what is mounted": ("0::/../x", UNIFIED, "/", {f"{GROUP}/cpu.max": "100000 100000\n"}, 1.0),
    "version 1": (
        "4:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n0::/",
        HYBRID,
        "/docker/1",
        {f"{CPU}/cpu.cfs_quota_us": "250000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "no quota, version 1": (
        "4:cpu,cpuacct:/",
        HYBRID,
        "/",
        {f"{CPU}/cpu.cfs_quota_us": "-1\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "a group above is tighter, version 1": (
        "4:cpu,cpuacct:/slurm/job",
        HYBRID,
        "/",
        {
            f"{CPU}/slurm/cpu.cfs_quota_us": "300000\n",
            f"{CPU}/slurm/cpu.cfs_period_us": "100000\n",
            f"{CPU}/slurm/job/cpu.cfs_quota_us": "-1\n",
            f"{CPU}/slurm/job/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "no control groups": ("", "", "/", {}, None),
    "damaged files": ("0::/", UNIFIED, "/", {f"{GROUP}/cpu.max": "\n"}, None),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_tightest_quota_is_found(case: str, tmp_path: Path):
    groups, mounts, top, files, quota = QUOTAS[case]
    assert cpu_quota(machine(tmp_path, groups, mounts.format(top=top, place="/sys/fs/cgroup"), files)) == quota


def test_a_mount_with_a_space_in_its_name(tmp_path: Path):
    mounts = UNIFIED.format(top="/", place="/my\\040groups")
    assert cpu_quota(machine(tmp_path, "0::/", mounts, {"my groups/cpu.max": "300000 100000"})) == 3.0


def test_memory_is_what_the_machine_and_every_group_still_have(tmp_path: Path):
    mounts = UNIFIED.format(top="/", place="/sys/fs/cgroup")
    assert memory_left(machine(tmp_path, "0::/a", mounts, {})) == 64 << 30
    there = {
        f"{GROUP}/a/memory.max": f"{8 << 30}\n",
        f"{GROUP}/a/memory.current": f"{5 << 30}\n",
        f"{GROUP}/a/memory.stat": f"anon 1\ninactive_file {1 << 30}\n",
    }
    assert memory_left(machine(tmp_path, "0::/a", mounts, there)) == 4 << 30
    assert memory_left(machine(tmp_path, "0::/a", mounts, there, free=1 << 20)) == 1 << 30
    assert memory_limit(machine(tmp_path, "0::/a", mounts, there)) == 8 << 30
    assert memory_limit(machine(tmp_path, "0::/a", mounts, there, free=1 << 20)) == 2 << 30
    over = {**there, f"{GROUP}/a/memory.current": f"{20 << 30}\n"}
    assert memory_left(machine(tmp_path, "0::/a", mounts, over)) == 0
    memory = "sys/fs/cgroup/memory/job"
    first = {
        f"{memory}/memory.limit_in_bytes": f"{2 << 30}\n",
        f"{memory}/memory.usage_in_bytes": f"{1 << 30}\n",
        f"{memory}/memory.stat": "inactive_file 5\ntotal_inactive_file 7\n",
    }
    found = memory_left(machine(tmp_path / "first", "3:memory:/job", HYBRID.format(top="/"), first))
    assert found == (1 << 30) + 7
    assert memory_limit(tmp_path / "first") == 2 << 30


def test_here_there_is_some():
    assert cpu_quota() is None or cpu_quota() > 0
    assert memory_left() > 1 << 20
