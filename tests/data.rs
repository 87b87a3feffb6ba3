//! The data path, from files to batches.

#[path = "data/cache.rs"]
mod cache;
#[path = "data/formats.rs"]
mod formats;
#[path = "data/loader.rs"]
mod loader;
#[path = "data/packing.rs"]
mod packing;
#[path = "data/peer.rs"]
mod peer;
#[path = "data/templates.rs"]
mod templates;
#[path = "data/tokenizer.rs"]
mod tokenizers;

use std::path::{Path, PathBuf};

use sft::data::{ChatTemplate, DataOptions, DataReport, Dataset, IGNORE, Tokenizer};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(model("llama-tiny")).expect("the fixture's tokenizer")
}

fn template(tokenizer: &Tokenizer) -> ChatTemplate {
    let template = ChatTemplate::of(tokenizer).expect("the fixture's template");
    template.expect("the fixture has one")
}

/// A folder with one data file of the given lines.
fn file(lines: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("train.jsonl");
    std::fs::write(&path, lines).expect("a data file");
    (folder, path)
}

fn try_open(lines: &str, options: &DataOptions) -> sft::Result<(Dataset, DataReport)> {
    let (_folder, path) = file(lines);
    let tokenizer = tokenizer();
    let template = template(&tokenizer);
    Dataset::open(&[path], &tokenizer, Some(&template), options)
}

fn open(lines: &str, options: &DataOptions) -> (Dataset, DataReport) {
    try_open(lines, options).expect("valid rows")
}

/// The error's text, with the name of the file alone instead of its path.
fn error(lines: &str, options: &DataOptions) -> String {
    let error = match try_open(lines, options) {
        Ok(_) => panic!("the rows were taken: {lines}"),
        Err(error) => error.to_string(),
    };
    match error.find("train.jsonl") {
        Some(at) => error[at..].to_string(),
        None => error,
    }
}

/// The text that is trained on, pieces of it separated by `|`.
fn supervised_text(dataset: &Dataset, document: usize) -> String {
    let tokenizer = tokenizer();
    let (ids, labels) = dataset.document(document);
    let mut pieces: Vec<Vec<i32>> = vec![Vec::new()];
    for (&id, &label) in ids.iter().zip(labels) {
        match label {
            IGNORE => pieces.push(Vec::new()),
            _ => pieces.last_mut().expect("never empty").push(id),
        }
    }
    pieces.retain(|p| !p.is_empty());
    let decode = |p: &Vec<i32>| tokenizer.decode(p, false).expect("ids of the tokenizer");
    pieces.iter().map(decode).collect::<Vec<_>>().join("|")
}
