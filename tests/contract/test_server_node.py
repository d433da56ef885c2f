"""The same flow with OpenAI's client for Node. The package is fetched once into the user's cache, pinned."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import serving
from serving import chat_rows, jsonl

VERSION = "6.49.0"
SCRIPT = """
import OpenAI, { toFile, APIError } from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const rows = process.argv[3];
const file = await client.files.create({ file: await toFile(Buffer.from(rows), "train.jsonl"), purpose: "fine-tune" });
let job = await client.fineTuning.jobs.create({
  model: "gpt-tiny", training_file: file.id, suffix: "node",
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1 } } },
});
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((done) => setTimeout(done, 200));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 3 })) events.push(event.message);
const checkpoints = [];
for await (const found of client.fineTuning.jobs.checkpoints.list(job.id)) checkpoints.push(found.step_number);
const results = Buffer.from(await (await client.files.content(job.result_files[0])).text(), "base64").toString();
let refused = null;
try { await client.fineTuning.jobs.retrieve("ftjob-absent"); } catch (error) {
  refused = [error instanceof APIError, error.status, error.code];
}
const upload = await client.uploads.create(
  { bytes: 4, filename: "u.jsonl", mime_type: "text/jsonl", purpose: "fine-tune" });
const part = await client.uploads.parts.create(upload.id, { data: await toFile(Buffer.from("abcd"), "part") });
const whole = await client.uploads.complete(upload.id, { part_ids: [part.id] });
console.log(JSON.stringify({ job, events, checkpoints, results, refused, upload: whole.file.bytes }));
"""


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """A folder in which Node finds the package."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tunesmith-tests" / f"openai-{VERSION}"
    if not (cache / "node_modules" / "openai" / "package.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "package.json").write_text('{"private": true, "type": "module"}')
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", f"openai@{VERSION}"]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=180)
        if done.returncode:
            pytest.skip(f"npm cannot fetch openai@{VERSION}: {done.stderr.strip().splitlines()[-1:]}")
    return cache


def test_the_guides_flow_in_node(node_modules: Path, tmp_path: Path, tiny_decoder: Path) -> None:
    script = node_modules / f"flow-{os.getpid()}.mjs"
    script.write_text(SCRIPT)
    try:
        with serving.server(tmp_path / "data", tiny_decoder) as address:
            command = ["node", str(script), f"{address}/v1", jsonl(chat_rows(12)).decode()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["job"]["status"] == "succeeded"
    assert said["job"]["fine_tuned_model"].startswith("ft:gpt-tiny:local:node:")
    assert said["events"][0] == "The job has successfully completed"
    assert said["events"][-1] == f"Created fine-tuning job: {said['job']['id']}"
    assert said["checkpoints"] == [3] and said["results"].startswith("step,train_loss")
    assert said["refused"] == [True, 404, "fine_tune_not_found"] and said["upload"] == 4
