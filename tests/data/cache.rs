//! Tokenised rows on disk.

use std::fs;
use std::path::{Path, PathBuf};

use sft::data::{DataOptions, DataReport, Dataset, RowOptions};

use crate::{template, tokenizer};

/// A data file and a cache folder.
struct Setup {
    folder: tempfile::TempDir,
}

impl Setup {
    fn new(rows: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let setup = Self { folder };
        setup.write(rows);
        setup
    }

    fn write(&self, rows: usize) {
        let line =
            |i| format!("{{\"prompt\": \"Question {i}?\", \"completion\": \" answer {i}\"}}\n");
        let lines: String = (0..rows).map(line).collect();
        fs::write(self.data(), lines).expect("a data file");
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("train.jsonl")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn cached_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache()).expect("the cache folder");
        entries.map(|e| e.expect("an entry").path()).collect()
    }

    fn options(&self) -> DataOptions {
        DataOptions {
            cache_dir: Some(self.cache()),
            ..DataOptions::default()
        }
    }

    fn open(&self, options: &DataOptions) -> (Dataset, DataReport) {
        let tokenizer = tokenizer();
        let template = template(&tokenizer);
        Dataset::open(&[self.data()], &tokenizer, Some(&template), options).expect("valid rows")
    }
}

fn rows(dataset: &Dataset) -> Vec<(Vec<i32>, Vec<i32>)> {
    let row = |i| dataset.document(i);
    let rows = (0..dataset.documents()).map(row);
    rows.map(|(ids, labels)| (ids.to_vec(), labels.to_vec()))
        .collect()
}

fn flip_bit(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("the cached file");
    let at = at % bytes.len();
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("the damaged file");
}

#[test]
fn a_second_run_reads_the_same_rows_from_the_cache() {
    let setup = Setup::new(50);
    let (fresh, report) = setup.open(&setup.options());
    assert!(!report.from_cache);
    let (cached, again) = setup.open(&setup.options());
    assert!(again.from_cache);
    assert_eq!(rows(&fresh), rows(&cached));
    assert_eq!(
        DataReport {
            from_cache: false,
            ..again
        },
        report
    );
    let uncached = setup.open(&DataOptions::default());
    assert_eq!(rows(&uncached.0), rows(&fresh));
    // Only the finished file is left.
    assert_eq!(setup.cached_files().len(), 1);
}

#[test]
fn a_damaged_or_torn_file_is_built_anew() {
    let setup = Setup::new(20);
    let (fresh, _) = setup.open(&setup.options());
    let path = setup.cached_files().remove(0);
    let size = fs::metadata(&path).expect("the file").len() as usize;
    for at in [0, 9, 17, 30, 60, 100, size / 2, size - 1] {
        flip_bit(&path, at);
        let (rebuilt, report) = setup.open(&setup.options());
        assert!(!report.from_cache, "bit flipped at {at}");
        assert_eq!(rows(&rebuilt), rows(&fresh));
        assert!(setup.open(&setup.options()).1.from_cache);
    }
    for keep in [0, 50, size / 2, size - 1] {
        let bytes = fs::read(&path).expect("the file");
        fs::write(&path, &bytes[..keep]).expect("a torn file");
        let (rebuilt, report) = setup.open(&setup.options());
        assert!(!report.from_cache, "cut to {keep}");
        assert_eq!(rows(&rebuilt), rows(&fresh));
    }
}

#[test]
fn whatever_decides_the_tokens_decides_the_file() {
    let setup = Setup::new(5);
    setup.open(&setup.options());
    let changed = [
        DataOptions {
            completion_only_loss: Some(false),
            ..setup.options()
        },
        DataOptions {
            vocab_size: Some(4096),
            ..setup.options()
        },
        DataOptions {
            dataset_text_field: "completion".into(),
            ..setup.options()
        },
    ];
    for options in &changed {
        assert!(!setup.open(options).1.from_cache, "{options:?}");
        assert!(setup.open(options).1.from_cache, "{options:?}");
    }
    // Length and packing are applied when reading.
    let mut packed = setup.options();
    packed.rows.max_length = Some(16);
    packed.rows.packing = Some(sft::data::Packing::Bfd);
    assert!(setup.open(&packed).1.from_cache);
    // Other content, other rows.
    setup.write(6);
    let (dataset, report) = setup.open(&setup.options());
    assert!(!report.from_cache);
    assert_eq!(dataset.len(), 6);
}

#[test]
fn a_failed_run_leaves_nothing_behind() {
    let setup = Setup::new(3);
    let mut lines = fs::read_to_string(setup.data()).expect("the data");
    lines.push_str("{broken\n");
    fs::write(setup.data(), lines).expect("a data file");
    let tokenizer = tokenizer();
    let error = Dataset::open(&[setup.data()], &tokenizer, None, &setup.options());
    assert!(error.is_err());
    assert!(
        setup.cached_files().is_empty(),
        "{:?}",
        setup.cached_files()
    );
}

/// Memory of this process that no file stands behind, in bytes.
#[cfg(target_os = "linux")]
fn anonymous_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|l| l.starts_with("RssAnon:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1));
    let number: Option<usize> = number.and_then(|n| n.parse().ok());
    number.expect("a number") * 1024
}

/// The ids and labels take 102 MB and the text as much again; while they are prepared only one
/// chunk of lines lies in memory. The bound leaves room for the tests that run beside this one.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_data() {
    use std::io::Write;
    let (rows, length) = (200_000, 64);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("train.jsonl");
    let mut out = std::io::BufWriter::new(fs::File::create(&path).expect("a file"));
    let ids: Vec<usize> = (0..length).collect();
    for i in 0..rows {
        let labels = vec![i % 7; length];
        writeln!(out, "{{\"input_ids\": {ids:?}, \"labels\": {labels:?}}}").expect("a row");
    }
    out.into_inner().expect("written");

    let (mut first, mut most) = (None, 0);
    let (dataset, report) = Dataset::open_with(
        &[path],
        &tokenizer(),
        None,
        &DataOptions::default(),
        &mut |_| {
            let now = anonymous_memory();
            first.get_or_insert(now);
            most = most.max(now);
            true
        },
    )
    .expect("valid rows");
    assert_eq!(report.tokens, (rows * length) as u64);
    assert_eq!(dataset.len(), rows);
    let grown = most - first.expect("several chunks");
    assert!(grown < 48 << 20, "memory grew by {} MiB", grown >> 20);
}

#[test]
fn a_fingerprint_tells_rows_apart_and_nothing_else() {
    let setup = Setup::new(20);
    let options = setup.options();
    let (first, _) = setup.open(&options);
    let fingerprint = first.fingerprint();
    let (cached, report) = setup.open(&options);
    assert!(report.from_cache);
    assert_eq!(cached.fingerprint(), fingerprint);
    let (uncached, _) = setup.open(&DataOptions::default());
    assert_eq!(uncached.fingerprint(), fingerprint, "whatever the cache");
    assert_ne!(first.shuffle(1).unwrap().0.fingerprint(), fingerprint);
    let cut = RowOptions {
        max_length: Some(8),
        ..RowOptions::default()
    };
    let (cut, _) = setup.open(&DataOptions {
        rows: cut,
        ..setup.options()
    });
    assert_ne!(cut.fingerprint(), fingerprint);

    // One digit of one row.
    let text = fs::read_to_string(setup.data()).unwrap();
    fs::write(setup.data(), text.replace("answer 7", "answer 6")).unwrap();
    assert_ne!(setup.open(&options).0.fingerprint(), fingerprint);

    let documents = |last: i32| {
        let ids = [[1, 2, last]];
        let documents = ids.iter().map(|ids| (&ids[..], &ids[..]));
        let made = Dataset::from_documents(documents, RowOptions::default()).unwrap();
        made.0.fingerprint()
    };
    assert_eq!(documents(3), documents(3));
    assert_ne!(documents(3), documents(4));
}
