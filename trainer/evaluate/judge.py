"""Which weights are the best so far, and whether it is worth going on.

Standard library only: the names are checked before torch is there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import ConfigError

RAW, AVERAGED = "val/", "val/ema_"
"""What the metrics' names begin with: of the weights that train, and of their moving average."""

TOP = 5
"""Predictions of a sample among which the true class has to be; means nothing with so many classes or fewer."""

_HIGHER_IS_BETTER = {
    "accuracy": True,
    "accuracy_top5": True,
    "ece": False,
    "f1": True,
    "loss": False,
    "precision": True,
    "recall": True,
}


def metric_names(*, averages: bool) -> list[str]:
    """The metrics that can be judged by.

    Args:
        averages: whether the weights' moving average is evaluated, too.
    """
    return [kind + name for kind in ([RAW, AVERAGED] if averages else [RAW]) for name in _HIGHER_IS_BETTER]


def check_metric(metric: str, classes: int) -> None:
    """Refuses a metric to judge by that means nothing with so few classes.

    Args:
        metric: one of `metric_names`.
        classes: how many there are, or at most are.

    Raises:
        ConfigError: the class is always among the `TOP` likeliest.
    """
    if metric.endswith(f"_top{TOP}") and classes <= TOP:
        raise ConfigError(
            f"evaluate.best={metric} says nothing: there are only {classes} classes",
            f"evaluate.best={AVERAGED if metric.startswith(AVERAGED) else RAW}accuracy",
        )


@dataclass(slots=True)
class Standing:
    """What the evaluations so far came to; plain values that are saved with every checkpoint.

    The best is forgotten when its weights are lost (`best_weights.reconcile`); `improved` and `waited` stay.

    Attributes:
        metric: what was judged by; empty before the first evaluation.
        step: of the best evaluation; 0 before the first.
        epoch: its epoch, from 1; 0 before the first.
        value: its value of the judged metric.
        accuracy: its accuracy, 0..1; negative before the first.
        improved: the judged metric's value at the last improvement of at least `min_delta`.
        waited: evaluations since that improvement.
        former: the best step by another metric, by which the run was judged before; its weights stay in their file
            until there is a best by this one. 0: there was none, or there is a best by this one.
    """

    metric: str = ""
    step: int = 0
    epoch: int = 0
    value: float | None = None
    accuracy: float = -1.0
    improved: float | None = None
    waited: int = 0
    former: int = 0


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares evaluations by one metric.

    Attributes:
        metric: one of `metric_names`.
        patience: evaluations without an improvement after which the run ends; None: never.
        min_delta: the least difference that counts as an improvement. Smaller ones add up.
    """

    metric: str
    patience: int | None
    min_delta: float

    @property
    def kind(self) -> str:
        """Which weights are judged: RAW or AVERAGED."""
        return AVERAGED if self.metric.startswith(AVERAGED) else RAW

    @property
    def weights(self) -> str:
        """The same in words."""
        return "moving average" if self.kind == AVERAGED else "latest"

    def judge(self, standing: Standing, metrics: Mapping[str, float], *, step: int, epoch: int) -> bool:
        """Takes an evaluation into account; whether it is the best so far. NaN and infinity never are."""
        value, standing.metric = metrics[self.metric], self.metric
        # Weights whose loss is not finite have diverged, whatever share of the images they happen to get right.
        usable = math.isfinite(value) and math.isfinite(metrics.get(f"{self.kind}loss", 0.0))
        gain = self._gain(value, standing.improved) if usable else 0.0
        if gain > 0 and gain >= self.min_delta:
            standing.improved, standing.waited = value, 0
        else:
            standing.waited += 1
        if not usable or self._gain(value, standing.value) <= 0:
            return False
        standing.value, standing.accuracy = value, metrics[f"{self.kind}accuracy"]
        standing.step, standing.epoch, standing.former = step, epoch, 0
        return True

    def verdict(self, standing: Standing) -> str | None:
        """Why the run should end here, a sentence without a full stop; None: it should go on."""
        if self.patience is None or standing.waited < self.patience:
            return None
        by = f" by at least {self.min_delta:g}" if self.min_delta else ""
        times = "evaluation" if standing.waited == 1 else f"{standing.waited} evaluations"
        if standing.improved is None:
            return f"early stopping: {self.metric} was never a finite number, in {times}"
        best = f"the best was {standing.improved:.4g}, whose weights are no longer there"
        if standing.value is not None:
            best = f"the best was {standing.value:.4g} in epoch {standing.epoch}"
        return f"early stopping: {self.metric} has not improved{by} in the last {times}; {best}"

    def _gain(self, value: float, reference: float | None) -> float:
        if reference is None:
            return math.inf
        higher = _HIGHER_IS_BETTER[self.metric.removeprefix(self.kind)]
        return value - reference if higher else reference - value
