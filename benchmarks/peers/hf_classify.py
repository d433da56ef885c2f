"""transformers' Trainer on a sequence classifier, as its documentation shows; the rest is its defaults."""

import time

import numpy as np
from datasets import Dataset
from measuring import Clock, read_lines, read_spec, write_result
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

spec = read_spec()
clock = Clock()


class CountingTrainer(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        clock.count(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *args, **kwargs)


class StepTimes(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        clock.step()


set_seed(spec["seed"])
tokenizer = AutoTokenizer.from_pretrained(spec["model"])
model = AutoModelForSequenceClassification.from_pretrained(spec["model"], num_labels=2)


def tokenized(path):
    rows = Dataset.from_list(read_lines(path))
    return rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=spec["max_length"]), batched=True)


trainer = CountingTrainer(
    model=model,
    train_dataset=tokenized(spec["train"]),
    data_collator=DataCollatorWithPadding(tokenizer),
    args=TrainingArguments(
        output_dir=spec["out"],
        num_train_epochs=1,
        max_steps=spec["steps"] or -1,
        per_device_train_batch_size=spec["batch_size"],
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

started = time.perf_counter()
test = tokenized(spec["held_out"])
predicted = trainer.predict(test).predictions.argmax(-1)
seconds = time.perf_counter() - started
write_result(
    spec,
    **measured,
    evaluation_seconds=seconds,
    correct=int((predicted == np.asarray(test["label"])).sum()),
    held_out_rows=len(test),
)
