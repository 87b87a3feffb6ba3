"""What the peer's dataset preparation makes of the rows: token ids and labels."""
import hashlib
import json
import logging
import tempfile
import warnings

import variants
from common import FIXTURES, FORMATS, MODEL_NAMES, MODELS, load_model, load_tokenizer, rows, versions, write_json

OUT = FIXTURES / "tokens"
MODEL = "llama-tiny"


def prepare(data, tokenizer=None, **config):
    """The rows as SFTTrainer would train on them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    with tempfile.TemporaryDirectory() as tmp:
        trainer = SFTTrainer(model=load_model(MODEL), processing_class=tokenizer or load_tokenizer(MODEL),
                             train_dataset=Dataset.from_list(data),
                             args=SFTConfig(output_dir=tmp, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True,
                                            **config))
        keep = ("input_ids", "labels", "seq_lengths")
        return [{k: r[k] for k in keep if k in r} for r in trainer.train_dataset]


U, A, S = "user", "assistant", "system"


def m(*turns):
    return [{"role": r, "content": c} for r, c in turns]


# Small rows with corners, each its own data set so that one may fail without the others.
CORNERS = [
    ("text", [{"text": "Plain text."}], {}),
    ("text-already-ends-with-eos", [{"text": "Plain text.<|im_end|>"}], {}),
    ("text-empty", [{"text": ""}, {"text": "x"}], {}),
    ("text-special-token-inside", [{"text": "a<|im_start|>b <|endoftext|>c"}], {}),
    ("text-unicode", [{"text": "naïve café — 東京 🎉\u200d\u00a0\r\n\ttab  two spaces   "}], {}),
    ("text-other-field", [{"body": "Held under another name."}], dict(dataset_text_field="body")),
    ("prompt-completion-merge", [{"prompt": "Answer: 4", "completion": "2 apples"}], {}),
    ("prompt-completion-space-merge", [{"prompt": "The answer is ", "completion": "forty two"}], {}),
    ("prompt-completion-all-tokens", [{"prompt": "One two", "completion": " three"}], dict(completion_only_loss=False)),
    ("prompt-completion-empty-completion", [{"prompt": "One two", "completion": ""}], {}),
    ("prompt-completion-eos", [{"prompt": "One two", "completion": " three<|im_end|>"}], {}),
    ("conversational-prompt-completion", [{"prompt": m((U, "What is 6*7?")), "completion": m((A, "42"))}], {}),
    ("conversational-prompt-completion-multi",
     [{"prompt": m((S, "Be brief."), (U, "Hi"), (A, "Hello."), (U, "2+2?")), "completion": m((A, "4"))}], {}),
    ("conversational-prompt-completion-assistant-only",
     [{"prompt": m((U, "Hi"), (A, "Hello."), (U, "2+2?")), "completion": m((A, "4"), (U, "Sure?"), (A, "Yes"))}],
     dict(assistant_only_loss=True)),
    ("conversational-prompt-completion-no-completion-mask",
     [{"prompt": m((U, "Hi"), (A, "Hello."), (U, "2+2?")), "completion": m((A, "4"))}],
     dict(assistant_only_loss=True, completion_only_loss=False)),
    ("messages-multi-turn", [{"messages": m((S, "Be brief."), (U, "Hi"), (A, "Hello."), (U, "2+2?"), (A, "4"))}], {}),
    ("messages-multi-turn-assistant-only",
     [{"messages": m((S, "Be brief."), (U, "Hi"), (A, "Hello."), (U, "2+2?"), (A, "4"))}],
     dict(assistant_only_loss=True)),
    ("messages-spaces-assistant-only",
     [{"messages": m((U, "  lead and trail \n"), (A, "\n answer with trailing space "), (U, "next"), (A, "ok"))}],
     dict(assistant_only_loss=True)),
    ("messages-unicode-assistant-only",
     [{"messages": m((U, "ünï 東京"), (A, "答えは四十二です 🎉"), (U, "merci"), (A, "é"))}],
     dict(assistant_only_loss=True)),
    ("messages-no-assistant-assistant-only", [{"messages": m((U, "alone"))}], dict(assistant_only_loss=True)),
    ("messages-empty-assistant-assistant-only", [{"messages": m((U, "a"), (A, ""), (U, "b"), (A, "c"))}],
     dict(assistant_only_loss=True)),
    ("sharegpt", [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}], {}),
    ("sharegpt-standard-roles",
     [{"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello."}]}], {}),
    ("pretokenised", [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10]}], {}),
    ("pretokenised-labels", [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}], {}),
    ("pretokenised-completion-mask", [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]}],
     dict(completion_only_loss=True)),
    ("pretokenised-completion-mask-off", [{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]}], {}),
    ("pretokenised-assistant-masks", [{"input_ids": [5, 6, 7, 8], "assistant_masks": [0, 1, 1, 0]}], {}),
    ("truncation", [{"text": "one two three four five six seven eight nine ten"}, {"text": "short"}],
     dict(max_length=8)),
    ("truncation-drops-masked-rows",
     [{"prompt": "one two three four five six seven eight nine ten", "completion": " eleven"},
      {"prompt": "one", "completion": " two"}, {"prompt": "one two three four", "completion": " five six seven eight"}],
     dict(max_length=8)),
    ("packing-bfd", [{"input_ids": list(range(10 * k, 10 * k + n))} for k, n in ((1, 11), (3, 4), (4, 5), (5, 3), (6, 7))],
     dict(packing=True, packing_strategy="bfd", max_length=8)),
    ("packing-bfd_split",
     [{"input_ids": list(range(10 * k, 10 * k + n))} for k, n in ((1, 11), (3, 4), (4, 5), (5, 3), (6, 7))],
     dict(packing=True, packing_strategy="bfd_split", max_length=8)),
    ("packing-wrapped",
     [{"input_ids": list(range(10 * k, 10 * k + n))} for k, n in ((1, 11), (3, 4), (4, 5), (5, 3), (6, 7))],
     dict(packing=True, packing_strategy="wrapped", max_length=8)),
    ("packing-bfd-ties",
     [{"input_ids": [k] * n} for k, n in ((1, 3), (2, 5), (3, 3), (4, 5), (5, 2), (6, 3), (7, 6), (8, 2), (9, 5))],
     dict(packing=True, packing_strategy="bfd", max_length=8)),
    ("packing-bfd-masked", [{"prompt": "a b c", "completion": " d"}, {"prompt": "e", "completion": " f"}],
     dict(packing=True, packing_strategy="bfd", max_length=16)),
]


def corners(tokenizer=None):
    out = []
    for name, data, config in CORNERS:
        if tokenizer and "input_ids" in data[0]:
            continue
        doc = {"name": name, "rows": data, "config": config}
        try:
            doc["prepared"] = prepare(data, tokenizer, **config)
        except Exception as e:  # what the peer refuses is part of its behaviour
            doc["error"] = f"{type(e).__name__}: {e}"
        out.append(doc)
    return out


def make():
    import datasets
    import transformers
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    # One tokenizer and one template serve all models, so one set of files does.
    texts = {hashlib.sha256((MODELS / n / "tokenizer.json").read_bytes()).hexdigest() for n in MODEL_NAMES}
    assert len(texts) == 1 and len({load_tokenizer(n).chat_template for n in MODEL_NAMES}) == 1
    sets = {f: dict(format=f, config=dict(max_length=512)) for f in FORMATS}
    sets["messages.assistant_only"] = dict(format="messages", config=dict(max_length=512, assistant_only_loss=True))
    sets["prompt-completion.all"] = dict(format="prompt-completion", config=dict(max_length=512, completion_only_loss=False))
    sets["text.max48"] = dict(format="text", config=dict(max_length=48))
    sets["prompt-completion.max48"] = dict(format="prompt-completion", config=dict(max_length=48))
    for strategy in ("bfd", "bfd_split", "wrapped"):
        sets[f"text.packing.{strategy}"] = dict(format="text", config=dict(
            max_length=256 if strategy == "bfd" else 128, packing=True, packing_strategy=strategy))
    for name, kw in sets.items():
        doc = dict(kw, rows=24, models=MODEL_NAMES, prepared=prepare(rows("train", kw["format"], 24), **kw["config"]))
        size = write_json(OUT / f"{MODEL}.{name}.json", doc)
        print(f"tokens/{MODEL}.{name}: {len(doc['prepared'])} rows, {size} bytes", flush=True)
    docs = corners()
    write_json(OUT / f"{MODEL}.corners.json", {"model": MODEL, "versions": versions(), "cases": docs})
    for name, tokenizer in variants.make().items():
        data = {f: prepare(rows("train", f, 6), tokenizer) for f in FORMATS}
        plain = [{"text": t, "input_ids": tokenizer(t)["input_ids"],
                  "without_special_tokens": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in variants.TEXTS]
        size = write_json(OUT / f"{name}.corners.json", {
            "tokenizer": name, "special_tokens": tokenizer.special_tokens_map, "texts": plain, "prepared": data,
            "cases": corners(tokenizer)})
        print(f"tokens/{name}.corners: {size} bytes")
    for d in docs:
        print(" ", d["name"], json.dumps(d.get("prepared", d.get("error")))[:150])
