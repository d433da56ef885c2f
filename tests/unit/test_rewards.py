"""Rewards: rules, functions, graders and their sandbox, and what happens when one misbehaves."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from tunesmith import rewards
from tunesmith.errors import DataError, RecipeError, RewardError
from tunesmith.prediction import preferences
from tunesmith.prediction.predicting import predict
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Generation, RewardSource
from tunesmith.rewards import runs as of_run
from tunesmith.rewards.sandbox import call_grade
from tunesmith.tasks import TASKS


def answers(*texts: str, reference: str = "The answer is 1,234.", **fields: Any) -> list[rewards.Answered]:
    rows = tiny.rows_of([{"prompt": "q", "completion": reference, **fields} for _ in texts])
    return [
        rewards.Answered([{"role": "user", "content": "q"}], text, reference, row, [1, 2])
        for text, row in zip(texts, rows, strict=True)
    ]


def score(given: list[rewards.Answered], **source: Any) -> list[float]:
    return list(rewards.make([RewardSource(**source)])(given))


def test_rules() -> None:
    assert score(answers("so 1234", "12", "no", "1234.5"), kind="number") == [1, 0, 0, 0]
    assert score(answers(" the ANSWER is 1,234.", "1,234"), kind="exact") == [1, 0]
    assert score(answers("x = 3", "x"), kind="regex", pattern=r"= \d") == [1, 0]
    schema = {"type": "object", "required": ["a"]}
    assert score(answers('{"a": 1}', "{}", "no"), kind="json", json_schema=schema) == [1, 0, 0]
    assert score(answers("{}", "no", "[" * 100_000), kind="json") == [1, 0, 0]


def test_sources_are_added_up_by_weight() -> None:
    both = rewards.make([RewardSource(kind="number", weight=2), RewardSource(kind="regex", pattern="so", weight=-0.5)])
    assert list(both(answers("so 1234", "1234", "so"))) == [1.5, 2, -0.5]


@pytest.mark.parametrize(
    "source", [{"kind": "regex"}, {"kind": "run"}, {"kind": "python"}, {"kind": "http"}, {"kind": "grader"}]
)
def test_what_a_source_needs_is_asked_for(source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs"):
        RewardSource(**source)


FUNCTIONS = """
import time
def lengths(answers): return [len(a["text"]) + len(a["tokens"]) for a in answers]
def nan(answers): return [float("nan") for a in answers]
def few(answers): return [1.0]
def raising(answers): raise KeyError("gone")
def hanging(answers): time.sleep(30)
def text(answers): return ["good" for a in answers]
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return path


def test_a_function_of_the_users_own(functions: Path) -> None:
    assert score(answers("abc", ""), kind="python", function=f"{functions}:lengths") == [5, 2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nan", "nan for the answer 'abc'"),
        ("few", "1 values for 2 answers"),
        ("raising", "raised KeyError"),
        ("hanging", "longer than 0.2 s"),
        ("text", "'good' for the answer"),
    ],
)
def test_a_function_that_misbehaves_is_named_with_the_row(functions: Path, name: str, words: str) -> None:
    with pytest.raises(RewardError, match=words) as caught:
        score(answers("abc", "d"), kind="python", function=f"{functions}:{name}", timeout=0.2)
    assert str(caught.value.where) == "rows.jsonl:1"


def test_a_function_that_is_not_there(tmp_path: Path, functions: Path) -> None:
    for spec in (f"{tmp_path}/none.py:f", f"{functions}:none", "lengths"):
        with pytest.raises(RecipeError, match=r"no (Python file|function)"):
            rewards.make([RewardSource(kind="python", function=spec)])


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["answers"]
            reply = json.dumps({"rewards": [len(a["text"]) for a in given]} if self.path == "/good" else {}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_that_answers(address: str) -> None:
    assert score(answers("abc", ""), kind="http", url=f"{address}/good") == [3, 0]
    with pytest.raises(RewardError, match="did not answer as it should"):
        score(answers("abc"), kind="http", url=f"{address}/bad")
    with pytest.raises(RecipeError, match="neither https nor on this machine"):
        rewards.make([RewardSource(kind="http", url="http://example.com/score")])


def grade(grader: dict[str, Any], *texts: str, timeout: float = 20.0, **fields: Any) -> list[float]:
    return score(answers(*texts, **fields), kind="grader", grader=grader, timeout=timeout)


ANSWER, WANTED = "{{ sample.output_text }}", "{{ item.wanted }}"


def test_graders_of_openai() -> None:
    check = {"type": "string_check", "input": ANSWER, "reference": WANTED}
    assert grade(check | {"operation": "eq"}, "Yes", "yes", wanted="Yes") == [1, 0]
    assert grade(check | {"operation": "ne"}, "Yes", "yes", wanted="Yes") == [0, 1]
    assert grade(check | {"operation": "ilike"}, "oh yes!", "no", wanted="Yes") == [1, 0]
    assert grade(check | {"operation": "like"}, "oh yes!", wanted="Yes") == [0]
    similar = {"type": "text_similarity", "input": ANSWER, "reference": WANTED}
    assert grade(similar | {"evaluation_metric": "fuzzy_match"}, "abcd", "abxx", wanted="abcd") == [1, 0.5]
    assert grade(similar | {"evaluation_metric": "rouge_1"}, "a cat sat", wanted="a cat ran") == [pytest.approx(2 / 3)]
    bleu = grade(similar | {"evaluation_metric": "bleu"}, "the cat sat on the mat", wanted="the cat sat on the mat")
    assert bleu == [pytest.approx(1.0)]
    both = {"type": "multi", "graders": {"a": check | {"operation": "eq"}, "b": check | {"operation": "ilike"}}}
    assert grade(both | {"calculate_output": "0.25 * a + max(b, 0) / 2"}, "Yes", "yes", wanted="Yes") == [0.75, 0.5]
    named = "floor(a + 0.5) + ceil(b / 2) + sqrt(4 * a) + log(exp(b))"
    assert grade(both | {"calculate_output": named}, "Yes", "yes", wanted="Yes") == [5, 2]


@pytest.mark.parametrize(
    ("grader", "words"),
    [
        ({"type": "label_model"}, "label_model"),
        ({"type": "string_check", "operation": "is"}, "operation"),
        ({"type": "text_similarity", "evaluation_metric": "meteor"}, "meteor"),
        ({"type": "multi", "graders": {}, "calculate_output": "__import__('os')"}, "not understood"),
        ({"type": "multi", "graders": {}, "calculate_output": "1 +"}, "calculate_output"),
    ],
)
def test_graders_that_cannot_run_are_refused_before_anything_is_written(grader: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        rewards.make([RewardSource(kind="grader", grader=grader)])


def test_a_grader_that_asks_for_a_field_that_is_not_there() -> None:
    with pytest.raises(RewardError, match=r"item\.wanted"):
        grade({"type": "string_check", "operation": "eq", "input": ANSWER, "reference": WANTED}, "x")


def test_a_python_grader() -> None:
    source = "import math\ndef grade(sample, item):\n    return math.sqrt(len(sample['output_text'])) + item['bonus']"
    assert grade({"type": "python", "source": source}, "abcd", bonus=1) == [3.0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("while True: pass", "longer than"),
        ("return 'good'", "failed"),
        ("raise ValueError('no')", "no"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket"),
        ("import subprocess; subprocess.run(['ls'])", "not do this"),
        ("open('/tmp/tunesmith-grader', 'w')", "write files"),
        ("x = 'a' * 10**10", "failed"),
    ],
)
def test_a_python_grader_that_does_what_it_must_not(body: str, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        call_grade(f"def grade(sample, item):\n    {body}", {"output_text": ""}, {}, timeout=1.5)


def test_graders_look_at_parts_of_json_and_at_what_came_with_the_prompt() -> None:
    check = {
        "type": "string_check",
        "operation": "eq",
        "input": "{{sample.output_json.a.b}}",
        "reference": "{{item.n}}",
    }
    given = ['{"a": {"b": 3}}', '{"a": {"b": [3]}}', '{"a": 3}', "no json"]
    assert grade(check, *given, item={"n": 3}) == [1, 0, 0, 0]
    assert grade(check | {"reference": ""}, *given) == [0, 0, 1, 1]  # what is not there is empty
    source = "def grade(sample, item): return sample['output_json']['a'] * item['n']"
    assert grade({"type": "python", "source": source}, '{"a": 2}', item={"n": 3}) == [6]
    with pytest.raises(RewardError, match=r"sample\.reasoning"):
        grade(check | {"input": "{{sample.reasoning}}"}, "x", item={"n": 3})


PROGRAM = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."


def test_programs_are_worth_the_share_of_tests_that_they_pass() -> None:
    tests = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add(1, 1) == 3", "assert add(1) == 1"]
    texts = [PROGRAM, "def add(a, b): return 3", "no program", "```\nadd = lambda a, b: a + b\n```", ""]
    assert score(answers(*texts, tests=tests), kind="tests") == [0.5, 0.5, 0, 0.5, 0]
    assert score(answers(PROGRAM, tests="assert add(1, 2) == 3\nassert add(2, 2) == 4"), kind="tests") == [1]
    assert score(answers(PROGRAM, item={"tests": tests[:1]}), kind="tests") == [1]  # as rows of prompts have it


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "raise SystemExit(0)",
        "import os; print('1.0'); os._exit(0)",
        "import atexit; atexit.register(print, '1.0'); raise SystemExit",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "x = 'a' * 10**10",
        "import sys; sys.stdout.buffer.write(b'\\xff\\n'); sys.stdout.flush(); raise SystemExit",
        "while True: print('x' * 10**6)",
    ],
)
def test_programs_that_cheat_or_hang_are_worth_nothing(program: str) -> None:
    assert score(answers(program, tests=["assert False"]), kind="tests", timeout=1.5) == [0]


def test_a_program_that_writes_no_text_is_still_judged_by_its_tests() -> None:
    program = "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe\\n')\nsys.stdout.flush()\ndef add(a, b): return a + b"
    assert score(answers(program, tests=["assert add(1, 2) == 3"]), kind="tests") == [1]


def test_a_row_without_tests_is_named() -> None:
    with pytest.raises(RewardError, match="no `tests`") as caught:
        score(answers(PROGRAM), kind="tests")
    assert caught.value.where == "rows.jsonl:1"


def test_a_reward_model_reads_the_tools_that_it_learned_with(tiny_decoder: Path) -> None:
    """As a judge of pairs, of answers to a prompt, and of what it is given to score."""
    model = tiny.build(tiny_decoder, "classify", labels=["score"])
    model.tokenizer.chat_template = "{{ tools[0].function.name }}" + model.tokenizer.chat_template
    tools, texts = [{"type": "function", "function": {"name": "search"}}], ["the film is great", "awful"]
    asked = {"messages": [{"role": "user", "content": "q"}], "tools": tools}
    pair = {"input": asked} | {
        f"{name}preferred_output": [{"role": "assistant", "content": text}]
        for name, text in zip(("", "non_"), texts, strict=True)
    }
    setting = Setting(TASKS["preference"], None, None, Generation())
    gap = preferences.judge(model, tiny.rows_of([pair]), setting).gaps
    assert gap is not None and gap[0]
    better, worse = of_run.score(model, answers(*texts, tools=tools), None)
    assert better - worse == pytest.approx(gap[0])
    notes: Any = SimpleNamespace(task="preference")
    rows = [{"prompt": "q", "completion": text, "tools": tools} for text in texts]
    predicted = predict(model, notes, rows, Generation())
    assert [float(one.answer) for one in predicted] == pytest.approx([better, worse], rel=1e-4)
    with pytest.raises(DataError, match="must be a function"):
        predict(model, notes, [{**rows[0], "tools": ["search"]}], Generation())


def judge(decoder: Path, **more: Any) -> dict[str, Any]:
    turns = [{"role": "system", "content": "You grade films."}, {"role": "user", "content": f"Grade: {ANSWER}"}]
    return {"type": "score_model", "name": "judge", "model": str(decoder), "input": turns, **more}


def test_a_model_as_the_judge_gives_its_expected_grade(tiny_decoder: Path) -> None:
    """By hand: the likelihoods of the grades, from plain transformers, normalised."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    [found] = grade(judge(tiny_decoder, range=[1, 3]), "a fine film")
    tokenizer, network = AutoTokenizer.from_pretrained(tiny_decoder), AutoModelForCausalLM.from_pretrained(tiny_decoder)
    turns = [
        {"role": "system", "content": "You grade films."},
        {"role": "user", "content": "Grade: a fine film\n\nAnswer with a number from 1 to 3 alone."},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    nats = []
    for number in "123":
        ids = [*prompt, *tokenizer(number, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logs = network(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        nats.append(sum(logs[place - 1, ids[place]] for place in range(len(prompt), len(ids))))
    expected = torch.softmax(torch.stack(nats), 0) @ torch.tensor([1.0, 2.0, 3.0])
    assert found == pytest.approx(float(expected), abs=2e-2)  # computed here in the machine's own precision
    several = grade(judge(tiny_decoder), "a fine film", "dull", "a fine film")
    assert several[0] == several[2] and all(0 <= value <= 1 for value in several)
    both = {"type": "multi", "graders": {"j": judge(tiny_decoder)}, "calculate_output": "2 * j"}
    assert grade(both, "a fine film", "dull") == [pytest.approx(2 * value, abs=1e-2) for value in several[:2]]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"range": [1, 0]}, "range"), ({"input": []}, "needs `input`"), ({"model": ""}, "needs `model`")],
)
def test_a_malformed_model_judge_is_refused(tiny_decoder: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        grade(judge(tiny_decoder) | change, "x")


def test_an_encoder_cannot_be_asked_for_a_grade(tiny_encoder: Path) -> None:
    with pytest.raises(RecipeError, match="no causal language model"):
        grade(judge(tiny_encoder), "x")
