//! The data path, from files to batches.

#[path = "data/peer.rs"]
mod peer;
#[path = "data/templates.rs"]
mod templates;

use std::path::{Path, PathBuf};

use sft::data::{ChatTemplate, Tokenizer};

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
