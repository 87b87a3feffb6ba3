"""Paths, rows and small helpers shared by the fixture recorders."""
import json
import os
import pathlib

# Set before torch is imported: one thread makes sums repeatable, and nothing may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent.parent / "tests" / "fixtures"
DATA = FIXTURES / "data"
MODELS = FIXTURES / "models"

MODEL_NAMES = ["llama-tiny", "llama-tiny-untied", "llama3-tiny", "qwen2-tiny", "qwen3-tiny", "mistral-tiny"]
FORMATS = ["text", "prompt-completion", "messages"]


def versions():
    import importlib.metadata as md
    return {name: md.version(name) for name in
            ("torch", "transformers", "tokenizers", "trl", "accelerate", "datasets", "peft", "jinja2")}


def raw_rows(split):
    with open(DATA / f"gsm8k_{split}_small.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def format_row(row, fmt):
    """One question with its answer, in one of the shapes that a trainer accepts."""
    q, a = row["question"], row["answer"]
    if fmt == "text":
        return {"text": f"Question: {q}\nAnswer: {a}"}
    if fmt == "prompt-completion":
        return {"prompt": f"Question: {q}\nAnswer:", "completion": f" {a}"}
    if fmt == "messages":
        return {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    raise ValueError(fmt)


def rows(split, fmt, count):
    out = [format_row(r, fmt) for r in raw_rows(split)[:count]]
    assert len(out) == count, f"{split} holds only {len(out)} rows"
    return out


def load_model(name, dtype="float32"):
    import torch
    from transformers import AutoModelForCausalLM
    if dtype == "float64":
        return widen(AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="sdpa"))
    return AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=getattr(torch, dtype), attn_implementation="sdpa")


def load_tokenizer(name):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(MODELS / name)


def widen(model):
    """The model in float64 throughout.

    The norms and the rotary embedding of transformers fall back to float32 whatever the weights are,
    so both are replaced. The rotary frequencies keep the float32 values that the peer trains with.
    """
    import types
    import torch

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        angles = position_ids[:, :, None].double() * self.inv_freq[None, None, :].double()
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.attention_scaling).to(x.dtype), (angles.sin() * self.attention_scaling).to(x.dtype)

    inv_freq = {n: b.clone() for n, b in model.named_buffers() if n.endswith("inv_freq")}
    model = model.double()
    for name, module in model.named_modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            module.inv_freq = inv_freq[f"{name}.inv_freq"].double()
            module.forward = types.MethodType(rotary, module)
    return model


def write_json(path, doc, indent=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(doc, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))
    path.write_text(text + "\n", encoding="utf-8")
    return len(text)
