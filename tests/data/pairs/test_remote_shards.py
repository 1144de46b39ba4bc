"""Shards on a web server of this machine, which breaks off where it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cn_clip.data.batches import Collate
from cn_clip.data.loader import PairLoader, Workers
from cn_clip.data.pair_dataset import ReadPair, StreamBatches
from cn_clip.data.pairs import BadPair
from cn_clip.data.sampler import EpochOrder
from cn_clip.data.tars import samples as tar_samples
from cn_clip.errors import ConfigError, DataError
from tests.data.pairs.conftest import numbers, open_tars, walk, write_shards

pytest.importorskip("aiohttp", reason="fsspec reads http by it")


@dataclass
class Server:
    folder: Path
    url: str = ""
    ranges: bool = True
    """Whether it can send a part of a file."""
    breaks: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers with a tar breaks off."""
    asked: list[str] = field(default_factory=list)
    refused: str = "nothing"
    """Ending of the names that get `status`."""
    status: int = 403
    unready: int = 0
    """Answers to whoever asks for a tar that are `status` first."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(tar_samples, "PAUSES_SECONDS", (0.0, 0.0))
    state = Server(write_shards(tmp_path / "web", [3, 3]))
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield state
    httpd.shutdown()
    httpd.server_close()


def _handler(state: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # http.server's name
            self._answer(with_body=False)

        def do_GET(self) -> None:  # http.server's name
            state.asked.append(self.path)
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = state.folder / self.path.strip("/")
            if state.unready and path.suffix == ".tar":
                state.unready -= 1
                self.send_error(state.status)
                return
            if path.name.endswith(state.refused):
                self.send_error(state.status)
                return
            if not path.is_file():
                self.send_error(404)
                return
            content, status, start = path.read_bytes(), 200, 0
            asked = self.headers.get("Range")
            if asked and state.ranges:
                first, last = asked.removeprefix("bytes=").split("-")
                start, status = int(first), 206
                total, content = len(content), content[start : int(last) + 1 if last else None]
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if state.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
            self.end_headers()
            if with_body:
                breaks = state.breaks and path.suffix == ".tar"
                self.wfile.write(content[: state.breaks.pop(0)] if breaks else content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_of_a_web_server_are_as_local_ones(server: Server, ranges: bool) -> None:
    server.ranges = ranges
    stream = open_tars(f"{server.url}/{{00000..00001}}.tar", shuffle=4)
    assert stream.num_pairs == 6  # of the statistics beside them
    local = numbers(walk(open_tars(server.folder, shuffle=4), 12))
    for first in (0, 4, 9):
        assert numbers(walk(stream, 12 - first, first=first)) == local[first:]


def test_loader_processes_read_them_alike(server: Server, read_pair: ReadPair, collate: Collate) -> None:
    def pair_ids(*urls: object) -> list[list[int]]:
        made = StreamBatches(
            stream=open_tars(*urls, shuffle=2),
            read=read_pair,
            collate=collate,
            order=EpochOrder.over(6, micro_global=2, accumulate=1, seed=1),
            rank=0,
            world_size=1,
            batch_size=2,
            first_step=1,
            last_step=7,
        )
        return [batch.pair_ids_B.tolist() for batch in PairLoader.streamed(made, Workers(num=2))]

    # this process has asked the server before its loader processes do
    assert pair_ids(f"{server.url}/{{00000..00001}}.tar") == pair_ids(server.folder)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_that_breaks_off_is_read_on_from_there(server: Server, ranges: bool) -> None:
    server.ranges = ranges
    stream = open_tars(f"{server.url}/00000.tar", shuffle=1)
    server.breaks = [5000, 600]
    assert numbers(walk(stream, 3)) == [0, 1, 2]
    assert not server.breaks


def test_one_that_goes_on_breaking_off_is_given_up(server: Server) -> None:
    server.ranges = False
    stream = open_tars(f"{server.url}/00000.tar", shuffle=1)
    server.breaks = [5000] * 3
    last = walk(stream, 3)[2]
    assert isinstance(last, BadPair) and f"the shard {server.url}/00000.tar" in last.reason
    assert "\n" not in last.reason


def test_one_that_is_not_there_is_not_tried_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    stream = open_tars(f"{server.url}/00007.tar", num_pairs=5)
    (pair,) = walk(stream, 1)
    assert isinstance(pair, BadPair) and "00007.tar cannot be read (FileNotFoundError" in pair.reason
    assert "opened again" not in caplog.text


def test_one_whose_server_is_not_there_is_tried_again(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/00000.tar"
    (pair,) = walk(open_tars(url, num_pairs=5), 1)
    assert isinstance(pair, BadPair) and "because of ClientConnectorError: Cannot connect" in pair.reason
    assert "opened again" in caplog.text


@pytest.mark.parametrize("status", [502, 503, 429])
def test_one_whose_server_has_a_bad_moment_is_read(server: Server, status: int) -> None:
    stream = open_tars(f"{server.url}/00000.tar", shuffle=1)
    server.status, server.unready = (
        status,
        2,
    )  # to one try: before it asks for the file, fsspec asks for its size
    assert numbers(walk(stream, 3)) == [0, 1, 2]
    assert server.unready == 0


def test_remote_shards_without_counts_need_the_number_of_pairs(server: Server) -> None:
    for path in server.folder.glob("*_stats.json"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"num_pairs of data.train is not set, and 2 remote shards"):
        open_tars(f"{server.url}/{{00000..00001}}.tar")
    whole = open_tars(f"{server.url}/{{00000..00001}}.tar", num_pairs=6, shuffle=2)
    assert numbers(walk(whole, 5, first=4)) == numbers(walk(whole, 9))[4:]


@pytest.mark.parametrize("status", [403, 503])
def test_counts_that_a_server_does_not_give_are_not_taken_for_none(
    server: Server, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server.refused, server.status = "00001_stats.json", status
    urls = f"{server.url}/{{00000..00001}}.tar"
    with pytest.raises(DataError, match=rf"00001_stats\.json .*{status}.*: set counts of data\.train"):
        open_tars(urls)
    # many a server says "forbidden" of what is not there, and with `num_pairs` a run needs no counts
    assert open_tars(urls, num_pairs=6).num_pairs == 6
    assert "00001_stats.json" in caplog.text
    (server.folder / "00001_stats.json").unlink()
    server.refused = "nothing"
    with pytest.raises(ConfigError, match=r"1 remote shards have no sample counts"):
        open_tars(urls)


def test_a_signed_address_is_not_asked_for_other_files(server: Server) -> None:
    stream = open_tars(f"{server.url}/00000.tar?signature=abc", num_pairs=3)
    assert stream.num_pairs == 3 and server.asked == []


def test_folders_and_globs_of_a_store(server: Server) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in server.folder.iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    local = numbers(walk(open_tars(server.folder), 12))
    for url in ("memory://bucket/", "memory://bucket/*.tar"):
        assert numbers(walk(open_tars(url), 12)) == local
