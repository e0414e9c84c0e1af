"""Evaluates a run's weights: data and network as the run has them, the figures as its own evaluations found them."""

import json
import sys
from dataclasses import replace
from typing import Any

from torch import nn

from trainer.data import datasets, loader, transforms
from trainer.distributed import World, join
from trainer.errors import ConfigError
from trainer.evaluate import scorecard
from trainer.evaluate.judge import RAW
from trainer.evaluate.request import Request, check_classes
from trainer.evaluate.tables import show
from trainer.evaluate.validation import Validation, metrics_of
from trainer.model.files import read_state
from trainer.model.weights import misfits
from trainer.network import build_network, input_format
from trainer.precision import agreed
from trainer.rundir import RunDir
from trainer.terminal.console import Console, open_console
from trainer.worker import prepare


def run(request: Request) -> None:
    """Evaluates, prints and writes what was found.

    Raises:
        PacelineError: the data cannot be read, a loading process has died, or the weights or classes do not fit.
    """
    # Compiling would take longer than it saves here.
    config = replace(request.config, model=replace(request.config.model, compile=False))
    request = replace(request, config=prepare(config))
    with join(config.distributed, device=config.device) as world:
        console = open_console(is_rank_zero=world.is_rank_zero, log=None)
        try:
            found = evaluate(request, world, console)
        except Exception as error:
            if (named := loader.explain(error)) is not None:
                raise named from error
            raise
        if not world.is_rank_zero:
            return
        keep(request.run, found, console)
        if request.as_json:
            print(json.dumps(found, ensure_ascii=False))
        else:
            show(found, sys.stdout)


def evaluate(request: Request, world: World, console: Console) -> dict[str, Any]:
    """One evaluation as plain values, the same on all ranks.

    Raises:
        PacelineError: the data cannot be read, or the weights or classes do not fit.
    """
    config = request.config
    splits = datasets.load(config.data)
    if not len(splits.val):
        raise ConfigError(
            "there are no images to evaluate on: data.val_fraction=0 holds none out",
            "data.root=DIR with labelled images in DIR/train/CLASS/ and DIR/val/CLASS/",
        )
    check_classes(request.run, splits.classes)
    preprocessing = input_format(config, splits.preprocessing)
    model = build_network(
        config, world.device, num_classes=len(splits.classes), preprocessing=preprocessing, pretrained=False
    )
    load(model, request)
    precision = agreed(config.precision, world)
    console.say(
        f"run {request.run.name}, {request.label} weights: {len(splits.val):,} validation images of {splits.title}, "
        f"{world.world_size} x {world.device.type}, {precision.name}"
    )
    for note in splits.notes:
        console.say(f"  {note}")
    validation = Validation(
        config,
        splits,
        preprocessing,
        transforms.Normaliser(preprocessing).to(world.device),
        precision,
        world,
        workers=loader.choose_workers(
            config.data.workers,
            in_memory=isinstance(splits.val, datasets.TensorImages),
            cores=world.own_cores(),
        ),
        report=None,
    )
    with precision.matmuls():
        scores = validation.evaluate({RAW: model})
    return scorecard.entry(
        scores[RAW],
        splits.classes,
        metrics=metrics_of(scores),
        skipped=len(splits.val) - scores[RAW].samples,
        weights=request.label,
        overrides=list(request.overrides),
    )


def load(model: nn.Module, request: Request) -> None:
    """Loads the weights, all of which must fit.

    Raises:
        ConfigError: the file is damaged, or of another network.
        UnfitError: it cannot be read.
    """
    path, name = request.weights, request.config.model._target_ or request.config.model.name
    state = read_state(path)
    if differences := misfits(model.state_dict(), state):
        raise ConfigError(
            f"{path} does not fit {name}: {differences}", "evaluate weights with the run that they come from"
        )
    model.load_state_dict(state)


def keep(run: RunDir, found: dict[str, Any], console: Console) -> None:
    """Writes the evaluation beside those of the training; without a right to, it has been shown all the same."""
    try:
        scorecard.add(run, found)
    except OSError as error:
        console.warn(f"{run.evaluation} could not be written: {error.strerror}")
