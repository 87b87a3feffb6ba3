#!/usr/bin/env python3
"""Prints what scripts/bench-peer measured, and checks that both engines did the same work.

usage: compare.py RESULTS.jsonl
"""
import json
import sys


def distance(a, b):
    """The largest relative difference of two runs' losses."""
    return max(abs(x / y - 1) for x, y in zip(a["losses"], b["losses"]))


def main():
    with open(sys.argv[1]) as lines:
        results = [json.loads(line) for line in lines]
    runs = {(engine, precision): [r for r in results if (r["engine"], r["precision"]) == (engine, precision)]
            for engine in ("sft", "trl") for precision in ("float32", "bf16")}
    reference = runs["trl", "float32"][0]
    same = True
    for precision in ("float32", "bf16"):
        ours, theirs = runs["sft", precision], runs["trl", precision]
        print(f"{precision}")
        for name, engine in (("sft", ours), ("TRL", theirs)):
            speeds = ", ".join(f"{r['tokens_per_second']:.1f}" for r in engine)
            peaks = ", ".join(f"{r['peak_rss_mib']:.0f}" for r in engine)
            print(f"  {name} tokens/s {speeds}   peak RSS MiB {peaks}")
        best = lambda engine: max(r["tokens_per_second"] for r in engine)
        peak = lambda engine: max(r["peak_rss_mib"] for r in engine)
        print(f"  tokens/s ratio {best(ours) / best(theirs):.2f} (best of each)")
        print(f"  peak RSS ratio {peak(ours) / peak(theirs):.2f} (largest of each)")
        print("  sft: " + ", ".join(f"{r['model_teraflops']:.3f}" for r in ours)
              + " TFLOP/s of the model, of the ceiling "
              + ", ".join(f"{r['ceiling_ratio']:.3f}" for r in ours))
        losses, norms = ours[0]["losses"], ours[0]["grad_norms"]
        apart = distance(ours[0], reference)
        # Float32 differs by the order of sums. bf16 may err twice as much as the peer's own does.
        allowed = 1e-4 if precision == "float32" else 2 * distance(theirs[0], reference)
        print(f"  losses {losses[0]:.4f} to {losses[-1]:.4f}, at most {apart:.1e} from TRL's in float32 "
              f"(allowed {allowed:.1e}); gradient norms above {min(norms):.2f}")
        same &= apart <= allowed and losses[-1] < losses[0] and min(norms) > 0
    if not same:
        sys.exit("the engines did not do the same work, or it was no training: no ratio counts")


if __name__ == "__main__":
    main()
