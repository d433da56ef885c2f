"""The upload parser against bytes of all kinds, in pieces of all sizes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.server.errors import ApiError
from tunesmith.server.multipart import Received, clean_filename, receive_form

KIND = "multipart/form-data; boundary=BoUnDaRy"
LIMIT = 10_000
slow = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def receive(folder: Path, body: bytes, cuts: Sequence[int] = (), kind: str | None = KIND) -> Received:
    target = folder / "content"
    target.unlink(missing_ok=True)

    async def chunks() -> AsyncIterator[bytes]:
        places = sorted({min(cut, len(body)) for cut in cuts})
        for start, end in zip([0, *places], [*places, len(body)], strict=True):
            yield body[start:end]

    return asyncio.run(receive_form(chunks(), kind, file_field="file", target=target, limit=LIMIT))


def form(content: bytes, name: str = "a.jsonl", **fields: str) -> bytes:
    parts = [
        f'--BoUnDaRy\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()
    ]
    head = f'--BoUnDaRy\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(parts) + head + content + b"\r\n--BoUnDaRy--\r\n"


@slow
@given(content=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3200), max_size=20))
def test_a_file_arrives_as_it_was_sent(tmp_path: Path, content: bytes, cuts: list[int]) -> None:
    if b"\r\n--BoUnDaRy" in content:
        return
    received = receive(tmp_path, form(content, purpose="fine-tune"), cuts)
    assert (tmp_path / "content").read_bytes() == content
    assert received.bytes == len(content) and received.sha256 == hashlib.sha256(content).hexdigest()
    assert received.md5 == hashlib.md5(content).hexdigest() and received.fields == {"purpose": "fine-tune"}


@slow
@given(body=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=5))
def test_any_bytes_are_taken_or_refused_and_leave_nothing_behind(tmp_path: Path, body: bytes, cuts: list[int]) -> None:
    for sent in (body, b"--BoUnDaRy\r\n" + body, form(b"x")[:60] + body):
        try:
            receive(tmp_path, sent, cuts)
        except ApiError as error:
            assert error.status_code in (400, 413)
            assert list(tmp_path.iterdir()) == []


@slow
@given(end=st.integers(0, 130))
def test_a_body_that_breaks_off_anywhere_is_refused(tmp_path: Path, end: int) -> None:
    body = form(b"some content", purpose="fine-tune")
    whole = body.index(b"--BoUnDaRy--") + len(b"--BoUnDaRy--")
    if end < whole:
        with pytest.raises(ApiError) as refused:
            receive(tmp_path, body[:end])
        assert refused.value.status_code == 400 and list(tmp_path.iterdir()) == []


def test_caps(tmp_path: Path) -> None:
    receive(tmp_path, form(b"x" * LIMIT))
    for body, status in (
        (form(b"x" * (LIMIT + 1)), 413),
        (form(b"x", purpose="y" * 70_000), 413),
        (form(b"x", name="n" * 20_000), 400),
        (form(b"x", **{f"f{n}": "" for n in range(40)}), 400),
        (form(b"x").replace(b"--BoUnDaRy--\r\n", form(b"y")), 400),
    ):
        with pytest.raises(ApiError) as refused:
            receive(tmp_path, body)
        assert refused.value.status_code == status and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [None, "", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"])
def test_other_types(tmp_path: Path, kind: str | None) -> None:
    with pytest.raises(ApiError, match="multipart/form-data"):
        receive(tmp_path, form(b"x"), kind=kind)


@slow
@given(st.text(max_size=300))
def test_filenames_are_for_showing_only(name: str) -> None:
    shown = clean_filename(name)
    assert 0 < len(shown) <= 255 and "/" not in shown and "\\" not in shown and shown.isprintable()
