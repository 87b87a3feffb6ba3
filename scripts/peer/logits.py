"""Logits, loss and gradients of one row in float64: what a forward and a backward pass must give."""
from common import FIXTURES, MODEL_NAMES, load_model, load_tokenizer, rows, write_json

OUT = FIXTURES / "logits"


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
            doc = {"model": name, "input_ids": row, "positions": positions,
                   "logits": [[round(v, 9) for v in logits[p].tolist()] for p in positions],
                   "loss_sum": loss.item(), "loss_mean": loss.item() / (n - 1), "supervised_tokens": n - 1,
                   "float32_max_abs_difference": worst, "gradients_of_mean_loss": grads}
            size = write_json(OUT / f"{name}{label}.json", doc)
            print(f"logits/{name}{label}: mean loss {loss.item() / (n - 1):.6f}, logits to {logits.abs().max():.2f}, "
                  f"float32 off by {worst:.1e}, {size} bytes", flush=True)
