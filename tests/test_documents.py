"""Every command that the documents show is run, with a small amount of work where it would train for long."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_bad_input import image_folder
from tests.trainer_command import ROOT, environment

SCRIPT = """
import argparse, torch, torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
dist.init_process_group("gloo")
total = torch.tensor([parser.parse_args().lr])
dist.all_reduce(total)
assert abs(total.item() - 0.1 * dist.get_world_size()) < 1e-6
dist.destroy_process_group()
"""
QUICKLY = ["max_steps=2", "data.limit=64", "tracking=none", "device=cpu", "precision=fp32", "global_batch_size=8"]


def commands(page: Path = ROOT / "README.md") -> list[str]:
    """The lines of a page's shell blocks."""
    return [line for block in blocks(page) for line in block]


def blocks(page: Path) -> list[list[str]]:
    """The shell blocks of a page, each a list of lines."""
    found = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [block.strip().splitlines() for block in found]


def runnable(command: str) -> list[str]:
    """The command as it is, with less work for one that trains, and no download of pretrained weights."""
    words = shlex.split(command)
    if words[0] == "make":
        return ["make", "-C", str(ROOT), "--dry-run", *words[1:]]
    words[0] = str(Path(sys.executable).parent / Path(words[0]).name)
    trains = ("trainer" in words or "run" in words[:2]) and "--" not in words and "--dry-run" not in words
    if trains and "debug=true" not in words:
        words += QUICKLY
    if "debug=true" in words:
        words += ["device=cpu"]
    if trains and ("recipe=finetune" in words or "data.root=photos" in words):
        words += ["model.weights=null", "data.image_size=32"]
    return words


def check_one_after_the_other(lines: list[str], folder: Path) -> None:
    """Runs commands as a reader would: in one folder, with photos and a script of the reader's own."""
    image_folder(folder / "photos", classes=2, per_class=40)
    (folder / "train.py").write_text(SCRIPT)
    for command in lines:
        done = subprocess.run(
            runnable(command), cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False
        )
        # What the doctor finds is the machine's.
        allowed = (0, 3) if "doctor" in command else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("lines", blocks(ROOT / "README.md"), ids=lambda lines: lines[0])
def test_the_readmes_commands_work(lines: list[str], tmp_path: Path) -> None:
    if any("fashion_mnist" in command and "--dry-run" not in command for command in lines):
        (ROOT / "data").mkdir(exist_ok=True)
        (tmp_path / "data").symlink_to(ROOT / "data")
        fetched = subprocess.run(
            [sys.executable, "-m", "trainer.data.fetch", "fashion_mnist"], cwd=ROOT, capture_output=True, check=False
        )
        if fetched.returncode:
            pytest.skip("Fashion-MNIST can be had neither from its mirrors nor from apt here")
    check_one_after_the_other(lines, tmp_path)


# tests/slurm runs those of slurm.md.
@pytest.mark.parametrize(
    "page",
    [page.name for page in sorted((ROOT / "docs").glob("*.md")) if commands(page) and page.name != "slurm.md"],
)
def test_a_guides_commands_work_one_after_the_other(page: str, tmp_path: Path) -> None:
    check_one_after_the_other(commands(ROOT / "docs" / page), tmp_path)


def test_the_weights_are_used_elsewhere_as_the_guide_says(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", classes=2, per_class=40)
    shutil.copy(next((tmp_path / "photos").rglob("*.png")), tmp_path / "picture.png")
    train = [sys.executable, "-m", "trainer", "data.root=photos", "run.name=photos", "data.image_size=32", *QUICKLY]
    subprocess.run(train, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in json.loads((tmp_path / "runs/photos/classes.json").read_text())


def test_the_readme_shows_the_two_commands_first() -> None:
    assert commands()[:2] == ["make train", "make test"]


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
