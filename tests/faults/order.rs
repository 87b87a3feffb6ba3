//! In what order a run writes: what a power cut could leave, which a killed process alone does not
//! show, because the system keeps what it has been given.

use super::end::undisturbed;
use super::random::Random;
use super::shim::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// The step of `…/checkpoint-N`.
fn checkpoint(path: &Path) -> Option<u64> {
    path.file_name()?
        .to_str()?
        .strip_prefix("checkpoint-")?
        .parse()
        .ok()
}

/// The steps of the checkpoints that got their final names.
pub fn published(ops: &[Op]) -> impl Iterator<Item = u64> {
    let renames = ops.iter().filter(|op| op.is("rename"));
    renames.filter_map(|op| checkpoint(&op.other))
}

/// Takes back what was not yet safe on the device when the process was killed: the end of the log
/// that was not flushed, at random down to half a line, and checkpoints whose new name was not.
pub fn cut_the_power(out: &Path, ops: &[Op], random: &mut Random) {
    let log = out.join("train_log.jsonl");
    let mut unsafe_bytes = 0;
    let mut renamed = Vec::new();
    for op in ops.iter().filter(|op| op.took_effect()) {
        match &*op.name {
            "write" if op.path == log => unsafe_bytes += op.value as u64,
            "sync" if op.path == log => unsafe_bytes = 0,
            "truncate" if op.path == log => unsafe_bytes = 0,
            "rename" if checkpoint(&op.other).is_some() => renamed.push(&op.other),
            "sync" if op.path == out => renamed.clear(),
            _ => {}
        }
    }
    if let Ok(file) = OpenOptions::new().write(true).open(&log) {
        let length = file.metadata().unwrap().len();
        let lost = random.below(unsafe_bytes + 1).min(length);
        file.set_len(length - lost).unwrap();
    }
    for folder in renamed {
        if random.below(2) == 0 && folder.is_dir() {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

/// What must be on the device before a name that points to it is there.
#[test]
fn what_gets_its_name_is_safe_on_the_device() {
    let ops = &undisturbed().ops;
    let mut dirty: BTreeSet<&Path> = BTreeSet::new();
    let mut renames = 0;
    // Folder -> the new names in it that a flush of the folder makes safe.
    let mut unsafe_names: BTreeMap<PathBuf, Vec<&Path>> = BTreeMap::new();
    let mut safe_checkpoints = BTreeSet::new();
    for op in ops.iter().filter(|op| op.took_effect()) {
        let parent = || op.path.parent().unwrap();
        match &*op.name {
            "write" | "copy" | "truncate" => drop(dirty.insert(&op.path)),
            "create" | "mkdir" => drop(dirty.insert(parent())),
            "link" => drop(dirty.insert(op.other.parent().unwrap())),
            "sync" => {
                dirty.remove(&*op.path);
                for name in unsafe_names.remove(&op.path).unwrap_or_default() {
                    safe_checkpoints.extend(checkpoint(name));
                }
            }
            "rename" => {
                renames += 1;
                let left: Vec<_> = dirty.iter().filter(|p| p.starts_with(&op.path)).collect();
                assert!(left.is_empty(), "{op:?}: not flushed before: {left:?}");
                if let Some(step) = checkpoint(&op.other) {
                    let log = op.other.with_file_name("train_log.jsonl");
                    let flushed = !dirty.contains(&*log) || rows_after(ops, op, &log);
                    assert!(flushed, "checkpoint-{step}: the log is not flushed before");
                }
                let folder = op.other.parent().unwrap().to_path_buf();
                unsafe_names.entry(folder).or_default().push(&op.other);
            }
            "remove" => {
                // An old checkpoint goes only when a newer one is safe.
                let folder = op.path.ancestors().find_map(checkpoint);
                if let Some(step) = folder {
                    let newer = safe_checkpoints.range(step + 1..).next();
                    assert!(newer.is_some(), "{op:?}: no newer checkpoint is safe yet");
                }
            }
            _ => {}
        }
    }
    assert!(unsafe_names.is_empty(), "never flushed: {unsafe_names:?}");
    assert!(renames >= 7, "{renames}");
}

/// Whether the log was flushed since the checkpoint of `rename` was begun: training has gone on
/// meanwhile, and its later rows belong to the next one.
fn rows_after(ops: &[Op], rename: &Op, log: &Path) -> bool {
    let begun = ops.iter().position(|op| op.path.starts_with(&rename.path));
    let renamed = ops.iter().position(|op| std::ptr::eq(op, rename));
    let between = &ops[begun.unwrap()..renamed.unwrap()];
    between.iter().any(|op| op.is("sync") && op.path == log)
}
