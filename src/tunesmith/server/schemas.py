"""What requests may say and what responses hold: OpenAI's shapes, kept to the letter."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
Auto = Literal["auto"]
Item = TypeVar("Item", bound=BaseModel)


class Listing(BaseModel, Generic[Item]):
    """A page of things; ask for the next with ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class Deleted(BaseModel):
    """A thing that is gone."""

    id: str
    object: str
    deleted: bool = True


# --- files and uploads -----------------------------------------------------------------------


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal[
        "assistants", "assistants_output", "batch", "batch_output", "fine-tune", "fine-tune-results", "vision",
        "user_data", "evals",
    ]  # fmt: skip
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None


class Request(BaseModel):
    """Base of all requests: a field that is not known is an error, not ignored."""

    model_config = ConfigDict(extra="forbid")


class ExpiresAfter(Request):
    """When a file shall vanish."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2592000)


class UploadRequest(Request):
    """A file that will come in parts."""

    bytes: int = Field(ge=1, le=2**53)
    filename: str = Field(min_length=1, max_length=255)
    mime_type: str = Field(max_length=255)
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class UploadObject(BaseModel):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None


class PartObject(BaseModel):
    """A part."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class CompleteRequest(Request):
    """The parts in their order, and the sum of the whole."""

    part_ids: list[Annotated[str, StringConstraints(pattern=r"^part_[0-9a-f]{24}$")]] = Field(
        min_length=1, max_length=10_000
    )
    md5: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{32}$")


# --- graders ----------------------------------------------------------------------------------

Template = Annotated[str, StringConstraints(max_length=100_000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class StringCheck(Request):
    """Compares two texts: 1 or 0."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(Request):
    """How alike two texts are, 0 to 1."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Literal[
        "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5",
        "rouge_l",
    ]  # fmt: skip


class PythonGrader(Request):
    """``grade(sample, item)`` of a script."""

    type: Literal["python"]
    name: Name
    source: Annotated[str, StringConstraints(max_length=256_000)]
    image_tag: str | None = None


class ModelGrader(BaseModel):
    """A model as the judge; known so that it can be refused in plain words."""

    model_config = ConfigDict(extra="allow")
    type: Literal["score_model", "label_model"]
    name: Name


Single = Annotated[StringCheck | TextSimilarity | PythonGrader | ModelGrader, Field(discriminator="type")]


class Multi(Request):
    """A formula over the grades of others; OpenAI's documents name each, its client's types have a single one."""

    type: Literal["multi"]
    name: Name
    graders: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], Single] | Single
    calculate_output: Annotated[str, StringConstraints(max_length=1000)]


Grader = Annotated[StringCheck | TextSimilarity | PythonGrader | ModelGrader | Multi, Field(discriminator="type")]


# --- fine-tuning jobs -------------------------------------------------------------------------


class Hyperparameters(Request):
    """``auto`` leaves a value to the server, which shows what it took once the files are validated."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=1024)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"


class Supervised(Request):
    """Learn the assistant's messages."""

    hyperparameters: Hyperparameters | None = None


class DpoHyperparameters(Hyperparameters):
    """The same for preferences; a greater ``beta`` holds the model closer to the base."""

    beta: Auto | Annotated[float, Field(gt=0, le=10)] = "auto"


class Dpo(Request):
    """Learn to prefer one answer to another."""

    hyperparameters: DpoHyperparameters | None = None


class ReinforcementHyperparameters(Hyperparameters):
    """The same for rewards: ``compute_multiplier`` is about the number of answers to each prompt."""

    compute_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


class Reinforcement(Request):
    """Learn from what a grader thinks of the model's own answers."""

    grader: Grader
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: None = None


class Method(Request):
    """How to tune."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


class WandbIntegration(Request):
    """Where ``wandb sync`` would put the job."""

    project: str = Field(max_length=256)
    name: str | None = Field(default=None, max_length=256)
    entity: str | None = Field(default=None, max_length=256)
    tags: list[str] | None = Field(default=None, max_length=50)


class Integration(Request):
    """A service that shall hear of the job."""

    type: Literal["wandb"]
    wandb: WandbIntegration


Metadata = dict[
    Annotated[str, StringConstraints(min_length=1, max_length=64)], Annotated[str, StringConstraints(max_length=512)]
]


class JobRequest(Request):
    """A fine-tuning job to be made."""

    model: str = Field(min_length=1, max_length=256)
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(default=None, max_length=64)
    suffix: str | None = Field(default=None, max_length=64)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    integrations: list[Integration] | None = Field(default=None, max_length=5)
    hyperparameters: Hyperparameters | None = Field(default=None, description="The older place; `method` is the newer.")
    method: Method | None = None

    @model_validator(mode="after")
    def _one_place(self) -> JobRequest:
        if self.method is not None and self.hyperparameters is not None:
            raise ValueError("give `method` or the older `hyperparameters`, not both")
        return self


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobObject(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Integration]
    metadata: dict[str, str] | None
    method: dict[str, Any]


class EventObject(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None = None


class CheckpointObject(BaseModel):
    """A state of a tuned model that can be used as a model."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class PermissionRequest(Request):
    """Projects that may use a checkpoint."""

    project_ids: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]] = Field(
        min_length=1, max_length=100
    )


class PermissionObject(BaseModel):
    """A project that may use a checkpoint."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str
