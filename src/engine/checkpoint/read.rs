//! Finding and opening checkpoints. An open one has been read from end to end.

use super::manifest::{Manifest, NewerFormat};
use super::write::{Written, moment_name};
use super::{MANIFEST, MODEL, OPTIMIZER};
use crate::engine::any_network::AnyNetwork;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{WeightFiles, verify};
use crate::model::Param;
use crate::train::Moment;
use std::error::Error as _;
use std::path::{Path, PathBuf};

/// A checkpoint whose every byte was what its writer wrote when it was opened.
#[derive(Debug)]
pub(in crate::engine) struct Checkpoint {
    written: Written,
    weights: WeightFiles,
    optimizer: WeightFiles,
    /// `None` where the best weights are the checkpoint's own or not kept.
    best: Option<WeightFiles>,
}

/// Opens the checkpoint in `folder` and verifies all of it, in parallel on the calling thread's pool
/// where it has one.
///
/// # Errors
/// [`ErrorKind::Checkpoint`] naming the folder, the file and the tensor that is damaged, missing or too
/// many, or the format if it is a newer one; [`ErrorKind::Io`] when a file cannot be read.
pub(in crate::engine) fn open(folder: &Path) -> Result<Checkpoint> {
    open_whole(folder).map_err(|e| match is_newer(&e) {
        true => e,
        false => e.context(format!(
            "{} is not a whole checkpoint, resume from an earlier one",
            folder.display()
        )),
    })
}

fn open_whole(folder: &Path) -> Result<Checkpoint> {
    let manifest = Manifest::read(folder)?;
    refuse_unlisted(folder, &manifest)?;
    for file in &manifest.files {
        verify(folder, file)?;
    }
    let files_of = |stem: &str| {
        let lacks = || {
            let message = format!("{MANIFEST} lists no {stem}.safetensors");
            Error::new(ErrorKind::Checkpoint, message)
        };
        WeightFiles::open_stem(folder, stem)?.ok_or_else(lacks)
    };
    let best = manifest.best.as_ref().filter(|best| best.files != MODEL);
    Ok(Checkpoint {
        weights: files_of(MODEL)?,
        optimizer: files_of(OPTIMIZER)?,
        best: best.map(|best| files_of(&best.files)).transpose()?,
        written: Written {
            folder: folder.to_owned(),
            manifest,
        },
    })
}

/// A weight file that nothing vouches for might be read in place of one that is listed.
fn refuse_unlisted(folder: &Path, manifest: &Manifest) -> Result<()> {
    let io = |e| Error::io(folder, e);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let name = name.to_string_lossy();
        let tensors = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        if tensors && !manifest.files.iter().any(|file| file.name == name) {
            return Err(Error::new(
                ErrorKind::Checkpoint,
                format!("{name} is a weight file that {MANIFEST} does not list"),
            ));
        }
    }
    Ok(())
}

fn is_newer(error: &Error) -> bool {
    error.source().is_some_and(|s| s.is::<NewerFormat>())
}

/// The checkpoints in `output_dir` by their names, the oldest first: step and folder. None where the
/// folder does not exist.
///
/// # Errors
/// [`ErrorKind::Io`] when the folder cannot be read.
pub(in crate::engine) fn find(output_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let io = |e| Error::io(output_dir, e);
    let entries = match std::fs::read_dir(output_dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(io)?.file_name();
        let digits = name.to_str().and_then(|n| n.strip_prefix("checkpoint-"));
        let step = digits.and_then(|d| Some((d, d.parse::<u64>().ok()?)));
        let folder = output_dir.join(&name);
        if let Some((digits, step)) = step
            && digits == step.to_string()
            && folder.is_dir()
        {
            found.push((step, folder));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint in `output_dir` that is whole. Newer ones that are not go to `on_torn`.
///
/// # Errors
/// [`ErrorKind::Checkpoint`] for one of a newer format, which is not torn: an older one in its place
/// would lose what the run has learnt since. [`ErrorKind::Io`] when the folder cannot be read.
pub(in crate::engine) fn newest_whole(
    output_dir: &Path,
    mut on_torn: impl FnMut(&Path, &Error),
) -> Result<Option<Checkpoint>> {
    for (_, folder) in find(output_dir)?.into_iter().rev() {
        match open(&folder) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) if is_newer(&error) => return Err(error),
            Err(error) => on_torn(&folder, &error),
        }
    }
    Ok(None)
}

impl Checkpoint {
    /// Where it stands.
    pub fn folder(&self) -> &Path {
        &self.written.folder
    }

    /// The state of the run.
    pub fn manifest(&self) -> &Manifest {
        &self.written.manifest
    }

    /// What later checkpoints may link from.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Puts weights, moments and AdamW's t into `network`.
    ///
    /// # Errors
    /// `Tensor` when the network is of another model, `Io`, `Device`.
    pub fn load_into(&self, network: &mut dyn AnyNetwork) -> Result<()> {
        network.load_weights(&|param, start, to| self.read_weights(param, start, to))?;
        network
            .load_moments(&|moment, param, start, to| self.read_moment(moment, param, start, to))?;
        network.set_updates(self.manifest().state.optimizer_updates);
        Ok(())
    }

    /// Elements of a parameter's weights from `start` on.
    ///
    /// # Errors
    /// As [`WeightFiles::read_any_f32`].
    pub fn read_weights(&self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        let Param { name, shape, .. } = param;
        self.weights.read_any_f32_from(name, shape, start, to)
    }

    /// Elements of one moment of a parameter from `start` on.
    ///
    /// # Errors
    /// As [`WeightFiles::read_any_f32`].
    pub fn read_moment(
        &self,
        moment: Moment,
        param: &Param,
        start: usize,
        to: &mut [f32],
    ) -> Result<()> {
        let name = moment_name(moment, param);
        (self.optimizer).read_any_f32_from(&name, &param.shape, start, to)
    }

    /// The best weights of a parameter, those of update `manifest().best`; the checkpoint's own where
    /// it holds no others.
    ///
    /// # Errors
    /// As [`WeightFiles::read_any_f32`].
    pub fn read_best(&self, param: &Param, to: &mut [f32]) -> Result<()> {
        let files = self.best.as_ref().unwrap_or(&self.weights);
        files.read_any_f32(&param.name, &param.shape, to)
    }
}
