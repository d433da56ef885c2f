"""Which rows a model is measured on, and that it is said where validation rows stand in for test rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from tunesmith.data.prepare import PreparedData
from tunesmith.data.rows import Row
from tunesmith.evaluation import judge_stages, stage_gains
from tunesmith.evaluation.held_out import WRITTEN_LIMIT, held_out, rows_to_measure, some_rows
from tunesmith.evaluation.sequence import measure_sequence
from tunesmith.events import Notice
from tunesmith.recipe_file import parse


def rows(count: int) -> list[Row]:
    return tiny.rows_of([{"prompt": f"question {n}", "completion": "answer"} for n in range(count)])


def data(*, validation: Sequence[Row] = (), test: Sequence[Row] = ()) -> PreparedData:
    report: Any = None
    return PreparedData(train=rows(5), validation=validation, test=test, labels=None, report=report, fingerprint="f")


def warnings(events: tiny.Events) -> list[str]:
    return [notice.message for notice in events.of(Notice) if notice.level == "warning"]


def test_validation_rows_stand_in_for_test_rows_with_a_warning() -> None:
    events = tiny.Events()
    assert held_out(data(validation=rows(3), test=rows(2)), events) == rows(2) and not warnings(events)
    assert held_out(data(validation=rows(3)), events, stage="first") == rows(3)
    [message] = warnings(events)
    assert message.startswith("stage first: there are no test rows: measuring on the validation rows")
    assert held_out(data(), events) == [] and len(warnings(events)) == 1


def test_some_rows_are_the_same_in_any_order() -> None:
    whole = rows(20)
    assert some_rows(whole, 5) == some_rows(whole[::-1], 5) and len(some_rows(whole, 5)) == 5
    assert some_rows(whole, None) == some_rows(whole, 20) == whole


def test_what_is_written_is_measured_on_few_rows_and_it_is_said() -> None:
    events = tiny.Events()
    recipe = parse({"task": "text-generation", "model": "m"})
    found = rows_to_measure(recipe, data(test=rows(WRITTEN_LIMIT + 1)), events)
    assert len(found) == WRITTEN_LIMIT
    assert [notice.message for notice in events.of(Notice)] == ["measuring on 200 of 201 test rows (`evaluate.limit`)"]


def test_a_sequence_says_for_each_stage_that_validation_stands_in(tmp_path: Path) -> None:
    events = tiny.Events()
    keys = {"task": "text-generation", "model": "m", "method": "sequential"}
    recipe = parse(keys | {"stages": [{"name": name, "data": {"train": "a"}} for name in ("one", "two")]}).resolved()
    assert measure_sequence(tmp_path, recipe, [data(validation=rows(2)), data()], events) is None
    substitute, unmeasured = warnings(events)
    assert substitute.startswith("stage one: there are no test rows") and unmeasured.endswith("no test rows for two")


def test_stages_of_text_and_of_judges_say_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object, **more: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(stage_gains, "load_artefact", stop)
    monkeypatch.setattr(judge_stages, "load_artefact", stop)
    task, events = {"task": "text-generation", "model": "m"}, tiny.Events()
    kept = [data(validation=rows(2)), data(test=rows(2))]
    text = parse(task | {"stages": [{"name": "text", "objective": "causal-lm", "data": {"train": "a"}}, {"name": "b"}]})
    with pytest.raises(InterruptedError):
        stage_gains.stage_gains(tmp_path, text.resolved(), tmp_path, kept, events)
    judged = parse(task | {"method": "rlhf", "data": {"train": "a", "preferences": "b"}}).resolved()
    stages = [data(test=rows(2)), data(validation=rows(2)), data(test=rows(2))]
    made = {stage.name: tmp_path for stage in judged.stages}
    with pytest.raises(InterruptedError):
        judge_stages.stage_judges(judged, made, stages, events)
    assert [message.partition(":")[0] for message in warnings(events)] == ["stage text", "stage reward"]
