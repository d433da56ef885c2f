"""Chat templates run in a process with limits: hostile ones hang nothing, honest ones are as in transformers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import serving
from tunesmith.data import templates
from tunesmith.data.templates import TemplateError, TemplateLimitError, render

FIXTURES = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "chat_templates").glob("*.jinja"))
HONEST = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
TURNS = [*HELLO, {"role": "assistant", "content": "naïve 日本 🙂 \ud800"}, {"role": "user", "content": "more"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "endless": ENDLESS,
    "one call that holds the interpreter": "{{ (9 ** (9 ** 9)) % 7 }}",
    "one call that takes all memory": "{{ 'x' * 10 ** 11 }}",
    "memory, bit by bit": "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "endless text": "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
    "text that just fits into memory": "{{ 'x' * 10 ** 7 }}",
    "a program too long to be read": "{# " + "x" * 2**21 + " #}",
    "a filter on a long list": "{{ (('x' * 9 ** 6) | list | tojson) * 99 }}",
}


@pytest.fixture(scope="module", autouse=True)
def limit() -> Iterator[None]:
    """A second for a rendering."""
    templates._close_all()
    templates._idle.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "SECONDS", 1)
        yield
    templates._close_all()
    templates._idle.clear()


@pytest.fixture(autouse=True)
def unknown() -> Iterator[None]:
    """No template is remembered from another test."""
    yield
    templates._refused.clear()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
def test_published_templates_are_rendered_as_in_transformers(path: Path, tools: Any) -> None:
    template = path.read_text(encoding="utf-8")
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    for number in range(1, len(TURNS) + 1):
        for more in (False, True):
            values: dict[str, Any] = {"tools": tools, "add_generation_prompt": more}
            expected = render_jinja_template([TURNS[:number]], chat_template=template, **values, **names)[0][0]
            assert render(template, TURNS[:number], variables=names, **values) == expected


def test_an_error_of_the_template_is_told_and_the_process_stays() -> None:
    assert render(HONEST, HELLO) == "user: hello\n"
    before = list(templates._processes)
    with pytest.raises(TemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", HELLO)
    with pytest.raises(TemplateError):
        render("{% if %}", HELLO)
    with pytest.raises(TemplateError, match="no messages"):
        render(HONEST, [])
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(TemplateError, match="no plain values"):
        render(HONEST, HELLO, tools=nested)
    assert render(HONEST, HELLO) == "user: hello\n" and list(templates._processes) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped_and_refused_from_then_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TemplateLimitError, match="chat template") as first:
        render(HOSTILE[name], HELLO)
    assert first.value.where == "model" and first.value.fix
    assert render(HONEST, HELLO) == "user: hello\n"
    if len(HOSTILE[name]) < templates.TEMPLATE_CHARACTERS:
        monkeypatch.setattr(templates, "_process", None)  # nothing is asked of a process
        with pytest.raises(TemplateLimitError) as second:
            render(HOSTILE[name], TURNS)
        assert second.value is first.value


def test_a_stopped_template_has_another_chance_a_minute_later() -> None:
    with pytest.raises(TemplateLimitError) as first:
        render(HOSTILE["text that just fits into memory"], HELLO)
    first.value.refused_until = 0.0
    with pytest.raises(TemplateLimitError) as second:
        render(HOSTILE["text that just fits into memory"], HELLO)
    assert second.value is not first.value


def test_others_are_rendered_while_a_hostile_one_runs() -> None:
    raised: list[BaseException] = []

    def attack() -> None:
        with pytest.raises(TemplateLimitError, match="took more than") as error:
            render(ENDLESS, HELLO)
        raised.append(error.value)

    thread = threading.Thread(target=attack)
    with templates._process() as one, templates._process() as other:
        for process in (one, other):  # both have started
            process.render(HONEST, {"messages": HELLO})
    thread.start()
    serving.wait_for(lambda: len(templates._idle) < 2)
    rendered = 0
    while thread.is_alive():
        assert render(HONEST, HELLO) == "user: hello\n"
        rendered += 1
    thread.join()
    assert raised and rendered > 1


def test_what_one_sends_may_be_large() -> None:
    long = [{"role": "user", "content": "日" * 3_000_000}]
    assert render(HONEST, long) == f"user: {long[0]['content']}\n"


def test_a_process_that_died_is_replaced() -> None:
    render(HONEST, HELLO)
    templates._idle[-1]._process.kill()
    templates._idle[-1]._process.wait()
    assert render(HONEST, HELLO) == "user: hello\n"


def test_the_process_can_open_nothing_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/limits").is_file():
        pytest.skip("limits of a process are read from /proc")
    monkeypatch.setenv("TUNESMITH_TOKEN", "planted-secret")
    templates._idle.clear()
    render(HONEST, HELLO)
    place = Path(f"/proc/{templates._idle[-1]._process.pid}")
    assert b"planted-secret" not in (place / "environ").read_bytes()
    lines = (place / "limits").read_text().splitlines()
    limits = {line[:25].strip(): line[25:].split()[:2] for line in lines}
    assert limits["Max open files"] == ["3", "3"] and limits["Max file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(templates.MEMORY_BYTES)] * 2
    assert len(list((place / "fd").iterdir())) == 3


def test_a_fork_has_processes_of_its_own() -> None:
    render(HONEST, HELLO)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pid = None if templates._idle else os.getpid()
            text = render(HONEST, HELLO)
            os.write(writing, json.dumps([pid == os.getpid(), text]).encode())
        finally:
            os._exit(0)
    assert render(HONEST, HELLO) == "user: hello\n"
    os.waitpid(child, 0)
    assert json.loads(os.read(reading, 1000)) == [True, "user: hello\n"]


def test_an_endless_template_does_not_outlive_a_killed_parent() -> None:
    code = (
        "import threading, time\nfrom tunesmith.data import templates\n"
        "templates.SECONDS = 1\ntemplates.start()\nprint(templates._idle[0]._process.pid, flush=True)\n"
        f"templates.render({ENDLESS!r}, [{{'role': 'user', 'content': 'a'}}])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        serving.wait_for(lambda: busy(pid))
        parent.send_signal(signal.SIGKILL)
    serving.wait_for(lambda: not alive(pid), 60)


def busy(pid: int) -> bool:
    """Whether a process is past its start: it has taken its files away from itself."""
    return "Max open files            3 " in Path(f"/proc/{pid}/limits").read_text()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_starting_does_not_wait() -> None:
    templates._close_all()
    templates._idle.clear()
    started = time.monotonic()
    templates.start()
    templates.start()
    assert time.monotonic() - started < 5 and len(templates._processes) == 1
