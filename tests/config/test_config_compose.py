import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.check.validate import validate
from trainer.config import Config, compose, config_root, from_yaml, read_config, to_yaml
from trainer.config.names import group_names, group_options
from trainer.errors import ConfigError


def refusal(*overrides: str, config_dir: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir=config_dir)
    return caught.value


def test_the_hydra_under_test_is_the_one_asked_for() -> None:
    import hydra

    assert hydra.__version__.startswith(os.environ.get("PACELINE_TEST_HYDRA", "1."))


def test_without_overrides_a_typed_configuration_comes_out() -> None:
    config = compose([])
    assert isinstance(config, Config)
    assert (config.recipe, config.data.name, config.model.name) == ("", "folder", "resnet18")
    assert config.tracking.wandb is not None


def test_values_arrive_with_the_types_of_the_schema() -> None:
    config = compose(
        ["epochs=null", "optim.lr=1", "max_time=01:30:00", "evaluate.every=100", "optim.step_epochs=[3,5]"]
    )
    assert config.epochs is None
    assert isinstance(config.optim.lr, float)
    assert config.max_time == "01:30:00"
    assert config.evaluate.every == 100
    assert config.optim.step_epochs == [3, 5]


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("epochs=abc", "epochs takes a whole number, got 'abc'", "paceline config explain epochs"),
        ("epochs=1.5", "epochs takes a whole number, got '1.5'", "paceline config explain epochs"),
        ("debug=maybe", "debug takes true or false, got 'maybe'", "paceline config explain debug"),
        ("optim.lr=fast", "optim.lr takes a number, got 'fast'", "paceline config explain optim.lr"),
        (
            "optim.step_epochs=3",
            "optim.step_epochs takes a list of whole numbers",
            "explain optim.step_epochs",
        ),
        ("optim.step_epochs=[1,a]", "optim.step_epochs takes a list of whole numbers", "optim.step_epochs"),
        ("evaluate.every=[1]", "evaluate.every takes a whole number or text", "explain evaluate.every"),
        ("optim.name=null", "optim.name takes text, got 'null'", "explain optim.name"),
        ("run=first", "run is a section", "paceline config run"),
        ("optim.lrr=0.1", "unknown key optim.lrr. Did you mean optim.lr?", "paceline config optim"),
        ("+foo=1", "unknown key foo", "paceline config"),
        ("++optim.foo=1", "unknown key optim.foo", "paceline config"),
        ("optim={lrr: 1}", "unknown key optim.lrr. Did you mean optim.lr?", "paceline config optim"),
        ("epochs.foo=1", "unknown key epochs.foo. Did you mean epochs?", "paceline config"),
        ("recipe=fashion_minst", "there is no recipe of that name", "did you mean recipe=fashion_mnist?"),
        ("tracking=[wandbb]", "there is no tracking of that name", "did you mean tracking=wandb?"),
        ("recipe=null", "there is no recipe of that name", "take one of: "),
        ("epochs", "missing '='", "write epochs=VALUE"),
        ("epoch", "missing '='", "write epochs=VALUE"),
        ("=3", "no key before '='", "KEY=VALUE"),
        ("run.name=a=b", "the value of run.name cannot be read: a=b", "\"run.name='a=b'\""),
        ("epochs=1,2", "epochs takes one value here, got 1,2", "--multirun epochs=1,2"),
        ("optim.step_epochs=1,2", "takes one value here", "a list is written optim.step_epochs=[1,2]"),
        ("optim.lr=0,01", "optim.lr takes one value here", "with a decimal point: optim.lr=0.01; or"),
        ("optim.lr=0.1,", "optim.lr takes a number, got '0.1,'", "config explain optim.lr"),
        ("data.workers=auto", "data.workers takes a whole number, got 'auto'", "data.workers=null: "),
        ("tracking=false", "tracking=false: there is no tracking of that name", "take one of: none, wandb"),
        ("+epochs=2", "epochs is a key that is there already", "epochs=VALUE"),
        ("recipe=digits,", "recipe=digits,: there is no recipe of that name", "did you mean recipe=digits?"),
        ("recipe:digits", "missing '='", "write recipe=digits"),
        ("data=5", "data=5: there is no data of that name", "take one of: "),
        ("data.root=/a,b", "takes one value here", "if the comma belongs to it, quote it"),
        ("device=cuda:0,1", "device=cuda:0,1 is not a choice", "CUDA_VISIBLE_DEVICES=0,1 in front of the command"),
        ("data.root=~nobody-of-this-name/x", "names the home of nobody", "data.root=/the/whole/path"),
        ("~optim.lr", "optim.lr cannot be removed", "optim.lr=null"),
        ("optim.lr=${nowhere}", "optim.lr refers to something that is not there", "${section.key}"),
        ("hydra.foo=1", "unknown key hydra.foo", "--hydra-help"),
        ("data@foo=folder", "data@foo", "paceline config"),
    ],
)
def test_a_mistake_is_told_in_two_lines_with_its_fix(override: str, problem: str, fix: str) -> None:
    error = refusal(override)
    assert problem in error.problem
    assert fix in error.fix
    assert str(error).count("\n") == 1
    assert error.exit_code == 2
    assert not any(word in str(error) for word in ("OmegaConf", "full_key", "object_type", "DictConfig"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("batch_size", "global_batch_size"),
        ("bs", "global_batch_size"),
        ("wd", "optim.weight_decay"),
        ("num_workers", "data.workers"),
        ("data.num-workers", "data.workers"),
        ("data.wrkers", "data.workers"),
        ("n_epochs", "epochs"),
        ("epoch", "epochs"),
        ("arch", "model.name"),
        ("amp", "precision"),
        ("pretrained", "model.weights"),
        ("recipes", "recipe"),
        ("modle.name", "model.name"),
        ("model.lr", "optim.lr"),
        ("gpus", "cluster.gpus_per_node"),
        ("wandb.project", "tracking.wandb.project"),
        ("Seed", "seed"),
    ],
)
def test_an_unknown_key_offers_the_one_that_was_meant(written: str, meant: str) -> None:
    assert f"Did you mean {meant}?" in refusal(f"{written}=1").problem


def test_a_key_that_resembles_nothing_offers_nothing() -> None:
    assert "Did you mean" not in refusal("xyzzy_plugh=1").problem


def test_blanks_around_the_sign_are_named() -> None:
    error = refusal("seed=1", "epochs", "=", "3")
    assert str(error) == "there are blanks around the '=' of epochs\n  write epochs=3"
    error = refusal("seed=1", "model.args={width:", "8,", "depth:", "[1,", "2]}", "epochs=3")
    assert str(error).splitlines() == [
        "the shell has cut model.args={width: off at a blank",
        "  quote it: 'model.args={width: 8, depth: [1, 2]}'",
    ]


def test_a_path_from_home_is_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jo")
    config = compose(["data.root=~/images", "++run.dir=~/runs", "data.args.list=~/list.txt"])
    assert (config.data.root, config.run.dir) == ("/home/jo/images", "/home/jo/runs")
    assert config.data.args == {"list": "/home/jo/list.txt"}


@pytest.mark.parametrize("value", ["/a,b", "/it's, mine=1", "/a[b]{c}"])
def test_a_value_that_hydra_cannot_take_is_quoted_so_that_a_shell_hands_it_over(value: str) -> None:
    quoted = refusal(f"data.root={value}").fix.rpartition(": ")[2]
    words = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True).stdout
    assert compose([words]).data.root == value


def test_trackers_are_chosen_as_a_group_and_set_by_key() -> None:
    assert compose(["tracking=none"]).tracking.wandb is None
    assert compose(["tracking=[]"]).tracking.wandb is None
    assert compose(["tracking=[wandb]"]).tracking.wandb is not None
    wandb = compose(["tracking.wandb.project=birds", "tracking.wandb.tags=[a,b]"]).tracking.wandb
    assert wandb is not None
    assert (wandb.project, wandb.tags) == ("birds", ["a", "b"])


def test_setting_up_a_tracker_that_is_not_in_use_says_how_to_use_it() -> None:
    error = refusal("tracking=none", "tracking.wandb.project=x")
    assert "tracking.wandb is not in use" in error.problem
    assert "tracking=wandb" in error.fix


@pytest.mark.parametrize("override", ["data=folder", "data.name=folder"])
def test_data_is_chosen_by_group_or_by_name(override: str) -> None:
    assert compose([override, "data.root=/images"]).data.name == "folder"


def test_naming_another_optimizer_leaves_no_argument_of_the_default_behind() -> None:
    assert "momentum" in compose([]).optim.args
    assert compose(["optim.name=AdamW"]).optim.args == compose(["optim=adamw"]).optim.args
    assert compose(["optim.name=Rprop"]).optim.args == {}
    assert compose(["optim.name=rprop", "optim.args.etas=[0.5,1.2]"]).optim.args == {"etas": [0.5, 1.2]}


def test_arguments_of_a_constructor_need_no_plus() -> None:
    for override in (
        "model.args.width=8",
        "+model.args.width=8",
        "++model.args.width=8",
        "model.args={width: 8}",
    ):
        assert compose([override]).model.args["width"] == 8


def test_the_chosen_recipe_is_in_the_configuration() -> None:
    assert compose(["recipe=digits"]).recipe == "digits"


@pytest.mark.parametrize("recipe", group_options("recipe"))
def test_every_recipe_composes_and_passes_validation(recipe: str, tmp_path: Path) -> None:
    # What --cfg job prints comes from Hydra alone, so the file has to say its name itself.
    assert f"\nrecipe: {recipe}\n" in (config_root() / "recipe" / f"{recipe}.yaml").read_text()
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").touch()
    config = compose([f"recipe={recipe}"])
    assert config.recipe == recipe
    if config.data.name not in ("digits", "synthetic"):
        config.data.root = str(tmp_path / "images")
    validate(config, world_size=2)


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, name) for group in group_names() if group != "recipe" for name in group_options(group)],
)
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    config = compose([f"{group}={option}"])
    if group in ("data", "model", "optim"):
        assert getattr(config, group).name == option
    assert from_yaml(to_yaml(config)) == config


def test_the_schema_is_the_first_entry_of_the_defaults() -> None:
    import yaml

    # Missing there, it would be off without a word, and epochs=abc would pass.
    assert yaml.safe_load((config_root() / "config.yaml").read_text())["defaults"][0] == "schema"


def own_file(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


def test_a_directory_of_own_files_adds_recipes_and_data(tmp_path: Path) -> None:
    folder = tmp_path / "it's my configs, v=2"
    own_file(folder, "recipe/birds", "# @package _global_\ndefaults:\n  - override /data: birds\nepochs: 3\n")
    own_file(folder, "data/birds", "name: folder\nroot: /birds\n")
    config = compose(["recipe=birds", "seed=4"], config_dir=folder)
    assert (config.recipe, config.data.root, config.epochs, config.seed) == ("birds", "/birds", 3, 4)
    assert "did you mean recipe=birds?" in refusal("recipe=bird", config_dir=folder).fix


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("optim:\n  lrr: 1\n", "unknown key optim.lrr in recipe/mine.yaml. Did you mean optim.lr?"),
        ("epochs: abc\n", "epochs takes a whole number, got 'abc' in recipe/mine.yaml"),
        ("epochs: [\n", "not valid YAML"),
        ("defaults:\n  - override /data: nowhere\n", "data=nowhere: there is no data of that name"),
    ],
)
def test_a_mistake_in_an_own_file_names_the_file(text: str, problem: str, tmp_path: Path) -> None:
    own_file(tmp_path, "recipe/mine", f"# @package _global_\n{text}")
    assert problem in refusal("recipe=mine", config_dir=tmp_path).problem


def test_a_missing_directory_of_own_files_is_an_error(tmp_path: Path) -> None:
    assert "is not a directory" in refusal(config_dir=tmp_path / "nowhere").problem


def test_a_configuration_survives_plain_yaml() -> None:
    config = compose(
        [
            "max_time=01:30:00",
            "run.name='1_000'",
            "optim.lr=1e-7",
            "model.args={a: [1, {b: null}]}",
            "epochs=null",
        ]
    )
    assert from_yaml(to_yaml(config)) == config


def test_plain_yaml_may_leave_keys_out_and_write_numbers_as_people_do() -> None:
    config = from_yaml("optim:\n  lr: 1e-3\n  weight_decay: 0\n")
    assert config.optim.lr == 0.001
    assert isinstance(config.optim.weight_decay, float)
    assert from_yaml("") == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("optim: {lr: 1\nepochs: [", "not valid YAML: line 3, column "),
        ("epoch: 3", "unknown key epoch"),
        ("\0", "YAML"),
    ],
)
def test_a_broken_file_is_named_with_the_place(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"seed: 1\n{text}")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "config.yaml")
    assert caught.value.problem.startswith(f"{tmp_path}/config.yaml: ")
    assert problem in caught.value.problem
    assert "unicode string" not in caught.value.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epoch: 3", "unknown key epoch. Did you mean epochs?"),
        ("optim: {lr: fast}", "optim.lr takes a number, got 'fast'"),
        ("epochs: true", "epochs takes a whole number, got True"),
        ("debug: 1", "debug takes true or false, got 1"),
        ("optim: {step_epochs: [a]}", "optim.step_epochs takes a list of whole numbers"),
        ("seed: null", "seed takes a whole number, got None"),
        ("optim: 3", "optim must hold keys"),
        ("a: [", "not valid YAML"),
    ],
)
def test_plain_yaml_is_checked_against_the_schema(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    assert problem in caught.value.problem


def test_configuring_imports_neither_torch_nor_hydra_before_it_composes() -> None:
    script = """
import sys
import trainer.config as c
config = c.from_yaml("data: {name: digits}\\noptim: {name: adamw}\\nmodel: {name: resnet18, weights: DEFAULT}")
from trainer.check.validate import validate
validate(config, world_size=2)
early = {"hydra", "omegaconf", "torch", "torchvision", "numpy"} & set(sys.modules)
from trainer.config import explain
explain.show(["recipe=digits"])
late = {"torch", "torchvision", "numpy"} & set(sys.modules)
print(sorted(early), sorted(late))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
