#!/usr/bin/env python3
"""Does transformers load a model folder that the engine wrote, and does it agree with the engine's logits?

usage: check_logits.py MODEL_DIR DUMP.json [--adapter DIR] [--dtype float32] [--atol 1e-4] [--rtol 1e-4]

DUMP.json, written by the engine: {"input_ids": [...], "positions": [...], "logits": [[...] for each position]}, or a
list of such objects. `positions` may be missing: then the rows are the last ones. A row agrees when every logit lies
within atol + rtol * (largest absolute logit of the row). Exit status 0: all agree; 1: not; 2: the folder or the dump
cannot be read.
"""
import argparse
import json
import sys

import common  # noqa: F401  sets the environment before torch loads


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("dump")
    ap.add_argument("--adapter", help="a PEFT adapter folder to put on the model")
    ap.add_argument("--dtype", default="float32", help="what the weights are converted to (default float32)")
    ap.add_argument("--atol", type=float, default=1e-4)
    ap.add_argument("--rtol", type=float, default=1e-4)
    a = ap.parse_args()

    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype),
                                                           output_loading_info=True, local_files_only=True)
        if a.adapter:
            from peft import PeftModel
            model = PeftModel.from_pretrained(model, a.adapter)
        dump = json.loads(open(a.dump, encoding="utf-8").read())
    except Exception as e:
        print(f"cannot load: {type(e).__name__}: {e}")
        return 2
    model.eval()
    ok = True
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            print(f"{kind}: {sorted(map(str, info[kind]))}")
            ok = False
    try:
        AutoTokenizer.from_pretrained(a.model, local_files_only=True)
        print("tokenizer: loads")
    except Exception as e:
        print(f"tokenizer: does not load ({type(e).__name__}: {e})")
        ok = False
    worst_abs = worst_rel = 0.0
    for case in dump if isinstance(dump, list) else [dump]:
        ids, rows = case["input_ids"], case["logits"]
        positions = case.get("positions", list(range(len(ids) - len(rows), len(ids))))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        for at, row in zip(positions, rows, strict=True):
            theirs, ours = logits[at], torch.tensor(row, dtype=torch.float64)
            if theirs.shape != ours.shape or not torch.isfinite(ours).all():
                print(f"position {at}: {tuple(ours.shape)} against {tuple(theirs.shape)}, "
                      f"finite: {bool(torch.isfinite(ours).all())}")
                ok = False
                continue
            diff, scale = (theirs - ours).abs().max().item(), theirs.abs().max().item()
            worst_abs, worst_rel = max(worst_abs, diff), max(worst_rel, diff / max(scale, 1e-30))
            if diff > a.atol + a.rtol * scale:
                print(f"position {at}: off by {diff:.3e} where logits reach {scale:.3e}, "
                      f"best token {int(ours.argmax())} against {int(theirs.argmax())}")
                ok = False
    print(f"largest difference: {worst_abs:.3e} absolute, {worst_rel:.3e} of the row's largest logit: "
          f"{'agree' if ok else 'DIFFER'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
