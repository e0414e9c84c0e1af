"""`paceline run`: a training, or any script, on this machine."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher import runs
from launcher.arguments import Parser, check_overrides, typed
from launcher.plan import Program, again_command, cores_lines, plan_job, render
from launcher.scripts import FOR_PROGRAMS, starts_python, with_program
from trainer.errors import ConfigError
from trainer.rundir import RunDir
from trainer.wording import plural, short_path

HELP = """\
paceline run [KEY=VALUE ...] [--dry-run | --detach] [-- PROGRAM]

  paceline run recipe=fashion_mnist epochs=2 optim.lr=0.05
  paceline run cluster.gpus_per_node=4 -- train.py --lr 1     your own script
  paceline run cluster.gpus_per_node=4 -- -m package.train    your own module

One worker on every GPU, or two on a machine without one.
cluster.nodes=2 tries on this machine what several would do.
`paceline config` lists the keys.
The same run.name again goes on from the last checkpoint; run.fresh=true starts
over beside it.

  --dry-run         print workers, command and environment; start nothing
  --detach          check everything, start, return: it outlives this terminal
  --config-dir DIR  more configuration groups (DIR/recipe/mine.yaml, ...)
  --debug           show tracebacks and torch's own messages"""

_FLAGS = ("--dry-run", "--detach")


def main(arguments: Sequence[str]) -> int:
    """Runs a job to its end; returns its exit code."""
    parser = Parser("run", HELP, flags=_FLAGS, values=["--config-dir"], overrides=True)
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.read(arguments[:cut])
    if options.help:
        return parser.print_text()
    _check_no_run(options.words, arguments)
    check_overrides(options.words)
    if begun := _as_begun(options, arguments):
        print(f"as it was begun: {typed('run', *begun)}", file=sys.stderr)
        return main(begun)

    from launcher import detach, finished, local
    from launcher.binding import look
    from launcher.gpus import numa_nodes
    from launcher.stop import held_back, outlive_terminal
    from trainer.check.validate import validate, validate_launch
    from trainer.config.compose import compose
    from trainer.cores import count_cpus
    from trainer.data.recall import check_recalled
    from trainer.model.published import check_available
    from trainer.run import provenance, runname, saved

    program = read_program(arguments[:cut], arguments[cut + 1 :], has_dashes="--" in arguments)
    config = compose(options.words, config_dir=Path(options.config_dir) if options.config_dir else None)
    if config.cluster.scheduler != "none":
        raise ConfigError("paceline run starts a job on this machine, not in a queue", typed("submit", *arguments))
    ours = program.kind == "trainer"
    if not ours:
        check_effect(options, arguments[:cut], arguments[cut:])
        validate_launch(config)
    gpus = numa_nodes()
    plan = plan_job(
        config,
        program=program,
        overrides=given(options),
        gpus=len(gpus),
        cpus=count_cpus(),
        environment=os.environ,
        topology=look(gpus),
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
    if ours and not saved.has_checkpoint(run):
        check_available(config.model)
    # From here on there is a run, which must not seem to wait for a job that somebody has called off.
    with held_back():
        outlive_terminal()
        plan = local.prepare(plan, config, recipe=recipe, argv=["paceline", "run", *arguments])
        run = RunDir(plan.run_dir)
        goes_on = not options.detach or detach.part(run.terminal_log(plan.attempt))
        for note in (*notes, *cores_lines(plan)):
            print(note, file=sys.stderr)
        attempt = f", attempt {plan.attempt}" if plan.attempt else ""
        nodes = f"{plan.nodes} nodes on this machine, " if plan.nodes > 1 else ""
        workers = nodes + plural(plan.world_size, "worker")
        print(f"{workers}, run directory {short_path(run.path)}{attempt}", file=sys.stderr)
        if goes_on:
            return local.run(plan)
        print("\n".join(["detached: it outlives this terminal", *looking(run)]), file=sys.stderr, flush=True)
        print(run.path)
        return 0


def looking(run: RunDir) -> list[str]:
    """The commands with which one looks at a job from anywhere, and stops it."""
    place = [] if run.path.parent == Path("runs").absolute() else ["--dir", short_path(run.path.parent)]
    told = {"look": ["status"], "follow": ["logs", "-f"], "stop": ["stop"]}
    return [f"  {label:<10} {typed(verb, run.name, *options, *place)}" for label, (verb, *options) in told.items()]


def read_program(words: Sequence[str], program: Sequence[str], *, has_dashes: bool = True) -> Program:
    """What stands behind `--`; where there is none, our trainer.

    Args:
        words: the command line before it.
        program: the command line behind it.
        has_dashes: whether there is a `--`.

    Raises:
        ConfigError: nothing behind it, no such script, `-m` without a module, a Python in front, or our own trainer.
    """
    if not program:
        if has_dashes:
            fix = typed("run", *words) + ("" if words else " -- path/to/script.py arguments")
            raise ConfigError("nothing stands behind --, where a script is to be", fix)
        return Program("trainer", "trainer")
    first, *others = program
    if starts_python(first):
        mended = with_program(words, program)
        fix = typed("run", *mended) if mended else f"{typed('run', *words)} -- path/to/script.py arguments"
        raise ConfigError(f"{first} is started by paceline itself", fix)
    if first == "-m":
        if not others:
            raise ConfigError("-m needs the name of a module", f"{typed('run', *words)} -- -m package.module arguments")
        if others[0] == "trainer" and not (Path("trainer").exists() or Path("trainer.py").exists()):
            raise ConfigError("paceline run starts our trainer by itself", typed("run", *words, *others[1:]))
        return Program("module", others[0], tuple(others[1:]))
    if not Path(first).is_file():
        raise _no_script(words, program)
    return Program("script", first, tuple(others))


def _no_script(words: Sequence[str], program: Sequence[str]) -> ConfigError:
    """The error for a script that is not there: something of ours behind the dashes, or a typing mistake."""
    first, *others = program
    problem = f"no such script: {first}"
    if first in ("--dry-run", "--detach", "--debug", "--config-dir") or (
        "=" in first and "/" not in first.partition("=")[0]
    ):
        is_option = first == "--config-dir" and others
        ours, left = program[: 1 + bool(is_option)], program[1 + bool(is_option) :]
        return ConfigError(problem, typed("run", *words, *ours, *(["--", *left] if left else [])))
    if Path(first).is_dir():
        return ConfigError(f"{first} is a directory", f"{typed('run', *words)} -- path/to/script.py arguments")
    known = [path.name for path in Path(first).parent.glob("*.py")]
    near = next(iter(difflib.get_close_matches(Path(first).name, known, n=1)), None)
    if near is None:
        return ConfigError(problem, f"{typed('run', *words)} -- path/to/script.py arguments")
    return ConfigError(problem, typed("run", *words, "--", str(Path(first).with_name(near)), *others))


def _check_no_run(words: Sequence[str], arguments: Sequence[str]) -> None:
    """Refuses the name of a run where an override is expected.

    Raises:
        ConfigError: there is one.
    """
    from trainer.run.runname import is_run

    for word in words:
        if "=" not in word and is_run(Path("runs", word)):
            named = [f"run.name={word}" if other == word else other for other in arguments]
            raise ConfigError(f"{word!r} is a run, and no override", typed("run", *named))


def _as_begun(options: argparse.Namespace, arguments: list[str]) -> list[str] | None:
    """The whole command line of a run that is only named, from its record; None where more is said, or it is new."""
    from trainer.run.runname import continuing, wrong_name
    from trainer.run.secrets import HIDDEN

    words = dict(word.partition("=")[::2] for word in options.words)
    name = words.get("run.name", "")
    if not name or not words.keys() <= {"run.name", "run.dir"} or "--" in arguments or wrong_name(name):
        return None
    run = RunDir(Path(words.get("run.dir", "runs")).expanduser() / name)
    begun = runs.again(run) or runs.again_by_trainer(run)
    if begun is None or any(HIDDEN in word for word in begun) or begun == continuing(options.words, name):
        return None
    return [*(word for word in arguments if word not in options.words), *begun]


def check_effect(options: argparse.Namespace, words: Sequence[str], program: Sequence[str]) -> None:
    """Refuses keys that only our trainer reads, before a program that knows nothing of them.

    Args:
        options: what stands before `--`, as it was read.
        words: the same, as it was written.
        program: `--` and what stands behind it.

    Raises:
        ConfigError: there are such keys.
    """
    # A recipe of the user's own may say where the workers run.
    matter = (*FOR_PROGRAMS, "recipe=") if options.config_dir else FOR_PROGRAMS
    idle = [word for word in options.words if not word.lstrip("+~").startswith(matter)]
    if idle:
        keys = ", ".join(word.partition("=")[0].lstrip("+~") for word in idle)
        kept = [word for word in words if word not in idle]
        raise ConfigError(
            f"{keys}: only our trainer reads {'this' if len(idle) == 1 else 'these'}, not a program behind --",
            typed("run", *kept, *program),
        )


def given(options: argparse.Namespace) -> list[str]:
    """The overrides and what they were composed with, to be given again."""
    return ([f"--config-dir={options.config_dir}"] if options.config_dir else []) + list(options.words)
