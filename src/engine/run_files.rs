//! What a run leaves on disk: `output_dir` with the log, `checkpoint-N` folders and the model.

use super::journal::Journal;
use super::run_record::RunRecord;
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The files of a run in its output folder.
pub(super) struct RunFiles {
    folder: PathBuf,
    /// The folder was not there before.
    made: bool,
    /// Steps of the checkpoints that this run wrote and that are still there, oldest first.
    checkpoints: Vec<u64>,
}

impl RunFiles {
    /// Refuses a folder that already holds a model or a run's log unless `overwrite`, so that nothing
    /// that was saved before is lost by accident.
    pub fn check(folder: &Path, overwrite: bool) -> Result<()> {
        let holds = [
            "config.json",
            "model.safetensors",
            Journal::FILE_NAME,
            RunRecord::FILE_NAME,
        ];
        match holds.iter().find(|name| folder.join(name).exists()) {
            Some(name) if !overwrite => Err(Error::new(
                ErrorKind::Exists,
                format!(
                    "output_dir: {} already holds {name}; name another folder, or set \
                     overwrite_output_dir: true",
                    folder.display()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Makes the folder of a run.
    pub fn create(folder: &Path) -> Result<Self> {
        let made = !folder.exists();
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            made,
            checkpoints: Vec::new(),
        })
    }

    /// Begins the files of a run: the record and the log. What this made goes again if it fails half
    /// way, and an earlier log is not touched then.
    pub fn begin(&self, record: &RunRecord) -> Result<Journal> {
        let begun = record
            .write(&self.folder)
            .and_then(|()| Journal::create(&self.folder).inspect_err(|_| self.remove_record()));
        if begun.is_err() && self.made {
            // Only goes if nothing else is in it.
            let _ = std::fs::remove_dir(&self.folder);
        }
        begun
    }

    fn remove_record(&self) {
        let _ = std::fs::remove_file(self.folder.join(RunRecord::FILE_NAME));
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the checkpoint of `step`.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.folder.join(format!("checkpoint-{step}"))
    }

    pub fn has_checkpoint(&self, step: u64) -> bool {
        self.checkpoints.contains(&step)
    }

    /// Notes a checkpoint that was written, and deletes the oldest ones beyond `limit`; the one just
    /// written and that of `best` are never deleted.
    pub fn wrote(&mut self, step: u64, limit: Option<usize>, best: Option<u64>) -> Result<()> {
        self.checkpoints.retain(|&s| s != step);
        self.checkpoints.push(step);
        let Some(limit) = limit else { return Ok(()) };
        while self.checkpoints.len() > limit.max(1) {
            let spare = |s: &u64| *s != step && Some(*s) != best;
            let Some(oldest) = self.checkpoints.iter().position(spare) else {
                break;
            };
            let folder = self.checkpoint(self.checkpoints[oldest]);
            std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            self.checkpoints.remove(oldest);
        }
        Ok(())
    }
}
