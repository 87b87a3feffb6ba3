//! Going on from a checkpoint: which one, whether it belongs to this run, and where the run stood.

use super::Session;
use crate::config::{Changes, Config, ResumeFrom, list_changes};
use crate::data::{Loader, Position};
use crate::dtype::DType;
use crate::engine::any_network::AnyNetwork;
use crate::engine::checkpoint::{self, BestWeights, Checkpoint, RunState};
use crate::engine::device::OpenDevice;
use crate::engine::hooks::Hooks;
use crate::engine::journal::Journal;
use crate::engine::prepare::Data;
use crate::engine::run_files::RunFiles;
use crate::engine::run_record::RunRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Workload;
use crate::model::{ModelSpec, ParamTable};
use crate::stop::{Observation, StopMachine};
use crate::train::LossScale;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

impl Session {
    /// As [`Session::start`], going on from the checkpoint in `dir` whatever `resume_from_checkpoint`
    /// says. With the same configuration and rows the run gives the numbers that it would have given
    /// without the interruption, bit for bit.
    ///
    /// # Errors
    /// As [`Session::start`]; `Checkpoint` when `dir` holds no whole one.
    pub fn resume(mut config: Config, dir: impl AsRef<Path>, hooks: Hooks) -> Result<Self> {
        config.resume_from_checkpoint = ResumeFrom::Folder(dir.as_ref().to_path_buf());
        Self::start(config, hooks)
    }
}

/// What a run goes on from.
pub(super) struct Earlier {
    pub checkpoint: Checkpoint,
    /// The checkpoint is of the run in `output_dir`, so its log and checkpoints are this run's.
    pub is_ours: bool,
}

/// Where a run stands that has been started or resumed, weights, moments and rules apart.
pub(super) struct Standing {
    pub step: u64,
    pub epoch: f64,
    pub total_tokens: u64,
    pub skipped_updates: u64,
    pub elapsed: Duration,
    pub loss_scale: Option<LossScale>,
    pub best_weights: Option<BestWeights>,
}

impl Standing {
    /// Before the first update.
    pub fn new(precision: DType) -> Self {
        Self {
            step: 0,
            epoch: 0.0,
            total_tokens: 0,
            skipped_updates: 0,
            elapsed: Duration::ZERO,
            loss_scale: (precision == DType::F16).then(LossScale::default),
            best_weights: None,
        }
    }
}

/// Hashes of the rows by set, as a checkpoint holds them.
pub(super) fn fingerprints(data: &Data) -> BTreeMap<String, String> {
    let hex = |hash: [u8; 32]| blake3::Hash::from(hash).to_hex().to_string();
    let train = data.loader.iter().map(|loader| {
        let hash = loader.dataset().fingerprint();
        (TRAIN.to_owned(), hex(hash))
    });
    let eval = data.eval.iter();
    let eval = eval.map(|set| (set.key(), hex(set.dataset.fingerprint())));
    train.chain(eval).collect()
}

const TRAIN: &str = "train";

/// The checkpoint that the configuration asks for, and whether the run may write where it wants to.
pub(super) fn find(config: &Config, hooks: &mut Hooks) -> Result<Option<Earlier>> {
    let (folder, overwrite) = (&config.output_dir, config.overwrite_output_dir);
    let checkpoint = match &config.resume_from_checkpoint {
        ResumeFrom::Nothing => None,
        ResumeFrom::Folder(path) => Some(checkpoint::open(path)?),
        ResumeFrom::Newest | ResumeFrom::Auto => checkpoint::newest_whole(folder, |_, error| {
            hooks.warning(format!("passed over: {error}"));
        })?,
    };
    let Some(checkpoint) = checkpoint else {
        let restarts = config.resume_from_checkpoint == ResumeFrom::Auto;
        if config.resume_from_checkpoint == ResumeFrom::Newest {
            return Err(Error::new(
                ErrorKind::Checkpoint,
                format!(
                    "resume_from_checkpoint: {} holds no whole checkpoint; name one, or `auto` to start \
                     afresh where there is none",
                    folder.display()
                ),
            ));
        }
        RunFiles::check(folder, overwrite, restarts)?;
        if restarts {
            hooks.info(format!(
                "no checkpoint in {}: the run starts afresh",
                folder.display()
            ));
        }
        return Ok(None);
    };
    let is_ours = is_of_run_in(&checkpoint, folder);
    match (is_ours, &config.resume_from_checkpoint) {
        // What is newer than the newest whole one is torn.
        (true, ResumeFrom::Newest | ResumeFrom::Auto) => {}
        (true, _) => RunFiles::check_newest(folder, checkpoint.manifest().state.step, overwrite)?,
        (false, _) => RunFiles::check(folder, overwrite, false)?,
    }
    Ok(Some(Earlier {
        checkpoint,
        is_ours,
    }))
}

/// Whether it lies among the files of the run in `folder` or was written by it.
fn is_of_run_in(checkpoint: &Checkpoint, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else {
        return false;
    };
    let is_folder = |path: &Path| path.canonicalize().is_ok_and(|path| path == folder);
    let inside = checkpoint.folder().canonicalize();
    let inside = inside.is_ok_and(|path| path.parent() == Some(&folder));
    inside || is_folder(&checkpoint.manifest().state.config.output_dir)
}

impl Earlier {
    /// Whether it stands in `folder`.
    pub fn is_at(&self, folder: &Path) -> bool {
        let own = self.checkpoint.folder().canonicalize();
        own.is_ok_and(|own| folder.canonicalize().is_ok_and(|folder| folder == own))
    }

    fn state(&self) -> &RunState {
        &self.checkpoint.manifest().state
    }

    /// Compares what the run is made of with what the checkpoint's was made of. The changes are those
    /// that are allowed.
    pub fn check(
        &self,
        config: &Config,
        spec: &ModelSpec,
        precision: DType,
        data: &BTreeMap<String, String>,
    ) -> Result<Changes> {
        let mut changes = Changes::between(&self.state().config, config);
        changes
            .check()
            .and_then(|()| self.check_model(spec))
            .and_then(|()| self.check_precision(config, precision))
            .and_then(|()| self.check_rows(config, &changes, data))
            .map_err(|e| self.place(e))?;
        changes.other_rows |= self.state().data.get(TRAIN) != data.get(TRAIN);
        Ok(changes)
    }

    fn place(&self, error: Error) -> Error {
        let folder = self.checkpoint.folder().display();
        error.context(format!("resuming from {folder}"))
    }

    fn check_model(&self, spec: &ModelSpec) -> Result<()> {
        match ModelSpec::from_dir(self.checkpoint.folder())? == *spec {
            true => Ok(()),
            false => refuse(
                "model_name_or_path: its config.json describes another model than the checkpoint's; \
                 name the model that the run was started with",
            ),
        }
    }

    fn check_precision(&self, config: &Config, precision: DType) -> Result<()> {
        let (now, before) = (precision.to_string(), &self.state().precision);
        let allowed = &config.resume_allow_changes;
        if now == *before || allowed.contains("bf16") || allowed.contains("fp16") {
            return Ok(());
        }
        let key = match before.as_str() {
            "bfloat16" => "bf16: true",
            "float16" => "fp16: true",
            _ => "bf16: false, fp16: false",
        };
        refuse(format!(
            "bf16, fp16: this run would train in {now} and the checkpoint's did in {before}; set {key}, \
             or allow it by resume_allow_changes: [bf16]"
        ))
    }

    fn check_rows(
        &self,
        config: &Config,
        changes: &Changes,
        data: &BTreeMap<String, String>,
    ) -> Result<()> {
        let allowed = &config.resume_allow_changes;
        let before = &self.state().data;
        let evaluated = |data: &BTreeMap<String, String>| data.keys().any(|set| set != TRAIN);
        // One that only begins or ceases to evaluate is free to.
        let compare_eval = evaluated(before) && evaluated(data);
        let sets: Vec<&str> = before
            .keys()
            .chain(data.keys().filter(|set| !before.contains_key(*set)))
            .filter(|set| before.get(*set) != data.get(*set))
            .filter(|set| *set == TRAIN || compare_eval)
            .map(String::as_str)
            .collect();
        let key = |set: &str| match set {
            TRAIN => "dataset_name",
            _ => "eval_dataset_name",
        };
        let Some(set) = sets
            .into_iter()
            .find(|set| !changes.other_rows && !allowed.contains(key(set)))
        else {
            return Ok(());
        };
        let named = match changes.content.is_empty() {
            true => String::new(),
            false => format!(" ({})", list_changes(&changes.content)),
        };
        refuse(format!(
            "{}: the rows of `{set}` are others than the checkpoint's: their text, the tokenizer or the \
             chat template has changed{named}; bring the earlier ones back, or allow it by \
             resume_allow_changes: [{}]",
            key(set),
            key(set)
        ))
    }

    /// A network with the weights and the optimizer of the checkpoint.
    pub fn open_network(
        &self,
        device: OpenDevice,
        spec: ModelSpec,
        work: Workload,
        hooks: &mut Hooks,
    ) -> Result<Box<dyn AnyNetwork>> {
        let (table, precision) = (ParamTable::new(&spec), work.precision);
        let mut network = device.network(spec, table, work)?;
        hooks.canceller.check("loading the checkpoint")?;
        self.checkpoint.load_into(network.as_mut())?;
        hooks.info(format!(
            "{}: {} parameters on {}, {precision}; the run goes on after update {}",
            self.checkpoint.folder().display(),
            network.table().num_parameters(),
            network.device(),
            self.state().step
        ));
        Ok(network)
    }

    /// Counters, clocks and the best weights as they were. The rules are restored already.
    pub fn standing(
        &self,
        config: &Config,
        precision: DType,
        table: &ParamTable,
        stop: &StopMachine,
    ) -> Result<Standing> {
        let state = self.state();
        let best_weights = match config.load_best_model_at_end {
            true => self.best_weights(config, table, stop)?,
            false => None,
        };
        let seconds = Duration::try_from_secs_f64(state.elapsed_seconds);
        let fresh = Standing::new(precision);
        let loss_scale = |new| state.loss_scale.clone().unwrap_or(new);
        Ok(Standing {
            step: state.step,
            epoch: state.epoch,
            total_tokens: state.total_tokens,
            skipped_updates: state.skipped_updates,
            elapsed: seconds.unwrap_or_default(),
            loss_scale: fresh.loss_scale.map(loss_scale),
            best_weights,
        })
    }

    /// What the rules remember, and what becomes of their verdict.
    pub fn restore_rules(
        &self,
        config: &Config,
        stop: &mut StopMachine,
        total_steps: Option<u64>,
        hooks: &mut Hooks,
    ) -> Result<()> {
        let (state, before) = (self.state(), &self.state().config);
        let now = Observation {
            step: state.step,
            epoch: state.epoch,
            tokens: state.total_tokens,
            seconds: state.elapsed_seconds,
            ..Observation::default()
        };
        let rules_changed = before.stop_rules()? != config.stop_rules()?;
        let budget_changed = before.budget() != config.budget() || state.total_steps != total_steps;
        let fresh = stop.resume(&state.stop, rules_changed, budget_changed, &now);
        if fresh > 0 && rules_changed {
            hooks.info(format!(
                "{fresh} of the stop rules have changed and start afresh"
            ));
        }
        if let Some(verdict) = stop.verdict() {
            hooks.warning(format!(
                "the run had ended after update {}: {}: {}; to train on, change the rule or the budget",
                verdict.step,
                verdict.reason.code(),
                verdict.detail
            ));
        }
        Ok(())
    }

    /// The next update is the one after the last. Where rows or batches have changed, it is the one
    /// that begins as far in the epoch, or before.
    pub fn seek(&self, loader: &mut Loader, changes: &Changes) -> Result<()> {
        let state = self.state();
        let position = state.position.unwrap_or_default();
        let sizes = ["per_device_train_batch_size", "gradient_accumulation_steps"];
        let resized = changes.allowed.iter().any(|c| sizes.contains(&c.key));
        if position.update == 0 || !(resized || changes.other_rows) {
            return loader.seek(position).map_err(|e| self.place(e));
        }
        let done = (state.epoch - position.epoch as f64).clamp(0.0, 1.0);
        let micro_batches = (done * loader.micro_batches_per_epoch() as f64).round() as u64;
        let update = micro_batches / loader.options().gradient_accumulation_steps as u64;
        loader.seek(match update < loader.updates_per_epoch() as u64 {
            true => Position { update, ..position },
            false => Position {
                epoch: position.epoch + 1,
                update: 0,
            },
        })
    }

    /// The weights of what is the best now: with another metric that may be another step, or none.
    fn best_weights(
        &self,
        config: &Config,
        table: &ParamTable,
        stop: &StopMachine,
    ) -> Result<Option<BestWeights>> {
        let Some(best) = stop.best().and_then(|best| best.step) else {
            return Ok(None);
        };
        let kept = self.checkpoint.manifest().best.as_ref();
        if kept.map_or(self.state().step, |kept| kept.step) != best {
            let key = "load_best_model_at_end";
            if config.resume_allow_changes.contains(key) {
                return Ok(None);
            }
            return Err(self.place(Error::new(
                ErrorKind::Config,
                format!(
                    "{key}: the weights of update {best}, the best so far, were not kept; set it to \
                     false, or keep the best from now on by resume_allow_changes: [{key}]"
                ),
            )));
        }
        let mut values = vec![0.0; table.len];
        for param in &table.params {
            let to = &mut values[param.offset..param.offset + param.len()];
            self.checkpoint.read_best(param, to)?;
        }
        Ok(Some(BestWeights {
            step: best,
            values: Arc::new(values),
        }))
    }
}

/// The log and the record of a run that starts, or goes on from `earlier`.
pub(super) fn begin_files(
    earlier: Option<&Earlier>,
    overwrite: bool,
    files: &mut RunFiles,
    record: RunRecord,
    hooks: &mut Hooks,
) -> Result<Journal> {
    // Without leave to overwrite, what is newer is torn and stays until its turn comes again.
    if overwrite {
        let course = earlier.filter(|earlier| earlier.is_ours);
        let removed = files.remove_newer(course.map(|earlier| earlier.state().step))?;
        if !removed.is_empty() {
            hooks.info(format!("removed {}", removed.join(", ")));
        }
    }
    let Some(earlier) = earlier else {
        return files.begin(&record);
    };
    let state = earlier.state();
    let elsewhere = earlier.checkpoint.folder().parent();
    let elsewhere = elsewhere.filter(|_| !earlier.is_ours);
    let (journal, whole) = files.go_on(record, state.step, state.log_bytes, elsewhere)?;
    if !whole {
        hooks.warning(format!(
            "{}: rows of updates up to {} are missing",
            Journal::FILE_NAME,
            state.step
        ));
    }
    Ok(journal)
}

fn refuse(message: impl Into<String>) -> Result<()> {
    Err(Error::new(ErrorKind::Config, message))
}
