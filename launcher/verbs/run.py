"""`paceline run`: a training, or any script, on this machine."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.arguments import Parser, check_overrides
from launcher.plan import Program, again_command, plan_job, render
from trainer.errors import ConfigError

HELP = """\
paceline run [KEY=VALUE ...] [--dry-run] [--config-dir DIR] [--debug] [-- PROGRAM]

  paceline run recipe=fashion_mnist epochs=2 optim.lr=0.05
  paceline run cluster.gpus_per_node=4 -- train.py --lr 1     your own script
  paceline run cluster.gpus_per_node=4 -- -m package.train    your own module

One worker on every GPU, or two on a machine without one. `paceline config` lists the keys.
cluster.nodes=2 tries on this machine what several would do.
The same run.name again goes on from the last checkpoint; run.fresh=true starts over beside it.

  --dry-run         print workers, command and environment; start nothing, write nothing
  --config-dir DIR  more configuration groups (DIR/recipe/mine.yaml, ...)
  --debug           show tracebacks and torch's own messages"""


def main(arguments: Sequence[str]) -> int:
    """Runs a job to its end; returns its exit code."""
    parser = Parser("run", HELP, flags=["--dry-run"], values=["--config-dir"], overrides=True)
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.read(arguments[:cut])
    if options.help:
        return parser.print_text()
    check_overrides(options.words)

    from launcher import finished, local
    from launcher.gpus import count_gpus
    from trainer.config.compose import compose
    from trainer.config.validate import validate, validate_launch
    from trainer.cores import count_cpus
    from trainer.data.recall import check_recalled
    from trainer.run import provenance, runname, saved
    from trainer.rundir import RunDir
    from trainer.wording import plural, short_path

    program = read_program(arguments[cut + 1 :])
    config = compose(options.words, config_dir=Path(options.config_dir) if options.config_dir else None)
    ours = program.kind == "trainer"
    if not ours:
        validate_launch(config)
    plan = plan_job(
        config,
        program=program,
        overrides=_given(options),
        gpus=count_gpus(),
        cpus=count_cpus(),
        environment=os.environ,
        debug=options.debug,
    )
    notes = validate(config, world_size=plan.world_size) if ours else []
    recipe = (config.recipe or config.model.name) if ours else program.stem
    run = RunDir(runname.choose(config.run, recipe))
    if ours:
        notes += provenance.agree(run, config)
    is_over = ours and not config.run.accept_changes and saved.is_complete(run)
    if ours and not is_over:
        check_recalled(run, config)
    if options.dry_run:
        plan = replace(plan, run_dir=str(run.path), attempt=run.next_attempt())
        print(render(replace(plan, again=again_command(plan, run.name)), notes))
        return 0
    if is_over:
        print("\n".join(finished.lines(run, config, plan.overrides)), file=sys.stderr)
        return 0
    plan = local.prepare(plan, config, recipe=recipe, argv=["paceline", "run", *arguments])
    for note in notes:
        print(note, file=sys.stderr)
    attempt = f", attempt {plan.attempt}" if plan.attempt else ""
    nodes = f"{plan.nodes} nodes on this machine, " if plan.nodes > 1 else ""
    workers = nodes + plural(plan.world_size, "worker")
    print(f"{workers}, run directory {short_path(Path(plan.run_dir))}{attempt}", file=sys.stderr)
    return local.run(plan)


def read_program(words: Sequence[str]) -> Program:
    """What stands behind `--`; nothing means our trainer.

    Raises:
        ConfigError: no such script, `-m` without a module, or our own trainer.
    """
    if not words:
        return Program("trainer", "trainer")
    if words[0] == "-m":
        if len(words) < 2:
            raise ConfigError("-m needs the name of a module", "paceline run -- -m package.module arguments")
        if words[1] == "trainer" and not (Path("trainer").exists() or Path("trainer.py").exists()):
            overrides = " ".join(words[2:])
            raise ConfigError("paceline run starts our trainer by itself", f"paceline run {overrides}".strip())
        return Program("module", words[1], tuple(words[2:]))
    if not Path(words[0]).is_file():
        raise ConfigError(f"no such script: {words[0]}", "paceline run -- path/to/script.py arguments")
    return Program("script", words[0], tuple(words[1:]))


def _given(options: argparse.Namespace) -> list[str]:
    """The overrides and what they were composed with, to be given again."""
    return ([f"--config-dir={options.config_dir}"] if options.config_dir else []) + list(options.words)
