"""The GPUs' figures, read through the real bindings from a stand-in library in a process of its own."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from trainer.monitor.nvml import Gpus, throttle_words

# One process for all cases: each result is what `sample` gave, or what was reported.
_SCRIPT = """
import json
from tests.stand_in_nvml import busy_gpus, write_figures
from trainer.monitor.nvml import Gpus

result = {}

def utilizations(which, visible=None, **more):
    reports = []
    sample = Gpus(which, lambda *report: reports.append(report), visible=visible, **more).sample()
    found = [value for name, value in sample.items() if name.endswith("/utilization_percent")]
    return found, reports

visible = {
    "unset": None, "indices": "2,0", "spaces": " 1, 3 ", "empty": "", "minus one": "1,-1,2",
    "too high": "1,9,2",
    "uuids": "GPU-0005-stand-in,GPU-0001", "ambiguous": "GPU-000",
    "mig": "MIG-3-a,MIG-3-b,MIG-1-c",
    "old mig": "MIG-GPU-0006-stand-in/1/0", "unknown mig": "MIG-nonsense",
}
result["visible"] = {name: utilizations("auto", value) for name, value in visible.items()}
result["all"] = utilizations("all", "2")
result["none"] = utilizations("none", "2")
result["in use"] = utilizations("auto", "7,6,5", in_use=2)

reports = []
gpus = Gpus("all", lambda *report: reports.append(report))
result["count"] = len(gpus)
result["sample"] = {k: v for k, v in gpus.sample().items() if k.startswith("gpu/3/")}

def after(**changes):
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    write_figures(FIGURES, busy_gpus(8) | changed)
    reports.clear()
    samples = [gpus.sample() for _ in range(3)]
    return samples[-1], list(reports)

sample, told = after(
    gpu1__power_mw__error=3, gpu2__temperature_celsius__error=4, gpu4__memory_clock_mhz__error=13
)
denied = ("gpu/1/power_watts", "gpu/2/temperature_celsius", "gpu/4/memory_clock_mhz")
beside = ("gpu/1/utilization_percent", "gpu/2/power_watts", "gpu/3/power_watts")
result["denied"] = [name for name in denied if name in sample]
result["denied beside"] = [name in sample for name in beside]
result["denied told"] = told

lost = [f"gpu5.{figure}.error" for figure in
        ("utilization_percent", "memory_used_bytes", "power_mw", "power_limit_mw", "temperature_celsius",
         "sm_clock_mhz", "memory_clock_mhz", "event_reasons")]
sample, told = after(**{name.replace(".", "__"): 15 for name in lost})
result["lost"] = [k for k in sample if k.startswith("gpu/5/")]
result["others"] = len({k.split("/")[1] for k in sample})
result["lost told"] = told
result["back"] = after()[0].get("gpu/5/utilization_percent")

sample, told = after(
    gpu0__event_reasons=0x1 | 0x4 | 0x40, gpu6__event_reasons__error=13, gpu6__throttle_reasons=0x8,
    gpu7__memory_used_bytes__error=13,
)
result["throttle"] = [sample["gpu/0/throttle"], sample["gpu/1/throttle"], sample["gpu/6/throttle"]]
result["old driver"] = [sample["gpu/7/memory_used_bytes"], told]
gpus.close()
result["closed"] = gpus.sample()

write_figures(FIGURES, busy_gpus(8) | {"gpu1.handle.error": 15})
result["lost at start"] = utilizations("all")
write_figures(FIGURES, busy_gpus(8) | {"init.error": 9})
result["no driver"] = utilizations("all")
write_figures(FIGURES, busy_gpus(8) | {"init.error": 18})
result["mismatch"] = utilizations("all")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(with_gpus: Callable[[str], Any]) -> Any:
    return with_gpus(_SCRIPT)


def test_every_figure_of_a_gpu_has_its_name_and_unit(result: Any) -> None:
    assert result["count"] == 8
    assert result["sample"] == {
        "gpu/3/utilization_percent": 93,
        "gpu/3/memory_used_bytes": 4 * 2**30,
        "gpu/3/memory_total_bytes": 80 * 2**30,
        "gpu/3/power_watts": 350.503,
        "gpu/3/power_limit_watts": 700,
        "gpu/3/temperature_celsius": 63,
        "gpu/3/sm_clock_mhz": 1980,
        "gpu/3/memory_clock_mhz": 2619,
        "gpu/3/throttle": [],
    }


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("unset", [90, 91, 92, 93, 94, 95, 96, 97]),
        ("indices", [92, 90]),
        ("spaces", [91, 93]),
        ("empty", []),
        ("minus one", [91]),
        ("too high", [91]),
        ("uuids", [95, 91]),
        ("ambiguous", []),
        ("mig", [93, 91]),
        ("old mig", [96]),
        ("unknown mig", []),
    ],
)
def test_the_jobs_own_gpus_are_those_of_cuda_visible_devices(result: Any, case: str, expected: list[int]) -> None:
    assert result["visible"][case][0] == expected


def test_all_means_every_gpu_whatever_is_visible_and_none_means_none(result: Any) -> None:
    assert len(result["all"][0]) == 8
    assert result["none"] == [[], []]


def test_gpus_that_no_worker_uses_are_left_out(result: Any) -> None:
    assert result["in use"][0] == [97, 96]


def test_what_is_not_supported_or_not_permitted_is_absent_and_told_once(result: Any) -> None:
    assert result["denied"] == []
    assert result["denied beside"] == [True, True, True]
    assert [what for what, _ in result["denied told"]] == [
        "gpu/1/power_watts",
        "gpu/2/temperature_celsius",
        "gpu/4/memory_clock_mhz",
    ]


def test_a_lost_gpu_makes_a_gap_is_told_once_and_may_come_back(result: Any) -> None:
    assert result["lost"] == []
    assert result["others"] == 7
    assert [what for what, _ in result["lost told"]] == ["gpu/5"]
    assert "lost" in result["lost told"][0][1].lower()
    assert result["back"] == 95


def test_throttle_reasons_are_words_also_with_an_old_driver(result: Any) -> None:
    assert result["throttle"] == [["sw_power_cap", "hw_thermal_slowdown"], [], ["hw_slowdown"]]


def test_an_old_drivers_memory_figure_takes_the_place_of_the_new_one(result: Any) -> None:
    assert result["old driver"] == [8 * 2**30 + 2**29, []]


def test_a_gpu_that_is_lost_at_the_start_is_told_and_leaves_the_others_their_numbers(result: Any) -> None:
    found, reports = result["lost at start"]
    assert found == [90, 92, 93, 94, 95, 96, 97]
    assert [what for what, _ in reports] == ["GPU 1 of the machine"]


def test_a_machine_without_a_driver_has_no_gpus_and_nothing_is_said(result: Any) -> None:
    assert result["no driver"] == [[], []]


def test_a_driver_that_does_not_fit_its_library_is_reported(result: Any) -> None:
    found, reports = result["mismatch"]
    assert found == []
    assert [what for what, _ in reports] == ["NVML"]


def test_after_closing_there_is_nothing_to_sample(result: Any) -> None:
    assert result["closed"] == {}


def test_without_the_library_there_are_no_gpus_and_nothing_is_said(with_gpus: Callable[[str], Any]) -> None:
    script = """
import ctypes, json, os
import pynvml

def absent(name, *args, **kwargs):
    raise OSError(name)

pynvml.CDLL = absent
from trainer.monitor.nvml import Gpus
reports = []
gpus = Gpus("all", lambda *report: reports.append(report))
print(json.dumps([len(gpus), gpus.sample(), reports]))
"""
    assert with_gpus(script) == [0, {}, []]


def test_an_unknown_throttle_bit_is_shown_as_a_number() -> None:
    assert throttle_words(0x8 | 0x800) == ["hw_slowdown", "bit_0x800"]
    assert throttle_words(0x1) == []


def test_no_gpus_are_wanted_where_the_configuration_says_none() -> None:
    assert json.dumps(Gpus("none", lambda *report: pytest.fail(str(report))).sample()) == "{}"
