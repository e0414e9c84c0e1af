"""Retention never deletes the last good checkpoint, whatever happens in whatever order."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoint.retention import superfluous

OPERATIONS = ("save", "save", "save", "fail", "best", "rot", "kill", "resume")


@dataclass
class Disk:
    """A simulated run directory: which checkpoints there are, which are whole, and what retention is asked for."""

    keep: int
    keep_every: int | None
    step: int = 0
    best: int = 0
    whole: dict[int, bool] = field(default_factory=dict)
    firsts: dict[int, int] = field(default_factory=dict)

    def do(self, operation: str, draw: int) -> None:
        """One operation; `draw` decides what is left open."""
        if operation == "rot" and self.whole:
            victim = sorted(self.whole)[draw % len(self.whole)]
            # A bit may rot in any but the newest whole one: against that nothing helps but keep > 1.
            if victim != self.newest():
                self.whole[victim] = False
        elif operation == "resume":
            # Newer ones are damaged: the run goes on from the newest whole one, they are put aside.
            self.step = self.newest()
            self.whole = {step: good for step, good in self.whole.items() if step <= self.step}
        elif operation == "best" and self.step:
            self.best = self.step
        else:
            self.step += 1 + draw % 5
            if operation != "fail":
                self.save(killed_after=draw % 3 if operation == "kill" else None)

    def save(self, killed_after: int | None) -> None:
        """A save and the deletions after it, of which only the first few happen when it is killed."""
        self.whole[self.step] = True
        before = set(self.whole)
        doomed = superfluous(before, verified=self.step, keep=self.keep, keep_every=self.keep_every, best=self.best)
        for step in doomed[:killed_after]:
            del self.whole[step]
        self.check_deletions(before, set(doomed), finished=killed_after is None)

    def check_deletions(self, before: set[int], doomed: set[int], *, finished: bool) -> None:
        """What must hold after a save."""
        assert self.newest() == self.step
        assert doomed <= before
        assert self.best not in doomed
        assert not doomed & set(sorted(before)[-self.keep :])
        if self.keep_every is None:
            if finished:
                assert len(self.whole) <= self.keep + 1
            return
        window = self.step // self.keep_every
        if window:
            self.firsts.setdefault(window, self.step)
            # It may have been put aside as damaged; retention alone never takes it.
            assert self.firsts[window] not in doomed
        if finished:
            assert len(self.whole) <= self.keep + 1 + self.step // self.keep_every

    def newest(self) -> int:
        """The newest whole checkpoint's step, 0 without any."""
        return max((step for step, good in self.whole.items() if good), default=0)


def check_history(disk: Disk, history: Iterable[tuple[str, int]]) -> None:
    """Asserts that no operation costs the newest whole checkpoint."""
    newest = 0
    for operation, draw in history:
        disk.do(operation, draw)
        assert disk.newest() >= newest
        newest = disk.newest()


@given(
    st.integers(1, 4),
    st.none() | st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 100)), max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_no_history_loses_the_newest_whole_checkpoint(
    keep: int, keep_every: int | None, operations: list[tuple[str, int]]
) -> None:
    check_history(Disk(keep, keep_every), operations)


def test_nor_does_any_of_100_000_random_histories() -> None:
    draw = random.Random(0)
    for _ in range(100_000):
        disk = Disk(draw.randint(1, 3), draw.choice((None, 3, 8)))
        length = draw.randint(2, 12)
        check_history(disk, [(draw.choice(OPERATIONS), draw.randrange(100)) for _ in range(length)])


def test_what_is_kept_by_example() -> None:
    found = [5, 120, 130, 210, 250, 290, 300, 310]
    assert superfluous(found, verified=310, keep=2, keep_every=None, best=0) == [5, 120, 130, 210, 250, 290]
    assert superfluous(found, verified=310, keep=2, keep_every=None, best=130) == [5, 120, 210, 250, 290]
    assert superfluous(found, verified=310, keep=1, keep_every=100, best=5) == [130, 250, 290]
    # What is newer than the one that is known to be whole may be damaged: it neither goes nor counts.
    assert superfluous(found, verified=250, keep=1, keep_every=None, best=0) == [5, 120, 130, 210]
