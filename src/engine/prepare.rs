//! From a configuration to what a session is made of: the model on a device, the datasets, the
//! workload that the memory is planned for.

use super::any_network::AnyNetwork;
use super::device::{self, Needs, OpenDevice};
use super::gemm::{self, GemmChoice};
use super::hooks::{Canceller, Hooks};
use crate::config::{Config, PackingStrategy, SamplingStrategy};
use crate::data::{
    ChatTemplate, DataOptions, DataReport, Dataset, Loader, LoaderOptions, Order, Packing,
    RowOptions, Split, Tokenizer, ValidationSize,
};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::io::WeightFiles;
use crate::memory::{MemoryPlan, Purpose, Workload};
use crate::model::{ModelSpec, Overrides, ParamTable};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tokenizer of the model folder and its chat template, with the configuration's overrides.
///
/// # Errors
/// `Tokenizer` and `Template` as those of [`Tokenizer::open`] and [`ChatTemplate::open`].
pub fn open_tokenizer(config: &Config) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let mut tokenizer = Tokenizer::open(model_folder(config)?)?;
    if let Some(token) = &config.eos_token {
        tokenizer = tokenizer.with_eos_token(token)?;
    }
    let template = match &config.chat_template_path {
        Some(path) => Some(ChatTemplate::open(path, &tokenizer)?),
        None => ChatTemplate::of(&tokenizer)?,
    };
    Ok((tokenizer, template))
}

/// The configuration's `eos_token` and `chat_template_path`, as a saved model is to have them.
pub(super) fn overrides(config: &Config) -> Result<Overrides> {
    let mut overrides = Overrides::default();
    if config.eos_token.is_none() && config.chat_template_path.is_none() {
        return Ok(overrides);
    }
    let (tokenizer, template) = open_tokenizer(config)?;
    if let Some(token) = &config.eos_token {
        let id = tokenizer
            .eos_token_id()
            .and_then(|id| u32::try_from(id).ok());
        overrides.eos_token = id.map(|id| (token.clone(), id));
    }
    if let Some(template) = template.filter(|_| config.chat_template_path.is_some()) {
        overrides.chat_templates = template.sources().clone();
    }
    Ok(overrides)
}

/// The memory plan of a run, without touching a device. Reads the model's `config.json` and, where
/// the configuration names data, the rows' lengths.
///
/// # Errors
/// Those of [`Session::start`](super::Session::start) for the same parts.
pub fn plan(config: &Config) -> Result<MemoryPlan> {
    plan_with(config, Hooks::default())
}

/// As [`plan`], for a host that listens to the log and may cancel.
///
/// # Errors
/// As [`plan`]; `Cancelled` when the canceller was triggered.
pub fn plan_with(config: &Config, hooks: Hooks) -> Result<MemoryPlan> {
    Ok(plan_run(config, hooks)?.memory)
}

/// What is known of a run before it starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunPlan {
    /// The device in words, with the instructions that it will use on the CPU; a CUDA device that the
    /// configuration names is not asked.
    pub device: String,
    /// Where every tensor lies.
    #[serde(flatten)]
    pub memory: MemoryPlan,
    /// On CUDA, the matrix products and what does them.
    pub gemm: Vec<GemmChoice>,
    /// With `measure_ceiling`, floating-point operations a second of the widest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_flops_per_second: Option<f64>,
}

/// As [`plan_with`], with what multiplies matrices. With `measure_ceiling` the device is opened, the model
/// loaded on it and multiplied.
///
/// # Errors
/// As [`plan_with`].
pub fn plan_run(config: &Config, mut hooks: Hooks) -> Result<RunPlan> {
    config.validate()?;
    let (needs, device) = device::foreseen(config, &mut hooks)?;
    let spec = ModelSpec::from_dir(model_folder(config)?)?;
    let data = open_data(config, &spec, &mut hooks)?;
    let work = training_workload(config, &spec, &data, needs)?;
    let mut plan = RunPlan {
        device,
        memory: needs.plan(&spec, &work),
        gemm: gemm::choices(config, &needs, &spec, &work),
        ceiling_flops_per_second: None,
    };
    if config.measure_ceiling {
        let device = OpenDevice::open(config, &mut hooks)?;
        let mut network = open_network(config, device, spec, work, &mut hooks)?;
        plan.ceiling_flops_per_second = ceiling(config, network.as_mut(), &mut hooks)?;
    }
    Ok(plan)
}

/// How fast the device multiplies matrices, if the configuration asks.
pub(super) fn ceiling(
    config: &Config,
    network: &mut dyn AnyNetwork,
    hooks: &mut Hooks,
) -> Result<Option<f64>> {
    if !config.measure_ceiling {
        return Ok(None);
    }
    let ceiling = network.measure_ceiling()?;
    hooks.info(format!(
        "matrix products: {:.3} TFLOP/s, which the speed of the updates is held against",
        ceiling / 1e12
    ));
    Ok(Some(ceiling))
}

pub(super) fn model_folder(config: &Config) -> Result<&Path> {
    config.model_name_or_path.as_deref().ok_or_else(|| {
        let message = "model_name_or_path: missing: name the folder of the model";
        Error::new(ErrorKind::Config, message)
    })
}

/// What a run trains and evaluates on.
pub(super) struct Data {
    /// None when the host feeds its own batches.
    pub loader: Option<Loader>,
    /// Empty when the host feeds them as well, or nothing is evaluated.
    pub eval: Vec<EvalSet>,
    pub train_report: Option<DataReport>,
}

/// Rows to evaluate on.
pub(super) struct EvalSet {
    /// None for the rows of a configuration that names one set, or holds some back.
    pub name: Option<String>,
    pub dataset: Dataset,
    pub report: DataReport,
}

impl EvalSet {
    /// How logs and checkpoints write it: `eval`, or `eval_<name>`.
    pub fn key(&self) -> String {
        match &self.name {
            Some(name) => format!("eval_{name}"),
            None => "eval".to_owned(),
        }
    }
}

impl Data {
    /// What became of the rows, by the names that the record of a run gives them.
    pub fn reports(&self) -> BTreeMap<String, DataReport> {
        let train = self.train_report.iter().cloned();
        let eval = self.eval.iter().map(|set| (set.key(), set.report.clone()));
        train
            .map(|report| ("train".to_owned(), report))
            .chain(eval)
            .collect()
    }
}

/// The rows of `config` as training sees them: tokenised, without those held back by `val_size`,
/// shuffled and packed as it says.
///
/// # Errors
/// `Config` without `dataset_name`; else those of [`Session::start`](super::Session::start) for the
/// model's `config.json`, its tokenizer and the data.
pub fn training_rows(config: &Config, mut hooks: Hooks) -> Result<(Dataset, DataReport)> {
    config.validate()?;
    let spec = ModelSpec::from_dir(model_folder(config)?)?;
    let Some(path) = &config.dataset_name else {
        let message = "dataset_name: missing: name the training rows";
        return Err(Error::new(ErrorKind::Config, message));
    };
    let opener = Opener::new(config, &spec)?;
    Ok(opener.training(path, &mut hooks)?.0)
}

/// Rows and what became of those that were read.
type Rows = (Dataset, DataReport);

/// Opens, tokenises and splits the rows that the configuration names.
pub(super) fn open_data(config: &Config, spec: &ModelSpec, hooks: &mut Hooks) -> Result<Data> {
    let mut data = Data {
        loader: None,
        eval: Vec::new(),
        train_report: None,
    };
    if config.dataset_name.is_none() && config.eval_dataset_name.is_none() {
        return Ok(data);
    }
    let opener = Opener::new(config, spec)?;
    if let Some(path) = &config.dataset_name {
        let ((dataset, report), held_back) = opener.training(path, hooks)?;
        data.eval.extend(held_back.map(|(dataset, report)| EvalSet {
            name: None,
            dataset,
            report,
        }));
        let loader =
            Loader::new(dataset, loader_options(config)).context(|| path.display().to_string())?;
        (data.loader, data.train_report) = (Some(loader), Some(report));
    }
    if data.eval.is_empty() {
        data.eval = opener.evaluation(hooks)?;
    }
    Ok(data)
}

/// The file of one split: `path` itself, or in a folder the file named after the split.
fn split_file(path: &Path, name: &str, split: Split) -> Result<Option<PathBuf>> {
    let named = path.join(format!("{name}.jsonl"));
    match named.is_file() {
        true => Ok(Some(named)),
        false => split.file(path),
    }
}

/// Says what a user should look at before training on such rows.
fn warn_of_rows(file: &Path, report: &DataReport, end: Option<&str>, hooks: &mut Hooks) {
    let file = file.display();
    let read = report.rows_read;
    let lost = report.truncated.rows + report.empty.rows + report.masked.rows;
    if lost > 0 {
        hooks.warning(format!("{file}: some rows were cut or left out: {report}"));
    }
    if report.eos_untrained.rows > 0 {
        let rows = report.eos_untrained.rows;
        hooks.warning(format!(
            "{file}: {rows} of {read} rows never train the end token {}, so the model may not learn \
             to stop: set eos_token to the token that ends a turn, or correct the chat template",
            end.unwrap_or_default()
        ));
    }
    if report.prompt_diverges.rows > 0 {
        let rows = report.prompt_diverges.rows;
        hooks.warning(format!(
            "{file}: in {rows} of {read} rows the prompt alone has other tokens than at the \
             beginning of the whole row, so generation will start from tokens that were not trained: \
             begin the completion, not end the prompt, with the space between them"
        ));
    }
}

struct Opener<'a> {
    config: &'a Config,
    spec: &'a ModelSpec,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl<'a> Opener<'a> {
    fn new(config: &'a Config, spec: &'a ModelSpec) -> Result<Self> {
        let (tokenizer, template) = open_tokenizer(config)?;
        Ok(Self {
            config,
            spec,
            tokenizer,
            template,
        })
    }

    /// The training rows, and those held back for evaluation.
    fn training(&self, path: &Path, hooks: &mut Hooks) -> Result<(Rows, Option<Rows>)> {
        let config = self.config;
        let file = split_file(path, &config.dataset_train_split, Split::Train)?
            .expect("a training split is required");
        let (mut dataset, mut report) = self.dataset(&file, config.packing, &hooks.canceller)?;
        let from_cache = report.from_cache;
        let mut held_back = None;
        if let Some(size) = config.val_size {
            let size = match size.0 < 1.0 {
                true => ValidationSize::Fraction(size.0),
                false => ValidationSize::Count(size.0 as usize),
            };
            let rows = self.rows(config.eval_packing.unwrap_or(config.packing));
            let (train, eval) = dataset.split(size, data_seed(config), rows)?;
            (dataset, report) = train;
            held_back = Some(eval);
        }
        if config.shuffle_dataset {
            (dataset, report) = dataset.shuffle(data_seed(config))?;
        }
        report.from_cache = from_cache;
        hooks.info(format!("{}: {report}", file.display()));
        warn_of_rows(&file, &report, self.tokenizer.eos_token(), hooks);
        Ok(((dataset, report), held_back))
    }

    /// The evaluation rows that have a file of their own.
    fn evaluation(&self, hooks: &mut Hooks) -> Result<Vec<EvalSet>> {
        let config = self.config;
        let split = |path| split_file(path, &config.dataset_test_split, Split::Validation);
        let mut sets = Vec::new();
        match (&config.eval_dataset_name, &config.dataset_name) {
            (Some(named), _) => {
                for (name, path) in named.iter() {
                    let place = || match name {
                        Some(name) => format!("eval_dataset_name.{name}"),
                        None => "eval_dataset_name".to_owned(),
                    };
                    let file = split(path).context(place)?;
                    let set = file.map(|file| self.evaluation_set(name, &file, hooks));
                    sets.extend(set.transpose().context(place)?);
                }
            }
            // A file of training rows has no part for evaluation.
            (None, Some(path)) => {
                let file = split(path)?.filter(|file| file != path);
                let set = file.map(|file| self.evaluation_set(None, &file, hooks));
                sets.extend(set.transpose()?);
            }
            (None, None) => {}
        }
        Ok(sets)
    }

    fn evaluation_set(
        &self,
        name: Option<&str>,
        file: &Path,
        hooks: &mut Hooks,
    ) -> Result<EvalSet> {
        let packing = self.config.eval_packing.unwrap_or(self.config.packing);
        let (dataset, report) = self.dataset(file, packing, &hooks.canceller)?;
        let label = name.map(|name| format!("{name}: ")).unwrap_or_default();
        hooks.info(format!("{label}{}: {report}", file.display()));
        if dataset.is_empty() {
            let message = format!("{}: no row to evaluate on: {report}", file.display());
            return Err(Error::new(ErrorKind::Data, message));
        }
        let name = name.map(str::to_owned);
        Ok(EvalSet {
            name,
            dataset,
            report,
        })
    }

    fn rows(&self, packing: bool) -> RowOptions {
        let strategy = match self.config.packing_strategy {
            PackingStrategy::Bfd => Packing::Bfd,
            PackingStrategy::BfdSplit => Packing::BfdSplit,
            PackingStrategy::Wrapped => Packing::Wrapped,
        };
        RowOptions {
            max_length: self.config.max_length,
            packing: packing.then_some(strategy),
        }
    }

    fn dataset(
        &self,
        file: &Path,
        packing: bool,
        canceller: &Canceller,
    ) -> Result<(Dataset, DataReport)> {
        let config = self.config;
        let options = DataOptions {
            dataset_text_field: config.dataset_text_field.clone(),
            completion_only_loss: config.completion_only_loss,
            assistant_only_loss: config.assistant_only_loss,
            vocab_size: Some(self.spec.vocab_size),
            rows: self.rows(packing),
            cache_dir: config.cache_dir.clone(),
            ..DataOptions::default()
        };
        let files = [file.to_path_buf()];
        let template = self.template.as_ref();
        let go_on = &mut |_| !canceller.is_cancelled();
        // Tokenising uses the threads that it is given here, and no others.
        let threads = config.dataset_num_proc.or(config.threads).unwrap_or(0);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| {
            Error::new(ErrorKind::Device, "cannot start the tokenising threads").with_source(e)
        })?;
        pool.install(|| Dataset::open_with(&files, &self.tokenizer, template, &options, go_on))
    }
}

fn data_seed(config: &Config) -> u64 {
    config.data_seed.unwrap_or(config.seed)
}

fn loader_options(config: &Config) -> LoaderOptions {
    LoaderOptions {
        per_device_train_batch_size: config.per_device_train_batch_size,
        gradient_accumulation_steps: config.gradient_accumulation_steps,
        order: match config.train_sampling_strategy {
            SamplingStrategy::Random => Order::Random,
            SamplingStrategy::Sequential => Order::Sequential,
            SamplingStrategy::GroupByLength => Order::GroupByLength,
        },
        seed: data_seed(config),
        ..LoaderOptions::default()
    }
}

/// The largest amounts that a training run will ask for: exact where the rows are known, else as
/// large as the configuration allows a host to feed.
pub(super) fn training_workload(
    config: &Config,
    spec: &ModelSpec,
    data: &Data,
    needs: Needs,
) -> Result<Workload> {
    needs.check(spec)?;
    let (mut tokens, mut sequence_length) = match &data.loader {
        Some(loader) => (
            loader.max_micro_batch_tokens(),
            loader.max_sequence_length(),
        ),
        None => {
            let longest = config.max_length.ok_or_else(|| {
                let message = "max_length: null is not possible when the host feeds the batches; \
                               set the longest sequence that it will feed";
                Error::new(ErrorKind::Config, message)
            })?;
            (longest * config.per_device_train_batch_size, longest)
        }
    };
    let (eval_tokens, longest) = largest_eval_batch(&data.eval, config.per_device_eval_batch_size);
    tokens = tokens.max(eval_tokens);
    sequence_length = sequence_length.max(longest);
    let recompute = config.gradient_checkpointing;
    let accumulated = tokens.saturating_mul(config.gradient_accumulation_steps);
    Ok(Workload {
        purpose: Purpose::Train { recompute },
        tokens,
        sequence_length,
        stats: accumulated.min(1 << 18).max(tokens),
        head_rows: Workload::head_rows_for(spec.vocab_size, tokens, needs.precision),
        precision: needs.precision,
        workspace: needs.workspace,
    })
}

/// Tokens of the largest evaluation batch and of the longest sequence, over all sets; 0 without any.
pub(super) fn largest_eval_batch(sets: &[EvalSet], rows: usize) -> (usize, usize) {
    let (mut tokens, mut sequence_length) = (0, 0);
    for set in sets {
        let lengths: Vec<usize> = set.dataset.lengths().collect();
        let batches = lengths.chunks(rows.max(1)).map(|rows| rows.iter().sum());
        tokens = tokens.max(batches.max().unwrap_or(0));
        sequence_length = sequence_length.max(set.dataset.max_sequence_length());
    }
    (tokens, sequence_length)
}

/// Plans and allocates a network on a device and loads the model's weights.
pub(super) fn open_network(
    config: &Config,
    device: OpenDevice,
    spec: ModelSpec,
    work: Workload,
    hooks: &mut Hooks,
) -> Result<Box<dyn AnyNetwork>> {
    let folder = model_folder(config)?;
    let files = WeightFiles::open(folder)?;
    let table = ParamTable::new(&spec);
    let precision = work.precision;
    let mut network = device.network(spec, table, work)?;
    let canceller = &hooks.canceller;
    network.load_weights(&|param, start, values| {
        canceller.check("loading the model")?;
        files.read_f32_from(&param.name, &param.shape, start, values)
    })?;
    hooks.info(format!(
        "{}: {} parameters on {}, {precision}",
        folder.display(),
        network.table().num_parameters(),
        network.device()
    ));
    Ok(network)
}
