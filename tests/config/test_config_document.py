from pathlib import Path

import pytest

from trainer.config import document
from trainer.config.keys import all_keys, is_known, leaves

STABLE = [
    "run.name",
    "run.dir",
    "run.fresh",
    "seed",
    "epochs",
    "max_steps",
    "max_time",
    "global_batch_size",
    "micro_batch_size",
    "precision",
    "device",
    "debug",
    "deterministic",
    "log_every_steps",
    "evaluate.every",
    "tracking",
    "data.name",
    "data.root",
    "data.image_size",
    "data.val_fraction",
    "data.limit",
    "data.workers",
    "data.on_bad_image",
    "model.name",
    "model.weights",
    "model.args",
    "optim.name",
    "optim.lr",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "cluster.nodes",
    "cluster.gpus_per_node",
    "cluster.max_restarts",
    "monitor.gpus",
]
"""Keys that people and tools outside this repository rely on."""


@pytest.mark.parametrize("key", STABLE)
def test_a_stable_key_stays(key: str) -> None:
    assert is_known(key)


def test_the_page_is_fresh() -> None:
    assert document.main(["--check"]) == 0, "run python -m trainer.config.document"


def test_a_stale_page_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(document, "PAGE", tmp_path / "docs" / "configuration.md")
    assert document.main(["--check"]) == 1
    assert document.main([]) == 0
    assert document.main(["--check"]) == 0
    document.PAGE.write_text("old")
    assert document.main(["--check"]) == 1


def test_every_key_is_on_the_page_with_its_meaning() -> None:
    page = document.render()
    for path, key in leaves().items():
        assert f"| `{path}` |" in page
        assert key.doc.replace("|", "\\|") in page


def test_every_key_says_what_it_means() -> None:
    for key in all_keys().values():
        assert len(key.doc) >= 5, key.path
        assert key.doc.endswith((".", "?")), key.path
