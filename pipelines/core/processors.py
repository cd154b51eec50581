"""How many processors this process may use: by affinity, and by the quota of its control groups.

A container that was given `--cpus=0.5` on a machine of 64 sees 64 processors in every count but the
quota; a runtime with 64 threads is then stopped by the kernel for most of each period.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_MOUNTED = PurePosixPath("/sys/fs/cgroup")
_LEAST = 0.01  # processors; the kernel takes no smaller quota


@dataclass(frozen=True)
class _Mount:
    """Where a hierarchy of control groups can be read.

    Attributes:
        root: The group that the mount shows at its top, as the kernel names it.
        place: Its folder here.
    """

    root: PurePosixPath
    place: Path


def processors(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Return how many processors this process may use, at least 0.01; a quota may be a fraction.

    Args:
        proc: Where the kernel's process files are.
        cgroups: Where control groups are mounted.
    """
    allowed = quota(proc, cgroups)
    count = float(len(os.sched_getaffinity(0)))
    return count if allowed is None else max(_LEAST, min(count, allowed))


def whole_processors(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many threads can run all the time: whole processors, at least 1.

    A quota of 1.5 counts as 1: a second thread of equal share would stop both for a quarter of the
    time, and the half that is left serves all other threads of the process.
    """
    return max(1, int(processors(proc, cgroups)))


def quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """Return the smallest quota of this process's control groups, in processors; None without one.

    Both versions of control groups are read, and every group above the own one as far as it is
    mounted. What cannot be read or parsed sets no bound.
    """
    found = [
        bound
        for version, group in _groups(proc)
        for mount in _mounts(proc, cgroups, version)
        for folder in _upwards(mount, group)
        if (bound := (_second if version == 2 else _first)(folder)) is not None
    ]
    return min(found, default=None)


def _groups(proc: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """Yield (version, group) of the hierarchies that may limit processor time."""
    for line in _lines(proc / "self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not group.startswith("/"):
            continue
        if number == "0" and not controllers:
            yield 2, PurePosixPath(group)
        elif "cpu" in controllers.split(","):
            yield 1, PurePosixPath(group)


def _mounts(proc: Path, cgroups: Path, version: int) -> Iterator[_Mount]:
    """Yield the mounts of the hierarchy that may limit processor time."""
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        second = kind[0] == "cgroup2"
        first = kind[0] == "cgroup" and "cpu" in kind[2].split(",")
        if second if version == 2 else first:
            root, place = PurePosixPath(_plain(fields[3])), PurePosixPath(_plain(fields[4]))
            if place.is_relative_to(_MOUNTED):
                yield _Mount(root, cgroups / place.relative_to(_MOUNTED))


def _upwards(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """Yield the folders of a group and of those above it, as far as they are mounted."""
    if group.is_relative_to(mount.root) and ".." not in group.parts:
        below = group.relative_to(mount.root)
        yield from (mount.place / part for part in (below, *below.parents) if part.parts)
    yield mount.place  # the top, also where the group is outside what is mounted


def _second(folder: Path) -> float | None:
    """Return what `cpu.max` of version 2 allows: `50000 100000` is half a processor."""
    for line in _lines(folder / "cpu.max"):
        words = line.split()
        return _ratio(*words) if len(words) == 2 else None
    return None


def _first(folder: Path) -> float | None:
    """Return what the two files of version 1 allow; a quota of -1 is none."""
    for limit in _lines(folder / "cpu.cfs_quota_us"):
        for period in _lines(folder / "cpu.cfs_period_us"):
            return _ratio(limit, period)
    return None


def _ratio(limit: str, period: str) -> float | None:
    limit, period = limit.strip(), period.strip()
    if not (limit.isascii() and limit.isdigit() and period.isascii() and period.isdigit()):
        return None  # `max`, or -1
    return int(limit) / int(period) if int(period) and int(limit) else None


def _plain(field: str) -> str:
    r"""Return a path of mountinfo without the kernel's escapes (`\040` is a space)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:100_000].splitlines()
    except OSError:
        return []
