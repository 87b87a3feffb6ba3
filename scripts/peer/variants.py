"""Two small tokenizers of other kinds than the models' own, for what depends on the kind.

`bos-regex`: split by a regular expression, NFC, byte-level BPE, and a post-processor that puts a first token before
every text, as Llama 3 has it; its chat template prints that token itself.
`byte-fallback`: BPE over words that begin with ▁, unknown characters as bytes, a first token, as Llama 2 and Mistral
have it.
"""
import json

from common import FIXTURES, raw_rows

OUT = FIXTURES / "tokenizers"

REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
TEXTS = ["", " ", "Hello", " Hello", "Hello world", "  two  spaces ", "12345 + 6.7=89", "line\n\nline\r\n\ttab",
         "naïve cafe\u0301 — 東京 🎉👩‍👩‍👧 \u00a0x", "I'm we'RE can't", "<s>inside</s>", "<|begin|>inside<|eot|>", "\u0000\u0007\ufffd",
         "▁underline ▁ x"]

TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + m['content'] | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}")


def lines():
    return (r[k] for r in raw_rows("train") for k in ("question", "answer"))


def bos_regex():
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(REGEX), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(lines(), trainers.BpeTrainer(
        vocab_size=800, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|begin|>", "<|eot|>"]))
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1",
                                      special_tokens=[("<|begin|>", 1)])])
    return tok, dict(bos_token="<|begin|>", eos_token="<|eot|>", pad_token="<|pad|>"), TURNS


def byte_fallback():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    tok.train_from_iterator(lines(), trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=specials))
    # The bytes stand between the special tokens and the rest, the prefix is put on by the normalizer.
    doc = json.loads(tok.to_str())
    words = [w for w, _ in sorted(doc["model"]["vocab"].items(), key=lambda e: e[1]) if w not in specials]
    doc["model"]["vocab"] = {w: i for i, w in enumerate(specials + [f"<0x{b:02X}>" for b in range(256)] + words)}
    doc["pre_tokenizer"] = None
    tok = Tokenizer.from_str(json.dumps(doc))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                       special_tokens=[("<s>", 1)])
    return tok, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>"), INST


def make():
    """name -> tokenizer as transformers loads it; made anew only where no file is committed"""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    out = {}
    for name, build in (("bos-regex", bos_regex), ("byte-fallback", byte_fallback)):
        folder = OUT / name
        if not (folder / "tokenizer.json").exists():
            tok, special, template = build()
            fast = PreTrainedTokenizerFast(tokenizer_object=tok, **special)
            fast.chat_template = template
            fast.save_pretrained(folder)
            assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == len(fast)
        out[name] = AutoTokenizer.from_pretrained(folder)
    return out
