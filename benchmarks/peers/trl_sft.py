"""TRL's SFTTrainer on tokenized rows; everything that the job does not name is TRL's default."""

import torch
from datasets import Dataset
from measuring import Clock, read_lines, read_spec, write_result
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

spec = read_spec()
options = dict(spec["options"])
dtype = options.pop("dtype", None)
clock = Clock()


class CountingTrainer(SFTTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        clock.count(int(inputs["attention_mask"].sum()))
        return super().training_step(model, inputs, *args, **kwargs)


class StepTimes(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        clock.step()


trainer = CountingTrainer(
    model=spec["model"],
    processing_class=AutoTokenizer.from_pretrained(spec["model"]),
    train_dataset=Dataset.from_list(read_lines(spec["train"])),
    peft_config=(
        LoraConfig(r=spec["rank"], lora_alpha=spec["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
        if spec["parameters"] == "lora"
        else None
    ),
    args=SFTConfig(
        output_dir=spec["out"],
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type=spec["schedule"],
        weight_decay=spec["weight_decay"],
        max_grad_norm=spec["max_grad_norm"],
        seed=spec["seed"],
        model_init_kwargs={"dtype": dtype} if dtype else None,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    ),
    callbacks=[StepTimes()],
)
clock.begin()
trainer.train()
measured = clock.result()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
trainer.save_model(spec["out"] + "/model")
write_result(
    spec,
    **measured,
    last_train_loss=losses[-1] if losses else None,
    precision=f"weights {next(trainer.model.parameters()).dtype}, autocast bf16: {trainer.args.bf16}",
    inter_op_threads=torch.get_num_interop_threads(),
)
