"""What is said and written of a job: that it runs, why it is started again, and how it ended."""

import signal
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from launcher import verdict
from launcher.ending import folding, hold
from launcher.ending.outcome import Outcome
from launcher.ending.restarts import Decision, Failed, decide
from launcher.plan import JobPlan
from launcher.stop import Stop
from launcher.verdict import Exit
from launcher.workers.output import say, tidy_terminal
from trainer import wording
from trainer.errors import STOPPED, PacelineError
from trainer.run import launches, saved
from trainer.run.differences import shortened
from trainer.run.rows import append_json_line
from trainer.rundir import RunDir, error_beside, write_json
from trainer.trouble import peers


class Account:
    """Keeps a job's account, on the terminal and in status.json, failure.json and events.jsonl; one process does.

    Another job may have been faster to take the run: what that one has written is left alone.

    Args:
        plan: the job, of which nothing runs yet.
    """

    def __init__(self, plan: JobPlan) -> None:
        self._plan = plan
        self._run = RunDir(plan.run_dir)
        self._is_ours = plan.program.kind == "trainer"
        self._history: list[Failed] = []
        self._decision = Decision(again=False)
        self._before = self._run.read_status()
        self._has_run = False

    def begin(self) -> None:
        """Says that the job runs, where our trainer does not say so itself.

        Raises:
            InUseError: another job has the run.
        """
        if not self._is_ours:
            hold.take(self._run)
            self._has_run = True
            with _telling_of("job.json"):
                launches.confirm(self._run, self._plan.attempt)
            with _telling_of("status.json"):
                self._run.failure.unlink(missing_ok=True)
                self._run.update_status(state="running", attempt=self._plan.attempt)

    def is_worth(self, outcome: Outcome) -> bool:
        """Whether another attempt is worth it after this one has failed; to be asked once for each."""
        failure = verdict.first_failure(outcome.judged)
        checkpoint = str(self._run.read_status().get("latest")) if self._is_ours else None
        self._history.append(
            Failed(
                code=verdict.exit_code(outcome.judged),
                cause=(failure.what, failure.message, failure.place) if failure else ("", "", ""),
                lasts=failure is not None and verdict.would_come_again(failure),
                checkpoint=checkpoint,
                seconds=outcome.seconds,
            )
        )
        self._decision = decide(self._history, self._plan.max_restarts)
        return self._decision.again

    def tell_restart(self, outcome: Outcome) -> None:
        """Shows in a line or two why the workers are started anew, and keeps it among the run's events."""
        failure = verdict.first_failure(outcome.judged)
        if failure is None:
            return
        attempt, plan = outcome.attempt, self._plan
        count = f"restart {attempt - plan.attempt + 1} of {plan.max_restarts}"
        message = failure.message.strip().splitlines()
        say(
            f"✗ attempt {attempt} failed: {failure.what} on rank {failure.rank}"
            f"{': ' + message[0] if message else ''}\n"
            f"  log     {self._run.log(attempt, failure.rank)}\n  {count}: the workers are started again"
        )
        if not self._may_write(attempt):
            return
        row = {"event": "attempt_failed", "attempt": attempt, "rank": failure.rank, "type": failure.what}
        with _telling_of("events.jsonl"):
            append_json_line(self._run.events, {**row, "message": failure.message, "time": time.time()})

    def tell_differences(self, lines: Sequence[str]) -> None:
        """Shows what differs among the nodes though it should not, and keeps it among the run's events."""
        if not lines:
            return
        for line in shortened(lines, str(self._run.events)):
            say(f"warning: {line}")
        row = {"event": "environments_differ", "attempt": self._plan.attempt, "differences": list(lines)}
        with _telling_of("events.jsonl"):
            append_json_line(self._run.events, {**row, "time": time.time()})

    def conclude(self, outcome: Outcome, stop: Stop) -> int:
        """Tells how the job ended; returns its exit code.

        Args:
            outcome: of the last attempt.
            stop: the requests to stop that came.
        """
        exits, reason = outcome.judged, ""
        if stop.signal is not None:
            own = verdict.not_asked_for(outcome.exits, outcome.killed)
            reason = "" if own else _how_it_stopped(stop, outcome, self._plan)
            exits = own or list(outcome.exits)
        code = verdict.exit_code(exits, stop.signal if reason else None)
        failure = verdict.first_failure(exits)
        if self._is_ours and failure is not None:
            failure = verdict.as_rank_zero_says(exits, failure)
        # Written before it is said: a terminal that takes nothing may hold this process up from here on.
        keep = self._may_write(outcome.attempt)
        if keep and self._is_refused(code):
            keep = False
            with _telling_of("job.json"):
                launches.withdraw(self._run, self._plan.attempt)
        elif keep:
            self._settle(code, reason)
        if keep and failure is not None and code == verdict.HANG:
            with _telling_of("status.json"):
                why = failure.message.partition("\n")[0]
                self._run.update_status(state="failed", attempt=outcome.attempt, exit_code=code, reason=why)
        if reason:
            self._say_stopped(code, reason)
        elif code == STOPPED:
            # The trainer's own reasons, such as max_time.
            print(f"  again   {self._plan.again}", file=sys.stderr)
        elif failure is not None:
            others = folding.line(folding.fold(exits, failure))
            self._say_failed(failure, outcome.attempt, code, keep=keep, others=others)
            if self._decision.why:
                print(f"  {self._decision.why}", file=sys.stderr)
        return code

    def conclude_killed(self, number: int, reason: str) -> int:
        """Tells that the agent was killed, where nobody else is left to say so; returns the exit code.

        Args:
            number: the signal.
            reason: who asked for the end; empty where nobody did.
        """
        name = signal.Signals(number).name
        problem = f"the agent, which starts the workers, was killed by {name}"
        advice = "`dmesg` tells whether the kernel did, for want of memory"
        told = reason and f"{reason}; the agent was killed"
        return self._conclude_without_agent(name, problem, advice, 128 + number, told)

    def conclude_stopped(self, seconds: float) -> int:
        """Tells that the agent was stopped for so long that it had to be killed; returns the exit code."""
        problem = f"the agent, which looks after the workers, was stopped (SIGSTOP) for {wording.duration(seconds)}"
        advice = "somebody, or a batch system, has stopped it and let its workers run; cluster.hang_timeout=0 waits"
        return self._conclude_without_agent("Hang", problem, advice, verdict.HANG, "")

    def _conclude_without_agent(self, kind: str, problem: str, advice: str, code: int, reason: str) -> int:
        if self._may_write(self._plan.attempt + self._plan.max_restarts):
            self._settle(code, reason)
            if not reason:
                self._note(kind, problem, advice, code)
        tidy_terminal()
        if not reason:
            print(f"error: {problem}\n  {advice}\n  again   {self._plan.again}", file=sys.stderr)
        return code

    def conclude_refused(self, error: PacelineError) -> int:
        """Tells an error that came before there was a worker; returns the exit code."""
        if self._may_write(self._plan.attempt + self._plan.max_restarts):
            self._settle(error.exit_code, "")
            with _telling_of("status.json"):
                self._run.update_status(reason=error.problem)
            self._note(type(error).__name__, error.problem, error.fix, error.exit_code)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code

    def conclude_early(self, stop: Stop) -> int:
        """Tells that a request came before there was a worker to hand it to; returns the exit code.

        Nothing was begun, hence nothing was lost: running it again goes on where the last attempt stopped.
        """
        reason = f"{stop.reason} before the workers were up"
        if self._may_write(self._plan.attempt):
            self._settle(STOPPED, reason)
        print(f"{reason}\n  again   {self._plan.again}", file=sys.stderr)
        return STOPPED

    def _note(self, kind: str, problem: str, advice: str, code: int) -> None:
        """Leaves in failure.json an error that is no worker's, unless one has told its own."""
        attempt = self._run.read_status().get("attempt", self._plan.attempt)
        if self._run.read_failure(attempt):
            return
        row = {"rank": None, "host": socket.gethostname(), "attempt": attempt, "type": kind, "message": problem}
        told = {"traceback": "", "meaning": problem, "advice": advice, "exit_code": code, "time": time.time()}
        with _telling_of("failure.json"):
            write_json(self._run.failure, row | told)

    def _may_write(self, attempt: int) -> bool:
        """Whether no other job trains in the run, or has done so since this one was launched.

        Args:
            attempt: this job's latest.
        """
        if self._has_run:
            return True
        # Held although none of our workers is left, or with another attempt's status than it had: it is another job's.
        status = self._run.read_status()
        is_own = status.get("attempt") in range(self._plan.attempt, attempt + 1)
        return not self._run.is_held() and (is_own or status == self._before)

    def _is_refused(self, code: int) -> bool:
        """Whether the trainer was refused a run that had saved something, which it then leaves as it was."""
        is_untouched = self._run.read_status() == self._before and saved.has_checkpoint(self._run)
        return self._is_ours and is_untouched and saved.is_left_alone(self._run, code)

    def _say_stopped(self, code: int, reason: str) -> None:
        if code == 0:
            return
        tidy_terminal()
        if not self._is_ours:
            print(reason, file=sys.stderr)
        elif code != STOPPED:
            print(f"{reason}; no checkpoint of this moment", file=sys.stderr)
        print(f"  again   {self._plan.again}", file=sys.stderr)

    def _say_failed(self, failure: Exit, attempt: int, code: int, *, keep: bool, others: str) -> None:
        """Shows the first failure and, with `keep`, leaves it in failure.json; the trainer's word of it there stays.

        Args:
            failure: the first one.
            attempt: the attempt's number.
            code: the job's exit code.
            keep: whether failure.json is this job's.
            others: the failures that followed, in a line.
        """
        row = self._run.read_failure(attempt)
        log = str(self._run.log(attempt, failure.rank))
        hung = failure.code == verdict.HANG
        # A node that has lost this one may have left a word there, too.
        is_same = row.get("rank") == failure.rank and (failure.is_untold or row.get("type") == failure.type)
        if is_same and not hung:
            row.setdefault("log", log)
        else:
            row = verdict.failure_row(failure, attempt=attempt, code=code, log=log, ours=self._is_ours)
        row["others"] = others
        if keep:
            with _telling_of("failure.json"):
                write_json(self._run.failure, row)
        tidy_terminal()
        has_told = error_beside(self._run.log(attempt, 0)).exists() and not peers.is_gone(failure.message)
        if self._is_ours and failure.rank == 0 and has_told and not hung:
            # Rank 0 has the terminal and has said it, unless it only heard of others' end.
            step = verdict.next_step(code, self._plan.again, ours=True, override=row.get("override", ""))
            told = {"others": others, "log": row["log"], **step}
            print("\n".join(f"  {label:<7} {text}" for label, text in told.items() if text), file=sys.stderr)
        else:
            print(verdict.panel(row, again=self._plan.again, ours=self._is_ours), file=sys.stderr)

    def _settle(self, code: int, reason: str) -> None:
        """Leaves no run that claims to be running, or to wait for an attempt that has come to nothing.

        A state that the trainer wrote at its end stays.
        """
        status = self._run.read_status()
        state = status.get("state", "pending")
        came_to_nothing = status == self._before and state != "finished" and code != 0
        if state in ("running", "pending") or came_to_nothing:
            end = "finished" if code == 0 else "stopped" if code == STOPPED or reason else "failed"
            with _telling_of("status.json"):
                self._run.update_status(state=end, attempt=self._plan.attempt, exit_code=code, reason=reason)
        elif code != 0 and "exit_code" not in status:
            # Nobody may have waited for this process to learn it.
            with _telling_of("status.json"):
                self._run.update_status(exit_code=code)


def _how_it_stopped(stop: Stop, outcome: Outcome, plan: JobPlan) -> str:
    """Who asked, and whether the workers did as they were asked, in words."""
    if not outcome.killed:
        return stop.reason
    ranks = f"rank{'s' if len(outcome.killed) > 1 else ''} {', '.join(map(str, outcome.killed))}"
    late = f"within cluster.grace_seconds={plan.stop_grace_s:g}"
    insisted = "Ctrl-C came again" if stop.signal == signal.SIGINT else "told not to wait"
    return f"{stop.reason}; killed {ranks}: {insisted if stop.is_insisted_on else f'no end {late}'}"


@contextmanager
def _telling_of(name: str) -> Generator[None]:
    """Says that a file could not be written, and goes on: the verdict must be heard on a full disk too."""
    try:
        yield
    except OSError as error:
        print(f"warning: cannot write {name}: {error.strerror or error}", file=sys.stderr)
