"""Run the real SFTTrainer on the tiny models and write what every update did."""
import json
import logging
import math
import pathlib
import tempfile
import time
import warnings

from common import FIXTURES, FORMATS, MODEL_NAMES, load_model, load_tokenizer, rows, versions, write_json

OUT = FIXTURES / "parity"

# Settings of a case that are the recorder's own; all others are passed to SFTConfig as they are.
RECORDER_KEYS = ("model", "format", "train_rows", "eval_rows", "early_stopping_patience", "early_stopping_threshold",
                 "dtype", "lora")
DEFAULTS = dict(train_rows=160, eval_rows=0, dtype="float32", max_steps=20, per_device_train_batch_size=4,
                per_device_eval_batch_size=4, gradient_accumulation_steps=1, max_length=512, learning_rate=1e-3,
                lr_scheduler_type="linear", lr_scheduler_kwargs=None, warmup_steps=0, weight_decay=0.0,
                max_grad_norm=1.0, assistant_only_loss=False, packing=False,
                train_sampling_strategy="sequential", seed=42)
RATES = {"text": 1e-3, "prompt-completion": 5e-5, "messages": 5e-4}


def cases():
    """name -> settings that differ from DEFAULTS"""
    out = {}

    def case(name, **kw):
        assert name not in out
        out[name] = kw

    for m in MODEL_NAMES:
        for f in FORMATS:
            lr = RATES[f]
            evals = dict(eval_rows=16, eval_strategy="steps", eval_steps=5) if f == "messages" else {}
            case(f"{m}.{f}.accum1", model=m, format=f, learning_rate=lr, **evals)
            case(f"{m}.{f}.accum4", model=m, format=f, learning_rate=lr, per_device_train_batch_size=2,
                 gradient_accumulation_steps=4)
    for m in MODEL_NAMES:
        case(f"{m}.packing", model=m, format="text", packing=True, packing_strategy="bfd", max_length=256,
             per_device_train_batch_size=2)
        # the first packs of the case above hold one long row each; these hold several
        case(f"{m}.packing.multi", model=m, format="text", packing=True, packing_strategy="bfd", max_length=512,
             per_device_train_batch_size=1, gradient_accumulation_steps=2)
        case(f"{m}.assistant-only", model=m, format="messages", assistant_only_loss=True)
        case(f"{m}.messages.accum1.f64", model=m, format="messages", learning_rate=RATES["messages"], dtype="float64",
             eval_rows=16, eval_strategy="steps", eval_steps=5)

    # Mixed precision: the float32 twin of X.bf16 and X.fp16 is X.
    for m in MODEL_NAMES:
        case(f"{m}.text.accum1.bf16", model=m, format="text", learning_rate=RATES["text"], bf16=True)
        case(f"{m}.text.accum1.fp16", model=m, format="text", learning_rate=RATES["text"], fp16=True)
    for m in ("llama-tiny", "qwen3-tiny"):
        case(f"{m}.messages.accum1.bf16", model=m, format="messages", learning_rate=RATES["messages"], bf16=True,
             eval_rows=16, eval_strategy="steps", eval_steps=5)
        case(f"{m}.messages.accum4.bf16", model=m, format="messages", learning_rate=RATES["messages"], bf16=True,
             per_device_train_batch_size=2, gradient_accumulation_steps=4)
    # One supervised token an update: the first scale is too large for the peer, whose gradients of weights are float16.
    case("llama-tiny.overflow.fp16", model="llama-tiny", format="text", max_length=2, per_device_train_batch_size=1,
         learning_rate=1e-4, fp16=True)
    case("qwen2-tiny.packing.multi.bf16", model="qwen2-tiny", format="text", packing=True, packing_strategy="bfd",
         max_length=512, per_device_train_batch_size=1, gradient_accumulation_steps=2, bf16=True)

    tiny = dict(model="llama-tiny")
    for name, kw in {
        "linear": {}, "cosine": {}, "constant": {}, "constant_with_warmup": {},
        "cosine_with_restarts": dict(num_cycles=2), "polynomial": dict(power=2.0, lr_end=1e-5), "inverse_sqrt": {},
        "cosine_with_min_lr": dict(min_lr_rate=0.1),
        "cosine_warmup_with_min_lr": dict(min_lr_rate=0.1, warmup_lr_rate=0.05),
        "warmup_stable_decay": dict(num_decay_steps=6, min_lr_ratio=0.1),
    }.items():
        case(f"llama-tiny.schedule.{name}", **tiny, format="prompt-completion", lr_scheduler_type=name,
             warmup_steps=3, lr_scheduler_kwargs=kw or None)
    case("llama-tiny.weight-decay", **tiny, format="text", weight_decay=0.1, learning_rate=5e-3)
    case("qwen2-tiny.weight-decay", model="qwen2-tiny", format="text", weight_decay=0.1, learning_rate=5e-3)
    # Adam hardly minds the scale of a gradient; a large epsilon makes it mind
    case("llama-tiny.clip-0.1", **tiny, format="text", max_grad_norm=0.1, adam_epsilon=1e-3)
    case("llama-tiny.clip-off", **tiny, format="text", max_grad_norm=0.0, adam_epsilon=1e-3)
    case("llama-tiny.adam-betas", **tiny, format="text", adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    case("llama-tiny.max-length-48.text", **tiny, format="text", max_length=48)
    case("llama-tiny.max-length-48.prompt-completion", **tiny, format="prompt-completion", max_length=48)
    case("llama-tiny.packing.bfd_split", **tiny, format="text", packing=True, packing_strategy="bfd_split",
         max_length=128, per_device_train_batch_size=2, train_rows=24)
    case("llama-tiny.packing.wrapped", **tiny, format="text", packing=True, packing_strategy="wrapped",
         max_length=128, per_device_train_batch_size=2)
    case("llama-tiny.packing.bfd.prompt-completion", **tiny, format="prompt-completion", packing=True,
         packing_strategy="bfd", max_length=256, per_device_train_batch_size=2, gradient_accumulation_steps=2,
         train_rows=160)
    case("llama-tiny.padding-free", **tiny, format="messages", padding_free=True, max_length=None)
    epochs = dict(format="text", train_rows=10, max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2)
    case("llama-tiny.epochs", **tiny, **epochs)
    case("llama-tiny.epochs.shuffled", **tiny, **epochs, train_sampling_strategy="random")
    case("llama-tiny.completion-only-off", **tiny, format="prompt-completion", completion_only_loss=False)
    case("llama-tiny.dft", **tiny, format="messages", loss_type="dft")

    case("llama-tiny.lora", **tiny, format="messages", lora=dict(r=4, lora_alpha=8, target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), eval_rows=16,
         eval_strategy="steps", eval_steps=10, learning_rate=5e-3, weight_decay=0.01)
    case("qwen3-tiny.lora.rslora", model="qwen3-tiny", format="prompt-completion", learning_rate=5e-3,
         lora=dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=True))

    stop = dict(format="messages", eval_rows=16, per_device_eval_batch_size=16, eval_strategy="steps", eval_steps=2,
                save_strategy="steps", save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
                greater_is_better=False, save_total_limit=2, max_steps=60)
    case("llama-tiny.early-stop.overfit", **tiny, **stop, train_rows=8, learning_rate=1e-2,
         lr_scheduler_type="constant", early_stopping_patience=2, early_stopping_threshold=0.0)
    case("qwen3-tiny.early-stop.threshold", model="qwen3-tiny", **stop, learning_rate=5e-3,
         early_stopping_patience=1, early_stopping_threshold=0.1)
    case("llama3-tiny.early-stop.patience", model="llama3-tiny", **stop, train_rows=16, learning_rate=5e-3,
         lr_scheduler_type="constant", early_stopping_patience=3, early_stopping_threshold=0.15)
    # The best step lies three evaluations before the end. (A larger rate blows up the peer's own roundings.)
    case("mistral-tiny.early-stop.restored", model="mistral-tiny", **stop, train_rows=8, learning_rate=5e-3,
         lr_scheduler_type="constant", early_stopping_patience=3, early_stopping_threshold=0.0)
    return out


def token_weighted_loss(model, dataset):
    """Sum of -log p over every supervised position of the rows, divided by their number; one row at a time."""
    import torch
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in dataset:
            ids = torch.tensor([row["input_ids"]])
            labels = torch.tensor(row["labels"])[1:]
            logp = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].double(), dim=-1)
            keep = labels != -100
            total -= logp[keep].gather(1, labels[keep][:, None]).sum().item()
            count += int(keep.sum())
    return total / count, count


def number(x):
    """JSON has no NaN."""
    return x if math.isfinite(x) else str(x)


def digest(model):
    """Per trained parameter: L2 norm and plain sum, in float64. Enough to see which tensor went another way."""
    return {n.replace(".default.", "."): [p.detach().double().norm().item(), p.detach().double().sum().item()]
            for n, p in model.named_parameters() if p.requires_grad}


def add_lora(model, name, config):
    """Puts a new adapter on the model and keeps it: what it starts from is random."""
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **config))
    save_adapter(model, f"{name}.start")
    return model


def save_adapter(model, name):
    folder = FIXTURES / "adapters" / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a model card with local paths
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "tests/fixtures/models/" + pathlib.Path(config["base_model_name_or_path"]).name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2) + "\n")


def tuned_logits(model, dataset):
    """Logits of the tuned model for the first forty tokens of the first row, at the last three of them."""
    import torch
    ids = dataset[0]["input_ids"][:40]
    positions = [len(ids) - 3, len(ids) - 2, len(ids) - 1]
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return {"input_ids": ids, "positions": positions, "logits": [logits[p].tolist() for p in positions]}


def run(name, settings):
    import torch
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    s = {**DEFAULTS, **settings}
    set_seed(s["seed"])
    tok = load_tokenizer(s["model"])
    model = load_model(s["model"], s["dtype"])
    if "lora" in s:
        model = add_lora(model, name, s["lora"])
    micro, scales, updates, evals, stopper = [], [], [], [], None

    last = {}

    class Recorder(SFTTrainer):
        def _load_best_model(self):
            last.update(digest(model))
            super()._load_best_model()

        def training_step(self, model, inputs, num_items_in_batch=None):
            labels = inputs["labels"]
            shape = dict(rows=labels.shape[0], positions=labels.numel(),
                         supervised_tokens=int((labels[:, 1:] != -100).sum()))
            if self.accelerator.scaler is not None:
                scales.append(self.accelerator.scaler.get_scale())
            loss = super().training_step(model, inputs, num_items_in_batch)
            micro.append(dict(loss=loss.item(), n=int(num_items_in_batch), **shape))
            return loss

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if s["dtype"] != "float64":
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # The peer's loss works in float32 whatever the model is: keep it for the metrics alone.
            with torch.no_grad():
                super().compute_loss(model, dict(inputs), return_outputs, num_items_in_batch)
            logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[:, :-1]
            labels = inputs["labels"][:, 1:]
            total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kw):
            if "grad_norm" in logs:
                n = sum(m["supervised_tokens"] for m in micro)
                assert all(m["n"] == n for m in micro)
                updates.append(dict(
                    step=state.global_step, loss=sum(m["loss"] for m in micro), grad_norm=number(logs["grad_norm"]),
                    learning_rate=logs["learning_rate"], supervised_tokens=n, num_tokens=int(logs["num_tokens"]),
                    mean_token_accuracy=logs["mean_token_accuracy"], entropy=logs["entropy"], epoch=logs["epoch"],
                    logged_loss=logs["loss"],
                    micro_batches=[[m["rows"], m["positions"], m["supervised_tokens"], m["loss"]] for m in micro]))
                if scales:  # accelerate does not notice what the fused optimizer skips, the scale does
                    updates[-1].update(loss_scale=scales[-1],
                                       skipped=trainer.accelerator.scaler.get_scale() < scales[-1])
                micro.clear()

        def on_evaluate(self, args, state, control, metrics=None, **kw):
            loss, count = token_weighted_loss(model, trainer.eval_dataset)
            evals.append(dict(step=state.global_step, eval_loss=metrics["eval_loss"], token_weighted_loss=loss,
                              supervised_tokens=count, eval_mean_token_accuracy=metrics["eval_mean_token_accuracy"],
                              eval_entropy=metrics["eval_entropy"]))

    callbacks = [Watch()]
    if "early_stopping_patience" in s:
        stopper = EarlyStoppingCallback(s["early_stopping_patience"], s["early_stopping_threshold"])
        callbacks.append(stopper)
    with tempfile.TemporaryDirectory() as tmp:
        args = SFTConfig(output_dir=tmp, use_cpu=True, gradient_checkpointing=False, logging_steps=1,
                         report_to=[], disable_tqdm=True, dataloader_num_workers=0,
                         **{"save_strategy": "no", "bf16": False, **{k: v for k, v in s.items() if k not in RECORDER_KEYS}})
        trainer = Recorder(
            model=model, args=args, processing_class=tok, callbacks=callbacks,
            train_dataset=Dataset.from_list(rows("train", s["format"], s["train_rows"])),
            eval_dataset=Dataset.from_list(rows("test", s["format"], s["eval_rows"])) if s["eval_rows"] else None)
        trainer.remove_callback(PrinterCallback)
        if s.get("fp16"):
            # accelerate ignores fp16 on a CPU and would train in float32: give it what it sets up on a GPU.
            trainer.accelerator.native_amp = True
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        assert all(p.dtype == getattr(torch, s["dtype"]) for p in model.parameters())
        result = trainer.train()
        state = trainer.state
        doc = {
            "case": name, "settings": s, "optimizer": str(args.optim.value if hasattr(args.optim, "value") else args.optim),
            "prepared_rows": len(trainer.train_dataset), "updates": updates, "evals": evals,
            "result": {"steps": state.global_step, "planned_steps": state.max_steps, "train_loss": result.training_loss},
            "final_params": digest(model), "versions": versions(),
        }
        if "lora" in s:
            save_adapter(model, f"{name}.end")
            doc["tuned"] = tuned_logits(model, trainer.train_dataset)
        if stopper:
            loss, _ = token_weighted_loss(model, trainer.eval_dataset)
            went_on = state.global_step > state.best_global_step
            assert last and (last != doc["final_params"]) == went_on, "the best weights are not back"
            best, margin = None, float("inf")
            for e in evals:  # how far the decisions are from turning out otherwise
                if best is not None:
                    margin = min(margin, abs(abs(e["eval_loss"] - best) - stopper.early_stopping_threshold),
                                 abs(e["eval_loss"] - best))
                best = e["eval_loss"] if best is None else min(best, e["eval_loss"])
            doc["result"].update(
                stopped_early=state.global_step < state.max_steps, best_metric=state.best_metric,
                best_step=state.best_global_step, patience_counter=stopper.early_stopping_patience_counter,
                decision_margin=margin, loaded_best_token_weighted_loss=loss)
            recorded = len(evals)
            doc["best"] = {"step": state.best_global_step, "metric": state.best_metric, "params": digest(model),
                           "eval_loss": trainer.evaluate()["eval_loss"], "token_weighted_loss": loss,
                           "last_params": last}
            del evals[recorded:]  # that evaluation was none of the run's
    return doc


def make(only=""):
    import datasets
    import transformers
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    index = []
    for name, settings in cases().items():
        path = OUT / f"{name}.json"
        if only in name:
            t = time.time()
            doc = run(name, settings)
            size = write_json(path, doc)
            u, r = doc["updates"], doc["result"]
            print(f"{name}: {r['steps']} updates, loss {u[0]['loss']:.4f} -> {u[-1]['loss']:.4f}, "
                  f"norm {float(u[0]['grad_norm']):.3f}, {size} bytes, {time.time() - t:.1f} s", flush=True)
            if "stopped_early" in r:
                print("  ", r, [round(e["eval_loss"], 4) for e in doc["evals"]])
        if path.exists():
            index.append({"case": name, "file": path.name, "model": settings["model"], "format": settings["format"],
                          "settings": settings})
    write_json(OUT / "index.json", {"defaults": DEFAULTS, "versions": versions(), "cases": index}, indent=1)
