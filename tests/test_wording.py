import pytest

from trainer import wording


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.42, "420 ms"),
        (0.96, "1 s"),
        (1.5, "1.5 s"),
        (9, "9 s"),
        (9.96, "10 s"),
        (59.7, "1 m 00 s"),
        (94, "1 m 34 s"),
        (132.2, "2 m 12 s"),
        (119.7, "2 m 00 s"),
        (3599.6, "1 h 00 m"),
        (3 * 3600 + 12 * 60 + 20, "3 h 12 m"),
        (86_399, "1 d 00 h"),
        (100_000, "1 d 04 h"),
        (float("inf"), "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1930.4, "1,930"),
        (74.23, "74.2"),
        (4, "4"),
        (0.0, "0"),
        (99.96, "100"),
        (1e6, "1,000,000"),
        (3.14159, "3.14"),
    ],
)
def test_a_number_has_thousands_separators_and_no_idle_digits(value: float, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4124, "0.412"), (2.0, "2.00"), (123.4, "123"), (0.00003123, "3.1e-05"), (float("nan"), "nan")],
)
def test_a_measured_value_has_three_significant_digits(value: float, text: str) -> None:
    assert wording.significant(value) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.918, "91.8 %"), (0.97, "97 %"), (1.0, "100 %"), (0.0042, "0.4 %"), (0.0, "0 %")]
)
def test_a_share_is_said_in_per_cent(fraction: float, text: str) -> None:
    assert wording.percent(fraction) == text


def test_a_share_for_a_glance_is_whole() -> None:
    assert wording.whole_percent(0.0149) == "1 %"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "512 bytes"),
        (1536, "1.5 KiB"),
        (2**30 * 79.1, "79.1 GiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**60, "1,024.0 PiB"),
    ],
)
def test_a_size_has_a_binary_unit(count: float, text: str) -> None:
    assert wording.size(count) == text


def test_a_span_of_one_step_is_one_step() -> None:
    assert (wording.span(21, 21), wording.span(9, 1025)) == ("step 21", "steps 9 to 1,025")


def test_a_count_agrees_with_its_noun() -> None:
    assert wording.plural(1, "image") == "1 image"
    assert wording.plural(70_000, "image") == "70,000 images"
    assert wording.plural(2, "class", "classes") == "2 classes"
