"""The entry of `python -m trainer.evaluate`; also under torchrun."""

import os
import sys
from collections.abc import Sequence

from trainer.config import entry
from trainer.errors import PacelineError
from trainer.evaluate.request import read

HELP = """\
Evaluates the weights of a run on its validation split.

  python -m trainer.evaluate RUN                                  the best weights
  python -m trainer.evaluate RUN weights=last                     or last_ema, or a .safetensors file
  python -m trainer.evaluate RUN data.root=/other/images          other images of the same classes
  python -m trainer.evaluate RUN evaluate.batch_size=512 device=cpu
  torchrun --nproc_per_node=8 -m trainer.evaluate RUN             on several GPUs

RUN is a run's directory, or its name in runs/. The figures are printed and written to evaluation.json there.

  --json   print everything as one JSON object
  --help   this text"""


def main(arguments: Sequence[str]) -> int:
    """Evaluates what the command line asks for; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0 if arguments else 2
    try:
        request = read(arguments)
        # A mistake above is told before torch is imported.
        from trainer.evaluate.command import run

        run(request)
    except PacelineError as error:
        return entry.tell(error, arguments, module="trainer.evaluate")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
