"""Damage of any kind is found before a tensor is used, costs nothing but the steps since the checkpoint before, and
nothing in a checkpoint is ever executed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import save as serialise

from tests.trainer_command import DIGITS, TRAINER, run, succeed
from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.errors import TrainingError
from trainer.rundir import RunDir, read_json, write_json

FILES = ("tensors.safetensors", "state.json", "manifest.json")


def flipped(content: bytes, at: float) -> bytes:
    changed = bytearray(content)
    changed[int(at * (len(content) - 1))] ^= 1
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated by a byte": lambda content: content[:-1],
    "truncated to half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "zeros of the right size": lambda content: bytes(len(content)),
    "a zeroed block": lambda content: content[:16] + bytes(16) + content[32:],
    "text": lambda content: b"not what it was",
    **{f"a bit flipped at {at}": (lambda content, at=at: flipped(content, at)) for at in (0.0, 0.02, 0.3, 0.7, 1.0)},
}


def two(run_dir: RunDir) -> None:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        tensors = {"model.a": torch.full((100,), float(step)), "model.b": torch.arange(7)}
        checkpoint.save(run_dir.checkpoint(step), Checkpoint(tensors, {"step": step}))


def signed(folder: Path) -> None:
    """Makes the manifest agree with what the files hold now, as somebody would who means harm."""
    manifest = read_json(folder / "manifest.json")
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry.update(bytes=len(content), xxh3_128=xxhash.xxh3_128_hexdigest(content))
    write_json(folder / "manifest.json", manifest)


def check_falls_back(run_dir: RunDir) -> str:
    """Asserts that step 1 is found, as it was; returns what is said about step 2."""
    step, found, damaged = checkpoint.find_newest(run_dir)
    assert step == 1
    assert found is not None
    assert found.state == {"step": 1}
    assert torch.equal(found.tensors["model.a"], torch.ones(100))
    assert checkpoint.steps(run_dir) == [1, 2]
    said = checkpoint.put_aside(run_dir, 2, damaged[2])
    assert checkpoint.steps(run_dir) == [1]
    assert len(list(run_dir.checkpoints.glob("damaged-step-00000002-*"))) == 1
    return said


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    file = run_dir.checkpoint(2) / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    if name == "manifest.json" and damage.startswith("a bit"):
        # A blank or a digit of no consequence may have changed: then what is read is what was written.
        step, found, _ = checkpoint.find_newest(run_dir)
        assert found is not None
        assert torch.equal(found.tensors["model.a"], torch.full((100,), float(step)))
        return
    assert "is damaged and was passed over" in check_falls_back(run_dir)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["missing", "a directory", "a link to nowhere"])
def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path, name: str, change: str) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    file = run_dir.checkpoint(2) / name
    file.unlink()
    if change == "a directory":
        file.mkdir()
    elif change != "missing":
        file.symlink_to("nowhere")
    assert f"{name} cannot be read" in check_falls_back(run_dir)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 99}, "its format is 99, and this version reads 1"),
        ({"format": None}, "its format is None"),
        ({"files": []}, "lists no files"),
        ({"files": {}}, "does not list tensors.safetensors"),
        ({"files": {"tensors.safetensors": 3}}, "says nothing about tensors.safetensors"),
        ({"files": {"../../secret": {"bytes": 1, "xxh3_128": ""}}}, "names a file outside"),
        ({"files": {"/etc/passwd": {"bytes": 1, "xxh3_128": ""}}}, "names a file outside"),
        ({"files": {"..": {"bytes": 1, "xxh3_128": ""}}}, "names a file outside"),
    ],
)
def test_a_manifest_that_means_something_else_is_refused(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    path = run_dir.checkpoint(2) / "manifest.json"
    write_json(path, {**read_json(path), **change})
    assert reason in check_falls_back(run_dir)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'{"files": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    (run_dir.checkpoint(2) / "manifest.json").write_bytes(content)
    assert "manifest.json" in check_falls_back(run_dir)


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_malicious_pickle_is_never_executed(tmp_path: Path, name: str, kind: str) -> None:
    run_dir, trace = RunDir(tmp_path / "run"), tmp_path / "executed"
    two(run_dir)
    folder = run_dir.checkpoint(2)
    for victim in (name, "data.pkl", ".metadata", "pytorch_model.bin"):
        if kind == "pickle":
            (folder / victim).write_bytes(pickle.dumps(Bomb(trace)))
        else:
            with (folder / victim).open("wb") as stream:
                torch.save({"model.a": Bomb(trace)}, stream)
    if name != "manifest.json":
        signed(folder)
    check_falls_back(run_dir)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb itself works"


@pytest.mark.parametrize("header", [b"{}", b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"x"])
def test_a_header_that_lies_is_refused_although_the_digest_agrees(tmp_path: Path, header: bytes) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (run_dir.checkpoint(2) / "tensors.safetensors").write_bytes(content)
    signed(run_dir.checkpoint(2))
    assert "SafetensorError" in check_falls_back(run_dir)


def test_what_is_used_is_what_was_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    opened: list[str] = []
    read = Path.read_bytes

    def read_and_change(path: Path) -> bytes:
        content = read(path)
        opened.append(path.name)
        if path.name == "tensors.safetensors":
            path.write_bytes(serialise({"model.a": torch.zeros(100)}))
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    found = checkpoint.load(run_dir.checkpoint(2))
    assert torch.equal(found.tensors["model.a"], torch.full((100,), 2.0))
    assert sorted(opened) == sorted(FILES)


def test_when_all_are_damaged_nothing_is_touched(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    two(run_dir)
    for step, name in ((1, "state.json"), (2, "tensors.safetensors")):
        file = run_dir.checkpoint(step) / name
        file.write_bytes(file.read_bytes()[:-1])
    (run_dir.checkpoints / ".step-00000003.host.1.a.tmp").mkdir()
    before = {path: path.read_bytes() for path in run_dir.checkpoints.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError) as raised:
        checkpoint.find_newest(run_dir)
    assert raised.value.exit_code == 1
    assert "step 1: state.json has" in str(raised.value)
    assert "step 2: tensors.safetensors has" in str(raised.value)
    assert {path: path.read_bytes() for path in run_dir.checkpoints.rglob("*") if path.is_file()} == before
    assert len(list(run_dir.checkpoints.iterdir())) == 3


NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.{name} = torch.nn.Linear(64, {width})
        self.head = torch.nn.Linear({width}, num_classes)
    def forward(self, images):
        return self.head(self.{name}(images.flatten(1)).relu())
"""


def test_another_model_is_an_error_of_its_own_and_nothing_is_put_aside(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    arguments = [*DIGITS, "model._target_=mine.Net", "model.args={}", "epochs=2", "run.name=m"]
    code.write_text(NET.format(name="body", width=32))
    succeed(TRAINER, *arguments, "max_steps=4", cwd=tmp_path)
    run_dir = RunDir(tmp_path / "runs" / "m")
    damaged = run_dir.checkpoint(99)
    damaged.mkdir()
    more = [*arguments, "max_steps=9", "run.accept_changes=true"]
    code.write_text(NET.format(name="trunk", width=48))
    done = run(TRAINER, *more, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "the checkpoint of step 4 is whole, but of another model" in done.stderr
    assert "it lacks trunk.bias, trunk.weight" in done.stderr
    assert "it has body.bias, body.weight" in done.stderr
    assert "head.weight is float32 [10, 32] there and float32 [10, 48] here" in done.stderr
    assert checkpoint.steps(run_dir) == [4, 99]
    assert "Traceback" not in done.stderr
    # The run itself took no harm; only now the damaged one is put aside. Another optimizer begins without a memory.
    code.write_text(NET.format(name="body", width=32))
    said = succeed(TRAINER, *more, "optim.name=adamw", "optim.args={}", cwd=tmp_path)
    assert "the checkpoint of step 99 is damaged" in said
    assert "the optimizer was SGD and is now AdamW" in said
    assert json.loads((run_dir.checkpoint(9) / "state.json").read_text())["optimizer_name"] == "AdamW"
