"""The two pages: whole in themselves, without a token but without data, and right in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

import serving
from tunesmith.server.app import create_app
from tunesmith.server.database import EventRow, JobRow
from tunesmith.server.settings import Settings

JOB = "ftjob-" + "a" * 24


def make(folder: Path, model: Path, **more: Any) -> FastAPI:
    return create_app(Settings(data=folder / "data", models=serving.models_file(folder, model), workers=0, **more))


@pytest.mark.parametrize("path", ["/dashboard", "/docs"])
def test_a_page_loads_nothing_and_needs_no_token(tmp_path: Path, tiny_decoder: Path, path: str) -> None:
    with TestClient(make(tmp_path, tiny_decoder, token=SecretStr("x")), base_url="http://127.0.0.1:8000") as client:
        answer = client.get(path)
        assert answer.status_code == 200
        assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", answer.text)
        policy = answer.headers["content-security-policy"]
        nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
        assert nonce and policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert set(re.findall(r'nonce="([^"]*)"', answer.text)) == {nonce[1]}
        assert nonce[1] not in client.get(path).text  # a new one each time
        assert client.get("/", follow_redirects=False).headers["location"] == "/dashboard"


@pytest.fixture
def address(tmp_path: Path, tiny_decoder: Path) -> Any:
    """A server with a finished job whose texts try to be markup."""
    app = make(tmp_path, tiny_decoder)
    row = dict(
        id=JOB, owner="local", created_at=1.0, finished_at=2.0, status="succeeded", model="gpt-tiny", seed=0,
        training_file="file-x", method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        fine_tuned_model="ft:gpt-tiny:local::aaaaaaaa", result_files=[],
    )  # fmt: skip
    events = [
        (f"Step {n}/4: training loss={n}", {"step": n, "train_loss": 5.0 - n, "total_steps": 4}) for n in (1, 2, 3, 4)
    ]
    events.append(("<img src=x onerror=document.title='caught'>", {"step": 4, "valid_loss": 2.0}))
    with app.state.services.database.write() as session:
        session.add(JobRow(**row))
        for number, (message, data) in enumerate(events):
            more: Any = dict(id=f"e{number}", job_id=JOB, created_at=1.0, level="info", type="metrics")
            session.add(EventRow(**more, message=message, data=data))
    with serving.serving(app) as address:
        yield address


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
def test_in_a_browser(address: str, tmp_path: Path) -> None:
    job = shown(f"{address}/dashboard#{JOB}", tmp_path)
    row = re.search(r'<tr [^>]*data-id="([^"]+)".*?</tr>', job)
    assert row and row[1] == JOB and 'aria-selected="true"' in row[0] and "ft:gpt-tiny:local::aaaaaaaa" in row[0]
    assert "n_epochs 3" in job and job.count("<circle") == 1
    line = re.search(r'<polyline class="train" points="([^"]+)"', job)
    assert line and len(line[1].split()) == 4
    assert "<title>Tunesmith: jobs</title>" in job and "&lt;img src=x" in job  # text stays text
    docs = shown(f"{address}/docs", tmp_path)
    assert docs.count("<details") > 30 and "training_file: string" in docs


def shown(url: str, folder: Path) -> str:
    """The page as it is once its scripts have run."""
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
