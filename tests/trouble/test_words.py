"""An exception's words, however many there are, and where there are none."""

import pytest

from trainer.trouble.words import message_of, shortened, traceback_of


class Silent(Exception):
    """One whose text fails."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("length", [0, 99, 100])
def test_what_is_short_stays_as_it_is(length: int) -> None:
    assert shortened("x" * length, 100) == "x" * length


def test_of_what_is_long_the_beginning_and_the_end_stay() -> None:
    assert shortened("a" * 1000 + "z" * 1000, 100) == f"{'a' * 75} [... 1,900 characters ...] {'z' * 25}"


def test_an_error_that_holds_70_mb_or_no_text_at_all_is_told_in_a_few_kilobytes() -> None:
    huge = ValueError("sizes differ " + "x" * 70_000_000)
    assert message_of(huge).startswith("sizes differ xxx")
    assert len(message_of(huge)) < 9_000
    assert len(traceback_of(huge, None)) < 70_000
    assert message_of(Silent()) == "its own text cannot be made: ValueError in Silent.__str__"
    assert "Silent" in traceback_of(Silent(), None)
