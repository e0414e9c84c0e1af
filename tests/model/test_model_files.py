"""Weights from a server: fetched once per machine, checked, and never left half done."""

import functools
import hashlib
import http.server
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from trainer.config import names
from trainer.config.schema import ModelConfig
from trainer.errors import UnfitError
from trainer.model import published as published_weights
from trainer.model.build import build_model
from trainer.model.files import download
from trainer.model.published import check_available, place


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address that serves it, the paths asked for; torch.hub's cache is elsewhere and empty."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    Counting.asked = []
    handler = functools.partial(Counting, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}", Counting.asked
        running.shutdown()


def published(folder: Path, content: bytes) -> str:
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    return name


def test_workers_that_come_at_once_fetch_once(server: tuple[Path, str, list[str]]) -> None:
    folder, address, asked = server
    name = published(folder, b"x" * 1_000_000)
    workers = [threading.Thread(target=download, args=(f"{address}/{name}",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert asked == [f"/{name}"]
    assert download(f"{address}/{name}").read_bytes() == b"x" * 1_000_000


def test_a_download_that_does_not_match_its_name_is_refused_and_not_kept(
    server: tuple[Path, str, list[str]],
) -> None:
    folder, address, _ = server
    name = published(folder, b"right")
    (folder / name).write_bytes(b"wrong")
    with pytest.raises(UnfitError, match="arrived damaged"):
        download(f"{address}/{name}")
    (folder / name).write_bytes(b"right")
    assert download(f"{address}/{name}").read_bytes() == b"right"


def test_without_a_network_the_error_names_the_file_to_fetch(server: tuple[Path, str, list[str]]) -> None:
    _, address, _ = server
    for url in (f"{address}/net-01234567.pth", "http://127.0.0.1:1/net-01234567.pth"):
        with pytest.raises(UnfitError) as error:
            download(url)
        assert url in error.value.fix
        assert "model.weights=PATH/net-01234567.pth" in error.value.fix


def test_files_lie_where_torch_hub_looks_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for variables in ({}, {"XDG_CACHE_HOME": str(tmp_path)}, {"TORCH_HOME": "~/models"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert place("https://there.org/a/net-1.pth?x=1") == Path(torch.hub.get_dir(), "checkpoints", "net-1.pth")


def test_what_is_there_or_slow_to_answer_is_not_refused(
    server: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, asked = server
    wanted = ModelConfig(name="squeezenet1_1", weights="DEFAULT")
    monkeypatch.setattr(names, "weights_url", lambda model, weights: f"{address}/net.pth")
    with pytest.raises(UnfitError, match=r"net\.pth cannot be fetched: HTTP Error 404"):
        check_available(wanted)
    (folder / "net.pth").touch()
    check_available(wanted)
    assert asked == ["/net.pth"] * 2
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(published_weights, "_PATIENCE_S", 0.05)
        port = silent.getsockname()[1]
        monkeypatch.setattr(names, "weights_url", lambda model, weights: f"http://127.0.0.1:{port}/net.pth")
        check_available(wanted)
    place("net.pth").parent.mkdir(parents=True)
    place("net.pth").touch()
    monkeypatch.setattr(names, "weights_url", lambda model, weights: "http://127.0.0.1:1/net.pth")
    check_available(wanted)


def test_an_answer_that_is_no_http_is_told_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1 << 16)
                    peer.sendall(b"220 mail server ready\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/net.pth"
        monkeypatch.setattr(names, "weights_url", lambda model, weights: url)
        for ask in (
            lambda: check_available(ModelConfig(name="squeezenet1_1", weights="DEFAULT")),
            lambda: download(url),
        ):
            with pytest.raises(UnfitError, match=r"net\.pth cannot be fetched: 220 mail server ready"):
                ask()


def test_named_weights_are_fetched_once_and_loaded(
    server: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, asked = server
    source, content = models.get_model("squeezenet1_1"), io.BytesIO()
    torch.save(source.state_dict(), content)
    name = published(folder, content.getvalue())
    monkeypatch.setattr(models.SqueezeNet1_1_Weights.DEFAULT.value, "url", f"{address}/{name}")
    for _ in range(2):
        model = build_model(ModelConfig(name="squeezenet1_1", weights="DEFAULT"), num_classes=4, channels=3)
        assert torch.equal(next(model.parameters()), next(source.parameters()))
    assert asked == [f"/{name}"]
