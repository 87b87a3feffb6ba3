//! Every key of a configuration: its type, default and meaning, written once.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::schedule::ScheduleKind;
use crate::stop::StopConfig;

use super::eval_datasets::EvalDatasets;
use super::values::{
    Amount, Device, EvalStrategy, Gemm, KeyNames, LossType, PackingStrategy, ReportTo, ResumeFrom,
    SamplingStrategy, SaveStrategy,
};

/// One key for help texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The key as written in a file.
    pub name: &'static str,
    /// The heading it stands under.
    pub section: &'static str,
    /// What it means, one line an element, each with the space that follows a comment sign.
    pub doc: &'static [&'static str],
}

/// Declares [`Config`], its defaults and its key list from one table.
macro_rules! config {
    ($($section:literal {
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr;)+
    })+) => {
        /// The configuration of a run. Fields are the keys; see each for its meaning and
        /// [`Config::default`] for TRL's defaults.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Config {
            $($($(#[doc = $doc])+ pub $key: $type,)+)+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($($key: $default,)+)+ }
            }
        }

        static KEYS: &[KeyInfo] = &[
            $($(KeyInfo { name: stringify!($key), section: $section, doc: &[$($doc),+] },)+)+
        ];
    };
}

/// All keys in the order of the struct.
pub fn keys() -> &'static [KeyInfo] {
    KEYS
}

config! {
    "Model" {
        /// Folder of the model to train: config.json, safetensors, tokenizer.json.
        model_name_or_path: Option<PathBuf> = None;
        /// Another chat template than the tokenizer's: a .jinja file or a folder that holds one.
        chat_template_path: Option<PathBuf> = None;
        /// The end token to train and to save, instead of the tokenizer's.
        eos_token: Option<String> = None;
    }
    "Data" {
        /// Training rows: a JSONL file, or a folder of `<split>.jsonl` files.
        dataset_name: Option<PathBuf> = None;
        /// The split of a folder to train on.
        dataset_train_split: String = "train".to_owned();
        /// The split of a folder to evaluate on.
        dataset_test_split: String = "test".to_owned();
        /// Evaluation rows: a JSONL file, or several as `{name: file, …}`, each with numbers of its own
        /// (`eval_<name>_loss`); without it the folder's test split or `val_size`.
        eval_dataset_name: Option<EvalDatasets> = None;
        /// Training rows to hold back for evaluation: a number of rows, or below 1 a share.
        val_size: Option<Amount> = None;
        /// The column of plain-text rows.
        dataset_text_field: String = "text".to_owned();
        /// Longest sequence in tokens; longer rows are cut and counted. null: never cut.
        max_length: Option<usize> = Some(1024);
        /// Several documents share one sequence of max_length; attention never crosses them.
        packing: bool = false;
        /// bfd | bfd_split | wrapped.
        packing_strategy: PackingStrategy = PackingStrategy::Bfd;
        /// Packing of the evaluation rows; null: as `packing`.
        eval_packing: Option<bool> = None;
        /// Train on completions only; null: yes for rows with a prompt and a completion.
        completion_only_loss: Option<bool> = None;
        /// Train on assistant turns only, by the template's generation blocks.
        assistant_only_loss: bool = false;
        /// Shuffle the training rows once, by `data_seed`, before they are packed. The order is not
        /// the one that TRL draws.
        shuffle_dataset: bool = false;
        /// random | sequential | group_by_length: the order of rows in each epoch.
        train_sampling_strategy: SamplingStrategy = SamplingStrategy::Random;
        /// Threads that tokenise; null: as `threads`.
        dataset_num_proc: Option<usize> = None;
        /// Where tokenised rows are kept between runs; null: nowhere. The `sft` command then takes the
        /// user's cache folder.
        cache_dir: Option<PathBuf> = None;
    }
    "Optimisation" {
        /// Rows of one micro-batch.
        per_device_train_batch_size: usize = 8;
        /// Micro-batches of one update.
        gradient_accumulation_steps: usize = 1;
        /// Peak learning rate.
        learning_rate: f64 = 2e-5;
        /// constant | constant_with_warmup | linear | cosine | cosine_with_restarts | polynomial |
        /// inverse_sqrt | cosine_with_min_lr | cosine_warmup_with_min_lr | warmup_stable_decay.
        lr_scheduler_type: ScheduleKind = ScheduleKind::Linear;
        /// Options of the schedule, such as `{min_lr_rate: 0.1}`.
        lr_scheduler_kwargs: Option<Map<String, Value>> = None;
        /// Updates of warm-up, or below 1 a share of all updates.
        warmup_steps: Amount = Amount(0.0);
        /// Decoupled weight decay of AdamW; biases and norms are exempt.
        weight_decay: f64 = 0.0;
        /// AdamW's decay of the first moment.
        adam_beta1: f64 = 0.9;
        /// AdamW's decay of the second moment.
        adam_beta2: f64 = 0.999;
        /// AdamW's epsilon.
        adam_epsilon: f64 = 1e-8;
        /// The global gradient norm is clipped to this; 0: no clipping.
        max_grad_norm: f64 = 1.0;
        /// nll.
        loss_type: LossType = LossType::Nll;
        /// Seed of everything random.
        seed: u64 = 42;
        /// Seed of the row order; null: as `seed`.
        data_seed: Option<u64> = None;
    }
    "Budget" {
        /// Epochs to train at most.
        num_train_epochs: f64 = 3.0;
        /// Updates to train at most, instead of the epochs; -1: the epochs decide.
        max_steps: i64 = -1;
        /// Input tokens to train at most.
        max_tokens: Option<u64> = None;
        /// Seconds to train at most.
        max_seconds: Option<f64> = None;
    }
    "Stopping" {
        /// The stop rules: target, plateau, non_finite, divergence, overfit, budget; the first to fire
        /// ends the run.
        stop: StopConfig = StopConfig::default();
        /// Stop after so many evaluations without improvement, as EarlyStoppingCallback does.
        early_stopping_patience: Option<u64> = None;
        /// The improvement that counts for early_stopping_patience.
        early_stopping_threshold: f64 = 0.0;
        /// The metric that decides what is best; null: the evaluation loss.
        metric_for_best_model: Option<String> = None;
        /// Whether that metric should grow; null: by its name.
        greater_is_better: Option<bool> = None;
        /// Finish with the best weights instead of the last.
        load_best_model_at_end: bool = false;
    }
    "Evaluation" {
        /// no | steps | epoch.
        eval_strategy: EvalStrategy = EvalStrategy::No;
        /// Updates between evaluations, or below 1 a share of all updates; null: logging_steps.
        eval_steps: Option<Amount> = None;
        /// Updates (or epochs, by eval_strategy) to wait before the first evaluation.
        eval_delay: f64 = 0.0;
        /// Evaluate once before the first update.
        eval_on_start: bool = false;
        /// Rows of one evaluation batch.
        per_device_eval_batch_size: usize = 8;
    }
    "Output" {
        /// Folder for the log, the checkpoints and the final model.
        output_dir: PathBuf = PathBuf::from("trainer_output");
        /// Train into a folder that already holds a model.
        overwrite_output_dir: bool = false;
        /// no | steps | epoch | best.
        save_strategy: SaveStrategy = SaveStrategy::Steps;
        /// Updates between checkpoints, or below 1 a share of all updates.
        save_steps: Amount = Amount(500.0);
        /// Checkpoints to keep; the best is always among them. null: all.
        save_total_limit: Option<usize> = None;
        /// Go on from a checkpoint: `true` takes the newest whole one of output_dir, `auto` too, but starts
        /// afresh where there is none; or the checkpoint's folder.
        resume_from_checkpoint: ResumeFrom = ResumeFrom::Nothing;
        /// Keys that may differ from the checkpoint's although they change the numbers, such as
        /// [learning_rate]; [dataset_name] for other rows.
        resume_allow_changes: KeyNames = KeyNames::default();
        /// Updates between lines on the console; the log file holds every update.
        logging_steps: Amount = Amount(10.0);
        /// none | tensorboard: where the rows of the log go besides train_log.jsonl.
        report_to: ReportTo = ReportTo::None;
        /// Folder of TensorBoard's event files; null: `runs` in the output folder.
        logging_dir: Option<PathBuf> = None;
        /// Plain lines instead of a progress bar, on a terminal too.
        disable_tqdm: bool = false;
    }
    "Machine" {
        /// auto | cpu | cuda | cuda:N.
        device: Device = Device::Auto;
        /// What multiplies matrices on CUDA: own (kernels), cublaslt, auto (the quicker for each product).
        gemm: Gemm = Gemm::Auto;
        /// Compute threads; null: all cores.
        threads: Option<usize> = None;
        /// bfloat16 mixed precision: operands of matrix products in bfloat16, sums, weights and optimizer
        /// in float32; null: on CUDA, and float32 on the CPU.
        bf16: Option<bool> = None;
        /// float16 mixed precision, with dynamic loss scaling.
        fp16: bool = false;
        /// Recompute activations in the backward pass: less memory, more time, same gradients.
        gradient_checkpointing: bool = true;
        /// Measure at the start how fast this machine multiplies the model's matrices (some 0.1 s): each
        /// row of the log then has its speed as a share of that, ceiling_ratio.
        measure_ceiling: bool = false;
    }
    "Not yet supported" {
        /// Train adapters instead of all weights.
        use_peft: bool = false;
    }
}
