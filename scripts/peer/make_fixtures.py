#!/usr/bin/env python3
"""Record what the peer (TRL's SFTTrainer and transformers) does into tests/fixtures.

usage: make_fixtures.py [models|tokens|logits|parity|templates|randperm|all]... [--only TEXT] [--corpus FILE]
"""
import argparse
import sys

import common  # noqa: F401  sets the environment before torch loads

PARTS = ["models", "tokens", "logits", "parity", "templates", "randperm"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("parts", nargs="+", choices=PARTS + ["all"])
    ap.add_argument("--only", default="", help="record only the parity cases whose name contains this text")
    ap.add_argument("--corpus", help="models: train the tokenizer anew on this JSONL file")
    a = ap.parse_args()
    parts = PARTS if "all" in a.parts else a.parts
    import torch
    torch.set_num_threads(1)
    for part in parts:
        if part == "models":
            import models
            models.make(a.corpus)
        elif part == "tokens":
            import tokens
            tokens.make()
        elif part == "logits":
            import logits
            logits.make()
        elif part == "parity":
            import parity
            parity.make(a.only)
        elif part == "templates":
            import templates
            templates.make()
        elif part == "randperm":
            import randperm
            randperm.make()


if __name__ == "__main__":
    sys.exit(main())
