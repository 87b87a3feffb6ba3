//! What a run that goes on from a checkpoint may have changed in its configuration.
//!
//! To go on means to give the numbers that the run would have given without the interruption. So a key
//! that changes them is refused unless the user allows that change by name, a key that only says where
//! things lie, what is shown or when the run ends is free, and where a key names content (rows, a model)
//! the content itself is compared.

use serde_json::Value;

use super::fields::{Config, keys};
use crate::error::{Error, ErrorKind, Result};

/// What another value of a key does to a run that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The updates stay the same.
    Free,
    /// It names something that is compared itself: the rows as tokens, the model, the precision.
    Content,
    /// Other rows.
    Rows,
    /// Other updates.
    Numbers,
    /// Other updates where the schedule depends on their number.
    Length,
}

/// Every key has its line: a key without one would be refused, and a test looks.
static EFFECTS: &[(&str, Effect)] = &[
    ("model_name_or_path", Effect::Content),
    ("chat_template_path", Effect::Content),
    ("eos_token", Effect::Content),
    ("dataset_name", Effect::Content),
    ("dataset_train_split", Effect::Content),
    ("dataset_test_split", Effect::Content),
    ("eval_dataset_name", Effect::Content),
    ("val_size", Effect::Rows),
    ("dataset_text_field", Effect::Content),
    ("max_length", Effect::Rows),
    ("packing", Effect::Rows),
    ("packing_strategy", Effect::Rows),
    ("eval_packing", Effect::Rows),
    ("completion_only_loss", Effect::Content),
    ("assistant_only_loss", Effect::Content),
    ("shuffle_dataset", Effect::Rows),
    ("train_sampling_strategy", Effect::Numbers),
    ("dataset_num_proc", Effect::Free),
    ("cache_dir", Effect::Free),
    ("per_device_train_batch_size", Effect::Numbers),
    ("gradient_accumulation_steps", Effect::Numbers),
    ("learning_rate", Effect::Numbers),
    ("lr_scheduler_type", Effect::Numbers),
    ("lr_scheduler_kwargs", Effect::Numbers),
    ("warmup_steps", Effect::Numbers),
    ("weight_decay", Effect::Numbers),
    ("adam_beta1", Effect::Numbers),
    ("adam_beta2", Effect::Numbers),
    ("adam_epsilon", Effect::Numbers),
    ("max_grad_norm", Effect::Numbers),
    ("loss_type", Effect::Numbers),
    // The order of rows, and which of them val_size holds back.
    ("seed", Effect::Rows),
    ("data_seed", Effect::Rows),
    ("num_train_epochs", Effect::Length),
    ("max_steps", Effect::Length),
    ("max_tokens", Effect::Free),
    ("max_seconds", Effect::Free),
    ("stop", Effect::Free),
    ("early_stopping_patience", Effect::Free),
    ("early_stopping_threshold", Effect::Free),
    ("metric_for_best_model", Effect::Free),
    ("greater_is_better", Effect::Free),
    // Turned on too late, the weights of an earlier best step are missing: that is looked at.
    ("load_best_model_at_end", Effect::Content),
    ("eval_strategy", Effect::Free),
    ("eval_steps", Effect::Free),
    ("eval_delay", Effect::Free),
    ("eval_on_start", Effect::Free),
    ("per_device_eval_batch_size", Effect::Free),
    ("output_dir", Effect::Free),
    ("overwrite_output_dir", Effect::Free),
    ("save_strategy", Effect::Free),
    ("save_steps", Effect::Free),
    ("save_total_limit", Effect::Free),
    ("resume_from_checkpoint", Effect::Free),
    ("resume_allow_changes", Effect::Free),
    ("logging_steps", Effect::Free),
    ("report_to", Effect::Free),
    ("logging_dir", Effect::Free),
    ("disable_tqdm", Effect::Free),
    ("device", Effect::Free),
    ("gemm", Effect::Free),
    ("threads", Effect::Free),
    // The precision that they come to is compared.
    ("bf16", Effect::Content),
    ("fp16", Effect::Content),
    ("gradient_checkpointing", Effect::Free),
    ("measure_ceiling", Effect::Free),
    ("use_peft", Effect::Numbers),
];

/// A key whose value is another than the checkpoint's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// The key.
    pub key: &'static str,
    /// Its value in the checkpoint.
    pub before: Value,
    /// Its value now.
    pub now: Value,
}

/// What differs between the configuration of a checkpoint and that of the run that goes on from it.
/// Keys that are free are not among it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Keys that change the numbers and that `resume_allow_changes` does not name.
    pub refused: Vec<Change>,
    /// Keys that name other content, perhaps: the content says.
    pub content: Vec<Change>,
    /// Keys that change the numbers, allowed.
    pub allowed: Vec<Change>,
    /// Among the allowed are keys that make other rows.
    pub other_rows: bool,
}

impl Changes {
    /// What `now` has changed since `before`, the checkpoint's.
    pub fn between(before: &Config, now: &Config) -> Self {
        let mut changes = Self::default();
        for key in keys().iter().map(|key| key.name) {
            if before.value_of(key) == now.value_of(key) {
                continue;
            }
            let (old, new) = (before.meaning_of(key), now.meaning_of(key));
            let by_length = before.schedule_needs_length() || now.schedule_needs_length();
            let effect = match effect_of(key) {
                Effect::Length if by_length => Effect::Numbers,
                Effect::Length => Effect::Free,
                other => other,
            };
            if old == new || effect == Effect::Free {
                continue;
            }
            let change = Change {
                key,
                before: old,
                now: new,
            };
            if effect == Effect::Content {
                changes.content.push(change);
            } else if now.resume_allow_changes.contains(key) {
                changes.other_rows |= effect == Effect::Rows;
                changes.allowed.push(change);
            } else {
                changes.refused.push(change);
            }
        }
        changes
    }

    /// Refuses what is not allowed.
    ///
    /// # Errors
    /// `Config` naming every key with both values and the way out.
    pub fn check(&self) -> Result<()> {
        if self.refused.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.refused.iter().map(|change| change.key).collect();
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "the configuration differs from the checkpoint's in what changes the numbers: {}; set \
                 them back, or allow it by resume_allow_changes: [{}]",
                list_changes(&self.refused),
                names.join(", ")
            ),
        ))
    }
}

/// `key is x, was y` each.
pub(crate) fn list_changes(changes: &[Change]) -> String {
    let parts: Vec<String> = changes
        .iter()
        .map(|change| format!("{} is {}, was {}", change.key, change.now, change.before))
        .collect();
    parts.join("; ")
}

fn effect_of(key: &str) -> Effect {
    let line = EFFECTS.iter().find(|(name, _)| *name == key);
    line.map_or(Effect::Numbers, |(_, effect)| *effect)
}

impl Config {
    /// The value of a key, with what stands for it when it is unset or has no say.
    fn meaning_of(&self, key: &str) -> Value {
        match key {
            "data_seed" => self.data_seed.unwrap_or(self.seed).into(),
            "eval_packing" => self.eval_packing.unwrap_or(self.packing).into(),
            "num_train_epochs" if self.max_steps > 0 => Value::Null,
            _ => self.value_of(key).unwrap_or(Value::Null),
        }
    }

    fn schedule_needs_length(&self) -> bool {
        self.lr_scheduler_type.needs_total() || self.warmup_steps.0.fract() != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> Config {
        Config::from_yaml_str(yaml, "run.yaml").unwrap()
    }

    fn names(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.key).collect()
    }

    #[test]
    fn every_key_has_its_effect_once() {
        let mut known: Vec<&str> = keys().iter().map(|key| key.name).collect();
        let mut listed: Vec<&str> = EFFECTS.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, known);
    }

    #[test]
    fn what_changes_the_numbers_is_refused_by_name_with_both_values() {
        let before = config("learning_rate: 1e-3\npacking: true\nthreads: 2\n");
        let now = config("learning_rate: 2e-3\nseed: 7\nthreads: 1\noutput_dir: elsewhere\n");
        let changes = Changes::between(&before, &now);
        assert_eq!(
            names(&changes.refused),
            ["packing", "learning_rate", "seed"]
        );
        let text = changes.check().unwrap_err().to_string();
        assert!(
            text.contains("learning_rate is 0.002, was 0.001")
                && text.contains("[packing, learning_rate, seed]"),
            "{text}"
        );
    }

    #[test]
    fn an_allowed_change_passes_and_one_of_rows_says_so() {
        let before = config("learning_rate: 1e-3\nmax_length: 64\n");
        let rate =
            config("learning_rate: 2e-3\nmax_length: 64\nresume_allow_changes: [learning_rate]\n");
        let changes = Changes::between(&before, &rate);
        changes.check().unwrap();
        assert_eq!(names(&changes.allowed), ["learning_rate"]);
        assert!(!changes.other_rows);
        let rows =
            config("learning_rate: 1e-3\nmax_length: 32\nresume_allow_changes: max_length\n");
        let changes = Changes::between(&before, &rows);
        changes.check().unwrap();
        assert!(changes.other_rows);
    }

    #[test]
    fn a_spelling_that_means_the_same_is_no_change() {
        let changes = Changes::between(
            &config("seed: 5\nmax_steps: 9\nnum_train_epochs: 2"),
            &config("seed: 5\ndata_seed: 5\neval_packing: false\nmax_steps: 9"),
        );
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn the_length_of_a_run_may_change_where_the_schedule_does_not_know_it() {
        for (more, free) in [
            ("lr_scheduler_type: constant", true),
            (
                "lr_scheduler_type: constant_with_warmup\nwarmup_steps: 3",
                true,
            ),
            (
                "lr_scheduler_type: constant_with_warmup\nwarmup_steps: 0.1",
                false,
            ),
            ("lr_scheduler_type: linear", false),
        ] {
            let run = |steps: u32| config(&format!("max_steps: {steps}\n{more}\n"));
            let changes = Changes::between(&run(5), &run(10));
            assert_eq!(changes.refused.is_empty(), free, "{more}");
        }
    }
}
