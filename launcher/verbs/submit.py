"""`paceline submit`: a training, or any script, in Slurm's queue."""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.arguments import Parser, check_overrides, typed
from launcher.verbs.run import check_effect, given, looking, read_program
from trainer.errors import ConfigError, UnfitError
from trainer.rundir import RunDir
from trainer.wording import plural, short_path

HELP = """\
paceline submit cluster=SITE [KEY=VALUE ...] [--dry-run] [-- PROGRAM]

  paceline submit cluster=slurm cluster.nodes=2 recipe=finetune data.root=/imgs
  paceline submit cluster=slurm cluster.time=2h -- train.py --lr 1

Checks everything, asks Slurm whether such a job can start, queues it, returns.
cluster=slurm is what Slurm does by default; a site's own file says more
(DIR/cluster/SITE.yaml with --config-dir).
A job that Slurm preempts saves, is queued again, and goes on; so does the same
run.name submitted again.

  --dry-run         print the batch script and the environment; queue nothing
  --config-dir DIR  more configuration groups
  --debug           show tracebacks and torch's own messages"""


def main(arguments: Sequence[str]) -> int:
    """Queues a job; returns 0 when Slurm has taken it."""
    parser = Parser("submit", HELP, flags=["--dry-run"], values=["--config-dir"], overrides=True)
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.read(arguments[:cut])
    if options.help:
        return parser.print_text()
    check_overrides(options.words)

    from launcher import local
    from launcher.plan import plan_job, surroundings_lines
    from launcher.slurm import submission
    from launcher.stop import held_back
    from trainer.check.validate import validate, validate_launch
    from trainer.config.compose import compose
    from trainer.data.recall import check_recalled
    from trainer.model.published import check_available
    from trainer.run import launches, provenance, runname, saved

    program = read_program(arguments[:cut], arguments[cut + 1 :], has_dashes="--" in arguments)
    config = compose(options.words, config_dir=Path(options.config_dir) if options.config_dir else None)
    cluster, ours = config.cluster, program.kind == "trainer"
    if cluster.scheduler != "slurm":
        raise ConfigError(
            "only a cluster with a scheduler can be submitted to", typed("submit", "cluster=slurm", *arguments)
        )
    if cluster.gpus_per_node is None:
        fix = typed("submit", *arguments[:cut], "cluster.gpus_per_node=8", *arguments[cut:])
        raise ConfigError(
            "cluster.gpus_per_node is not set: the nodes are elsewhere, so nobody can count their GPUs", fix
        )
    if not ours:
        check_effect(options, arguments[:cut], arguments[cut:])
        validate_launch(config)
    workers = cluster.nodes * cluster.gpus_per_node
    plan = plan_job(
        config,
        program=program,
        overrides=given(options),
        gpus=0 if config.device == "cpu" else workers,
        cpus=workers * (cluster.cpus_per_worker or 1),
        environment=submission.clean(os.environ),
        debug=options.debug,
    )
    notes = validate(config, world_size=plan.world_size) if ours else []
    recipe = (config.recipe or config.model.name) if ours else program.stem
    run = RunDir(runname.choose(config.run, recipe))
    if ours:
        notes += provenance.agree(run, config)
        if not config.run.accept_changes and saved.is_complete(run):
            print(f"run {run.name} is finished; run.fresh=true starts over beside it", file=sys.stderr)
            return 0
        check_recalled(run, config)
        if not options.dry_run and not saved.has_checkpoint(run):
            check_available(config.model)
    planned = replace(plan, run_dir=str(run.path.absolute()), attempt=run.next_attempt())
    text = submission.script(submission.executor(planned, config))
    where = f"{plural(plan.nodes, 'node')} with {plural(plan.workers_per_node, 'worker')} each"
    if options.dry_run:
        lines = [f"workers      {where}", f"run          {planned.run_dir}, attempt {planned.attempt}"]
        print("\n".join([text, *lines, *surroundings_lines(planned, notes)]))
        return 0
    estimate = submission.check(text)
    with held_back():
        plan = local.prepare(plan, config, recipe=recipe, argv=["paceline", "submit", *arguments])
        run = RunDir(plan.run_dir)
        plan = replace(plan, again=plan.again.replace(" run ", " submit ", 1))
        submission.keep_plan(run, plan)
        try:
            job_id = submission.submit(submission.executor(plan, config))
        except UnfitError:
            # What is in no queue is no attempt.
            launches.withdraw(run, plan.attempt)
            shutil.rmtree(run.attempt_plan(plan.attempt).parent)
            raise
        launches.note_job(run, plan.attempt, job_id)
        run.update_status(state="pending", attempt=plan.attempt)
    for note in notes:
        print(note, file=sys.stderr)
    lines = [f"job {job_id}: {where}, run directory {short_path(run.path)}", f"  Slurm      {estimate}", *looking(run)]
    print("\n".join(lines), file=sys.stderr, flush=True)
    print(job_id)
    return 0
