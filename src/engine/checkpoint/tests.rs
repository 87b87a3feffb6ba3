//! What a checkpoint folder promises: whole or refused, whatever happens to it on the way or later.

use super::manifest::{Manifest, RunState};
use super::write::{BestWeights, Contents, ModelFiles, Tensors, write};
use super::{Checkpoint, MANIFEST, newest_whole, open};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::WeightFiles;
use crate::io::atomic::test_disk;
use crate::model::{ModelSpec, Param, ParamTable, SaveOptions};
use crate::rng::Stream;
use crate::stop::{Budget, StopConfig, StopMachine};
use crate::train::Moment;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Numbers that tell tensor, kind and element apart.
struct Numbers;

fn number(kind: usize, element: usize) -> f32 {
    (element % 65_521) as f32 + kind as f32 / 4.0
}

impl Tensors for Numbers {
    fn weights(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        fill(0, param, start, to);
        Ok(())
    }

    fn moment(&mut self, m: Moment, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        fill(kind(m), param, start, to);
        Ok(())
    }
}

fn kind(moment: Moment) -> usize {
    match moment {
        Moment::First => 1,
        Moment::Second => 2,
    }
}

fn fill(kind: usize, param: &Param, start: usize, to: &mut [f32]) {
    for (i, x) in to.iter_mut().enumerate() {
        *x = number(kind, param.offset + start + i);
    }
}

fn model() -> Arc<ModelFiles> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama-tiny");
    let spec = ModelSpec::from_dir(&source).unwrap();
    Arc::new(ModelFiles {
        table: ParamTable::new(&spec),
        spec,
        source,
        options: SaveOptions::default(),
    })
}

/// The contents of the checkpoint of update `step`; the best weights are those of update 3.
fn contents(model: &Arc<ModelFiles>, step: u64) -> Contents {
    let rules = StopConfig::default();
    let stop = StopMachine::new(&rules, Budget::default()).unwrap().state();
    let best = (0..model.table.len).map(|i| number(3, i)).collect();
    Contents {
        state: RunState {
            step,
            epoch: 0.1 + 0.2,
            total_tokens: 1234,
            skipped_updates: 1,
            optimizer_updates: step - 1,
            elapsed_seconds: 1.5,
            total_steps: Some(100),
            position: None,
            precision: "float32".to_owned(),
            loss_scale: None,
            stop,
            log_bytes: 99,
            config: Config::default(),
            data: [("train".to_owned(), "ab".to_owned())].into(),
        },
        best: Some(BestWeights {
            step: 3,
            values: Arc::new(best),
        }),
        model: model.clone(),
        log: None,
    }
}

fn written(folder: &Path, step: u64) -> super::write::Written {
    write(folder, &contents(&model(), step), &mut Numbers, None).unwrap()
}

/// All files under `folder`, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn check_numbers(checkpoint: &Checkpoint, table: &ParamTable, best: usize) {
    let (mut is, mut expected) = (Vec::new(), Vec::new());
    let mut same = |kind: usize, param: &Param, read: &dyn Fn(&mut [f32]) -> Result<()>| {
        is.resize(param.len(), f32::NAN);
        expected.resize(param.len(), 0.0);
        read(&mut is).unwrap();
        fill(kind, param, 0, &mut expected);
        assert_eq!(is, expected, "{} of kind {kind}", param.name);
    };
    for param in &table.params {
        same(0, param, &|to| checkpoint.read_weights(param, 0, to));
        for moment in Moment::ALL {
            same(kind(moment), param, &|to| {
                checkpoint.read_moment(moment, param, 0, to)
            });
        }
        same(best, param, &|to| checkpoint.read_best(param, to));
    }
}

#[test]
fn what_is_written_is_read_and_others_load_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-5");
    written(&folder, 5);
    let checkpoint = open(&folder).unwrap();
    let model = model();
    check_numbers(&checkpoint, &model.table, 3);
    let state = &checkpoint.manifest().state;
    assert_eq!((state.step, state.epoch), (5, 0.1 + 0.2));
    assert_eq!(state.config, Config::default());
    assert_eq!(ModelSpec::from_dir(&folder).unwrap(), model.spec);
    let files = WeightFiles::open(&folder).unwrap();
    let mut names: Vec<&str> = files.names().collect();
    names.sort_unstable();
    let mut expected: Vec<&str> = model.table.params.iter().map(|p| &*p.name).collect();
    expected.sort_unstable();
    assert_eq!(
        names, expected,
        "moments and best weights are not in the way"
    );
}

#[test]
fn the_best_weights_of_the_checkpoint_s_own_update_are_not_written_twice() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-3");
    written(&folder, 3);
    assert!(!folder.join("best_model.safetensors").exists());
    check_numbers(&open(&folder).unwrap(), &model().table, 0);
}

#[test]
fn shards_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-5");
    let mut files = model();
    Arc::get_mut(&mut files).unwrap().options.max_shard_bytes = 100_000;
    write(&folder, &contents(&files, 5), &mut Numbers, None).unwrap();
    for stem in ["model", "optimizer", "best_model"] {
        assert!(
            folder
                .join(format!("{stem}.safetensors.index.json"))
                .is_file()
        );
    }
    check_numbers(&open(&folder).unwrap(), &files.table, 3);
}

/// A thousand flips: every file gets its share, the small ones at least twenty.
#[test]
fn no_flipped_bit_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-5");
    written(&folder, 5);
    let files = files(&folder);
    let stream = Stream::new(7, 0);
    let mut flips = 0u64;
    while flips < 1000 {
        for path in &files {
            let mut bytes = std::fs::read(path).unwrap();
            let rounds = if bytes.len() > 1 << 20 { 60 } else { 20 };
            for _ in 0..rounds {
                let bit = (stream.uniform(flips) * 8.0 * bytes.len() as f64) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(path, &bytes).unwrap();
                let error = open(&folder).expect_err(&format!("{} bit {bit}", path.display()));
                assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(error.to_string().contains(name), "{error}");
                bytes[bit / 8] ^= 1 << (bit % 8);
                flips += 1;
            }
            std::fs::write(path, &bytes).unwrap();
        }
    }
    open(&folder).unwrap();
}

#[test]
fn a_damaged_tensor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-5");
    written(&folder, 5);
    let path = folder.join("optimizer.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = open(&folder).unwrap_err().to_string();
    assert!(error.contains("exp_avg_sq."), "{error}");
    assert!(error.contains("resume from an earlier one"), "{error}");
}

#[test]
fn files_that_are_cut_longer_missing_or_too_many_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-5");
    written(&folder, 5);
    let refused = |what: &str| {
        let error = open(&folder).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{what}: {error}");
    };
    for path in files(&folder) {
        let bytes = std::fs::read(&path).unwrap();
        let name = path.display();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        refused(&format!("{name} cut"));
        std::fs::write(&path, [&bytes[..], b" "].concat()).unwrap();
        refused(&format!("{name} longer"));
        std::fs::write(&path, b"").unwrap();
        refused(&format!("{name} empty"));
        std::fs::remove_file(&path).unwrap();
        refused(&format!("{name} missing"));
        std::fs::write(&path, &bytes).unwrap();
    }
    for extra in ["model.safetensors.index.json", "best.safetensors"] {
        std::fs::write(folder.join(extra), "{}").unwrap();
        refused(extra);
        std::fs::remove_file(folder.join(extra)).unwrap();
    }
    open(&folder).unwrap();
}

#[test]
fn the_newest_whole_checkpoint_is_found_past_torn_ones() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        newest_whole(&dir.path().join("none"), |_, _| ())
            .unwrap()
            .is_none()
    );
    for step in [4, 8, 12] {
        written(&dir.path().join(format!("checkpoint-{step}")), step);
    }
    std::fs::create_dir(dir.path().join("checkpoint-016")).unwrap();
    std::fs::create_dir(dir.path().join("checkpoint-20")).unwrap();
    std::fs::write(dir.path().join("checkpoint-12/config.json"), "{}").unwrap();
    let mut torn = Vec::new();
    let found = newest_whole(dir.path(), |folder, error: &Error| {
        torn.push(folder.file_name().unwrap().to_owned());
        assert!(error.to_string().contains("checkpoint-"), "{error}");
    });
    assert_eq!(found.unwrap().unwrap().manifest().state.step, 8);
    assert_eq!(torn, ["checkpoint-20", "checkpoint-12"]);
}

#[test]
fn a_checkpoint_of_a_later_library_is_not_taken_for_a_torn_one() {
    let dir = tempfile::tempdir().unwrap();
    written(&dir.path().join("checkpoint-4"), 4);
    let folder = dir.path().join("checkpoint-8");
    let mut manifest: Manifest = written(&folder, 8).manifest;
    manifest.format = 1000;
    std::fs::write(folder.join(MANIFEST), manifest.encode().unwrap()).unwrap();
    let error = newest_whole(dir.path(), |_, _| panic!("it is not torn")).unwrap_err();
    assert!(error.to_string().contains("format 1000"), "{error}");
}

#[test]
fn best_weights_are_linked_from_the_checkpoint_before_and_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let [own, first, second] = [3, 6, 9].map(|n| dir.path().join(format!("checkpoint-{n}")));
    let inode = |folder: &Path, name: &str| std::fs::metadata(folder.join(name)).unwrap().ino();
    let best = "best_model.safetensors";

    let mut earlier = contents(&model, 3);
    // Its own weights are then the best ones.
    let same = (0..model.table.len).map(|i| number(0, i)).collect();
    earlier.best.as_mut().unwrap().values = Arc::new(same);
    let earlier = write(&own, &earlier, &mut Numbers, None).unwrap();
    let earlier = write(&first, &contents(&model, 6), &mut Numbers, Some(&earlier)).unwrap();
    assert_eq!(inode(&first, best), inode(&own, "model.safetensors"));
    write(&second, &contents(&model, 9), &mut Numbers, Some(&earlier)).unwrap();
    assert_eq!(inode(&second, best), inode(&first, best));
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::remove_dir_all(&first).unwrap();
    check_numbers(&open(&second).unwrap(), &model.table, 0);

    // What is gone cannot be linked: the weights are written from memory.
    let third = dir.path().join("checkpoint-12");
    write(&third, &contents(&model, 12), &mut Numbers, Some(&earlier)).unwrap();
    check_numbers(&open(&third).unwrap(), &model.table, 3);
}

#[test]
fn a_full_disk_keeps_the_earlier_checkpoint_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoint-5");
    written(&folder, 5);
    let total: u64 = (files(&folder).iter())
        .map(|path| std::fs::metadata(path).unwrap().len())
        .sum();
    let before = files(&folder);
    for part in 0..20 {
        let free = (total * part / 20) as usize;
        let error = test_disk::with_free_bytes(free, || {
            write(&folder, &contents(&model(), 5), &mut Numbers, None)
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let named = before.iter().any(|path| {
            let name = path.strip_prefix(dir.path()).unwrap();
            error.to_string().contains(name.to_str().unwrap())
        });
        assert!(named, "{error}");
        open(&folder).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{free}");
    }
}
