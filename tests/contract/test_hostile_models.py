"""Model folders that someone hostile made: nothing in them is run, and what is wrong is said."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

import serving
from tunesmith.data.render import ConversationRenderer
from tunesmith.errors import TunesmithError
from tunesmith.models.load import load_config, load_model, load_tokenizer
from tunesmith.models.saving import load_artefact
from tunesmith.server.app import create_app
from tunesmith.server.settings import Settings


class Touch:
    """What a pickle does when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that hostile code would make."""
    return tmp_path / "was-run"


@pytest.fixture
def folder(tmp_path: Path, tiny_decoder: Path, proof: Path) -> Path:
    """A good model, with code and a pickle beside it that make the file."""
    made = Path(shutil.copytree(tiny_decoder, tmp_path / "model"))
    code = f"from pathlib import Path\nPath({str(proof)!r}).touch()\n"
    code += (
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Words\n"
    )
    (made / "evil.py").write_text(code)
    with (made / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Touch(proof), file)
    return made


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_code_that_a_configuration_names_is_not_run(folder: Path, proof: Path) -> None:
    change(folder, "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Words"]}, trust_remote_code=True)
    model = load_model(folder, name="hostile", form="generate")  # the same architecture is known without that code
    assert type(model.network).__module__.startswith("transformers.models.llama")
    load_tokenizer(folder)
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["own-model", "llama\nraise SystemExit", "../../evil", "__import__('os')", None])
def test_kinds_of_models_are_those_that_are_known(folder: Path, proof: Path, kind: str | None) -> None:
    change(folder, "config.json", model_type=kind, auto_map={"AutoConfig": "evil.Config"}, architectures=["Own"])
    with pytest.raises(TunesmithError):
        load_config(folder)
    assert not proof.exists()


def test_a_pickle_is_not_opened(folder: Path, proof: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(TunesmithError):
        load_model(folder, name="hostile", form="generate")
    assert not proof.exists()


def test_an_artefact_with_pickled_weights_is_refused(tmp_path: Path, folder: Path, proof: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    )
    shutil.copy(folder / "pytorch_model.bin", folder / "adapter_model.bin")
    with pytest.raises(TunesmithError):
        load_artefact(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for n in range(999999999) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include 'config.json' %}",
        "{{ 'x' * 10 ** 11 }}",
    ],
)
def test_a_template_that_reaches_out_is_an_error(folder: Path, template: str) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    with pytest.raises(TunesmithError):
        ConversationRenderer(tokenizer, 256).prompt([{"role": "user", "content": "hi"}])


def test_a_template_without_end_hangs_no_server(tmp_path: Path, folder: Path, tiny_decoder: Path) -> None:
    """Whoever asks that model hears why, a job on it fails, and everybody else is served meanwhile."""
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"
    (folder / "chat_template.jinja").write_text(endless)
    models = tmp_path / "models.yaml"
    models.write_text(yaml.safe_dump({"good": str(tiny_decoder), "hostile": str(folder)}))
    app = create_app(Settings(data=tmp_path / "data", models=models, **serving.QUICK))
    with serving.serving(app) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
        ask: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        client.chat.completions.create(model="good", **ask)
        told: list[Any] = []

        def attack() -> None:
            with pytest.raises(openai.BadRequestError) as error:
                client.chat.completions.create(model="hostile", **ask)
            told.append(error.value.body)

        attackers = [threading.Thread(target=attack) for _ in range(64)]  # more than the server has threads
        for thread in attackers:
            thread.start()
        served = 0
        while not told:
            client.chat.completions.create(model="good", **ask)
            client.models.list()
            served += 1
        for thread in attackers:
            thread.join()
        assert served and len(told) == len(attackers)
        assert {error["code"] for error in told} == {"chat_template_stopped"}
        assert "took more than 3 s" in told[0]["message"]
        file = client.files.create(file=("a.jsonl", serving.jsonl(serving.chat_rows(12))), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="hostile", training_file=file.id)
        ended = serving.ended(client, job.id)
        assert ended.status == "failed" and ended.error and ended.error.param == "model"
        assert "took more than 3 s" in ended.error.message
