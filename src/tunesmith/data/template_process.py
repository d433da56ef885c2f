"""The process that renders chat templates: :mod:`tunesmith.data.templates` runs this file, with a socket as its input.

It imports what transformers renders with, then takes away from itself what a template must not have: files and
sockets, the machine's memory, and more time for a rendering than is allowed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from multiprocessing.connection import Connection
from typing import Any

ERROR_CHARACTERS = 2000
OUTPUT_AT_LEAST, OUTPUT_PER_BYTE = 200_000, 8
"""Characters of a rendering: so many, and so many more for each byte that is to be rendered."""
USED_LATER = ("encodings.unicode_escape", "jinja2.constants", "jinja2.debug", "pprint", "textwrap", "unicodedata")
"""What Python and Jinja import when a template first needs it: no file can be opened by then."""


def main(memory_bytes: int, seconds: int) -> None:
    """Answer requests until the other side is gone.

    Args:
        memory_bytes: Limit of the address space.
        seconds: Limit of the processor time of one rendering; a second more may pass.
    """
    import resource

    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    for name in USED_LATER:
        importlib.import_module(name)
    with contextlib.suppress(TemplateError):
        render_jinja_template([[{"role": "user", "content": "a"}]], chat_template="{{ raise_exception('\\n') }}")
    for number, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 3),  # the socket and two that lead nowhere: nothing more can be opened
    ):
        hard = resource.getrlimit(number)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(number, (limit, limit))
    asker = Connection(0)
    asker.send_bytes(b"ready")
    templates: dict[int, str] = {}
    while True:
        try:
            asked = asker.recv_bytes()
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        asker.send_bytes(json.dumps(_answer(asked, templates, render_jinja_template)).encode())


def _answer(asked: bytes, templates: dict[int, str], render: Any) -> dict[str, str]:
    """The ``text``, the ``error`` of the template, or the ``limit`` that it went beyond."""
    try:
        keys = json.loads(asked)
        number, template = keys.pop("number"), keys.pop("template", None)
        if template is not None:
            templates[number] = template
        texts, _ = render([keys.pop("messages")], chat_template=templates[number], **keys)
    except MemoryError:
        return {"limit": "memory"}
    except Exception as error:  # a template is a program of the model's author and may raise anything
        return {"error": str(error)[:ERROR_CHARACTERS]}
    text: str = texts[0]
    return {"text": text} if len(text) <= OUTPUT_AT_LEAST + OUTPUT_PER_BYTE * len(asked) else {"limit": "output"}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
