import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config import compose, explain, from_yaml, to_yaml
from trainer.errors import ConfigError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory of the user's own files: a recipe that sets a learning rate and an argument."""
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\n# Trying birds. More of it.\noptim:\n  lr: 0.25\n  args:\n    momentum: 0.8\n"
    (tmp_path / "recipe" / "birds.yaml").write_text(text)
    return tmp_path


def told(key: str, *overrides: str, own: Path | None = None) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(explain.explain(key, overrides, True, config_dir=own))
    return value


def test_show_is_yaml_of_the_whole_configuration() -> None:
    overrides = ["recipe=digits", "optim.lr=0.5", "model.args.width=3"]
    assert from_yaml(explain.show(overrides)) == compose(overrides)


def test_show_says_who_set_what(own: Path) -> None:
    shown = explain.show(["recipe=birds", "seed=3"], config_dir=own).splitlines()
    assert "seed: 3  # command line: seed=3" in shown
    assert f"  lr: 0.25  # {own}/recipe/birds.yaml" in shown
    assert "  name: sgd  # configs/optim/sgd.yaml" in shown
    assert "device: auto" in shown


def test_show_has_a_json_form() -> None:
    shown = json.loads(explain.show(["seed=3"], True))
    assert shown["config"]["seed"] == 3
    assert shown["sources"]["seed"] == "command line: seed=3"
    assert shown["sources"]["device"] == "schema default"
    assert shown["version"] == 1


def test_explain_names_the_chain_of_who_set_a_value(own: Path) -> None:
    found = told("optim.lr", "recipe=birds", "optim.lr=0.5", own=own)
    assert (found["value"], found["set_by"]) == (0.5, "command line: optim.lr=0.5")
    assert found["overrode"][0] == {"value": 0.25, "by": f"{own}/recipe/birds.yaml"}
    assert found["overrode"][-1] == {"value": 0.1, "by": "schema default"}
    assert (found["takes"], found["low"], found["doc"]) == ("a number", 0.0, "Peak learning rate.")


def test_explain_is_readable() -> None:
    shown = explain.explain("global_batch_size", ["global_batch_size=96"]).splitlines()
    assert shown[0] == "global_batch_size = 96"
    assert "  takes       a whole number, at least 1 (samples)" in shown
    assert "  set by      command line: global_batch_size=96" in shown
    assert "  overrode    schema default: 256" in shown


def test_explain_follows_an_argument_of_a_constructor(own: Path) -> None:
    found = told("optim.args.momentum", "recipe=birds", own=own)
    assert (found["value"], found["set_by"]) == (0.8, f"{own}/recipe/birds.yaml")
    assert found["overrode"] == [{"value": 0.9, "by": "configs/optim/sgd.yaml"}]
    assert told("optim.args", "recipe=birds", own=own)["value"]["momentum"] == 0.8


def test_explain_knows_that_a_recipe_was_chosen() -> None:
    assert told("recipe", "recipe=digits")["set_by"] == "command line: recipe=digits"


def test_explain_of_a_section_lists_its_keys() -> None:
    assert "checkpoint.keep=2" in explain.explain("checkpoint")


@pytest.mark.parametrize("ask", [lambda: explain.explain("lr"), lambda: explain.listing("optim.lrr")])
def test_an_unknown_key_offers_the_nearest(ask: Any) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean optim\.lr\?"):
        ask()


def test_diff_shows_only_what_differs(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(compose(["recipe=digits", "seed=1"])))
    assert explain.diff(str(run), "recipe=digits seed=1") == "no difference"
    assert explain.diff(str(run), str(run / "config.yaml")) == "no difference"
    lines = explain.diff(str(run), "recipe=digits seed=2 run.name=x").splitlines()
    assert [line.split() for line in lines] == [["run.name", "null", "->", "x"], ["seed", "1", "->", "2"]]
    found = json.loads(explain.diff(str(run), "recipe=digits seed=2 run.name=x", True))["differences"]
    assert [(row["key"], row["matters"]) for row in found] == [("run.name", False), ("seed", True)]


def test_diff_refuses_what_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run directory"):
        explain.diff(str(tmp_path), "recipe=digits")


def test_listing_shows_groups_and_keys_under_a_prefix(own: Path) -> None:
    recipes = explain.listing("recipe", config_dir=own).splitlines()
    assert any(line.split(maxsplit=1) == ["recipe=birds", "Trying birds."] for line in recipes)
    assert all(line.startswith("recipe=") for line in recipes)
    optim = explain.listing("optim")
    assert "optim=adamw" in optim
    assert "optim.lr=0.1" in optim
    everything = json.loads(explain.listing("", True))
    assert {"data", "recipe", "tracking"} <= set(everything["groups"])
    assert "seed" in [row["key"] for row in everything["keys"]]
