//! Writing a checkpoint, on whatever thread.

use super::manifest::{BestPlace, FORMAT, Manifest, RunState};
use super::{BEST, MANIFEST, MODEL, OPTIMIZER, is_of_stem};
use crate::dtype::DType;
use crate::engine::any_network::AnyNetwork;
use crate::engine::journal::LogFile;
use crate::error::{Result, ResultExt};
use crate::io::{AtomicFolder, TensorMeta, write_safetensors};
use crate::model::{ModelSpec, Param, ParamTable, SaveOptions, is_model_file, write_model};
use crate::train::Moment;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All of a checkpoint but the numbers that change with every update.
pub(in crate::engine) struct Contents {
    /// Where the run stands.
    pub state: RunState,
    /// The best weights so far, if the run keeps them.
    pub best: Option<BestWeights>,
    /// The model that is trained.
    pub model: Arc<ModelFiles>,
    /// The log, whose first `state.log_bytes` bytes are made durable before the checkpoint is.
    pub log: Option<LogFile>,
}

/// The weights of the best update, in the layout of the parameter table.
#[derive(Clone)]
pub(in crate::engine) struct BestWeights {
    /// The update.
    pub step: u64,
    /// Float32; shared with the run, which keeps them too.
    pub values: Arc<Vec<f32>>,
}

/// What a model folder is made of besides its weights.
pub(in crate::engine) struct ModelFiles {
    /// The folder that training began with.
    pub source: PathBuf,
    /// The model in it.
    pub spec: ModelSpec,
    /// Its tensors.
    pub table: ParamTable,
    /// How it is saved; checkpoints hold float32 whatever its dtype says.
    pub options: SaveOptions,
}

/// A checkpoint that is durable, and what it holds.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Written {
    /// Where it stands.
    pub folder: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
}

/// The numbers of a checkpoint: a network, or a copy of what it held.
pub(in crate::engine) trait Tensors {
    /// Elements of a parameter's weights from `start` on.
    fn weights(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()>;
    /// Elements of one of its moments from `start` on.
    fn moment(&mut self, m: Moment, param: &Param, start: usize, to: &mut [f32]) -> Result<()>;
}

impl Tensors for dyn AnyNetwork + '_ {
    fn weights(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        self.read_weight(param, start, to)
    }

    fn moment(&mut self, m: Moment, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        self.read_moment(m, param, start, to)
    }
}

/// Writes a checkpoint to `folder`; it is durable on return. An earlier one there stays until then, and
/// so do files that belong to no checkpoint. Best weights that `earlier` holds are linked from there.
///
/// # Errors
/// Those of `tensors` and of [`write_model`]; `Io` naming the file, the earlier checkpoint stays whole
/// then.
pub(in crate::engine) fn write<T: Tensors + ?Sized>(
    folder: &Path,
    contents: &Contents,
    tensors: &mut T,
    earlier: Option<&Written>,
) -> Result<Written> {
    let writing = || format!("writing the checkpoint {}", folder.display());
    write_files(folder, contents, tensors, earlier).context(writing)
}

fn write_files<T: Tensors + ?Sized>(
    folder: &Path,
    contents: &Contents,
    tensors: &mut T,
    earlier: Option<&Written>,
) -> Result<Written> {
    let Contents {
        state, model, log, ..
    } = contents;
    let (params, max_shard_bytes) = (&model.table.params, model.options.max_shard_bytes);
    let mut staged = AtomicFolder::create(folder)?.with_checksums();
    let options = SaveOptions {
        dtype: DType::F32,
        ..model.options.clone()
    };
    write_model(
        &mut staged,
        &model.source,
        &model.spec,
        &model.table,
        &options,
        |param, start, chunk| tensors.weights(param, start, chunk),
    )?;

    let moments: Vec<(Moment, &Param)> = (Moment::ALL.into_iter())
        .flat_map(|moment| params.iter().map(move |param| (moment, param)))
        .collect();
    let meta = |(moment, param): &(Moment, &Param)| TensorMeta {
        name: moment_name(*moment, param),
        shape: param.shape.clone(),
    };
    write_safetensors(
        &mut staged,
        OPTIMIZER,
        &Vec::from_iter(moments.iter().map(meta)),
        DType::F32,
        max_shard_bytes,
        |i, start, chunk| tensors.moment(moments[i].0, moments[i].1, start, chunk),
    )?;

    let best = (contents.best.as_ref())
        .map(|best| write_best(&mut staged, contents, best, earlier))
        .transpose()?;
    let manifest = Manifest {
        format: FORMAT,
        library: env!("CARGO_PKG_VERSION").to_owned(),
        state: state.clone(),
        best,
        files: staged.summaries().to_vec(),
    };
    staged.write(MANIFEST, &manifest.encode()?)?;
    if let Some(log) = log {
        // A checkpoint must not be there without the rows of the log that it counts.
        log.sync()?;
    }
    staged.merge(is_checkpoint_file)?;
    Ok(Written {
        folder: folder.to_owned(),
        manifest,
    })
}

/// Has the best weights in the checkpoint and says where.
fn write_best(
    staged: &mut AtomicFolder,
    contents: &Contents,
    best: &BestWeights,
    earlier: Option<&Written>,
) -> Result<BestPlace> {
    let place = |files: &str| BestPlace {
        step: best.step,
        files: files.to_owned(),
    };
    if best.step == contents.state.step {
        return Ok(place(MODEL));
    }
    // The earlier checkpoint may have been deleted or damaged meanwhile: then they are written anew.
    let linked = earlier.is_some_and(|earlier| link_best(staged, best.step, earlier));
    if linked {
        return Ok(place(BEST));
    }
    let model = &contents.model;
    let meta = |param: &Param| TensorMeta {
        name: param.name.clone(),
        shape: param.shape.clone(),
    };
    write_safetensors(
        staged,
        BEST,
        &Vec::from_iter(model.table.params.iter().map(meta)),
        DType::F32,
        model.options.max_shard_bytes,
        |i, start, chunk| {
            let from = model.table.params[i].offset + start;
            chunk.copy_from_slice(&best.values[from..from + chunk.len()]);
            Ok(())
        },
    )?;
    Ok(place(BEST))
}

/// Shards are not linked: their index names the files.
fn link_best(staged: &mut AtomicFolder, step: u64, earlier: &Written) -> bool {
    let manifest = &earlier.manifest;
    let stem = match &manifest.best {
        Some(best) if best.step == step => best.files.as_str(),
        _ if manifest.state.step == step => MODEL,
        _ => return false,
    };
    let single = format!("{stem}.safetensors");
    let Some(file) = manifest.files.iter().find(|file| file.name == single) else {
        return false;
    };
    let name = format!("{BEST}.safetensors");
    staged.link(&name, &earlier.folder, file).is_ok()
}

/// The name of a moment in `optimizer.safetensors`.
pub(super) fn moment_name(moment: Moment, param: &Param) -> String {
    format!("{}.{}", moment.name(), param.name)
}

/// True for names that a checkpoint may replace or remove in an existing folder.
fn is_checkpoint_file(name: &str) -> bool {
    let own = || name == MANIFEST || is_of_stem(name, OPTIMIZER) || is_of_stem(name, BEST);
    is_model_file(name) || own()
}
