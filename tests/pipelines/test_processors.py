"""Processors that a process may use: quotas from files, and a real control group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.processors import processors, quota, whole_processors

SECOND = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)
ROOT = Path(__file__).parents[2]


def machine(base: Path, groups: str, mounts: str, **files: str) -> tuple[Path, Path]:
    """Write /proc/self and /sys/fs/cgroup; `files` are path → content, `__` for `/`."""
    proc, cgroups = base / "proc", base / "cgroup"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (proc / "self/cgroup").write_text(groups)
    (proc / "self/mountinfo").write_text(mounts)
    for name, content in files.items():
        path = cgroups / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return proc, cgroups


def second(base: Path, group: str = "/", **limits: str) -> tuple[Path, Path]:
    return machine(base, f"0::{group}\n", SECOND, **{f"{k}cpu.max": v for k, v in limits.items()})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("50000 100000\n", 0.5),  # docker run --cpus=0.5
        ("max 100000\n", None),
        ("250000 100000\n", 2.5),
        ("100000\n", None),
        ("", None),
        ("x y\n", None),
        ("-1 100000\n", None),
        ("50000 0\n", None),
        ("٥٠ ١٠٠\n", None),
    ],
)
def test_a_quota_of_version_2(tmp_path: Path, content: str, expected: float | None) -> None:
    assert quota(*second(tmp_path, **{"": content})) == expected


def test_the_smallest_of_the_groups_above_counts(tmp_path: Path) -> None:
    groups = {"a__b__": "max 100000", "a__": "150000 100000", "": "400000 100000"}
    assert quota(*second(tmp_path, "/a/b", **groups)) == 1.5


def test_version_1_and_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    inside = FIRST.replace("0:29 / ", "0:29 /docker/ab12 ")
    files = {
        "cpu,cpuacct__cpu.cfs_quota_us": "150000\n",
        "cpu,cpuacct__cpu.cfs_period_us": "100000\n",
        "cpuset__cpu.cfs_quota_us": "1\n",  # of another hierarchy: not read
        "cpuset__cpu.cfs_period_us": "100000\n",
    }
    groups = "5:cpuset:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n"
    where = machine(tmp_path, groups, inside, **files)
    assert quota(*where) == 1.5
    (where[1] / "cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    assert quota(*where) is None


def test_version_1_with_a_group_below_the_mount(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct__jobs__one__cpu.cfs_quota_us": "20000\n",
        "cpu,cpuacct__jobs__one__cpu.cfs_period_us": "50000\n",
        "cpu,cpuacct__cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct__cpu.cfs_period_us": "100000\n",
    }
    assert quota(*machine(tmp_path, "4:cpu,cpuacct:/jobs/one\n", FIRST, **files)) == 0.4


def test_a_group_outside_what_is_mounted_leaves_the_top(tmp_path: Path) -> None:
    assert quota(*second(tmp_path, "/../elsewhere", **{"": "75000 100000"})) == 0.75


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    mounts = SECOND.replace("/sys/fs/cgroup ", r"/sys/fs/cgroup/my\040own ")
    where = machine(tmp_path, "0::/\n", mounts, **{"my own__cpu.max": "300000 100000"})
    assert quota(*where) == 3


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    count = len(os.sched_getaffinity(0))
    assert quota(tmp_path, tmp_path) is None
    assert processors(tmp_path, tmp_path) == count
    assert whole_processors(tmp_path, tmp_path) == count


@pytest.mark.parametrize(
    ("limit", "expected", "whole"),
    [("10000000 100000", None, None), ("99000 100000", 0.99, 1), ("100 100000", 0.01, 1)],
)
def test_processors_are_the_smaller_of_both(
    tmp_path: Path, limit: str, expected: float | None, whole: int | None
) -> None:
    where = second(tmp_path, **{"": limit})
    count = len(os.sched_getaffinity(0))
    assert processors(*where) == (count if expected is None else expected)
    assert whole_processors(*where) == (count if whole is None else whole)


@given(groups=st.text(max_size=80), mounts=st.text(max_size=80), limit=st.text(max_size=20))
def test_no_content_of_those_files_raises(
    tmp_path_factory: pytest.TempPathFactory, groups: str, mounts: str, limit: str
) -> None:
    base = tmp_path_factory.mktemp("m")
    for given_groups, given_mounts in ((groups, mounts), ("0::/\n", SECOND), (groups, SECOND)):
        where = machine(base, given_groups, given_mounts, **{"cpu.max": limit})
        assert processors(*where) > 0


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine with 0.5 processors; gone afterwards."""
    for parent in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        made = parent / f"prong-test-{os.getpid()}"
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            if (made / "cpu.max").exists():
                (made / "cpu.max").write_text("50000 100000")
            else:
                (made / "cpu.cfs_period_us").write_text("100000")
                (made / "cpu.cfs_quota_us").write_text("50000")
            yield made
            return
        except OSError:
            continue
        finally:
            made.rmdir()
    pytest.skip("no control group can be made here (needs root and a writable /sys/fs/cgroup)")


def test_a_real_group_is_seen_by_a_process_in_it_and_by_the_runtime(group: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "(pathlib.Path(sys.argv[1]) / 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from pipelines.core.processors import processors\n"
        "from pipelines.systems.onnx import runtime\n"
        "made = runtime._options(None, True)\n"
        "spins = made.get_session_config_entry('session.intra_op.allow_spinning')\n"
        "print(processors(), made.intra_op_num_threads, made.inter_op_num_threads, spins)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program, group],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.returncode) == (["0.5", "1", "1", "0"], 0), done.stderr
