import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainer.data import download
from trainer.errors import UnfitError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """A real server on this machine whose answers a test chooses, and which counts the requests."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.asked = threading.Event()
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                outer.asked.set()
                if self.path.startswith("/held"):
                    outer.released.wait(60)
                if self.path == "/missing":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[: 1000 if self.path in ("/cut", "/stalls") else None])
                self.wfile.flush()
                if self.path == "/stalls":
                    outer.released.wait(60)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def test_a_file_arrives_whole_with_one_sober_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.download(f"{server.address}/file", tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "downloading file (1.0 MB)\n"


@pytest.mark.parametrize(
    ("path", "md5", "problem"),
    [
        ("/file", "0" * 32, f"has the MD5 checksum {MD5}, not 0000"),
        ("/cut", None, "1,000 of 1,024,000 bytes|connection broke"),
        ("/missing", None, "the server says 404"),
        ("/held", None, "no answer within 0.5 s|timed out"),
        ("/stalls", None, "the connection broke: timed out"),
    ],
)
def test_a_failed_download_leaves_the_old_file_alone_and_nothing_else(
    server: Server, tmp_path: Path, path: str, md5: str | None, problem: str
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(UnfitError, match=problem) as caught:
        download.download(f"{server.address}{path}", target, md5=md5, timeout_s=0.5)
    assert server.address in caught.value.problem
    assert "data.root=DIR" in caught.value.fix
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/file", "http://no-such-host.invalid/file"):
        with pytest.raises(UnfitError, match="cannot download"):
            download.download(url, tmp_path / "file", timeout_s=5)


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_left(server: Server, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UnfitError, match=r"cannot write .*File too large") as caught:
            download.download(f"{server.address}/file", tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "data.root=DIR" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnfitError, match=r"cannot write .*Not a directory"),
        download.sole_process(tmp_path / "file" / "below"),
    ):
        pass


ONE_OF_TWO = """
import sys
from pathlib import Path
from trainer.data import download
folder = Path(sys.argv[1])
print("ready", flush=True)
with download.sole_process(folder):
    if not (folder / "file").exists():
        download.download(sys.argv[2], folder / "file", md5=sys.argv[3])
print((folder / "file").stat().st_size, flush=True)
"""


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONE_OF_TWO, str(tmp_path), f"{server.address}/held", MD5]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert server.asked.wait(30), "neither process asked for the file"
    server.released.set()
    for process in processes:
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, f"{len(CONTENT)}\n")
    assert server.requests == ["/held"]


def test_the_lock_ends_with_a_holder_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom trainer.data import download\n"
        "with download.sole_process(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    acquired = threading.Event()

    def acquire() -> None:
        with download.sole_process(tmp_path):
            acquired.set()

    threading.Thread(target=acquire, daemon=True).start()
    assert not acquired.wait(0.2)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert acquired.wait(30)
