#!/usr/bin/env python3
"""Runs `sft train` as scripts/bench-peer wants it and prints one JSON object like bench.py's.

usage: run_sft.py SFT_BINARY WORK_DIR UPDATES [--bf16]
"""
import json
import pathlib
import resource
import subprocess
import sys


def main():
    binary, work, updates = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    bf16 = "--bf16" in sys.argv[4:]
    subprocess.run([
        binary, "train", "--model_name_or_path", work / "model", "--dataset_name",
        work / "rows.jsonl", "--output_dir", work / "out", "--overwrite_output_dir", "true",
        "--per_device_train_batch_size", "4", "--max_length", "1024", "--max_steps", updates,
        "--learning_rate", "5e-5", "--train_sampling_strategy", "sequential", "--device", "cpu",
        "--bf16", "true" if bf16 else "false", "--measure_ceiling", "true",
        "--gradient_checkpointing", "false", "--save_strategy", "no", "--disable_tqdm", "true",
    ], check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    rows = [json.loads(line) for line in (work / "out/train_log.jsonl").open()]
    log = [row for row in rows if "loss" in row]
    # The first two updates warm up.
    tokens = log[-1]["num_tokens"] - log[1]["num_tokens"]
    seconds = log[-1]["elapsed_seconds"] - log[1]["elapsed_seconds"]
    print(json.dumps({
        "engine": "sft",
        "precision": "bf16" if bf16 else "float32",
        "tokens_per_second": tokens / seconds,
        "seconds_per_update": seconds / (len(log) - 2),
        "peak_rss_mib": peak,
        "model_teraflops": mean(row["model_flops_per_second"] for row in log[2:]) / 1e12,
        "ceiling_ratio": mean(row["ceiling_ratio"] for row in log[2:]),
        "losses": [row["loss"] for row in log],
        "grad_norms": [row["grad_norm"] for row in log],
    }))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
