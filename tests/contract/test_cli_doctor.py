"""The doctor: facts that are measured, and findings that follow from them."""

from __future__ import annotations

import copy
import http.server
import json
import socket
import threading
from typing import Any

import pytest

from tunesmith import doctor
from tunesmith.cli import main

HEALTHY: dict[str, dict[str, Any]] = {
    "hardware": {"cores": 4, "memory_free_bytes": 32e9, "gpus": []},
    "disk": {
        "here": "/here", "here_free_bytes": 1e12, "cache": "/cache", "cache_free_bytes": 1e12, "cache_writable": True
    },
    "hub": {"reachable": True, "seconds": 0.1},
    "speed": {
        "device": "cpu", "threads": 4, "fp32_gflops": 200, "bf16_gflops": 800,
        "bf16_over_fp32": 4.0, "precision": "bf16",
        "fresh_over_kept_memory": 1.0
    },
}  # fmt: skip


def findings(section: str, **changes: Any) -> list[doctor.Finding]:
    sections = copy.deepcopy(HEALTHY)
    sections[section] |= changes
    return [*doctor._about_speed(sections), *doctor._about_room(sections)]


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(doctor, "_hyperthreads", lambda cores: False)


def test_a_healthy_machine_has_no_findings() -> None:
    assert findings("speed") == []


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("speed", {"bf16_over_fp32": 0.3}, "takes bf16, but it is slower"),
        ("speed", {"bf16_over_fp32": 0.3, "precision": "fp32"}, "bf16 is slower than fp32"),
        ("speed", {"threads": 1}, "uses 1 threads, but 4 cores"),
        ("speed", {"threads": 16}, "16 threads on 4 cores"),
        ("speed", {"fresh_over_kept_memory": 7.0}, "7.0 times as long"),
        ("hardware", {"memory_free_bytes": 1e9}, "only 1 GB of memory"),
        ("disk", {"here_free_bytes": 2e9}, "only 2 GB of disk are free in /here"),
        ("disk", {"cache_free_bytes": 2e9}, "only 2 GB of disk are free in /cache"),
        ("disk", {"cache_writable": False}, "cannot be written"),
        ("hub", {"reachable": False, "why": "no route"}, "hub does not answer"),
    ],
)
def test_each_trouble_is_found_with_its_remedy(section: str, changes: dict[str, Any], words: str) -> None:
    [found] = findings(section, **changes)
    assert words in found.what
    assert found.why and found.fix


def test_a_driver_without_a_gpu_in_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    [found] = findings("speed")
    assert "torch sees no GPU" in found.what


class NotFound(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_hub_that_answers_with_any_status_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        assert doctor.hub(5.0)["reachable"] is True
    finally:
        server.shutdown()
        server.server_close()


def test_a_hub_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        found = doctor.hub(0.3)
    assert found["reachable"] is False and found["why"]


def test_a_hub_that_talks_nonsense_is_not_taken_for_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"nonsense\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        found = doctor.hub(5.0)
    assert found["reachable"] is False and "nonsense" in found["why"]


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert doctor.hub() == {"reachable": False, "why": "HF_HUB_OFFLINE is set"}


def test_the_command_prints_all_sections(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"hardware", "versions", "disk", "hub", "speed", "findings"}
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_bytes"] > 1e8
    assert found["speed"]["fp32_gflops"] > 0 and found["versions"]["torch"] != "absent"
    assert any("hub" in finding["what"] for finding in found["findings"])


def test_a_kernel_that_books_other_threads_late_does_not_make_the_processor_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads work; the time of the second is booked every 20 ms, so that most timings see the first alone."""
    import time

    import torch

    now = time.perf_counter
    monkeypatch.setattr(doctor.time, "process_time", lambda: now() + now() // 0.02 * 0.02)
    found = doctor.best_seconds(lambda: time.sleep(0.002), torch.device("cpu"), threads=2)
    assert 0.0019 < found < 0.004
