"""Who created and deleted what: ``audit.jsonl`` in the data folder, which only grows."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

from tunesmith.server.auth import Principal

log = logging.getLogger("tunesmith.server")


class Audit:
    """The audit log of a data folder."""

    def __init__(self, data: Path) -> None:
        self.path = data / "audit.jsonl"
        self._lock = threading.Lock()

    def __call__(self, who: Principal, action: str, thing: str, **more: object) -> None:
        """Write one line: ``who`` (token and project) did ``action`` (``create file``) to ``thing`` (an id)."""
        entry = {"time": time.time(), "token": who.name, "owner": who.owner, "action": action, "thing": thing, **more}
        line = (json.dumps(entry, ensure_ascii=False, default=str) + "\n").encode()
        with self._lock:  # one write call a line, appended: lines of several servers do not mix
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
