"""The setfit package as its documentation shows; batch size, learning rate and pairs are its defaults."""

import time

import numpy as np
from datasets import Dataset
from measuring import peak_rss_bytes, read_lines, read_spec, write_result
from setfit import SetFitModel, Trainer, TrainingArguments

spec = read_spec()
train, test = read_lines(spec["train"]), read_lines(spec["held_out"])
model = SetFitModel.from_pretrained(spec["model"], labels=sorted({row["label"] for row in train}))
arguments = TrainingArguments(
    output_dir=spec["out"],
    seed=spec["seed"],
    max_steps=spec.get("max_steps", -1),
    sampling_strategy=spec.get("sampling_strategy", "oversampling"),
    report_to="none",
    save_strategy="no",
)
trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_list(train))
started = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - started
predicted = np.asarray(model.predict([row["text"] for row in test]))
right = predicted == np.asarray([row["label"] for row in test])
write_result(spec, run_seconds=seconds, right=right.astype(int).tolist(), peak_rss_bytes=peak_rss_bytes())
