//! Keys of TRL and transformers that are not keys here: which of their values change nothing and
//! are accepted, and why the others are not supported.

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::suggest;

use super::fields::keys;

/// A key that the peer has and this library has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerKey {
    /// The key.
    pub name: &'static str,
    /// Values that change nothing here, as JSON; `None` is every value. null is always accepted.
    pub harmless: Option<&'static [&'static str]>,
    /// Why: for accepted values why they change nothing, else what is missing or the way out.
    pub why: &'static str,
}

/// Every value changes nothing.
const fn any(name: &'static str, why: &'static str) -> PeerKey {
    PeerKey {
        name,
        harmless: None,
        why,
    }
}

/// Only `harmless` (and null) changes nothing.
const fn only(name: &'static str, harmless: &'static [&'static str], why: &'static str) -> PeerKey {
    PeerKey {
        name,
        harmless: Some(harmless),
        why,
    }
}

const FALSE: &[&str] = &["false"];
const NULL: &[&str] = &[];
const EMPTY: &[&str] = &["{}", "[]", "\"\"", "false"];

const EXACT: &str = "results do not depend on it here";
const LOG: &str = "train_log.jsonl holds every update; trackers read it from there";
const TRACKERS: &str = "choose none or tensorboard; other trackers read train_log.jsonl";
const KNOWN_TRACKERS: [&str; 2] = ["none", "tensorboard"];
const HUB: &str = "nothing is uploaded";
const ONE_PROCESS: &str = "one process trains on one device";
const LORA: &str = "only read with use_peft, which is not supported yet";
const QUANT: &str = "weights are trained in float32; quantised training is not supported";
const LOADER: &str = "rows are read and tokenised by native threads";
const NATIVE: &str = "there is no Python or torch underneath";

static PEER_KEYS: &[PeerKey] = &[
    // Model.
    only(
        "model_revision",
        &["\"main\""],
        "models are folders on disk: download the revision",
    ),
    only(
        "model_init_kwargs",
        EMPTY,
        "options of a Python constructor",
    ),
    only("dtype", &["\"float32\""], QUANT),
    only("torch_dtype", &["\"float32\""], QUANT),
    any(
        "trust_remote_code",
        "no code from a model folder is ever run",
    ),
    any(
        "attn_implementation",
        "attention is exact, whatever computes it",
    ),
    only("load_in_4bit", FALSE, QUANT),
    only("load_in_8bit", FALSE, QUANT),
    any("bnb_4bit_quant_type", "only read with load_in_4bit"),
    any("bnb_4bit_quant_storage", "only read with load_in_4bit"),
    any("use_bnb_nested_quant", "only read with load_in_4bit"),
    only(
        "router_aux_loss_coef",
        &["0", "0.0"],
        "mixtures of experts are not supported",
    ),
    // Adapters.
    any("lora_r", LORA),
    any("lora_alpha", LORA),
    any("lora_dropout", LORA),
    any("lora_target_modules", LORA),
    any("lora_target_parameters", LORA),
    any("lora_modules_to_save", LORA),
    any("lora_task_type", LORA),
    any("use_rslora", LORA),
    any("use_dora", LORA),
    // Data.
    only("dataset_config", NULL, "dataset_name is a file or a folder"),
    only(
        "datasets",
        EMPTY,
        "mixtures are not supported: join the files into one",
    ),
    only(
        "dataset_streaming",
        FALSE,
        "rows stream from disk already; remove the key",
    ),
    only(
        "streaming",
        FALSE,
        "rows stream from disk already; remove the key",
    ),
    only(
        "dataset_kwargs",
        &["{}", "{\"skip_prepare_dataset\":false}"],
        "rows with input_ids are used as they are; other rows are prepared",
    ),
    only(
        "truncation_mode",
        &["\"keep_start\""],
        "only the start of a long row is kept",
    ),
    any("padding_free", "batches never hold padding"),
    any("pad_to_multiple_of", "batches never hold padding"),
    any("pad_token", "batches never hold padding"),
    any(
        "remove_unused_columns",
        "columns that are not needed are never kept",
    ),
    only(
        "label_names",
        &["[\"labels\"]"],
        "labels come from the rows",
    ),
    any("length_column_name", "lengths are counted"),
    any("dataloader_num_workers", LOADER),
    any("dataloader_pin_memory", LOADER),
    any("dataloader_persistent_workers", LOADER),
    any("dataloader_prefetch_factor", LOADER),
    only(
        "dataloader_drop_last",
        FALSE,
        "the last rows of an epoch are always trained on",
    ),
    // Objective and optimizer.
    only(
        "optim",
        &["\"adamw_torch_fused\"", "\"adamw_torch\""],
        "AdamW is the one optimizer",
    ),
    only(
        "optim_args",
        EMPTY,
        "AdamW has its own keys: adam_beta1, adam_beta2, adam_epsilon",
    ),
    only("optim_target_modules", EMPTY, "AdamW is the one optimizer"),
    only(
        "label_smoothing_factor",
        &["0", "0.0"],
        "label smoothing is not supported",
    ),
    only(
        "neftune_noise_alpha",
        &["0", "0.0"],
        "NEFTune noise is not supported",
    ),
    any(
        "average_tokens_across_devices",
        "the loss is a mean over all tokens of an update",
    ),
    // Precision and speed.
    any("tf32", "float32 arithmetic is exact float32"),
    only(
        "bf16_full_eval",
        FALSE,
        "evaluation runs in the precision of training",
    ),
    only(
        "fp16_full_eval",
        FALSE,
        "evaluation runs in the precision of training",
    ),
    any("gradient_checkpointing_kwargs", EXACT),
    any("activation_checkpointing_kwargs", EXACT),
    only(
        "activation_offloading",
        FALSE,
        "activations stay on the device",
    ),
    only("torch_compile", FALSE, NATIVE),
    any("torch_compile_backend", NATIVE),
    any("torch_compile_mode", NATIVE),
    any("torch_empty_cache_steps", NATIVE),
    any("use_liger_kernel", "kernels are always fused"),
    any("liger_kernel_config", "kernels are always fused"),
    only(
        "auto_find_batch_size",
        FALSE,
        "`sft plan` says what fits before a run starts",
    ),
    any("use_cpu", "`device` chooses"),
    any("full_determinism", "a run is always bitwise repeatable"),
    // Processes.
    only("deepspeed", EMPTY, ONE_PROCESS),
    only("fsdp", EMPTY, ONE_PROCESS),
    only("fsdp_config", EMPTY, ONE_PROCESS),
    only("parallelism_config", EMPTY, ONE_PROCESS),
    only("accelerator_config", EMPTY, ONE_PROCESS),
    only("accelerate_config", &["\"single_gpu\""], ONE_PROCESS),
    any("ddp_backend", ONE_PROCESS),
    any("ddp_timeout", ONE_PROCESS),
    any("ddp_bucket_cap_mb", ONE_PROCESS),
    any("ddp_find_unused_parameters", ONE_PROCESS),
    any("ddp_broadcast_buffers", ONE_PROCESS),
    any("ddp_static_graph", ONE_PROCESS),
    any("ignore_bias_buffers", ONE_PROCESS),
    any("local_rank", ONE_PROCESS),
    any("save_on_each_node", ONE_PROCESS),
    any("log_on_each_node", ONE_PROCESS),
    only("env", EMPTY, "set environment variables in the shell"),
    // Evaluation and logging.
    only("do_train", &["true", "false"], "`sft train` trains"),
    only("do_eval", &["true", "false"], "eval_strategy decides"),
    only("do_predict", FALSE, "`sft generate` predicts"),
    any("prediction_loss_only", EXACT),
    any("eval_accumulation_steps", EXACT),
    any("eval_do_concat_batches", EXACT),
    any("eval_use_gather_object", ONE_PROCESS),
    only(
        "batch_eval_metrics",
        FALSE,
        "metrics are computed by the engine",
    ),
    only(
        "include_for_metrics",
        EMPTY,
        "metrics are computed by the engine",
    ),
    any("run_name", LOG),
    any("project", LOG),
    any("trackio_space_id", LOG),
    only("logging_strategy", &["\"steps\""], LOG),
    any("logging_first_step", LOG),
    any(
        "logging_nan_inf_filter",
        "the log always holds the true numbers",
    ),
    any(
        "include_num_input_tokens_seen",
        "the log always counts tokens",
    ),
    any("log_level", "the host decides what to show"),
    any("log_level_replica", ONE_PROCESS),
    any("skip_memory_metrics", "memory is planned, not measured"),
    // Saving.
    any("save_only_model", "checkpoints hold the model"),
    any("save_safetensors", "models are always saved as safetensors"),
    only(
        "enable_jit_checkpoint",
        FALSE,
        "cancel the run instead: it saves before it ends",
    ),
    any(
        "restore_callback_states_from_checkpoint",
        "the state of the stop rules is always restored",
    ),
    only(
        "ignore_data_skip",
        FALSE,
        "a resumed run continues where it was",
    ),
    only("push_to_hub", FALSE, HUB),
    any("hub_model_id", HUB),
    any("hub_strategy", HUB),
    any("hub_token", HUB),
    any("hub_private_repo", HUB),
    any("hub_always_push", HUB),
    any("hub_revision", HUB),
];

/// Names that were keys once, or that other front ends use, and what to write instead.
static RENAMED: &[(&str, &str)] = &[
    ("max_seq_length", "write `max_length`"),
    ("evaluation_strategy", "write `eval_strategy`"),
    (
        "warmup_ratio",
        "write `warmup_steps` with a value below 1, a share of all updates",
    ),
    (
        "group_by_length",
        "write `train_sampling_strategy: group_by_length`",
    ),
    ("val_set_size", "write `val_size`"),
    ("lr", "write `learning_rate`"),
    ("epochs", "write `num_train_epochs`"),
    ("model", "write `model_name_or_path`"),
    ("dataset", "write `dataset_name`"),
    ("early_stopping_steps", "write `early_stopping_patience`"),
    ("no_cuda", "write `device: cpu`"),
];

/// The keys of TRL and transformers that are known but not keys of [`Config`](super::Config).
pub fn peer_keys() -> &'static [PeerKey] {
    PEER_KEYS
}

/// Accepts a peer's key with a value that changes nothing; anything else is the error to show.
pub(super) fn accept(key: &str, value: &Value) -> Result<()> {
    if let Some(peer) = PEER_KEYS.iter().find(|peer| peer.name == key) {
        let harmless = value.is_null()
            || peer.harmless.is_none_or(|values| {
                values
                    .iter()
                    .any(|json| serde_json::from_str::<Value>(json).ok().as_ref() == Some(value))
            });
        return if harmless {
            Ok(())
        } else {
            Err(unsupported(key, value, peer.why))
        };
    }
    if let Some((_, way_out)) = RENAMED.iter().find(|(old, _)| *old == key) {
        let message = format!("`{key}` is not a key; {way_out}");
        return Err(Error::new(ErrorKind::UnknownKey, message));
    }
    let known = keys().iter().map(|k| k.name);
    let hint = suggest::did_you_mean(key, known.chain(PEER_KEYS.iter().map(|p| p.name)));
    let way_out = if hint.is_empty() {
        "; `sft init` lists all keys"
    } else {
        &hint
    };
    Err(Error::new(
        ErrorKind::UnknownKey,
        format!("`{key}` is not a key{way_out}"),
    ))
}

/// Values of our own keys that the peer has and we have not.
pub(super) fn refuse_value(key: &str, value: &Value) -> Result<()> {
    let trackers = value.as_array().into_iter().flatten();
    let named = value
        .as_str()
        .into_iter()
        .chain(trackers.filter_map(Value::as_str));
    if key == "report_to" && named.clone().any(|name| !KNOWN_TRACKERS.contains(&name)) {
        return Err(unsupported(key, value, TRACKERS));
    }
    let why = match (key, value.as_str()) {
        ("loss_type", Some("dft")) => "the loss is nll",
        ("train_sampling_strategy", Some("batch_rebalance")) => {
            "choose random, sequential or group_by_length"
        }
        ("lr_scheduler_type", Some("reduce_lr_on_plateau" | "greedy")) => {
            "schedules here depend on the update's number alone; choose cosine or linear"
        }
        _ => return Ok(()),
    };
    Err(unsupported(key, value, why))
}

fn unsupported(key: &str, value: &Value, why: &str) -> Error {
    // A token must not end up in a log.
    let shown = if key.contains("token") {
        "…".to_owned()
    } else {
        value.to_string()
    };
    Error::new(
        ErrorKind::Unsupported,
        format!("{key}: {shown} is not supported: {why}"),
    )
}
