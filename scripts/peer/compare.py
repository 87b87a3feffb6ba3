#!/usr/bin/env python3
"""Prints what scripts/bench-peer measured, and checks that both engines did the same work.

usage: compare.py RESULTS.jsonl
"""
import json
import sys


def main():
    with open(sys.argv[1]) as lines:
        results = [json.loads(line) for line in lines]
    ours = [r for r in results if r["engine"] == "sft"]
    theirs = [r for r in results if r["engine"] == "trl"]
    for name, runs in (("sft", ours), ("TRL", theirs)):
        speeds = ", ".join(f"{r['tokens_per_second']:.1f}" for r in runs)
        peaks = ", ".join(f"{r['peak_rss_mib']:.0f}" for r in runs)
        print(f"{name:4} tokens/s {speeds}   peak RSS MiB {peaks}")
    best = lambda runs: max(r["tokens_per_second"] for r in runs)
    peak = lambda runs: max(r["peak_rss_mib"] for r in runs)
    print(f"tokens/s ratio {best(ours) / best(theirs):.2f} (best of each)")
    print(f"peak RSS ratio {peak(ours) / peak(theirs):.2f} (largest of each)")
    worst = max(abs(a / b - 1) for a, b in zip(ours[0]["losses"], theirs[0]["losses"]))
    print(f"losses {ours[0]['losses'][0]:.4f} to {ours[0]['losses'][-1]:.4f}, "
          f"at most {worst:.1e} apart; gradient norms above "
          f"{min(ours[0]['grad_norms']):.2f}")
    falls = ours[0]["losses"][-1] < ours[0]["losses"][0]
    if worst > 1e-4 or not falls or min(ours[0]["grad_norms"]) <= 0:
        sys.exit("the engines did not do the same work, or it was no training: no ratio counts")


if __name__ == "__main__":
    main()
