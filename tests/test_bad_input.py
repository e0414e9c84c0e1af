"""Every mistake ends in a few lines that say what to do, and in the right exit code, without a traceback."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from tests.mounts import mounted
from tests.trainer_command import DIGITS, PACELINE, ROOT, TORCHRUN, TRAINER, environment, rank_variables, run, succeed
from trainer.rundir import RunDir, read_json


def check_refused(*arguments: str, code: int, says: list[str], cwd: Path | None = None) -> None:
    """The trainer must refuse these arguments with this exit code, and say these words in at most a few lines."""
    done = run(TRAINER, *arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    for words in says:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 8, done.stderr


def image_folder(root: Path, *, classes: int = 2, per_class: int = 8, split: str = "") -> Path:
    """A folder per class with small colour images."""
    for label in range(classes):
        folder = root / split / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (40, 32), (120 * label, 20 * number, 60)).save(folder / f"{number}.png")
    return root


def folder_of(root: Path) -> list[str]:
    """Arguments that train a small model on a folder, quickly."""
    return [
        f"data.root={root}", "model.name=squeezenet1_1", "data.image_size=32", "global_batch_size=4",
        "epochs=1", "tracking=none", "device=cpu", "precision=fp32", f"run.dir={root.parent / 'runs'}", "run.name=f",
        "data.val_fraction=0.3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["optim.lrr=0.1"], 2, ["unknown key optim.lrr", "Did you mean optim.lr?"]),
        (["epochs=abc"], 2, ["epochs", "abc"]),
        (["recipe=fashion_minst"], 2, ["fashion_mnist"]),
        (["model.name=resnet19"], 2, ["resnet18"]),
        (["optim.lr=-1"], 2, ["optim.lr"]),
        (["global_batch_size=0"], 2, ["global_batch_size"]),
        (["run.name=a/b"], 2, ["run.name"]),
        (["data=folder", "data.root=/no/such/folder"], 2, ["/no/such/folder"]),
        (["data=folder"], 2, ["data.root"]),
        (["device=cuda"], 3, ["device=cuda", "device=cpu"]),
        (["model.weights=/no/such/file.pth"], 2, ["/no/such/file.pth"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value and "=" in value[0] else "",
)
def test_a_mistake_in_the_arguments_is_named(arguments: list[str], code: int, says: list[str], tmp_path: Path) -> None:
    check_refused(*DIGITS, *arguments, f"run.dir={tmp_path}", code=code, says=says)
    assert list(tmp_path.iterdir()) == []


def test_fewer_samples_than_workers_is_an_error(tmp_path: Path) -> None:
    one = ["data=synthetic", "data.args={n: 1}"]
    done = run(TORCHRUN, *DIGITS, *one, f"run.dir={tmp_path}", "global_batch_size=2")
    assert done.returncode != 0
    assert "1 training image" in done.stderr
    assert "2 workers" in done.stderr


def test_an_empty_root_and_a_single_class_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_refused(*folder_of(tmp_path / "empty"), code=2, says=[str(tmp_path / "empty")])
    single = image_folder(tmp_path / "single", classes=1)
    check_refused(*folder_of(single), code=2, says=["class"])
    assert not (tmp_path / "runs").exists()


def test_an_unreadable_image_ends_the_run_unless_it_may_be_skipped(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", per_class=20)
    broken = root / "class_1" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    check_refused(*folder_of(root), code=3, says=["class_1/0.png", "data.on_bad_image=skip"])
    done = run(TRAINER, *folder_of(root), "data.on_bad_image=skip", "run.fresh=true")
    assert done.returncode == 0, done.stderr
    assert "1 unreadable image" in done.stderr
    (listed,) = (tmp_path / "runs").glob("f*/skipped_images.jsonl")
    assert "class_1/0.png" in listed.read_text()


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    state, root = get_model("resnet18").state_dict(), image_folder(tmp_path / "images")
    save_file(state, tmp_path / "resnet.safetensors")
    torch.save(state, tmp_path / "resnet.pth")
    check_refused(
        *folder_of(root),
        f"model.weights={tmp_path}/resnet.safetensors",
        code=2,
        says=["does not fit squeezenet1_1: it has the parameters of resnet18", "model.name=resnet18"],
    )
    assert not (tmp_path / "runs").exists()
    check_refused(
        *folder_of(root), f"model.weights={tmp_path}/resnet.pth", code=2, says=["squeezenet1_1", "model.name=resnet18"]
    )
    # What never began is not in the way of the mended command, under the same name.
    succeed(TRAINER, *folder_of(root))


@pytest.mark.parametrize("command", [TRAINER, PACELINE])
def test_weights_that_cannot_be_fetched_are_named_before_anything_starts(command: list[str], tmp_path: Path) -> None:
    arguments = [*DIGITS, "model.name=squeezenet1_1", "model.weights=DEFAULT", f"run.dir={tmp_path}/runs"]
    nowhere = {"https_proxy": "http://127.0.0.1:1", "TORCH_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, *arguments], env=environment() | nowhere, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "the weights squeezenet1_1-b8a52dc0.pth cannot be fetched" in done.stderr
    assert f"put it into {tmp_path}/hub/checkpoints" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [TRAINER, PACELINE])
def test_a_torch_that_cannot_be_imported_is_named(command: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "path" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    (broken / "optim").symlink_to(Path(torch.__file__).parent / "optim")
    done = subprocess.run(
        [*command, *DIGITS, f"run.dir={tmp_path}", "run.name=r"],
        env=environment() | {"PYTHONPATH": str(broken.parent)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "error: torch cannot be imported: libcudart.so.13: cannot open shared object file\n" in done.stderr
    assert "doctor" in done.stderr
    assert "Traceback" not in done.stderr
    if command is PACELINE:
        assert read_json(RunDir(tmp_path / "r").failure)["message"].startswith("torch cannot be imported")
        assert read_json(RunDir(tmp_path / "r").status)["state"] == "failed"


def test_a_busy_rendezvous_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [*TRAINER, *DIGITS, f"run.dir={tmp_path}"],
            env=environment() | rank_variables(0, 1, port),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert f"127.0.0.1:{port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_refused(*DIGITS, f"run.dir={tmp_path}/file/runs", code=3, says=["file", "run.dir="])


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    with mounted(tmp_path / "full", size="64k") as place:
        with (place / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        yield place


def test_a_full_disk_at_the_start_is_named(full_disk: Path) -> None:
    check_refused(*DIGITS, f"run.dir={full_disk}/runs", code=3, says=["full", "run.dir="])


def test_mistakes_are_told_before_torch_is_imported() -> None:
    command = [*TRAINER[:1], "-X", "importtime", *TRAINER[1:], *DIGITS, "optim.lrr=0.1"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not any(line.rstrip().endswith("| torch") for line in done.stderr.splitlines())


def test_a_non_finite_loss_ends_the_run_with_what_to_try(tmp_path: Path) -> None:
    check_refused(
        *DIGITS,
        "optim.lr=1e30",
        "epochs=2",
        f"run.dir={tmp_path}",
        "run.name=n",
        code=1,
        says=["not finite", "optim.lr"],
    )
    failure = read_json(tmp_path / "n" / "failure.json")
    assert failure["type"] == "TrainingError"
    assert f"step {failure['details']['step']} " in failure["message"]
    assert len(failure["details"]["samples"]) == 64
