"""One small client protocol for all providers, and what passes through it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr

from tunesmith.errors import MissingExtraError, ResourceError, UsageError
from tunesmith.hosted.keys import key_of, scrub
from tunesmith.hosted.settings import Hosted
from tunesmith.hosted.table import Provider, Table

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED = ("succeeded", "failed", "cancelled")


class ProviderError(ResourceError):
    """A provider refused, or could not be reached.

    Attributes:
        transient: Whether the same request may succeed later.
        unsure: Whether the request may have been carried out all the same (its answer was lost).
        status: HTTP status; ``None`` if no answer came.
    """

    code = "provider"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        transient: bool = False,
        unsure: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.transient = transient
        self.unsure = unsure
        self.status = status


@dataclass(frozen=True)
class JobOrder:
    """A job to be made.

    Attributes:
        model: The base.
        training_file: Id of the uploaded file.
        validation_file: The same, or ``None``.
        method: ``supervised``, ``dpo`` or ``reinforcement``.
        settings: Hyper-parameters, suffix, grader, and what is sent as it is.
        seed: Of the provider's shuffling.
        tag: Identity of the intent, by which the job is found again.
        key: ``Idempotency-Key`` for servers that know it.
    """

    model: str
    training_file: str
    validation_file: str | None
    method: str
    settings: Hosted
    seed: int
    tag: str
    key: str


@dataclass(frozen=True)
class Job:
    """A job as every provider's is told here.

    Attributes:
        error: What went wrong, where it failed.
        result_files: Ids of files with the losses.
        tag: Identity of the intent that made it, if it carries one.
    """

    id: str
    status: Status
    model: str
    tuned_model: str | None = None
    training_file: str | None = None
    validation_file: str | None = None
    created_at: int = 0
    finished_at: int | None = None
    trained_tokens: int | None = None
    error: str | None = None
    result_files: list[str] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    method: str = "supervised"
    grader: dict[str, Any] | None = None
    seed: int | None = None
    suffix: str | None = None
    tag: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        step: Number of the update it tells of, if it does.
        steps: How many there will be.
        loss: Training loss of that update.
    """

    id: str
    created_at: float
    level: str
    message: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and what it took.

    Attributes:
        cached_tokens: Of the prompt's tokens, those that were read before and cost less.
        seconds: Until the whole answer was there.
    """

    text: str
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    seconds: float


class Client(Protocol):
    """What is asked of a provider. Every method raises :class:`ProviderError`."""

    provider: Provider
    base_url: str
    key: SecretStr | None

    def upload(self, path: Path, name: str) -> str:
        """Send a file for fine-tuning; gives its id."""
        ...

    def find_upload(self, name: str, size: int) -> str | None:
        """The id of a file that was sent before."""
        ...

    def create(self, order: JobOrder) -> Job:
        """Make a job. It is asked once: whoever repeats this looks with :meth:`find` before."""
        ...

    def find(self, tag: str, training_file: str) -> list[Job]:
        """Jobs of one intent, newest first: by their tag, or by the file that only they have."""
        ...

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        ...

    def jobs(self, limit: int) -> list[Job]:
        """The newest jobs."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Stop a job for good."""
        ...

    def events(self, job_id: str, known: Set[str] = frozenset()) -> list[JobEvent]:
        """The events since those that are ``known`` by their ids, oldest first."""
        ...

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """What is left of the model's earlier states."""
        ...

    def content(self, file_id: str) -> bytes:
        """A file."""
        ...

    def models(self) -> list[dict[str, Any]]:
        """Models that the key may use: ``id``, ``created``, ``owned_by``, ``shutdown_date``."""
        ...

    def ask(self, model: str, messages: Sequence[Mapping[str, Any]], *, tools: Any, most_tokens: int) -> Answer:
        """Let a model answer, as surely as it can."""
        ...

    def stored_answers(self, model: str, limit: int) -> Iterator[list[dict[str, Any]]]:
        """Conversations with answers of a model that the provider has kept."""
        ...


def connect(settings: Hosted, table: Table) -> Client:
    """A client for the provider that a recipe names; nothing is asked of it yet.

    Raises:
        As :func:`access`.
    """
    base_url, key = access(settings, table)
    from tunesmith.hosted import fireworks, mistral, openai_api, together

    provider = table.provider(settings.provider)
    makers: dict[str, Any] = {
        "openai": openai_api.OpenAIClient,
        "mistral": mistral.MistralClient,
        "together": together.TogetherClient,
        "fireworks": fireworks.FireworksClient,
    }
    client: Client = makers[provider.protocol](provider, base_url, key)
    return client


def access(settings: Hosted, table: Table) -> tuple[str, SecretStr | None]:
    """Address and key of the provider that a recipe names.

    Raises:
        MissingExtraError: The extra ``hosted`` is not installed.
        ResourceError: There is no key.
        UsageError: The address is missing, or would carry the key in plain text.
    """
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError("openai", "hosted", "talking to providers")
    provider = table.provider(settings.provider)
    base_url = address(settings, provider)
    key = key_of(settings.provider, provider)
    host = urlsplit(base_url)
    if key is not None and host.scheme != "https" and host.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise UsageError("the key would travel unencrypted", where=base_url, fix="give an address with https://")
    return base_url, key


def address(settings: Hosted, provider: Provider) -> str:
    """Where a provider answers.

    Raises:
        UsageError: Neither the recipe nor the environment nor the table says.
    """
    variable = provider.base_url_env
    given = settings.base_url or (os.environ.get(variable) if variable else None)
    if given and provider.base_path and provider.base_path.strip("/") not in given:
        given = given.rstrip("/") + provider.base_path
    found = given or provider.base_url
    if not found:
        raise UsageError(
            f"{provider.what} has no address of its own",
            where="hosted.base_url",
            fix=f"give `--base-url`, or set {variable}" if variable else "give `--base-url`",
        )
    if not found.startswith(("http://", "https://")):
        raise UsageError(f"{found!r} is no address", where="hosted.base_url", fix="https://...")
    return found


@contextlib.contextmanager
def told(provider: Provider, base_url: str, key: SecretStr | None) -> Iterator[None]:
    """Whatever the SDK raises becomes a :class:`ProviderError` in plain words, without the key in it.

    The original is not chained: its request holds the key in its headers.
    """
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _refused(error, provider, key) from None
    except openai.APITimeoutError:
        what = f"{provider.what} did not answer in time"
        raise ProviderError(what, where=base_url, fix="try again later", transient=True, unsure=True) from None
    except openai.APIConnectionError as error:
        why = scrub(str(error.__cause__ or error), key)
        raise ProviderError(
            f"{provider.what} cannot be reached: {why}",
            where=base_url,
            fix="check the network, the proxy and the address (`--base-url`)",
            transient=True,
            unsure=True,
        ) from None
    except openai.OpenAIError as error:
        raise ProviderError(scrub(f"{provider.what}: {error}", key), where=base_url) from None


def _refused(error: Any, provider: Provider, key: SecretStr | None) -> ProviderError:
    body = error.body if isinstance(error.body, dict) else {}
    status, code = error.status_code, str(body.get("code") or "")
    said = scrub(str(body.get("message") or body.get("detail") or error.message), key)
    known = {
        401: ("the key was refused", f"check {' or '.join(provider.key_env)}, and whose project it belongs to"),
        403: ("this is not allowed", "check the rights of the key"),
        404: ("there is no such thing", "`tunesmith hosted models` and `tunesmith hosted list` show what there is"),
        413: ("the file is too large", "split it"),
        429: ("too many requests", "wait, or raise the limit of the account"),
    }
    what, fix = known.get(status, ("the request was refused" if status < 500 else "the provider has a fault", ""))
    if code == "insufficient_quota":
        fix = "add credit to the account"
    if code == "training_not_available":
        what = "no new fine-tuning jobs are taken from this organisation"
        fix = (
            "tune here: `tunesmith hosted import` takes an old job home, and `tunesmith serve` answers the same API; "
            "or choose another `--provider`"
        )
    transient = status in (408, 409, 429) or status >= 500
    return ProviderError(
        f"{provider.what}: {what} ({status}): {said}",
        where=str(body.get("param")) if body.get("param") else None,
        fix=fix or None,
        transient=transient and code != "insufficient_quota",
        unsure=status in (408, 409) or status >= 500,
        status=status,
    )
