"""An evaluation for the eye: the figures, the worst classes, the most frequent confusions."""

from collections.abc import Mapping
from typing import Any, TextIO

import rich.box
import rich.console
import rich.table

from trainer.evaluate.judge import RAW
from trainer.wording import number, percent, significant

_ROWS = 10


def show(evaluation: Mapping[str, Any], stream: TextIO) -> None:
    """Prints an evaluation.

    Args:
        evaluation: a `scorecard.entry`.
        stream: where to.
    """
    screen = rich.console.Console(file=stream, highlight=False, markup=False, emoji=False)
    screen.print(_figures(evaluation))
    classes = worst_classes(evaluation["classes"])
    if classes:
        screen.print(_table("worst classes", ("class", "images", "recall", "precision", "F1"), classes, words=1))
    confusions = frequent_confusions(evaluation)
    if confusions:
        screen.print(
            _table("most frequent confusions", ("true", "predicted", "images", "of the class"), confusions, words=2)
        )


def worst_classes(classes: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the classes with the lowest F1; none of a class that is always right or has no images."""
    faulty = [row for row in classes if row["samples"] and row["f1"] < 1]
    return [
        [row["class"], number(row["samples"]), percent(row["recall"]), percent(row["precision"]), percent(row["f1"])]
        for row in sorted(faulty, key=lambda row: row["f1"])[:_ROWS]
    ]


def frequent_confusions(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the pairs of classes that are mistaken most often, the true one first; none without a matrix."""
    if evaluation["confusion"] is None:
        return []
    names, samples = zip(*((row["class"], row["samples"]) for row in evaluation["classes"]), strict=True)
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(evaluation["confusion"]["counts"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [
        [names[true], names[predicted], number(count), percent(count / samples[true])]
        for count, true, predicted in pairs[:_ROWS]
    ]


def _figures(evaluation: Mapping[str, Any]) -> rich.table.Table:
    rows = []
    for name, value in evaluation["metrics"].items():
        short = name.removeprefix(RAW)
        words = "not finite" if value is None else number(value) if short == "samples" else percent(value)
        rows.append([short, significant(value) if short == "loss" and value is not None else words])
    if evaluation["skipped"]:
        rows.append(["skipped", number(evaluation["skipped"])])
    return _table("", ("figure", "value"), rows, words=1)


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]], *, words: int) -> rich.table.Table:
    """A table whose first `words` columns are words, and the others numbers."""
    table = rich.table.Table(title=title or None, title_justify="left", box=rich.box.SIMPLE_HEAD, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right")
    for row in rows:
        table.add_row(*row)
    return table
