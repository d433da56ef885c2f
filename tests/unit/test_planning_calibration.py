"""What runs teach later plans, and what does not lead them astray."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.events import Event, StageFinished, Step, Validated
from tunesmith.planning import calibration, hardware, measured
from tunesmith.planning.calibration import Correction, Sample
from tunesmith.planning.costs import NOTHING, Range
from tunesmith.planning.machine import Machine, named
from tunesmith.planning.parallel import of_several
from tunesmith.planning.result import Plan, StagePlan
from tunesmith.planning.table import Part

GB = 1e9


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def sample(**changed: object) -> Sample:
    made = Sample("here", "kind", 100.0, 300.0, 150.0, GB, 1.2 * GB, time.time())
    return dataclasses.replace(made, **changed)  # type: ignore[arg-type]


def test_one_run_corrects_plans_of_its_kind():
    assert calibration.correction("here", "kind") == Correction()
    assert calibration.record(sample())
    found = calibration.correction("here", "kind")
    assert found.seconds == 1.5 and found.sharing == 2.0
    assert found.bytes == pytest.approx((1.2e9 + calibration.MEMORY_NOISE) / (1e9 + calibration.MEMORY_NOISE))
    assert (found.basis, found.samples) == ("same", 1)
    low, expected, high = dataclasses.astuple(found.time_range(10.0))
    assert low < expected == 15.0 < high and high > 2 * 15.0  # the machine was shared, and may be again
    assert calibration.correction("elsewhere", "kind") == Correction()


def test_other_kinds_teach_less():
    calibration.record(sample())
    found = calibration.correction("here", "another")
    assert found.basis == "other" and found.seconds == 1.5 and found.bytes == 1.0
    same, other = (calibration.correction("here", kind).time_range(1.0) for kind in ("kind", "another"))
    assert other.low < same.low and other.high > same.high


def test_one_odd_run_changes_little():
    for seconds in (150.0, 160.0, 140.0, 590.0):
        assert calibration.record(sample(own_seconds=seconds))
    assert calibration.correction("here", "kind").seconds == pytest.approx(1.55)


@pytest.mark.parametrize(
    "odd",
    [
        {"seconds": 4.0},  # too short
        {"own_seconds": 100_000.0},  # suspended for a night
        {"own_seconds": 0.0},
        {"bytes": 1e11},
        {"planned_seconds": 0.0},
    ],
)
def test_what_no_machine_explains_is_not_remembered(odd):
    assert not calibration.record(sample(**odd))
    assert calibration.correction("here", "kind").samples == 0


@pytest.mark.parametrize("content", ["", "{", '{"samples": 3}', '{"samples": [{"machine": "here"}]}', "[]", "\x00"])
def test_a_damaged_file_is_as_none(tmp_path, content):
    path = tmp_path / "cache" / "calibration.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert calibration.correction("here", "kind") == Correction()
    assert calibration.record(sample()) and calibration.correction("here", "kind").samples == 1


def test_small_parts_of_the_memory_teach_little():
    calibration.record(sample(planned_bytes=30e6, bytes=-10e6))
    assert calibration.correction("here", "kind").bytes == pytest.approx(1, abs=0.15)


def test_only_the_newest_are_kept():
    for number in range(calibration.KEPT_SAMPLES + 5):
        calibration.record(sample(own_seconds=100.0 + number))
    calibration.record(sample(kind="another"))
    found = calibration.correction("here", "kind")
    assert found.samples == calibration.KEPT_SAMPLES
    assert found.seconds == pytest.approx((105 + 124) / 200)


def stage(**changed: object) -> StagePlan:
    parts = {
        "process": 0.0,
        "weights": 2 * GB,
        "gradients": 4 * GB,
        "optimizer": 8 * GB,
        "activations": 3 * GB,
        "logits": 0.5 * GB,
        "allocator": 0.5 * GB,
    }
    made = StagePlan(
        name="tune",
        kind="kind",
        trainable=10,
        total=10,
        tokens=1000,
        epoch_tokens=500,
        cut_share=0.0,
        steps=10,
        memory_parts=parts,
        memory=Range(17 * GB, 18 * GB, 19 * GB),
        update_seconds=100.0,
        updates=Range(80.0, 100.0, 130.0),
        validations=NOTHING,
        checkpoint_bytes=0.0,
        disk_bytes=0.0,
        correction=Correction(),
        parts=(Part("layers 0-3", 8, 8), Part("head", 2, 2)),
    )
    return dataclasses.replace(made, **changed)  # type: ignore[arg-type]


def plan_of(one: StagePlan) -> Plan:
    return Plan(10, 10, one.tokens, one.steps, one.memory, one.seconds, True, (), "here", 0, stages=(one,))


def finished(**changed: object) -> StageFinished:
    facts = {"stage": "tune", "step": 10, "best_step": 10, "reason": "done", "seconds": 120.0, "tokens": 1000}
    return StageFinished(**{**facts, "tokens_per_second": 1.0, "peak_memory_bytes": int(18.4 * GB), **changed})


def watched(end: StageFinished, monkeypatch: pytest.MonkeyPatch) -> tuple[measured.Stopwatch, list[Event]]:
    """A stopwatch that saw ten updates of 12 s by the clock and 8 s of two processors, and a validation after each."""
    clock = iter(
        float(second) for second in [0, *(n for k in range(10) for n in (16 + 36 * k, 16 + 36 * k, 36 + 36 * k))]
    )
    monkeypatch.setattr(measured.time, "process_time", lambda: next(clock, 400.0))
    monkeypatch.setattr(measured, "_threads", lambda: 2)
    seen: list[Event] = []
    watch = measured.Stopwatch(seen.append)
    for number in range(10):
        watch(
            Step(
                stage="tune",
                step=number + 1,
                steps=10,
                epoch=1.0,
                loss=1.0,
                learning_rate=1.0,
                grad_norm=1.0,
                tokens=100,
                examples=1,
                seconds=12.0,
                memory_bytes=1,
            )
        )
        watch(Validated(stage="tune", step=number + 1, metrics={}, best=True))
    watch(end)
    return watch, seen


def test_a_run_is_put_beside_its_plan_and_learned_from(monkeypatch, tmp_path):
    watch, seen = watched(finished(), monkeypatch)
    assert len(seen) == 21
    found = watch.compared(plan_of(stage()))
    assert found["seconds"] == 120.0 and found["own_seconds"] == pytest.approx(80.0)  # validations are not updates
    assert found["memory_bytes"] == 18.4 * GB and found["stages"][0]["learned_from"]
    known = calibration.correction("here", "kind")
    assert known.seconds == pytest.approx(0.8) and known.sharing == pytest.approx(1.5)
    noise = calibration.MEMORY_NOISE
    assert known.bytes == pytest.approx((4.4e9 + noise) / (4e9 + noise))
    (tmp_path / "plan.json").write_text(json.dumps({"planned": plan_of(stage()).as_dict(), "measured": found}))
    section = measured.section(tmp_path)
    assert section is not None and section.rows[0] == ["Peak memory", "18 GB", "18.4 GB", "-2%"]
    assert measured.section(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "end", [finished(tokens=100), finished(tokens=2000, seconds=240.0)], ids=["stopped early", "gone on with"]
)
def test_parts_of_runs_teach_nothing(end, monkeypatch):
    watch, _ = watched(end, monkeypatch)
    assert not watch.compared(plan_of(stage(tokens=2000)))["stages"][0]["learned_from"]
    assert calibration.correction("here", "kind").samples == 0


def test_several_devices_follow_the_formulae():
    machine = Machine("gpu", "cuda", 1e12, 1e12, 1e12, 1e9, int(30 * GB), price=2.0, link=1e9)
    ddp, fsdp = of_several(plan_of(stage()), machine, 4)
    assert ddp["memory_bytes_each"] == pytest.approx(18 * GB + 2 * 25 * 2**20)
    assert fsdp["memory_bytes_each"] == pytest.approx(14 * GB / 4 + 2 * 2 * GB / 4 + 4 * GB)
    assert ddp["communication_seconds"] == pytest.approx(10 * 2 * 3 / 4 * 4)
    assert fsdp["communication_seconds"] == pytest.approx(10 * 3 / 4 * (2 * 2 + 4))
    assert ddp["seconds"] == pytest.approx(25 + max(0.3 * 60, 60 - 25)) and ddp["fits"]
    assert ddp["cost_usd"] == pytest.approx(ddp["seconds"] * 4 * 2 / 3600, abs=1e-4)


def test_the_table_of_machines_is_sound():
    for name, entry in hardware.machines().items():
        machine = named(entry)
        assert machine.bf16 > machine.fp32 > 0 and machine.copy > 0 and entry.checked, name
        assert entry.price_per_hour is None or (entry.price_date and entry.price_source.strip()), name


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_users_table_goes_before_the_one_that_comes_with_tunesmith(tmp_path):
    assert hardware.price_of_this() is None
    write(
        tmp_path / "config" / "tunesmith" / "machines.yaml",
        "machines:\n  h100: {price_per_hour: 1.5}\n  this: {price_per_hour: 0.2}\n"
        "  mine: {title: ours, kind: cpu, memory_gb: 8, bandwidth_gb: 20, bf16_tflops: 1, fp32_tflops: 0.5}\n",
    )
    h100 = hardware.find("h100")
    assert h100.price_per_hour == 1.5 and h100.price_note == "your own table" and h100.memory_gb == 80
    assert hardware.find("mine").price_per_hour is None
    this = hardware.price_of_this()
    assert this is not None and this.price_per_hour == 0.2


@pytest.mark.parametrize(
    ("text", "named_in_the_error"),
    [
        ("machines:\n  h100: {price_per_hour: -1}\n", "machines.h100.price_per_hour"),
        ("machines:\n  h100: {price: 1}\n", "machines.h100.price"),
        ("machines:\n  mine: {kind: gpu}\n", "machines.mine.title"),
        ("machines: [1]\n", "no machines"),
        ("machines: {h100: {\n", "no YAML"),
    ],
)
def test_a_wrong_table_is_an_error_with_its_place(tmp_path, text, named_in_the_error):
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(UsageError, match=named_in_the_error) as caught:
        hardware.find("h100", path)
    assert str(path) in str(caught.value.where)


@pytest.mark.parametrize("name", ["mine", "this"])
def test_a_wrong_figure_is_told_with_its_line_and_in_plain_words(tmp_path, name):
    figures = ["    title: ours", "    kind: gpu", "    memory_gb: 8", "    bandwidth_gb: 20", "    fp32_tflops: 0.5"]
    path = write(tmp_path / "mine.yaml", "\n".join(["machines:", f"  {name}:", *figures, "    price_per_hour: -1"]))
    ask = hardware.price_of_this if name == "this" else hardware.machines
    if name == "mine":
        with pytest.raises(UsageError) as caught:
            ask(path)
        assert caught.value.what == "`machines.mine.bf16_tflops` is missing (and 1 more)"
        assert caught.value.where == f"{path}:2" and "add `bf16_tflops: ...`" in str(caught.value.fix)
        write(path, path.read_text() + "\n    bf16_tflops: 1\n")
    with pytest.raises(UsageError, match=f"`machines.{name}.price_per_hour` is -1") as caught:
        ask(path)
    assert caught.value.where == f"{path}:8"


def test_unknown_machines_and_tables_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="h10") as caught:
        hardware.find("h10")
    assert "did you mean `h100`" in str(caught.value.fix)
    with pytest.raises(NotFoundError):
        hardware.find("h100", tmp_path / "nowhere.yaml")


def test_a_table_of_machines_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "machines.yaml"
    path.write_bytes("machines: {b\u00fcro: {}}".encode("latin-1"))
    for ask in (hardware.machines, hardware.price_of_this):
        with pytest.raises(UsageError, match="no UTF-8") as caught:
            ask(path)
        assert caught.value.where == str(path)
