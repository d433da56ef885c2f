"""The catalog without a network: names, terms, the cache folder, archives, corpora."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from tunesmith import catalog
from tunesmith.catalog import cache, corpora, models, packages, terms
from tunesmith.errors import NotFoundError, RecipeError, ResourceError, TunesmithError, UsageError
from tunesmith.events import Event, Notice
from tunesmith.recipe_file import parse


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(terms.ACCEPT_VARIABLE, raising=False)
    return tmp_path / "cache"


# --- names -------------------------------------------------------------------------------------------------------


def test_every_entry_is_pinned_and_has_a_builder():
    names = [entry.name for entry in catalog.entries()]
    assert len(names) == len(set(names)) == 13
    for entry in catalog.entries():
        assert entry.what and entry.licence
        module, _, function = entry.build.partition(":")
        assert callable(getattr(import_module(module), function))
        for file in entry.packages:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.version in file.filename and file.size_bytes > 0


def test_the_catalog_imports_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "numpy", "sklearn", "huggingface_hub")
    code = f"import sys, tunesmith.catalog; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(NotFoundError, match="did you mean 'smollm2-135m-instruct'"):
        catalog.model_folder("smollm2-135m-instrct")
    with pytest.raises(NotFoundError, match=r"the catalog has:.*minilm-l6"):
        catalog.model_folder("zzz")
    assert catalog.data_files("reviews.csv") is None
    assert catalog.data_files("minilm-l6") is None


def test_folders_and_files_as_models(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"config\.json is missing"):
        catalog.model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert catalog.model_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match=r"folder or a \.gguf file"):
        catalog.model_folder(str(tmp_path / "config.json"))
    with pytest.raises(NotFoundError, match=r"there is no file .*absent"):
        catalog.model_folder(str(tmp_path / "absent.gguf"))
    (tmp_path / "fake.gguf").write_bytes(b"PK\x03\x04 not at all")
    with pytest.raises(ResourceError, match="not a GGUF file"):
        catalog.model_folder(str(tmp_path / "fake.gguf"))
    with pytest.raises(UsageError, match="is data, no model"):
        catalog.model_folder("movie-ratings")


def test_what_lies_among_runs_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of runs is no owner on the hub; any other folder may bear the name of one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/reviews", "kept/reviews", "my runs/reviews"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "recipe.yaml").write_text("task: chat\n")
    for name, meant in (("runs/reviewz", "runs/reviews"), ("./my runs/reviws", "my runs/reviews")):
        said = f"there is no run '{Path(name)}'"
        with pytest.raises(NotFoundError, match=said) as caught:
            catalog.model_folder(name)
        assert caught.value.fix == f"did you mean '{meant}'?"
        with pytest.raises(RecipeError, match=said) as refused:
            catalog.require_models({"model": "somebody/small-model", "stages.0.model": name})
        assert refused.value.where == "stages.0.model"
    with pytest.raises(NotFoundError) as caught:
        catalog.model_folder("./my runs/other")
    assert caught.value.fix == "list the runs with `tunesmith runs list --root 'my runs'`"
    catalog.require_models({"model": "kept/small-model"})  # may be on the hub


def test_the_home_of_nobody_is_a_path_that_leads_nowhere():
    name = "~there-is-no-such-user/x"
    for find in (catalog.model_folder, lambda name: catalog.require_models({"model": name})):
        with pytest.raises(TunesmithError, match="there is no folder '~there-is-no-such-user/x'"):
            find(name)
    assert catalog.model_here(name) is None


def test_a_teacher_is_looked_for_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Unlike other models it may be named by the name of a run alone, and may be a server."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/big").mkdir(parents=True)
    (tmp_path / "runs/big/recipe.yaml").write_text("task: chat\n")

    def named(**distillation: str) -> dict[str, str]:
        training = {"distillation": distillation}
        tree = {"task": "chat", "model": "smollm2-135m-instruct", "method": "distillation", "training": training}
        return parse(tree).resolved().named_models()

    with pytest.raises(RecipeError, match="there is no model 'bigg'") as refused:
        catalog.require_models(named(teacher="bigg"))
    assert refused.value.where == "training.distillation.teacher"
    for good in ({"teacher": "big"}, {"teacher": "runs/big"}, {"teacher": "somebody/small-model"}):
        catalog.require_models(named(**good))
    server = {"teacher": "https://a.example/v1", "teacher_model": "m", "answers": "teacher"}
    assert list(named(**server)) == ["model"]


# --- terms -------------------------------------------------------------------------------------------------------


def test_terms_are_refused_then_accepted_once(monkeypatch: pytest.MonkeyPatch):
    entry = catalog.ENTRIES["gemma3-270m"]
    with pytest.raises(ResourceError, match="TUNESMITH_ACCEPT_LICENCE=gemma3-270m"):
        catalog.get("gemma3-270m")
    monkeypatch.setenv(terms.ACCEPT_VARIABLE, "some-other-model")
    with pytest.raises(ResourceError, match="must be accepted"):
        catalog.get("gemma3-270m")
    monkeypatch.setenv(terms.ACCEPT_VARIABLE, "other, gemma3-270m")
    terms.require(entry)
    monkeypatch.delenv(terms.ACCEPT_VARIABLE)
    terms.require(entry)  # remembered
    record = json.loads((cache.root() / "licences" / "gemma3-270m.json").read_text())
    assert record["by"] == terms.ACCEPT_VARIABLE and record["licence"] == entry.licence


def test_terms_are_read_from_the_article_of_the_page():
    page = (
        "<body><p>menu</p><div class='a devsite-article-body b'><h2>Terms</h2><div><p>You  may\nnot.</p></div>"
        "<ul><li>Point</li></ul></div><p>footer</p></body>"
    )
    assert models.terms_in_html(page).splitlines() == ["Terms", "You may not.", "Point"]


# --- the cache folder --------------------------------------------------------------------------------------------


def heard() -> tuple[list[Event], object]:
    events: list[Event] = []
    return events, events.append


def test_a_damaged_cache_is_noticed_and_made_again():
    folder = catalog.get("python-reference")
    assert catalog.is_cached("python-reference")
    file = folder / "documents.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    events, listen = heard()
    assert catalog.get("python-reference", on_event=listen) == folder
    assert file.read_bytes() == whole
    warnings = [e for e in events if isinstance(e, Notice)]
    assert len(warnings) == 1 and "documents.jsonl has changed" in warnings[0].message

    file.write_bytes(whole[:-1])
    assert not catalog.is_cached("python-reference")
    (folder / cache.MANIFEST).unlink()
    events, listen = heard()
    catalog.get("python-reference", on_event=listen)
    assert "MANIFEST.json is missing" in next(e.message for e in events if isinstance(e, Notice))
    assert file.read_bytes() == whole


def test_another_origin_makes_it_again(tmp_path: Path):
    built = []

    def build(folder: Path) -> dict[str, object]:
        built.append(folder)
        (folder / "a").write_text("a")
        return {"rows": 1}

    for key in ({"v": 1}, {"v": 1}, {"v": 2}):
        cache.ensure(tmp_path / "x" / "thing", build, key=key)
    assert len(built) == 2
    assert json.loads((tmp_path / "x" / "thing" / cache.MANIFEST).read_text())["notes"] == {"rows": 1}


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    def build(folder: Path) -> dict[str, object]:
        (folder / "half").write_text("x")
        raise ResourceError("stopped")

    with pytest.raises(ResourceError, match="stopped"):
        cache.ensure(tmp_path / "x" / "thing", build, key={})
    assert list((tmp_path / "x").iterdir()) == []


WORKER = """
import os, sys, time
from pathlib import Path
from tunesmith.catalog import cache
target, log, wait = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def build(folder):
    with open(log, "a") as file:
        file.write("built\\n")
    (folder / "big").write_bytes(b"x" * 1000)
    print("building", flush=True)
    time.sleep(wait)
    return {}
print(cache.ensure(target, build, key={}))
"""


def worker(target: Path, log: Path, wait: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(target), str(log), str(wait)], stdout=-1, text=True)


def test_two_processes_build_once(tmp_path: Path):
    target, log = tmp_path / "x" / "thing", tmp_path / "log"
    workers = [worker(target, log, 0.3) for _ in range(2)]
    for process in workers:
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and str(target) in output
    assert log.read_text() == "built\n"


def test_folders_of_the_same_name_in_two_runs_do_not_wait_for_each_other(tmp_path: Path):
    def build_the_other(folder: Path) -> dict[str, object]:
        events, listen = heard()
        other = tmp_path / "run-2" / "tokens" / "teacher"
        cache.ensure(other, lambda staging: {}, key={}, on_event=listen)  # would wait forever for the lock held here
        assert other.is_dir() and not events
        return {}

    cache.ensure(tmp_path / "run-1" / "tokens" / "teacher", build_the_other, key={})


def test_a_killed_process_leaves_no_half_folder_and_no_lock(tmp_path: Path):
    target, log = tmp_path / "x" / "thing", tmp_path / "log"
    process = worker(target, log, 60)
    assert process.stdout is not None and process.stdout.readline() == "building\n"
    process.kill()
    process.wait()
    assert not target.exists()
    output, _ = worker(target, log, 0).communicate(timeout=30)
    assert str(target) in output and (target / "big").stat().st_size == 1000
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


# --- archives ----------------------------------------------------------------------------------------------------


def wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return path


def test_unzip_takes_only_what_was_named(tmp_path: Path):
    archive = wheel(tmp_path / "a.whl", pkg__model__config="{}", pkg__code="import os")
    packages.unzip(archive, ["pkg/model/config"], tmp_path / "out", strip="pkg/model/")
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["config"]
    with pytest.raises(ResourceError, match="lacks a file"):
        packages.unzip(archive, ["absent"], tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a/.."])
def test_unzip_refuses_to_leave_its_folder(tmp_path: Path, name: str):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ResourceError, match="outside"):
        packages.unzip(tmp_path / "a.whl", [name], tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_unzip_refuses_bombs_and_damage(tmp_path: Path):
    bomb = wheel(tmp_path / "bomb.whl", zeros=bytes(30_000_000))
    with pytest.raises(ResourceError, match="more than it may"):
        packages.unzip(bomb, ["zeros"], tmp_path / "out")
    large = wheel(tmp_path / "large.whl", text=b"ab" * 600)
    with pytest.raises(ResourceError, match="more than it may"):
        packages.unzip(large, ["text"], tmp_path / "out", max_bytes=1000)
    (tmp_path / "broken.whl").write_bytes(large.read_bytes()[:-20])
    with pytest.raises(ResourceError, match="damaged"):
        packages.unzip(tmp_path / "broken.whl", ["text"], tmp_path / "out")


def tar(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("table.txt")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return buffer.getvalue()


def test_a_member_of_a_tar_in_a_tar(tmp_path: Path):
    outer = tmp_path / "outer.tar.gz"
    outer.write_bytes(tar({"p/inner.tar.gz": tar({"q/table.txt": b"1\t2"})}))
    assert packages.read_tar_member(outer, "inner.tar.gz", "table.txt") == b"1\t2"
    with pytest.raises(ResourceError, match="no file"):
        packages.read_tar_member(outer, "inner.tar.gz", "other.txt")
    with pytest.raises(ResourceError, match="at most 2 bytes"):
        packages.read_tar_member(outer, "inner.tar.gz", max_bytes=2)
    outer.write_bytes(tar({}, link="/etc/passwd"))
    with pytest.raises(ResourceError, match="no file"):
        packages.read_tar_member(outer, "table.txt")
    outer.write_bytes(outer.read_bytes()[:30])
    with pytest.raises(ResourceError, match="damaged"):
        packages.read_tar_member(outer, "table.txt")


# --- corpora -----------------------------------------------------------------------------------------------------


def test_ratings_are_utf8_and_neutral_ones_have_no_label(tmp_path: Path):
    table = "1\t0.6\tclichés win\x85still\r\n2\t-0.5\tmeh\r\n3\t-2\tbad\r\n4\t0.5\tfine"
    source = tmp_path / "v.tar.gz"
    source.write_bytes(
        tar({"v/hutto_ICWSM_2014.tar.gz": tar({"h/movieReviewSnippets_GroundTruth.txt": table.encode()})})
    )
    notes = corpora.ratings(catalog.ENTRIES["movie-ratings"], [source], tmp_path, lambda event: None)
    assert notes == {"rows": 4, "labelled": 2, "without_label": 2}
    labelled = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [(row["text"], row["label"]) for row in labelled] == [
        ("clichés win\x85still", "positive"),
        ("bad", "negative"),
    ]
    assert len((tmp_path / "ratings.jsonl").read_text("utf-8").strip().split("\n")) == 4


def test_docstring_pairs_do_not_hold_their_answer():
    code = '''
class Public:
    def method(self, x):
        """Return twice the number, i.e. 2x. More text.

        Details.
        """
        return 2 * x
    def _private(self):
        """Never shown to anybody."""
def only(a, *, b=1):
    """Do nothing at all
    but on two lines"""
def bare():
    pass
def short():
    """Too short."""
'''
    import ast

    pairs = {name: corpora._pair(name, node) for name, node in corpora._functions(ast.parse(code), "m")}
    assert list(pairs) == ["m.Public.method", "m.only", "m.bare", "m.short"]
    assert pairs["m.bare"] is None and pairs["m.short"] is None
    method, only = pairs["m.Public.method"], pairs["m.only"]
    assert method is not None and only is not None
    assert method["completion"] == "Return twice the number, i.e. 2x."
    assert "Return twice" not in method["prompt"] and "return 2 * x" in method["prompt"]
    assert only["completion"] == "Do nothing at all"
    assert only["signature"] == "def only(a, *, b=1):" and only["prompt"].endswith("...")


def test_digits_are_arrays_without_pickle():
    import numpy as np

    files = catalog.data_files("digits")
    assert files is not None
    with np.load(files[0], allow_pickle=False) as arrays:
        assert arrays["images"].shape == (1797, 8, 8) and arrays["images"].max() == 16
        assert sorted(set(arrays["labels"].tolist())) == list(range(10))


def test_the_python_reference_has_text():
    files = catalog.data_files("python-reference")
    assert files is not None and [f.name for f in files] == ["documents.jsonl"]
    rows = [json.loads(line) for line in files[0].read_text("utf-8").splitlines()]
    assert len(rows) > 50 and all(row["text"] for row in rows)
    assert any("list comprehension" in row["text"].lower() for row in rows)


def test_names_in_the_reference_become_spans() -> None:
    from tunesmith.catalog.marked_names import marked_paragraphs

    text = 'The "for" statement is for loops; "len()" may\nraise "TypeError".\n\n   x = "for"\n\nNo names here.\n'
    [row] = marked_paragraphs(text)
    assert row["text"] == "The for statement is for loops; len() may raise TypeError."
    assert [(row["text"][s["start"] : s["end"]], s["label"]) for s in row["spans"]] == [
        ("for", "keyword"),
        ("len()", "function"),
        ("TypeError", "exception"),
    ]
    assert row["spans"][0]["start"] == 4
