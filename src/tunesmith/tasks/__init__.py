"""Step 1: tasks by name."""

from __future__ import annotations

from tunesmith.tasks.base import Field, Message, Reading, Task
from tunesmith.tasks.feedback import Feedback
from tunesmith.tasks.image_classification import ImageClassification
from tunesmith.tasks.language_modeling import LanguageModeling
from tunesmith.tasks.multi_label import MultiLabelClassification
from tunesmith.tasks.preference import Preference
from tunesmith.tasks.prompts import Prompts
from tunesmith.tasks.summarization import Summarization
from tunesmith.tasks.text_classification import TextClassification
from tunesmith.tasks.text_generation import Chat, TextGeneration
from tunesmith.tasks.text_regression import TextRegression
from tunesmith.tasks.token_classification import TokenClassification

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        TextClassification(),
        MultiLabelClassification(),
        TextRegression(),
        TokenClassification(),
        TextGeneration(),
        Chat(),
        Summarization(),
        Preference(),
        Feedback(),
        Prompts(),
        LanguageModeling(),
        ImageClassification(),
    )
}

__all__ = ["TASKS", "Field", "Message", "Reading", "Task"]
