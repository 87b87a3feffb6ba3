#!/usr/bin/env python3
"""Trains with TRL's SFTTrainer on the CPU and prints one JSON object: tokens/s of the optimizer loop,
peak memory, and the losses, so that the two engines can be seen to do the same work.

usage: bench.py MODEL_DIR ROWS.jsonl [--steps N] [--batch N] [--max-length N] [--threads N]
                [--bf16] [--gradient-checkpointing]
"""
import argparse
import json
import resource
import tempfile
import time

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer


class FileOrder(SFTTrainer):
    """Visits the rows in the order of the file."""

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


class StepClock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    args = parser.parse_args()
    set_seed(42)
    if args.threads:
        torch.set_num_threads(args.threads)

    with open(args.rows) as lines:
        dataset = Dataset.from_list([json.loads(line) for line in lines])
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="sdpa")
    clock = StepClock()
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, use_cpu=True, max_steps=args.steps, report_to=[], disable_tqdm=True,
            per_device_train_batch_size=args.batch, max_length=args.max_length,
            learning_rate=5e-5, logging_steps=1, save_strategy="no", bf16=args.bf16,
            gradient_checkpointing=args.gradient_checkpointing, seed=42)
        trainer = FileOrder(
            model=model, args=config, train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(args.model), callbacks=[clock])
        trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    # The first two updates warm up.
    tokens = log[-1]["num_tokens"] - log[1]["num_tokens"]
    seconds = clock.ends[-1] - clock.ends[1]
    print(json.dumps({
        "engine": "trl",
        "precision": "bf16" if args.bf16 else "float32",
        "tokens_per_second": tokens / seconds,
        "seconds_per_update": seconds / (len(log) - 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        "losses": [row["loss"] for row in log],
        "grad_norms": [row["grad_norm"] for row in log],
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
