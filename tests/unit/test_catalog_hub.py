"""The hub: its cache without a network, and quick words where it cannot be reached."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest

from tunesmith import catalog
from tunesmith.catalog import cache, hub
from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.events import Progress

ID = "somebody/small-model"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers: the worst kind of unreachable."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)


def snapshot(hub_cache: Path, **files: str) -> Path:
    repository = hub_cache / f"models--{ID.replace('/', '--')}"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("ask", "works", "fails"),
    [(catalog.model_folder, "minilm-l6", "movie-ratings"), (catalog.hub_dataset, "movie-ratings", "minilm-l6")],
)
def test_a_silent_hub_is_said_within_seconds_with_the_offline_choices(
    ask, works, fails, hub_cache, silent_server, monkeypatch
):
    point_to(silent_server, monkeypatch)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=f"{ID} cannot be fetched") as caught:
        ask(ID)
    assert time.monotonic() - started < 5
    assert works in str(caught.value.fix) and "tunesmith catalog" in str(caught.value.fix)
    assert fails not in str(caught.value.fix)


def test_a_model_below_a_folder_may_have_been_meant_as_a_path(hub_cache, monkeypatch, tmp_path):
    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    with pytest.raises(ResourceError, match=f"there is no folder '{ID}' here, and {ID} cannot be fetched"):
        catalog.model_folder(ID)


def test_offline_mode_is_said_at_once(hub_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ResourceError, match="cannot be fetched"):
        catalog.model_folder(ID)


def test_a_whole_cached_model_needs_no_hub(hub_cache, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)  # nobody listens on the discard port
    folder = snapshot(hub_cache, config__json="{}", model__safetensors="weights")
    assert catalog.model_folder(ID) == folder


def test_half_a_cached_model_does_not_count(hub_cache, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)
    folder = snapshot(hub_cache, config__json="{}")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    (folder / "1.safetensors").write_text("x")
    with pytest.raises(ResourceError, match="cannot be fetched"):
        catalog.model_folder(ID)
    (folder / "2.safetensors").write_text("x")
    assert catalog.model_folder(ID) == folder


def test_a_model_is_here_if_the_cache_holds_it_whole(hub_cache, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)
    folder = snapshot(hub_cache, config__json="{}")
    assert catalog.model_here(ID) is None
    (folder / "model.safetensors").write_text("weights")
    assert catalog.model_here(ID) == folder
    assert catalog.model_here("somebody/small--model") is None, "the hub has no such names"
    assert catalog.model_here("somebody/small-model.gguf") is None


def test_a_model_the_hub_does_not_have(hub_cache, monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        with pytest.raises(NotFoundError, match="the hub has no model somebody/small-model"):
            catalog.model_folder(ID)
        server.shutdown()


@pytest.fixture
def asked(monkeypatch):
    """What the hub's library is asked for; it answers with what the test puts in."""
    import datasets

    calls: dict = {"raise": None}

    def load_dataset(*positional, **named):
        calls["with"] = (positional, named)
        if calls["raise"] is not None:
            raise ValueError(calls["raise"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "probe", lambda name, kind: calls.update(probed=name))
    return calls


@pytest.mark.parametrize(
    ("name", "config", "split"),
    [
        ("hub:somebody/reviews", None, "train"),
        ("hub:somebody/reviews:test", None, "test"),
        ("hub:somebody/reviews/sst2", "sst2", "train"),
        ("hub:somebody/reviews/20220301.en:validation", "20220301.en", "validation"),
    ],
)
def test_a_data_set_may_have_a_configuration_and_a_split(asked, name, config, split):
    catalog.hub_dataset(name)
    assert asked["probed"] == "somebody/reviews"
    assert asked["with"] == (("somebody/reviews", config), {"split": split, "streaming": True})


@pytest.mark.parametrize(
    ("reason", "what", "fix"),
    [
        ("Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']\nExample of usage:\n"
         "\t`load_dataset('a', 'cola')`", "several configurations", "(cola, sst2): hub:somebody/reviews/CONFIG"),
        ("BuilderConfig 'x' not found. Available: ['cola', 'sst2']", "no such configuration", "(cola, sst2): hub:"),
        ("Bad split: train. Available splits: ['test']", "no split 'train'", "(test): hub:somebody/reviews/x:SPLIT"),
    ],
)  # fmt: skip
def test_an_unknown_configuration_or_split_lists_the_known(asked, reason, what, fix):
    asked["raise"] = reason
    with pytest.raises(NotFoundError) as caught:
        catalog.hub_dataset("hub:somebody/reviews/x")
    assert what in caught.value.what and fix in str(caught.value.fix)
    assert caught.value.where == "hub:somebody/reviews/x"


def test_names_of_data_sets():
    for name in ("hub:a/b/c/d", "hub:a/b/", "hub:a/b/../c", "hub:plain"):
        with pytest.raises(UsageError, match="hub:owner/name/config"):
            catalog.hub_dataset(name)
    with pytest.raises(UsageError, match="hub:owner/name"):
        catalog.hub_dataset("hub:../../etc")
    assert hub.is_id("a/b.c-d_e") and not hub.is_id("a/b/c") and not hub.is_id("../x") and not hub.is_id("plain")


# --- downloading ---------------------------------------------------------------------------------------------------

COMMIT = "1" * 40
FILES = {
    "config.json": b"{}",
    "model-1.safetensors": bytes(300_000),
    "model-2.safetensors": bytes(200_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "pytorch_model.bin": bytes(1000),
}


class SmallHub(BaseHTTPRequestHandler):
    """As much of the hub's API as a download of one model takes."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path == f"/api/models/{ID}" or path.startswith(f"/api/models/{ID}/revision/"):
            content = self.json({"id": ID, "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        elif path.startswith(f"/api/models/{ID}/tree/"):
            content = self.json(
                [{"type": "file", "path": n, "size": len(data), "oid": self.etag(n)} for n, data in FILES.items()]
            )
        elif path == f"/{ID}/resolve/{COMMIT}/{name}" and name in FILES:
            content = FILES[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{self.etag(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def json(self, value: object) -> bytes:
        return json.dumps(value).encode()

    def etag(self, name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def small_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), SmallHub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        point_to(address, monkeypatch)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield
        server.shutdown()


@pytest.mark.parametrize("bars", ["on", "off"])
def test_a_download_tells_its_bytes(bars, hub_cache, small_hub, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1" if bars == "off" else "")  # as the command line has it, and as Python may
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    events: list[Progress] = []
    folder = catalog.model_folder(ID, on_event=events.append)
    assert folder.name == COMMIT and not (folder / "pytorch_model.bin").exists()
    wanted = sum(len(data) for name, data in FILES.items() if not name.endswith(".bin"))
    assert (events[0].done, events[0].total) == (0, None)
    known = [event for event in events if event.total is not None]
    assert {event.total for event in known} == {wanted} and {event.unit for event in events} == {"bytes"}
    done = [event.done for event in known]
    assert done == sorted(done) and done[-1] == wanted and len(done) > 8
    assert any(0 < count < wanted for count in done)
    assert capsys.readouterr().err == ""


def test_files_that_came_completely_stay_and_do_not_count_again(hub_cache, small_hub):
    folder = catalog.model_folder(ID)
    second = folder / "model-2.safetensors"
    second.resolve().unlink()
    second.unlink()
    events: list[Progress] = []
    assert catalog.model_folder(ID, on_event=events.append) == folder
    assert events[-1].done == events[-1].total == len(FILES["model-2.safetensors"])


def test_a_snapshot_of_the_cache_goes_by_its_id_and_commit(tmp_path):
    base = tmp_path / "hub" / f"models--{ID.replace('/', '--')}" / "snapshots" / COMMIT
    assert catalog.reference_of(base) == (ID, COMMIT)
    for other in (tmp_path, base.parent, tmp_path / "models" / "snapshots" / COMMIT, tmp_path / "minilm-l6"):
        assert catalog.reference_of(other) == (None, None)
    assert catalog.reference_of(cache.root() / "model" / "minilm-l6") == ("minilm-l6", None)


# --- questions with little patience --------------------------------------------------------------------------------


def test_a_question_over_the_network_ends_in_time():
    def refuse() -> None:
        raise OSError("no route")

    assert hub.problem_of(lambda: "an answer", 5) is None
    assert str(hub.problem_of(refuse, 5)) == "no route"
    assert "no answer within 0.1 s" in str(hub.problem_of(lambda: time.sleep(2), 0.1))
