"""Facts of the machine: one count of cores for the record of runs and for the doctor."""

from __future__ import annotations

import os

import pytest

from tunesmith import doctor, environment


def limited(monkeypatch: pytest.MonkeyPatch, cores: int, **files: str) -> None:
    """A machine of so many cores, in a container of these limits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    read = environment._read
    monkeypatch.setattr(
        environment, "_read", lambda path: files.get(path.rsplit("/", 1)[-1].partition(".")[0], read(path))
    )


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8), ("", 8)]
)
def test_cores_are_those_that_the_container_may_use(quota: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 8, cpu=quota)
    assert environment.usable_cores() == doctor.hardware()["cores"] == cores
    assert environment.machine()["cores"] == str(cores)


@pytest.mark.parametrize(("limit", "least"), [("1000000\n", True), ("max\n", False), ("", False)])
def test_memory_is_what_the_container_may_use(limit: str, least: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 8, memory=limit)
    assert (environment.usable_memory() == doctor.hardware()["memory_bytes"] == 1_000_000) is least


def test_the_processor_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 8, cpuinfo="processor\t: 0\nmodel name\t: Fast One\nprocessor\t: 1\nmodel name\t: Other\n")
    assert environment.processor() == doctor.hardware()["processor"] == "Fast One"
    assert environment.machine()["processor"].startswith("Fast One")
