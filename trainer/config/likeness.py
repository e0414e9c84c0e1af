"""Which model a file of weights is of, by the shapes of its tensors. Standard library only."""

import math
from collections.abc import Mapping, Sequence

from trainer.config import names

_CLASSES = 1000
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "relative_coords_table")


def likely_models(tensors: Mapping[str, Sequence[int]]) -> set[str]:
    """Torchvision's models with as many parameters as a state, whatever its number of classes.

    Args:
        tensors: the state's shapes.
    """
    parameters = [tuple(shape) for key, shape in tensors.items() if not key.endswith(_BUFFERS)]
    total = sum(map(math.prod, parameters))
    # Whichever has a row for each class may be the head.
    rows = {(shape[0], math.prod(shape[1:])) for shape in parameters if len(shape) > 1}
    counts = {total, *(total + (_CLASSES - classes) * (features + 1) for classes, features in rows)}
    known = names.parameter_counts()
    return {known[count] for count in counts if count in known}
