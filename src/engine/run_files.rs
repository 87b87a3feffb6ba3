//! What a run leaves on disk: `output_dir` with the log, `checkpoint-N` folders and the model.

use super::checkpoint;
use super::journal::Journal;
use super::run_record::RunRecord;
use super::tensorboard::EventFile;
use crate::config::{Config, ReportTo};
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
        begun.inspect_err(|_| self.take_back())
    }

    /// Begins TensorBoard's events, if `config` wants them, of a leg of the run whose rows come after
    /// those of update `resumed`; without one, of the whole run, so that nothing of an overwritten one
    /// is shown.
    pub fn events(&self, config: &Config, resumed: Option<u64>) -> Result<Option<EventFile>> {
        if config.report_to != ReportTo::TensorBoard {
            return Ok(None);
        }
        let runs = self.folder.join("runs");
        let folder = config.logging_dir.as_ref().unwrap_or(&runs);
        let events = EventFile::create(folder, resumed.map_or(0, |step| step + 1));
        events.map(Some).inspect_err(|_| self.take_back())
    }

    /// Takes the folder away again if it was made for this run and nothing is in it.
    pub fn take_back(&self) {
        if self.made {
            let _ = std::fs::remove_dir(&self.folder);
        }
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

    /// Notes a checkpoint that has become durable and says which are now to be deleted: the oldest ones
    /// beyond `limit`; never the one just noted, the newest, that of `best` or the one that is being
    /// `written`.
    pub fn wrote(
        &mut self,
        step: u64,
        limit: Option<usize>,
        best: Option<u64>,
        written: Option<u64>,
    ) -> Vec<PathBuf> {
        self.checkpoints.retain(|&s| s != step);
        self.checkpoints.push(step);
        self.checkpoints.sort_unstable();
        let mut gone = Vec::new();
        let limit = limit.unwrap_or(usize::MAX);
        while self.checkpoints.len() > limit.max(1) {
            let newest = self.checkpoints.last().copied();
            let spared = [Some(step), newest, best, written];
            let spare = |s: &u64| !spared.contains(&Some(*s));
            let Some(oldest) = self.checkpoints.iter().position(spare) else {
                break;
            };
            let oldest = self.checkpoints.remove(oldest);
            gone.push(self.checkpoint(oldest));
        }
        gone
    }
}

fn name_of((step, _): (u64, PathBuf)) -> String {
    format!("checkpoint-{step}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_checkpoints(steps: &[u64]) -> (tempfile::TempDir, RunFiles) {
        let dir = tempfile::tempdir().unwrap();
        let mut files = RunFiles::create(dir.path()).unwrap();
        for &step in steps {
            std::fs::create_dir(files.checkpoint(step)).unwrap();
        }
        files.checkpoints = steps.to_vec();
        (dir, files)
    }

    fn left(files: &RunFiles) -> Vec<u64> {
        let found = checkpoint::find(&files.folder).unwrap();
        let steps: Vec<u64> = found.into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, files.checkpoints);
        steps
    }

    #[test]
    fn the_oldest_go_first_but_not_the_best_nor_the_one_being_written() {
        for (limit, best, written, expected) in [
            (None, None, None, vec![1, 2, 3, 4, 5]),
            (Some(2), None, None, vec![4, 5]),
            (Some(2), Some(1), None, vec![1, 5]),
            (Some(1), Some(2), None, vec![2, 5]),
            (Some(1), None, Some(3), vec![3, 5]),
            (Some(9), None, None, vec![1, 2, 3, 4, 5]),
        ] {
            let (_dir, mut files) = with_checkpoints(&[1, 2, 3, 4, 5]);
            for folder in files.wrote(5, limit, best, written) {
                std::fs::remove_dir(folder).unwrap();
            }
            assert_eq!(left(&files), expected, "{limit:?} {best:?} {written:?}");
        }
    }

    #[test]
    fn one_that_is_told_late_does_not_push_the_newest_out() {
        let (_dir, mut files) = with_checkpoints(&[3, 5]);
        assert!(files.wrote(3, Some(1), None, None).is_empty());
        assert_eq!(left(&files), [3, 5]);
    }

    #[test]
    fn names_that_are_no_checkpoints_are_left_alone() {
        let (dir, files) = with_checkpoints(&[7]);
        for name in [
            "checkpoint-",
            "checkpoint-07",
            "checkpoint-x",
            "checkpoint-9.bak",
        ] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("checkpoint-8"), "a file").unwrap();
        assert_eq!(files.remove_newer(None).unwrap(), ["checkpoint-7"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    #[test]
    fn a_restart_is_stopped_by_what_was_saved_and_not_by_a_log() {
        let (dir, _) = with_checkpoints(&[]);
        std::fs::write(dir.path().join(Journal::FILE_NAME), "").unwrap();
        RunFiles::check(dir.path(), false, true).unwrap();
        let error = RunFiles::check(dir.path(), false, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        std::fs::create_dir(dir.path().join("checkpoint-7")).unwrap();
        let error = RunFiles::check(dir.path(), false, true).unwrap_err();
        assert!(error.to_string().contains("checkpoint-7"), "{error}");
        RunFiles::check(dir.path(), true, false).unwrap();
    }
}
