from __future__ import annotations

import errno
import gzip
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.errors import Unavailable, UserError
from pipelines.data import download
from pipelines.data.download import ATTEMPTS, Remote, fetch

CONTENT = np.random.default_rng(0).bytes(700_000)


@dataclass
class Host:
    """A web host on loopback, as good or as bad as a test wants it.

    Attributes:
        files: Path → content.
        ranges: Whether it honours Range.
        cut: Bytes after which each of the next answers breaks off.
        statuses: Statuses of the next answers, before it behaves.
        total: A false total to state.
        shift: How far the ranges sent miss the ranges asked for.
        log: Path and Range of each request.
    """

    files: dict[str, bytes]
    ranges: bool = True
    cut: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    total: int | None = None
    shift: int = 0
    log: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Host({"/data.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.log.append((self.path, asked))
            if state.statuses:
                self.answer(state.statuses.pop(0), b"")
                return
            content = state.files.get(self.path)
            if content is None:
                self.answer(404, b"")
                return
            start = 0
            if asked and state.ranges:
                found = re.fullmatch(r"bytes=(\d+)-", asked)
                assert found
                start = int(found[1])
                if start >= len(content):
                    self.answer(416, b"", f"bytes */{len(content)}")
                    return
                start = max(0, start + state.shift)
                total = state.total or len(content)
                stated = f"bytes {start}-{len(content) - 1}/{total}"
                self.answer(206, content[start:], stated)
                return
            self.answer(200, content)

        def answer(self, status: int, body: bytes, stated: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if stated:
                self.send_header("Content-Range", stated)
            self.end_headers()
            if state.cut and body:
                body = body[: state.cut.pop(0)]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def remote(content: bytes = CONTENT, **changes: object) -> Remote:
    sha256 = hashlib.sha256(content).hexdigest()
    return replace(Remote("cifar10", "data.bin", (), sha256, most=2**20), **changes)  # type: ignore[arg-type]


def get(tmp_path: Path, what: Remote, mirror: str = "") -> Path:
    return fetch(what, mirror=mirror, root=tmp_path, downloads=tmp_path / "down", backoff=0.001)


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "down").rglob("*") if p.is_file())


def test_a_file_is_fetched_once(tmp_path: Path, host: Host) -> None:
    what = remote(hosts=(host.url,))
    path = get(tmp_path, what)
    assert path.read_bytes() == CONTENT
    assert get(tmp_path, what) == path
    assert host.log == [("/data.bin", None)]
    assert left(tmp_path) == ["data.bin"]


def test_a_corrupt_finished_file_is_fetched_again(tmp_path: Path, host: Host) -> None:
    what = remote(hosts=(host.url,))
    path = get(tmp_path, what)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert get(tmp_path, what).read_bytes() == CONTENT
    assert len(host.log) == 2


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path, host: Host) -> None:
    host.cut = [300_000, 200_000]
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT
    assert [asked for _, asked in host.log] == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_continues_the_part(tmp_path: Path, host: Host) -> None:
    what = remote(hosts=(host.url,))
    part = tmp_path / "down/cifar10/data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:123_456])
    assert get(tmp_path, what).read_bytes() == CONTENT
    assert host.log[0] == ("/data.bin", "bytes=123456-")
    assert left(tmp_path) == ["data.bin"]


def test_a_complete_part_is_taken(tmp_path: Path, host: Host) -> None:
    part = tmp_path / "down/cifar10/data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT
    assert host.log == [("/data.bin", f"bytes={len(CONTENT)}-")]


@pytest.mark.parametrize("stale", [b"of another file" * 1000, b"x" * (len(CONTENT) + 10)])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_stale_part_is_thrown_away(
    tmp_path: Path, host: Host, stale: bytes, ranges: bool
) -> None:
    host.ranges = ranges
    part = tmp_path / "down/cifar10/data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(stale)
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT
    assert left(tmp_path) == ["data.bin"]


def test_a_host_without_ranges_begins_anew(tmp_path: Path, host: Host) -> None:
    host.ranges = False
    host.cut = [300_000]
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT
    assert len(host.log) == 2


def test_a_host_that_sends_another_range_begins_anew(tmp_path: Path, host: Host) -> None:
    host.cut, host.shift = [300_000], -5
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT
    assert [asked for _, asked in host.log] == [None, "bytes=300000-", None]


def test_a_wrong_total_does_not_pass_for_the_file(tmp_path: Path, host: Host) -> None:
    host.cut, host.total = [300_000], len(CONTENT) + 7
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT  # by its hash
    host.files["/data.bin"] = CONTENT[:-9]
    host.cut = [300_000]
    with pytest.raises(UserError, match="sha256 of the file is"):
        get(tmp_path / "b", remote(hosts=(host.url,)))
    assert left(tmp_path / "b") == []


@pytest.mark.parametrize("served", [CONTENT[:-1] + b"x", CONTENT[:1000], b""])
def test_a_wrong_file_is_an_error_with_both_hashes(
    tmp_path: Path, host: Host, served: bytes
) -> None:
    host.files["/data.bin"] = served
    what = remote(hosts=(host.url,))
    with pytest.raises(UserError) as caught:
        get(tmp_path, what)
    message = str(caught.value)
    assert f"{host.url}/data.bin" in message
    assert hashlib.sha256(served).hexdigest() in message
    assert what.sha256 in message
    assert not isinstance(caught.value, Unavailable)
    assert left(tmp_path) == []


def test_a_file_without_end_is_cut_off(tmp_path: Path, host: Host) -> None:
    with pytest.raises(UserError, match=r"700000 bytes; at most 1000 are expected"):
        get(tmp_path, remote(hosts=(host.url,), most=1000))
    assert left(tmp_path) == []


def test_busy_hosts_are_asked_again(tmp_path: Path, host: Host) -> None:
    host.statuses = [503, 429, 500]
    assert get(tmp_path, remote(hosts=(host.url,))).read_bytes() == CONTENT
    assert len(host.log) == 4


def test_a_host_that_does_not_answer_is_unavailable(tmp_path: Path, host: Host) -> None:
    what = remote(hosts=(host.url,))
    host.statuses = [503] * ATTEMPTS
    with pytest.raises(Unavailable, match=rf"data\.bin: no answer after {ATTEMPTS} attempts"):
        get(tmp_path, what)
    assert len(host.log) == ATTEMPTS
    with pytest.raises(Unavailable, match=r"no answer.*; data\.mirror may name a copy"):
        get(tmp_path, remote(hosts=("http://127.0.0.1:9",)))


def test_what_came_before_the_host_fell_silent_is_kept(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    host.cut = [400_000]
    what = remote(hosts=(host.url,))
    with pytest.raises(Unavailable):
        get(tmp_path, what)
    assert left(tmp_path) == ["data.bin.part"]
    assert get(tmp_path, what).read_bytes() == CONTENT
    assert host.log[-1] == ("/data.bin", "bytes=400000-")


def test_the_second_host_is_asked_where_the_first_fails(tmp_path: Path, host: Host) -> None:
    host.files["/bad/data.bin"] = b"another file"
    what = remote(hosts=(f"{host.url}/none", f"{host.url}/bad", host.url))
    assert get(tmp_path, what).read_bytes() == CONTENT
    assert [path for path, _ in host.log] == ["/none/data.bin", "/bad/data.bin", "/data.bin"]


@pytest.mark.parametrize("place", ["/base/data.bin", "/base/cifar10/data.bin"])
def test_a_mirror_url_replaces_the_hosts(tmp_path: Path, host: Host, place: str) -> None:
    host.files = {place: CONTENT}
    what = remote(hosts=("http://127.0.0.1:9",))
    assert get(tmp_path, what, f"{host.url}/base/").read_bytes() == CONTENT


def test_a_mirror_url_without_the_file_names_the_places(tmp_path: Path, host: Host) -> None:
    with pytest.raises(UserError, match=r"data\.mirror = .*/nothing/cifar10/data\.bin: status 404"):
        get(tmp_path, remote(), f"{host.url}/nothing")


@pytest.mark.parametrize("place", ["data.bin", "cifar10/data.bin"])
@pytest.mark.parametrize("form", ["relative", "absolute", "url"])
def test_a_mirror_directory(tmp_path: Path, place: str, form: str) -> None:
    folder = tmp_path / "a mirror"
    path = folder / place
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    mirror = {"relative": "a mirror", "absolute": str(folder), "url": folder.as_uri()}[form]
    assert get(tmp_path, remote(), mirror).samefile(path)
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match=rf"data\.bin: corrupt.*expected {remote().sha256}"):
        get(tmp_path, remote(), mirror)
    assert path.read_bytes() == b"changed"  # the mirror is not ours to clean
    path.unlink()
    with pytest.raises(UserError, match=r"data\.mirror = .* neither .* exists"):
        get(tmp_path, remote(), mirror)


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("nowhere", "no such directory"),
        ("ftp://example.org/data", "allowed: a directory, or a file://, http"),
        ("file://elsewhere/data", "allowed: a directory"),
        ("http://", "no host"),
        ("http://a b", "not a URL|no answer"),
    ],
)
def test_a_wrong_mirror_is_refused(tmp_path: Path, mirror: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get(tmp_path, remote(), mirror)


def test_a_hash_of_unpacked_content_outlives_recompression(tmp_path: Path, host: Host) -> None:
    what = remote(hosts=(host.url,), filename="data.gz", unpacked=len(CONTENT))
    for level in (1, 9):
        host.files["/data.gz"] = gzip.compress(CONTENT, level)
        path = get(tmp_path / str(level), what)
        assert download.gunzip(path, len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    "served",
    [
        gzip.compress(CONTENT)[:-20],
        gzip.compress(CONTENT)[:-4] + b"0000",
        gzip.compress(CONTENT + b"more"),
        gzip.compress(bytes(2**26)),  # 64 MiB in 64 KiB
        b"no gzip at all",
        gzip.compress(CONTENT)[:400_000] + b"x" + gzip.compress(CONTENT)[400_001:],
    ],
    ids=["truncated", "length", "longer", "bomb", "plain", "flipped"],
)
def test_a_bad_gzip_is_an_error_with_both_hashes(tmp_path: Path, host: Host, served: bytes) -> None:
    host.files["/data.gz"] = served
    what = remote(hosts=(host.url,), filename="data.gz", unpacked=len(CONTENT))
    with pytest.raises(UserError, match=rf"data\.gz: corrupt.* is [0-9a-f]{{64}}.*{what.sha256}"):
        get(tmp_path, what)
    assert left(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_is_passed_on(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    real = Path.open

    def on_full_disk(path: Path, mode: str = "r", *rest: object) -> object:
        if path.suffix == ".part" and mode != "rb":
            path.touch()
            return real(full, "wb", 0)
        return real(path, mode, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", on_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        get(tmp_path, remote(hosts=(host.url,)))
    assert caught.value.errno == errno.ENOSPC
    assert left(tmp_path) == []
