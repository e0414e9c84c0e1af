"""What is asked of Slurm for a job: a readable batch script, made and handed over by submitit."""

import io
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.plan import JobPlan
from trainer.errors import ConfigError, UnfitError
from trainer.rundir import RunDir, write_atomic

if TYPE_CHECKING:
    from submitit import SlurmExecutor

    from trainer.config import Config

_TIMEOUT_S = 60
# From an interactive allocation they would reach the job's own srun, and bind it to cores that it does not have.
_SCRUB = 'unset "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" "${!SRUN_@}" SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU'
# srun does not inherit it.
_HAND_ON = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'
_NO_ANSWER = re.compile("nable to contact|configuration (file|source)|resolve_ctls_from_dns_srv")
_OWN = re.compile(r"^(SLURM|SBATCH|SRUN|SALLOC)_(?!CONF$)")


def executor(plan: JobPlan, config: "Config") -> "SlurmExecutor":
    """Submitit's executor with the parameters of the job.

    Args:
        plan: with its run directory and attempt.
        config: `cluster` is read.

    Raises:
        UnfitError: there is no Slurm here.
    """
    from submitit import SlurmExecutor

    from trainer.config.timespan import parse_seconds
    from trainer.stop import parse_duration

    class Executor(SlurmExecutor):
        """Runs our command, with nothing pickled."""

        @property
        def _submitit_command_str(self) -> str:
            # By its path: the current directory may have a launcher of its own.
            return shlex.join([sys.executable, "-u", str(Path(__file__).parent), plan.run_dir, str(plan.attempt)])

    cluster = config.cluster
    folder = RunDir(plan.run_dir).log(plan.attempt, 0).parent
    try:
        made = Executor(folder=folder)
    except RuntimeError as error:
        raise UnfitError("there is no Slurm here: no srun", "submit from a login node of the cluster") from error
    limit = None if cluster.time is None else parse_seconds(cluster.time) or parse_duration(cluster.time)
    parameters: dict[str, Any] = {
        "job_name": RunDir(plan.run_dir).name,
        "nodes": plan.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": plan.workers_per_node if plan.device == "cuda" else None,
        "cpus_per_task": cluster.cpus_per_worker and cluster.cpus_per_worker * plan.workers_per_node,
        "mem": cluster.memory,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "wckey": "paceline",
        "stderr_to_stdout": True,
        "use_srun": False,
        "setup": [*cluster.setup, _SCRUB, _HAND_ON, f"cd {shlex.quote(str(Path.cwd()))}"],
        "additional_parameters": {"requeue": True, **cluster.sbatch},
    }
    made.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    # submitit's own default would be five minutes.
    made.update_parameters(time=None if limit is None else math.ceil(limit / 60))
    return made


def script(made: "SlurmExecutor") -> str:
    """The batch script."""
    return made._make_submission_file_text(made._submitit_command_str, "")


def check(text: str) -> str:
    """Asks Slurm, without queueing anything, whether and when it would start the job.

    Args:
        text: the batch script.

    Returns:
        Slurm's estimate, in its words.

    Raises:
        ConfigError: such a job can never start.
        UnfitError: Slurm does not answer.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(text)
        file.flush()
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", file.name],
                env=clean(os.environ),
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnfitError(f"Slurm does not answer: {error}", "sinfo tells whether it is up") from error
    said = " ".join(line.removeprefix("sbatch: ").strip() for line in done.stderr.splitlines())
    if done.returncode and _NO_ANSWER.search(said):
        raise UnfitError(
            f"Slurm cannot be reached from here: {said.removeprefix('error: ')}",
            "sinfo tells whether it is up; SLURM_CONF where it is configured",
        )
    if done.returncode:
        reason = said.removeprefix("error: ").removeprefix("allocation failure: ")
        raise ConfigError(f"Slurm refuses this job: {reason}", "sinfo shows the partitions, their nodes and limits")
    return said


def keep_plan(run: RunDir, plan: JobPlan) -> None:
    """Leaves the plan where the job finds it; what is secret goes by the environment, which Slurm hands on.

    Raises:
        OSError: it cannot be written.
    """
    from trainer.config.plain import from_dict, from_yaml, to_dict, to_yaml
    from trainer.run.secrets import redact_values

    shown = to_yaml(from_dict(redact_values(to_dict(from_yaml(plan.config)))))
    write_atomic(run.attempt_plan(plan.attempt), replace(plan, config=shown).to_json().encode())
    if shown != plan.config:
        os.environ["PACELINE_PLAN"] = plan.to_json()


def submit(made: "SlurmExecutor") -> str:
    """Queues the job; returns its id.

    Raises:
        UnfitError: Slurm did not take it.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # sbatch takes these for options, and hands them on to the job.
    for name in [name for name in os.environ if _OWN.match(name)]:
        del os.environ[name]
    try:
        # submitit repeats there what its error says.
        with redirect_stderr(io.StringIO()):
            return made._submit_command(made._submitit_command_str).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        reason = str(error).strip().splitlines()[-1].rpartition("submission failed: ")[2]
        raise UnfitError(f"Slurm did not take the job: {reason}", "sinfo tells whether it is up") from error


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what an allocation has left in it."""
    return {name: value for name, value in environment.items() if not _OWN.match(name)}
