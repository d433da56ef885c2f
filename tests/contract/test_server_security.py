"""Each row of what went wrong in other servers: who gets in, from where, with how much, and what is told to whom."""

from __future__ import annotations

import gzip
import hmac
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.testclient import TestClient

from serving import QUICK, chat_rows, jsonl, models_file
from tunesmith.cli import main
from tunesmith.errors import UsageError
from tunesmith.server import auth
from tunesmith.server.app import create_app
from tunesmith.server.audit import Audit
from tunesmith.server.settings import Settings

HERE = "http://127.0.0.1:8000"
SECRET = "planted-secret-9f8e7d"


def make(folder: Path, model: Path, **more: Any) -> FastAPI:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"data": folder / "data", "models": models_file(folder, model), "workers": 0, **QUICK, **more}
    return create_app(Settings(**settings))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_decoder: Path) -> FastAPI:
    limits = {"max_file_bytes": 100_000, "max_body_bytes": 50_000, "max_unpacked_ratio": 50}
    return make(tmp_path_factory.mktemp("security"), tiny_decoder, token=SecretStr(SECRET), **limits)


@pytest.fixture(scope="module")
def folder(app: FastAPI) -> Path:
    return app.state.services.settings.data


@pytest.fixture(scope="module")
def tokens(app: FastAPI) -> dict[str, str]:
    """Tokens of two projects, and one that may only use models."""
    store = app.state.services.tokens
    made = {"a": store.add("a", ["tune"]), "b": store.add("b", ["tune"]), "reader": store.add("reader", ["infer"])}
    return {name: token.get_secret_value() for name, token in made.items()} | {"admin": SECRET}


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


def as_user(tokens: dict[str, str], name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {tokens[name]}"}


def send_file(client: TestClient, headers: dict[str, str], content: bytes = b"{}", name: str = "a.jsonl") -> Any:
    return client.post("/v1/files", headers=headers, files={"file": (name, content)}, data={"purpose": "fine-tune"})


# --- who gets in -------------------------------------------------------------------------------


def scopes(dependant: Dependant) -> set[str]:
    """The scopes that a route asks for, found among all its dependencies."""
    found = {scope for scope in (getattr(dependant.call, "scope", None),) if scope}
    return found.union(*(scopes(inner) for inner in dependant.dependencies)) if dependant.dependencies else found


def routes(app: FastAPI) -> list[Any]:
    """Every route, however deep routers are nested."""

    def walk(entries: Any) -> Iterator[Any]:
        for route in entries:
            inner = getattr(route, "routes", None)
            router = getattr(route, "original_router", None)
            if inner:
                yield from walk(inner)
            elif router is not None:
                yield from walk(router.routes)
            else:
                yield route

    return list(walk(app.router.routes))


def test_every_route_needs_a_token_and_names_its_scope(app: FastAPI, client: TestClient) -> None:
    seen = 0
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            url = re.sub(r"\{[^}]*\}", "x", path)
            response = client.request(method.upper(), url)
            if path in auth.PUBLIC:
                assert response.status_code == 200, path
                continue
            seen += 1
            assert response.status_code == 401, (method, path)
            assert response.json()["error"]["code"] == "missing_api_key"
    assert seen >= 20
    guarded = [route for route in routes(app) if isinstance(route, APIRoute) and route.path not in auth.PUBLIC]
    assert len(guarded) >= seen and all(scopes(route.dependant) for route in guarded), [r.path for r in guarded]
    others = {getattr(route, "path", repr(route)) for route in routes(app) if not isinstance(route, APIRoute)}
    assert others <= auth.PUBLIC  # no mounts, no web sockets
    for unknown in ("/v1/nothing", "/openai/files", "/ajax-api/2.0/jobs", "//v1/files", "/v1/../v1/files"):
        assert client.get(unknown).status_code in (401, 404) and client.get(unknown).status_code != 200


def test_scopes(client: TestClient, tokens: dict[str, str]) -> None:
    assert client.get("/v1/files", headers=as_user(tokens, "a")).status_code == 200
    assert client.get("/v1/files", headers={"api-key": tokens["a"]}).status_code == 200  # as Azure's clients send it
    assert client.get("/v1/files", headers=as_user(tokens, "reader")).status_code == 403
    assert client.get("/metrics", headers=as_user(tokens, "a")).status_code == 403
    assert client.get("/metrics", headers=as_user(tokens, "admin")).status_code == 200


def test_metrics_are_prometheus_and_count_no_ids(client: TestClient, tokens: dict[str, str]) -> None:
    def samples() -> dict[tuple[str, str, str], float]:
        text = client.get("/metrics", headers=as_user(tokens, "admin")).text
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(s.name, s.labels.get("route", ""), s.labels.get("status", "")): s.value for s in found}

    before = samples()
    file = send_file(client, as_user(tokens, "a"), b"four").json()["id"]
    client.get(f"/v1/files/{file}", headers=as_user(tokens, "a"))
    after = samples()
    shown = ("tunesmith_requests_total", "/v1/files/{file_id}", "200")
    assert after[shown] == before.get(shown, 0) + 1
    assert after["tunesmith_files", "", ""] == before["tunesmith_files", "", ""] + 1
    assert after["tunesmith_file_bytes", "", ""] == before["tunesmith_file_bytes", "", ""] + 4
    assert ("tunesmith_jobs", "", "running") in after and ("tunesmith_answers_waiting", "", "") in after
    assert not any(file in label for key in after for label in key)


def test_tokens_are_kept_as_hashes_and_revoked_at_once(
    app: FastAPI, client: TestClient, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["serve", "token", "add", "gone", "--scope", "tune", "--data", str(folder), "--json"]) == 0
    token = json.loads(capsys.readouterr().out)["token"]
    assert token not in (folder / "tokens.json").read_text()
    assert stat.S_IMODE((folder / "tokens.json").stat().st_mode) == 0o600
    assert client.get("/v1/files", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert main.run(["serve", "token", "list", "--data", str(folder), "--json"]) == 0
    listed = capsys.readouterr().out
    assert '"gone"' in listed and token not in listed and "sha256" not in listed
    assert main.run(["serve", "token", "revoke", "gone", "--data", str(folder)]) == 0
    assert client.get("/v1/files", headers={"authorization": f"Bearer {token}"}).status_code == 401
    assert main.run(["serve", "token", "add", "../x", "--scope", "tune", "--data", str(folder)]) == 2
    assert main.run(["serve", "token", "add", "x", "--scope", "root", "--data", str(folder)]) == 2


def test_comparison_takes_the_same_time_for_all(app: FastAPI, tokens: dict[str, str], monkeypatch: Any) -> None:
    """Every stored hash is compared, by the function that is made for it, whichever fits."""
    compared: list[str] = []

    def compare(first: str, second: str) -> bool:
        compared.append(first)
        return hmac.compare_digest(first, second)

    monkeypatch.setattr(auth, "hmac", SimpleNamespace(compare_digest=compare))
    store = app.state.services.tokens
    counts = []
    for token in (SECRET, tokens["a"], tokens["reader"], "wrong"):
        compared.clear()
        store.principal(token)
        counts.append(len(compared))
    assert counts == [len(store.all()) + 1] * 4


def test_guessing_is_slowed_down(tmp_path: Path, tiny_decoder: Path) -> None:
    app = make(tmp_path, tiny_decoder, token=SecretStr(SECRET))
    with TestClient(app, base_url=HERE) as client:
        answers = [client.get("/v1/files", headers={"authorization": f"Bearer {n}"}) for n in range(12)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) <= 61
        assert client.get("/v1/files", headers={"authorization": f"Bearer {SECRET}"}).status_code == 429
        assert client.get("/health").status_code == 200


# --- from where --------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_an_open_bind_needs_a_token(tmp_path: Path, tiny_decoder: Path, host: str) -> None:
    with pytest.raises(UsageError, match="no token is set"):
        make(tmp_path, tiny_decoder, host=host)
    make(tmp_path, tiny_decoder, host=host, token=SecretStr("x"))


def test_an_open_bind_stays_shut_when_its_last_token_is_revoked(tmp_path: Path, tiny_decoder: Path) -> None:
    data = tmp_path / "data"
    token = auth.Tokens(data).add("only", ["tune"]).get_secret_value()
    app = make(tmp_path, tiny_decoder, host="0.0.0.0")
    with TestClient(app, base_url=HERE) as client:
        theirs = {"authorization": f"Bearer {token}"}
        assert client.get("/v1/files", headers=theirs).status_code == 200
        app.state.services.tokens.revoke("only")
        assert client.get("/v1/files").status_code == client.get("/v1/files", headers=theirs).status_code == 401
        (data / "tokens.json").unlink()
        assert client.get("/v1/files").status_code == 401


def test_the_default_bind_is_loopback(tmp_path: Path) -> None:
    assert Settings(data=tmp_path).is_loopback
    assert main.run(["serve", "--host", "0.0.0.0", "--data", str(tmp_path), "--workers", "0"]) == 2


def test_host_and_origin(tmp_path: Path, tiny_decoder: Path) -> None:
    app = make(tmp_path, tiny_decoder, allowed_hosts=("tune.example",))
    with TestClient(app, base_url=HERE) as client:

        def status(**headers: str) -> int:
            return client.get("/v1/files", headers=headers).status_code

        assert status() == 200
        assert status(host="localhost:8000") == status(host="[::1]:8000") == status(host="tune.example") == 200
        assert status(host="evil.example") == status(host="") == 403  # DNS rebinding
        assert status(host="127.0.0.1.evil.example") == 403
        assert status(origin="http://127.0.0.1:8000") == 200
        assert status(origin="https://tune.example") == 200
        assert status(origin="http://evil.example") == status(origin="null") == status(origin="file://") == 403
        assert status(origin="http://127.0.0.1:9999") == 403  # another server's page on this machine
        answer = client.options("/v1/files", headers={"origin": HERE, "access-control-request-method": "POST"})
        assert "access-control-allow-origin" not in answer.headers


# --- whose -------------------------------------------------------------------------------------


def test_what_belongs_to_others_does_not_exist(client: TestClient, tokens: dict[str, str]) -> None:
    mine = as_user(tokens, "a")
    file = send_file(client, mine, jsonl(chat_rows(12))).json()["id"]
    job = client.post("/v1/fine_tuning/jobs", headers=mine, json={"model": "gpt-tiny", "training_file": file}).json()
    theirs = as_user(tokens, "b")
    absent = client.get("/v1/files/file-absent", headers=theirs).json()["error"]
    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
        answer = client.get(path, headers=theirs)
        assert answer.status_code == 404
        assert answer.json()["error"] == absent | {"message": absent["message"].replace("file-absent", file)}
    assert client.delete(f"/v1/files/{file}", headers=theirs).status_code == 404
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}", headers=theirs).status_code == 404
    for action in ("cancel", "pause", "resume"):
        assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/{action}", headers=theirs).status_code == 404
    for more in ("events", "checkpoints"):
        assert client.get(f"/v1/fine_tuning/jobs/{job['id']}/{more}", headers=theirs).status_code == 404
    stolen = client.post("/v1/fine_tuning/jobs", headers=theirs, json={"model": "gpt-tiny", "training_file": file})
    assert stolen.status_code == 400 and stolen.json()["error"]["code"] == "invalid_file"
    assert client.get("/v1/files", headers=theirs).json()["data"] == []
    assert client.get("/v1/fine_tuning/jobs", headers=theirs).json()["data"] == []
    admin = client.get("/v1/files", headers=as_user(tokens, "admin")).json()["data"]
    assert file in [entry["id"] for entry in admin]
    upload = client.post(
        "/v1/uploads", headers=mine,
        json={"bytes": 3, "filename": "u", "mime_type": "text/plain", "purpose": "batch"},
    ).json()["id"]  # fmt: skip
    for action, body in (("cancel", None), ("complete", {"part_ids": ["part_" + "0" * 24]})):
        assert client.post(f"/v1/uploads/{upload}/{action}", headers=theirs, json=body).status_code == 404


@pytest.mark.parametrize(
    "name", ["../tokens.json", "..%2Ftokens.json", "%2e%2e/tokens.json", "file-1/../../tokens.json"]
)
def test_no_path_leads_out(client: TestClient, tokens: dict[str, str], name: str) -> None:
    for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/fine_tuning/jobs/{name}"):
        answer = client.get(path, headers=as_user(tokens, "admin"))
        assert answer.status_code == 404 and "sha256" not in answer.text


def test_ids_are_the_servers(client: TestClient, tokens: dict[str, str]) -> None:
    answer = send_file(client, as_user(tokens, "a"), name="../../../etc/cron.d/x")
    assert re.fullmatch(r"file-[0-9a-f]{24}", answer.json()["id"]) and answer.json()["filename"] == "x"


# --- how much ----------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in (folder / "files").iterdir() if path.name.startswith(".")]


def test_a_file_over_the_cap(client: TestClient, tokens: dict[str, str], folder: Path) -> None:
    before = len(list((folder / "files").iterdir()))
    answer = send_file(client, as_user(tokens, "a"), b"x" * 100_001)
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "invalid_request_error"
    assert len(list((folder / "files").iterdir())) == before


def test_a_bomb(client: TestClient, tokens: dict[str, str], folder: Path) -> None:
    """Small to send, large to unpack; and one that is cut."""
    headers = as_user(tokens, "a")
    assert send_file(client, headers, gzip.compress(b"\0" * 50_000_000), "b.jsonl.gz").status_code == 413
    assert send_file(client, headers, gzip.compress(jsonl(chat_rows(50)))[:-9], "b.jsonl.gz").status_code == 400
    assert send_file(client, headers, gzip.compress(jsonl(chat_rows(50))), "b.jsonl.gz").status_code == 200
    assert leftovers(folder) == []


def test_a_body_over_the_cap(client: TestClient, tokens: dict[str, str]) -> None:
    headers = as_user(tokens, "a")
    body = {"model": "x" * 60_000, "training_file": "f"}
    assert client.post("/v1/fine_tuning/jobs", headers=headers, json=body).status_code == 413

    def chunks() -> Iterator[bytes]:  # no Content-Length
        for _ in range(60):
            yield b" " * 1000

    assert client.post("/v1/fine_tuning/jobs", headers=headers, content=chunks()).status_code == 413
    packed = {"content-encoding": "gzip", **headers}
    assert client.post("/v1/fine_tuning/jobs", headers=packed, content=gzip.compress(b"{}")).status_code == 415


def test_an_upload_that_breaks_off_leaves_nothing(client: TestClient, tokens: dict[str, str], folder: Path) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
    headers = as_user(tokens, "a") | {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/files", headers=headers, content=body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "incomplete_body"
    assert leftovers(folder) == []


def test_a_disk_that_fills(client: TestClient, tokens: dict[str, str], folder: Path, monkeypatch: Any) -> None:
    """507 in OpenAI's form, no half file, and the server goes on."""
    import errno

    from tunesmith.server import storage

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = client.get("/v1/files", headers=as_user(tokens, "a")).json()
    with monkeypatch.context() as patch:
        patch.setattr(storage.disk, "flush", full)
        answer = send_file(client, as_user(tokens, "a"))
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "insufficient_storage"
    assert answer.headers["x-should-retry"] == "false"
    assert leftovers(folder) == [] and client.get("/v1/files", headers=as_user(tokens, "a")).json() == before


# --- what is told ------------------------------------------------------------------------------


def test_a_planted_secret_is_nowhere(
    client: TestClient, tokens: dict[str, str], folder: Path, caplog: Any, capfd: Any
) -> None:
    with caplog.at_level("DEBUG"):
        send_file(client, as_user(tokens, "admin"))
        client.get("/v1/files/none", headers=as_user(tokens, "admin"))
        client.get("/v1/files", headers={"authorization": f"Bearer {SECRET}x"})
    secrets = [SECRET, *tokens.values()]
    captured = capfd.readouterr()
    texts = [caplog.text, captured.out, captured.err, repr(Settings(data=folder, token=SecretStr(SECRET)))]
    texts += [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    assert not [text[:80] for text in texts for secret in secrets if secret in text]


def test_the_audit_log_says_who_did_what(client: TestClient, tokens: dict[str, str], folder: Path) -> None:
    file = send_file(client, as_user(tokens, "a")).json()["id"]
    client.delete(f"/v1/files/{file}", headers=as_user(tokens, "a"))
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    found = [(line["token"], line["action"]) for line in lines if line["thing"] == file]
    assert found == [("a", "create file"), ("a", "delete file")]


def test_a_defect_tells_nothing(tmp_path: Path, tiny_decoder: Path, monkeypatch: Any) -> None:
    app = make(tmp_path, tiny_decoder)

    def broken(*values: Any, **more: Any) -> None:
        raise RuntimeError("inner words")

    monkeypatch.setattr(Audit, "__call__", broken)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        answer = send_file(client, {})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert "inner words" not in answer.text


def test_no_request_field_turns_remote_code_on(client: TestClient, tokens: dict[str, str]) -> None:
    body = {"model": "gpt-tiny", "training_file": "x", "trust_remote_code": True}
    answer = client.post("/v1/fine_tuning/jobs", headers=as_user(tokens, "a"), json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "trust_remote_code"


CODE = re.compile(
    r"shell=True|\bpickle\.|joblib|torch\.load\(|(?<![.\w])(?:eval|exec)\(|os\.system\(|trust_remote_code=True"
)
ALLOWED = {
    "catalog/models.py": 'torch.load(Path(scratch) / member, map_location="cpu", weights_only=True)',
    "rewards/sandbox.py": "exec(code, names)",  # a grader's Python, in a process of its own
}


def test_nothing_is_handed_to_a_shell_unpickled_or_evaluated() -> None:
    root = Path(auth.__file__).parents[1]
    for source in root.rglob("*.py"):
        text, name = source.read_text(), source.relative_to(root).as_posix()
        assert not CODE.search(text.replace(ALLOWED.get(name, "\0"), "")), name


def test_code_of_a_request_runs_only_where_the_server_was_told_so(tmp_path: Path, tiny_decoder: Path) -> None:
    """And then without files, network or other programs."""
    path = "/v1/fine_tuning/alpha/graders/run"
    wrote = tmp_path / "written"
    sources = {
        "good": "def grade(sample, item): return len(sample['output_text']) / item['n']",
        "writes": f"def grade(sample, item): open({str(wrote)!r}, 'w'); return 1",
        "shell": "import os\ndef grade(sample, item): return os.system('true')",
        "network": "import socket\ndef grade(sample, item): socket.create_connection(('127.0.0.1', 1)); return 1",
    }

    def body(name: str) -> dict[str, Any]:
        grader = {"type": "python", "name": name, "source": sources[name]}
        return {"grader": grader, "model_sample": "four", "item": {"n": 8}}

    with TestClient(make(tmp_path / "closed", tiny_decoder), base_url=HERE) as client:
        answer = client.post(path, json=body("good"))
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported_grader"
        multi = {"type": "multi", "name": "m", "graders": {"a": body("good")["grader"]}, "calculate_output": "a"}
        method = {"type": "reinforcement", "reinforcement": {"grader": multi}}
        job = {"model": "gpt-tiny", "training_file": "file-0", "method": method}
        assert client.post("/v1/fine_tuning/jobs", json=job).json()["error"]["code"] == "unsupported_grader"
    with TestClient(make(tmp_path / "open", tiny_decoder, python_graders=True), base_url=HERE) as client:
        assert client.post(path, json=body("good")).json()["reward"] == 0.5
        for name in ("writes", "shell", "network"):
            answer = client.post(path, json=body(name)).json()
            errors = answer["metadata"]["errors"]
            assert answer["reward"] == 0 and errors["python_grader_runtime_error"], name
            assert "may not" in errors["python_grader_runtime_error_details"]
        assert not wrote.exists()
