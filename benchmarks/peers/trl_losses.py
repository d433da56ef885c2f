"""The losses of TRL 1.16 on small tensors, for a parity test that runs without TRL.

    python -m venv PEERS && PEERS/bin/pip install trl==1.16.0 torch
    PEERS/bin/python benchmarks/peers/trl_losses.py tests/golden/trl_losses.json

TRL's own `_compute_loss` of the DPO, KTO and GRPO trainers is called on log-probabilities that a stand-in model gives;
the trainers' constructors, which want data and models, are not. Numbers follow from sines, not from a generator.
"""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
import trl
from trl import DPOTrainer, GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

TOKENS = 6  # of each answer, some of them padding
LENGTHS = [3, 6, 2, 5]


def wave(rows, columns, phase):
    """Numbers between -1 and 1."""
    places = torch.arange(rows * columns, dtype=torch.float64)
    return (places * 0.7 + phase).sin().reshape(rows, columns)


def mask(lengths):
    """1 at the tokens of each answer."""
    return (torch.arange(TOKENS)[None] < torch.tensor(lengths)[:, None]).long()


class Accelerator:
    """One process: what is gathered is what there is."""

    device = torch.device("cpu")
    num_processes = 1
    sync_gradients = True

    def gather(self, tensor):
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor, reduction):
        return tensor


class Model:
    """Gives the log-probabilities that it was made with, as TRL's fused head does."""

    training = False

    def __init__(self, *log_probs):
        self.queue = list(log_probs)

    def __call__(self, **inputs):
        log_probs = self.queue.pop(0)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trainer(kind, **settings):
    """A trainer that was never constructed, with what its loss reads."""
    made = object.__new__(kind)
    made.model = Model()
    made.accelerator = Accelerator()
    made._metrics = {"eval": defaultdict(list), "train": defaultdict(list)}
    made._total_train_tokens = 0
    made.aux_loss_enabled = False
    made.precompute_ref_logps = True
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def padded(values, lengths):
    """Log-probabilities below 0, and 0 at padding, as TRL has them."""
    return (values - 1.5) * mask(lengths)


def tokens(lengths):
    """Ids, attention and completion masks of sequences of one prompt token and an answer."""
    completion = torch.cat([torch.zeros(len(lengths), 1, dtype=torch.long), mask(lengths)], dim=1)
    return {
        "input_ids": torch.ones_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }


def dpo():
    """Two pairs: rows 0 and 1 are the better answers, 2 and 3 the worse ones."""
    policy, reference = padded(wave(4, TOKENS, 0.1), LENGTHS), padded(wave(4, TOKENS, 2.0), LENGTHS)
    sums = reference.sum(1)
    found = {}
    for name, beta, smoothing in [
        ("sigmoid", 0.1, 0.0),
        ("sigmoid", 0.7, 0.0),
        ("hinge", 0.3, 0.0),
        ("ipo", 0.2, 0.0),
        ("robust", 0.3, 0.1),
        ("sigmoid_norm", 0.5, 0.0),
    ]:
        made = trainer(
            DPOTrainer,
            beta=beta,
            label_smoothing=smoothing,
            loss_types=[name],
            loss_weights=[1.0],
            f_divergence_type="reverse_kl",
            ld_alpha=None,
            use_weighting=False,
        )
        inputs = tokens(LENGTHS) | {"ref_chosen_logps": sums[:2], "ref_rejected_logps": sums[2:]}
        loss = DPOTrainer._compute_loss(made, Model(policy), inputs, False)
        found[f"{name} {beta} {smoothing}"] = float(loss)
    return {"policy": policy.tolist(), "reference": reference.tolist(), "lengths": LENGTHS, "losses": found}


def kto():
    """Four answers, liked and not; the divergence is estimated from each answer behind the prompt before it."""
    policy, reference = padded(wave(4, TOKENS, 0.3), LENGTHS), padded(wave(4, TOKENS, 1.1), LENGTHS)
    mismatched, mismatched_reference = padded(wave(4, TOKENS, 2.9), LENGTHS), padded(wave(4, TOKENS, 3.3), LENGTHS)
    liked = [True, False, True, False]
    found = {}
    for beta, desirable, undesirable, swap in [(0.1, 1.0, 1.0, False), (0.5, 1.3, 0.7, False), (0.5, 1.0, 1.0, True)]:
        made = trainer(
            KTOTrainer,
            beta=beta,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
            loss_type="kto",
            calculate_KL=True,
        )
        ours, theirs = (mismatched_reference, mismatched) if swap else (mismatched, mismatched_reference)
        inputs = tokens(LENGTHS)
        inputs |= {f"KL_{name}": value for name, value in inputs.items()}
        inputs |= {"label": torch.tensor(liked), "ref_logps": reference.sum(1), "ref_KL_logps": theirs.sum(1)}
        found[f"{beta} {desirable} {undesirable} {swap}"] = float(
            KTOTrainer._compute_loss(made, Model(ours, policy), inputs, False)
        )
    return {
        "policy": policy.tolist(),
        "reference": reference.tolist(),
        "mismatched": mismatched.tolist(),
        "mismatched_reference": mismatched_reference.tolist(),
        "lengths": LENGTHS,
        "liked": liked,
        "losses": found,
    }


def grpo():
    """Four answers of one group."""
    policy, old = padded(wave(4, TOKENS, 0.2), LENGTHS), padded(wave(4, TOKENS, 0.5), LENGTHS)
    reference = padded(wave(4, TOKENS, 1.4), LENGTHS)
    rewards = torch.tensor([1.0, 0.0, 0.25, 2.0], dtype=torch.float64)
    centred = rewards - rewards.mean()
    scaled = centred / (rewards.std() + 1e-4)  # as _generate_and_score_completions has it
    found = {}
    for name, beta, low, high in [
        ("grpo", 0.0, 0.2, 0.2),
        ("grpo", 0.04, 0.2, 0.28),
        ("dapo", 0.0, 0.2, 0.28),
        ("dr_grpo", 0.0, 0.1, 0.1),
    ]:
        made = trainer(
            GRPOTrainer,
            beta=beta,
            loss_type=name,
            epsilon_low=low,
            epsilon_high=high,
            importance_sampling_level="token",
            max_completion_length=TOKENS,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            use_vllm=False,
            _entropy_bonus_enabled=False,
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        )
        made._get_per_token_logps_and_entropies = lambda *a, **k: (policy, torch.zeros_like(policy), None)
        advantages = centred if name == "dr_grpo" else scaled
        inputs = {
            "prompt_ids": torch.ones(4, 1, dtype=torch.long),
            "prompt_mask": torch.ones(4, 1, dtype=torch.long),
            "completion_ids": torch.ones(4, TOKENS, dtype=torch.long),
            "completion_mask": mask(LENGTHS),
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask(LENGTHS).sum(),
        }
        found[f"{name} {beta} {low} {high}"] = float(GRPOTrainer._compute_loss(made, Model(), inputs))
    return {
        "policy": policy.tolist(),
        "old": old.tolist(),
        "reference": reference.tolist(),
        "lengths": LENGTHS,
        "rewards": rewards.tolist(),
        "losses": found,
    }


if __name__ == "__main__":
    golden = {"trl": trl.__version__, "dpo": dpo(), "kto": kto(), "grpo": grpo()}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(golden, file, indent=1)
        file.write("\n")
