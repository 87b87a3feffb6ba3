"""Logits, loss and gradients of one row in float64: what a forward and a backward pass must give."""
from common import FIXTURES, MODEL_NAMES, load_model, load_tokenizer, rows, write_json

OUT = FIXTURES / "logits"


# What the trainer multiplies the loss by, so that float16 holds small gradients.
LOSS_SCALE = {"bfloat16": 1.0, "float16": 65536.0}


def autocast(name, row, dtype, logits, exact):
    """How far the float32 model under autocast, as the trainer runs it, is from the float64 one."""
    import torch
    model, scale = load_model(name).eval(), LOSS_SCALE[dtype]
    with torch.autocast("cpu", getattr(torch, dtype)):
        found = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(found[:-1], torch.tensor(row[1:]), reduction="sum")
    (scale * loss / (len(row) - 1)).backward()
    exact = {n: p.grad for n, p in exact.named_parameters()}
    off = {n: ((p.grad.double() / scale - exact[n]).norm() / exact[n].norm()).item() for n, p in model.named_parameters()}
    return {"max_abs_difference": (found.double() - logits).abs().max().item(), "loss_sum": loss.item(),
            "gradient_differences": off}


def make():
    import torch
    for name in MODEL_NAMES:
        tok = load_tokenizer(name)
        text = rows("train", "text", 3)[2]["text"]
        ids = tok(text)["input_ids"]
        for label, n in (("", 40), (".long", 180)):
            row = ids[:n] if not label else (ids + tok(rows("train", "text", 1)[0]["text"])["input_ids"])[:n]
            assert len(row) == n
            model = load_model(name, "float64").eval()
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="sum")
            (loss / (n - 1)).backward()
            grads = {p_name: {"norm": p.grad.norm().item(), "first": p.grad.flatten()[:8].tolist(),
                              "last": p.grad.flatten()[-8:].tolist()} for p_name, p in model.named_parameters()}
            positions = [n - 3, n - 2, n - 1]
            # the same model in the precision that the peer trains in
            f32 = load_model(name).eval()
            with torch.no_grad():
                low = f32(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            worst = (low.double() - logits).abs().max().item()
            mixed = {dtype: autocast(name, row, dtype, logits, model) for dtype in ("bfloat16", "float16")}
            doc = {"model": name, "input_ids": row, "positions": positions,
                   "logits": [[round(v, 9) for v in logits[p].tolist()] for p in positions],
                   "loss_sum": loss.item(), "loss_mean": loss.item() / (n - 1), "supervised_tokens": n - 1,
                   "float32_max_abs_difference": worst, "mixed_precision": mixed, "gradients_of_mean_loss": grads}
            size = write_json(OUT / f"{name}{label}.json", doc)
            print(f"logits/{name}{label}: mean loss {loss.item() / (n - 1):.6f}, logits to {logits.abs().max():.2f}, "
                  f"float32 off by {worst:.1e}, {size} bytes", flush=True)
