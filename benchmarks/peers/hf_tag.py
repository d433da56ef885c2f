"""transformers' Trainer on a token classifier, as its documentation shows; the rest is its defaults."""

import json
import time
from pathlib import Path

from datasets import Dataset
from measuring import Clock, read_lines, read_spec, write_result
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

spec = read_spec()
clock = Clock()
tags = ["O", *(f"{mark}-{label}" for label in spec["labels"] for mark in "BI")]
numbers = {tag: number for number, tag in enumerate(tags)}


class CountingTrainer(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        clock.count(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *args, **kwargs)


class StepTimes(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        clock.step()


set_seed(spec["seed"])
tokenizer = AutoTokenizer.from_pretrained(spec["model"])
dropout = spec["options"].pop("dropout", None)
model = AutoModelForTokenClassification.from_pretrained(
    spec["model"],
    num_labels=len(tags),
    id2label=dict(enumerate(tags)),
    label2id=numbers,
    **({} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}),
)


def aligned(rows):
    """The first piece of each token carries its tag."""
    encoded = tokenizer(rows["tokens"], truncation=True, max_length=spec["max_length"], is_split_into_words=True)
    encoded["labels"] = []
    for n, row_tags in enumerate(rows["tags"]):
        words = encoded.word_ids(n)
        first = [word is not None and word not in words[:place] for place, word in enumerate(words)]
        encoded["labels"].append([numbers[row_tags[w]] if f else -100 for w, f in zip(words, first, strict=True)])
    return encoded


def tokenized(path):
    rows = Dataset.from_list(read_lines(path))
    return rows.map(aligned, batched=True, remove_columns=rows.column_names)


trainer = CountingTrainer(
    model=model,
    train_dataset=tokenized(spec["train"]),
    data_collator=DataCollatorForTokenClassification(tokenizer),
    args=TrainingArguments(
        output_dir=spec["out"],
        num_train_epochs=spec["epochs"],
        max_steps=spec["steps"] or -1,
        per_device_train_batch_size=spec["batch_size"],
        per_device_eval_batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        seed=spec["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **spec["options"],
    ),
    callbacks=[StepTimes()],
)
clock.begin()
trainer.train()
measured = clock.result()

rows = read_lines(spec["held_out"])
started = time.perf_counter()
test = tokenized(spec["held_out"])
chosen = trainer.predict(test).predictions.argmax(-1)
seconds = time.perf_counter() - started
answers = []
for row, labels, line in zip(rows, test["labels"], chosen, strict=True):
    words = tokenizer(
        row["tokens"], truncation=True, max_length=spec["max_length"], is_split_into_words=True
    ).word_ids()
    answer = ["O"] * len(row["tokens"])  # a token without a piece of its own stays outside
    for word, label, number in zip(words, labels, line, strict=False):
        if label != -100:
            answer[word] = tags[number]
    answers.append(answer)
(Path(spec["out"]) / "tags.json").write_text(json.dumps(answers), encoding="utf-8")
write_result(spec, **measured, evaluation_seconds=seconds, held_out_rows=len(rows), precision=str(model.dtype))
