//! What a run leaves on disk: `output_dir` with the log, `checkpoint-N` folders and the model.

use super::checkpoint;
use super::journal::Journal;
use super::run_record::RunRecord;
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The files of a run in its output folder.
pub(super) struct RunFiles {
    folder: PathBuf,
    /// The folder was not there before.
    made: bool,
    /// Steps of the durable checkpoints that are there, oldest first.
    checkpoints: Vec<u64>,
}

impl RunFiles {
    /// Refuses a folder that already holds a model, a checkpoint or a run's log unless `overwrite`, so
    /// that nothing that was saved before is lost by accident. A run that `restarts` by itself may have
    /// been interrupted before its first checkpoint: then the log alone is no obstacle.
    pub fn check(folder: &Path, overwrite: bool, restarts: bool) -> Result<()> {
        if overwrite {
            return Ok(());
        }
        let mut holds = vec!["config.json".to_owned(), "model.safetensors".to_owned()];
        holds.extend(checkpoint::find(folder)?.into_iter().map(name_of));
        if !restarts {
            holds.extend([Journal::FILE_NAME, RunRecord::FILE_NAME].map(str::to_owned));
        }
        match holds.iter().find(|name| folder.join(name).exists()) {
            Some(name) => Err(Error::new(
                ErrorKind::Exists,
                format!(
                    "output_dir: {} already holds {name}; name another folder, or set \
                     overwrite_output_dir: true",
                    folder.display()
                ),
            )),
            None => Ok(()),
        }
    }

    /// Refuses to go back to the checkpoint of `step` where there are newer ones, unless `overwrite`:
    /// they are of another course of the run, and would be taken for its continuation.
    pub fn check_newest(folder: &Path, step: u64, overwrite: bool) -> Result<()> {
        let all = checkpoint::find(folder)?.into_iter();
        let newer: Vec<String> = all.filter(|(s, _)| *s > step).map(name_of).collect();
        if newer.is_empty() || overwrite {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Exists,
            format!(
                "resume_from_checkpoint: {} has newer checkpoints than that of update {step}: {}; to go \
                 back and have them removed, set overwrite_output_dir: true, or name another output_dir",
                folder.display(),
                newer.join(", ")
            ),
        ))
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

    /// Goes on with the files of a run after update `step`: its log up to `log_bytes`, its record, and
    /// the checkpoints up to then. A run that moves here from the folder `elsewhere` brings the first
    /// two along. False when rows of the log are missing.
    pub fn go_on(
        &mut self,
        record: RunRecord,
        step: u64,
        log_bytes: u64,
        elsewhere: Option<&Path>,
    ) -> Result<(Journal, bool)> {
        let earlier = RunRecord::read(elsewhere.unwrap_or(&self.folder)).ok();
        record.resumed(earlier, step).write(&self.folder)?;
        let log = elsewhere.map(|folder| folder.join(Journal::FILE_NAME));
        let begun = Journal::resume(&self.folder, log_bytes, log.as_deref())?;
        let found = checkpoint::find(&self.folder)?.into_iter();
        self.checkpoints = found.map(|(s, _)| s).filter(|s| *s <= step).collect();
        Ok(begun)
    }

    /// Removes the checkpoints of another course of the run, those after `step`, or of another run, all
    /// of them; the newest first, so that what an interruption leaves is still one course. Returns
    /// their names.
    pub fn remove_newer(&self, step: Option<u64>) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for (of, folder) in checkpoint::find(&self.folder)?.into_iter().rev() {
            if step.is_none_or(|step| of > step) {
                std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
                removed.push(name_of((of, folder)));
            }
        }
        Ok(removed)
    }

    fn remove_record(&self) {
        let _ = std::fs::remove_file(self.folder.join(RunRecord::FILE_NAME));
    }

    /// The folder of the checkpoint of `step`.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.folder.join(format!("checkpoint-{step}"))
    }

    /// Notes a checkpoint that has become durable, and deletes the oldest ones beyond `limit`; never
    /// the one just noted, the newest, that of `best` or the one that is being `written`.
    pub fn wrote(
        &mut self,
        step: u64,
        limit: Option<usize>,
        best: Option<u64>,
        written: Option<u64>,
    ) -> Result<()> {
        self.checkpoints.retain(|&s| s != step);
        self.checkpoints.push(step);
        self.checkpoints.sort_unstable();
        let Some(limit) = limit else { return Ok(()) };
        while self.checkpoints.len() > limit.max(1) {
            let newest = self.checkpoints.last().copied();
            let spared = [Some(step), newest, best, written];
            let spare = |s: &u64| !spared.contains(&Some(*s));
            let Some(oldest) = self.checkpoints.iter().position(spare) else {
                break;
            };
            let gone = self.checkpoints.remove(oldest);
            let folder = self.checkpoint(gone);
            std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        }
        Ok(())
    }
}

fn name_of((step, _): (u64, PathBuf)) -> String {
    format!("checkpoint-{step}")
}
