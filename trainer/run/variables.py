"""The environment variables that decide how a training runs, without secrets.

Standard library only, for the launcher.
"""

import re
from collections.abc import Mapping

from trainer.run.secrets import is_secret, redact

_RELEVANT = re.compile(
    r"^((CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|GLOO|UCX|FI|TORCH|TORCHDYNAMO|TORCHINDUCTOR|PYTORCH|OMP|GOMP|KMP|MKL|OPENBLAS"
    r"|WANDB|HF|HYDRA|PACELINE)_|PYTHONPATH$|PYTHONHASHSEED$|LD_(PRELOAD|LIBRARY_PATH)$)"
)


def relevant(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that matter to a worker, by name; a secret has None for its value, and no other one shows it."""
    return {
        name: None if is_secret(name) else redact(value, environment)
        for name, value in sorted(environment.items())
        if _RELEVANT.match(name)
    }
