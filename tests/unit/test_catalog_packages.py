"""Downloads through a real pip, from an index that is a local folder."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tunesmith import disk
from tunesmith.catalog import Entry, PinnedFile, packages
from tunesmith.errors import ResourceError
from tunesmith.events import Event, Notice, Progress


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def pinned(path: Path, package: str = "tuning-sample") -> PinnedFile:
    data = path.read_bytes()
    return PinnedFile(package, "1.0", path.name, hashlib.sha256(data).hexdigest(), len(data))


def entry(*files: PinnedFile) -> Entry:
    return Entry("sample", "data", "a sample", "MIT", files, "nowhere:none")


def make_wheel(index: Path) -> Path:
    path = index / "tuning_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tuning_sample/data.txt", "hello")
        archive.writestr(
            "tuning_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tuning-sample\nVersion: 1.0\n"
        )
        archive.writestr(
            "tuning_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tuning_sample-1.0.dist-info/RECORD", "")
    return path


def test_a_wheel_arrives_and_is_fetched_once(index: Path):
    file = pinned(make_wheel(index))
    events: list[Event] = []
    paths = packages.fetch(entry(file), events.append)
    assert disk.sha256(paths[0]) == file.sha256
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == file.size_bytes
    (index / file.filename).unlink()
    assert packages.fetch(entry(file)) == paths  # kept: no index is needed any more
    assert [path.name for path in packages.folder().iterdir()] == [file.filename]


def test_a_source_archive_arrives_without_its_setup_being_run(index: Path, tmp_path: Path):
    marker = tmp_path / "setup-was-run"
    code = f"open({str(marker)!r}, 'w').close()\n"
    code += "from setuptools import setup\nsetup(name='tuning-sample', version='1.0')\n"
    path = index / "tuning-sample-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (
            ("setup.py", code),
            ("PKG-INFO", "Metadata-Version: 1.0\nName: tuning-sample\nVersion: 1.0\n"),
        ):
            info = tarfile.TarInfo(f"tuning-sample-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    paths = packages.fetch(entry(pinned(path)))
    assert paths[0].read_bytes() == path.read_bytes()
    assert not marker.exists()


def test_other_bytes_than_the_pinned_are_refused(index: Path):
    file = pinned(make_wheel(index))
    (index / file.filename).write_bytes((index / file.filename).read_bytes() + b"\0")
    with pytest.raises(ResourceError, match=r"could not download tuning-sample 1\.0") as caught:
        packages.fetch(entry(file))
    assert file.sha256 in str(caught.value.fix) and "--upgrade pip" in str(caught.value.fix)
    assert list(packages.folder().iterdir()) == []


def test_what_the_index_lacks_is_named(index: Path):
    file = PinnedFile("tuning-sample", "1.0", "tuning_sample-1.0-py3-none-any.whl", "0" * 64, 10)
    with pytest.raises(ResourceError, match="No matching distribution"):
        packages.fetch(entry(file))


def test_a_damaged_download_is_fetched_again(index: Path):
    file = pinned(make_wheel(index))
    packages.folder().mkdir(parents=True)
    (packages.folder() / file.filename).write_bytes(b"half")
    (packages.folder() / f".partial-{file.filename}").mkdir()
    events: list[Event] = []
    paths = packages.fetch(entry(file), events.append)
    assert disk.sha256(paths[0]) == file.sha256
    assert any(isinstance(event, Notice) and "damaged" in event.message for event in events)


def test_only_large_downloads_are_discarded(index: Path, monkeypatch: pytest.MonkeyPatch):
    sample = entry(pinned(make_wheel(index)))
    path = packages.fetch(sample)[0]
    packages.discard(sample)
    assert path.exists()
    monkeypatch.setattr(packages, "SMALL_BYTES", 10)
    packages.discard(sample)
    assert not path.exists()


def test_pip_is_asked_to_go_on_where_a_connection_broke(index: Path, monkeypatch: pytest.MonkeyPatch):
    settings: list[str] = []
    start = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        settings.append(options["env"]["PIP_RESUME_RETRIES"])
        return start(*arguments, **options)

    monkeypatch.setattr(packages.subprocess, "Popen", popen)
    sample = entry(pinned(make_wheel(index)))
    for own in (None, "0"):
        if own is not None:
            monkeypatch.setenv("PIP_RESUME_RETRIES", own)
        path = packages.fetch(sample)[0]
        path.unlink()
    assert settings == [packages.RESUMES, "0"]


def test_what_pip_has_in_its_own_cache_does_not_come_over_the_network_again(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wheel = make_wheel(index)
    asked: list[str] = []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            page = f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode()
            content = wheel.read_bytes() if self.path.startswith("/files/") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if content is page else "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            if content is not page:
                self.send_header("Cache-Control", "max-age=31536000, immutable")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        for _ in range(2):
            [path] = packages.fetch(entry(pinned(wheel)))
            path.unlink()  # as after a kill before it was moved into place
        server.shutdown()
    assert len([path for path in asked if path.startswith("/files/")]) == 1
