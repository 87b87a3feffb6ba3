"""Tiny models with seeded random weights in Hugging Face layout, and their tokenizer.

The shapes are small, the architectures are real. Norm weights and biases are moved away from their
neutral initial values, and matrices are drawn wide enough that attention is not uniform, so that a
norm, a bias or a rotation which an engine leaves out shows in the numbers.
"""
import json
import pathlib

from common import MODELS, MODEL_NAMES, raw_rows

TINY = dict(vocab_size=2048, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1)

# name: (model type, configuration, stored dtype, largest shard)
SHAPES = {
    "llama-tiny": ("llama", dict(TINY, tie_word_embeddings=True), "float32", None),
    "llama-tiny-untied": ("llama", dict(TINY, tie_word_embeddings=False), "float16", "300KB"),
    "llama3-tiny": ("llama", dict(TINY, tie_word_embeddings=False, rope_parameters=dict(
        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=128)), "bfloat16", None),
    "qwen2-tiny": ("qwen2", dict(TINY, tie_word_embeddings=True), "bfloat16", None),
    "qwen3-tiny": ("qwen3", dict(TINY, head_dim=32, tie_word_embeddings=True), "bfloat16", None),
    "mistral-tiny": ("mistral", dict(TINY, sliding_window=64, tie_word_embeddings=False), "bfloat16", None),
}
assert list(SHAPES) == MODEL_NAMES

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def train_tokenizer(corpus):
    """A byte-level BPE of 2048 tokens. `corpus`: a JSONL file of questions and answers, or None for the small rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    if corpus:
        lines = [json.loads(line) for line in pathlib.Path(corpus).open(encoding="utf-8")]
    else:
        lines = raw_rows("train")
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator((r[k] for r in lines for k in ("question", "answer")), trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"], show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    return tok


def tokenizer(corpus):
    """The committed tokenizer when there is one; a newly trained one otherwise or when a corpus is named."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    kept = MODELS / "llama-tiny" / "tokenizer.json"
    tok = Tokenizer.from_file(str(kept)) if kept.exists() and not corpus else train_tokenizer(corpus)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", bos_token="<|endoftext|>",
                                   pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def perturb(model, seed):
    import torch
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = 0.1 * torch.randn(p.shape, generator=gen)
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + noise)
            elif name.endswith("bias"):
                p.copy_(noise)


def older_config(cfg):
    """The same configuration under the key names that transformers 4 wrote."""
    old = dict(cfg)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = old.pop("dtype")
    old.pop("layer_types", None)
    if old["model_type"] != "qwen3":  # there it is no quotient of the others
        old.pop("head_dim", None)
    old["transformers_version"] = "4.46.0"
    return {k: old[k] for k in sorted(old)}


def make_model(name, tok):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CONFIG_MAPPING
    kind, kw, dtype, shard = SHAPES[name]
    cfg = CONFIG_MAPPING[kind](**kw, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                               pad_token_id=tok.pad_token_id)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(cfg)
    perturb(model, seed=1)
    model = model.to(getattr(torch, dtype))
    out = MODELS / name
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.safetensors*"):
        old.unlink()
    model.save_pretrained(out, **({"max_shard_size": shard} if shard else {}))
    tok.save_pretrained(out)
    if name == "llama-tiny-untied":  # the older place of a chat template
        path = out / "tokenizer_config.json"
        conf = json.loads(path.read_text())
        conf["chat_template"] = (out / "chat_template.jinja").read_text()
        path.write_text(json.dumps(conf, indent=2, ensure_ascii=False) + "\n")
        (out / "chat_template.jinja").unlink()
    cfg_json = json.loads((out / "config.json").read_text())
    old = older_config(cfg_json)
    (out / "config.v4.json").write_text(json.dumps(old, indent=2) + "\n")
    # Both spellings must mean the same model to the peer.
    a, b = AutoConfig.for_model(**old).to_dict(), AutoConfig.from_pretrained(out).to_dict()
    for key in ("rope_parameters", "sliding_window", "layer_types", "tie_word_embeddings"):
        assert a.get(key) == b.get(key), (name, key, a.get(key), b.get(key))
    print(f"models/{name}: {sum(p.numel() for p in model.parameters())} parameters, {dtype}")


def make(corpus=None):
    tok = tokenizer(corpus)
    for name in SHAPES:
        make_model(name, tok)
