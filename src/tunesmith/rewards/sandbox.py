"""Running a grader's Python in a process of its own: killed when it takes too long, without network or new files.

The process gets limits of the kernel (time, memory, file size, processes) and an audit hook that refuses sockets,
other programs, and files opened for writing. This stops accidents and simple mischief; code that someone hostile
wrote wants a machine of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from typing import IO, Any

from tunesmith.errors import RewardError

MEMORY_BYTES = 512 * 2**20
OUTPUT_BYTES = 16 * 2**20
"""Most that a program may print."""
LONGEST_LINE = 2**16
_CHILD = """
import json, resource, sys
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
import math, re, string, statistics, difflib, fractions, decimal, datetime, collections, itertools, functools, random
def refuse(event, args):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill",
                         "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.",
                         "ctypes.", "pty.", "signal.")):
        raise PermissionError(f"a grader may not do this: {event}")
    if event == "open" and (not isinstance(args[1], str) or set(args[1]) & set("wax+")) and args[1] is not None:
        raise PermissionError("a grader may not write files")
def main():
    given = json.load(sys.stdin)
    code = compile(given["source"], "grader", "exec")
    mark = given.pop("mark")
    sys.addaudithook(refuse)
    names = {"__name__": "grader"}
    exec(code, names)
    print("\\n" + mark, json.dumps(float(names["grade"](given["sample"], given["item"]))))
main()
"""

PASSED_TESTS = """
def grade(sample, item):
    passed = 0
    for test in item["tests"]:
        names = {"__name__": "program"}
        try:
            for code in (sample["output_text"], test):
                exec(code, names)
        except BaseException:
            continue
        passed += 1
    return passed / len(item["tests"])
"""
"""A grader: the share of the tests that a program passes, each beside a fresh run of it."""


def call_grade(source: str, sample: dict[str, Any], item: dict[str, Any], timeout: float) -> float:
    """Run ``grade(sample, item)`` of a grader's source.

    Raises:
        RewardError: It raised, took longer than ``timeout`` seconds, or gave no number.
    """
    mark = secrets.token_hex(16)  # what the source prints itself is not taken for its grade
    given = json.dumps({"source": source, "sample": sample, "item": item, "mark": mark}, default=str)
    limits = [MEMORY_BYTES, int(timeout) + 2, OUTPUT_BYTES]
    command = [sys.executable, "-I", "-c", _CHILD, *map(str, limits)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:  # whatever is written, memory stays small
        try:
            done = subprocess.run(command, input=given.encode(), stdout=out, stderr=errors, timeout=timeout, env={})
        except subprocess.TimeoutExpired as error:
            raise RewardError(f"the Python grader took longer than {timeout:g} s", fix="raise `timeout`") from error
        said, _, value = _last_line(out).partition(" ")
        reason = _last_line(errors) or f"exit code {done.returncode}"
    if done.returncode != 0 or said != mark:
        raise RewardError(f"the Python grader failed: {reason}", fix="its `grade(sample, item)` must return a number")
    return float(json.loads(value))


def _last_line(file: IO[bytes]) -> str:
    """The end of what was written, or the end of that."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE))
    return (file.read().decode("utf-8", "replace").strip().splitlines() or [""])[-1]
