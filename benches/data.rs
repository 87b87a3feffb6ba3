//! The data path: tokenising and masking rows, packing, drawing an epoch's order, copying batches.
//!
//! `cargo bench --bench data`
//!
//! `SFT_TEXTS=train.jsonl SFT_MODEL=folder cargo bench --bench data -- tokenise/`: the questions and
//! answers of that file by that folder's tokenizer, ours and the `tokenizers` crate's.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use sft::data::pack::pack;
use sft::data::{
    ChatTemplate, DataOptions, Dataset, Loader, LoaderOptions, Packing, Tokenizer, randperm,
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// GSM8K questions and answers as conversations.
fn conversations(folder: &Path) -> PathBuf {
    let rows = fs::read_to_string(fixtures().join("data/gsm8k_train_small.jsonl")).expect("data");
    let chat = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let row = serde_json::json!({"messages": [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]}]});
        format!("{row}\n")
    };
    let path = folder.join("train.jsonl");
    fs::write(&path, rows.lines().map(chat).collect::<String>()).expect("a data file");
    path
}

fn data_path(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let paths = [conversations(folder.path())];
    let tokenizer = Tokenizer::open(fixtures().join("models/llama-tiny")).expect("a tokenizer");
    let template = ChatTemplate::of(&tokenizer).expect("a template");
    let mut options = DataOptions {
        assistant_only_loss: true,
        ..DataOptions::default()
    };
    options.rows.max_length = Some(512);
    options.rows.packing = Some(Packing::Bfd);
    let open = || Dataset::open(&paths, &tokenizer, template.as_ref(), &options).expect("rows");

    let (dataset, report) = open();
    let mut group = c.benchmark_group("data");
    group.sample_size(10);
    group.throughput(Throughput::Elements(report.tokens));
    group.bench_function("tokenise_mask_pack", |b| b.iter(|| black_box(open())));

    let lengths: Vec<usize> = (0..100_000).map(|i| (i * 7919) % 700 + 1).collect();
    group.throughput(Throughput::Elements(lengths.len() as u64));
    for packing in [Packing::Bfd, Packing::BfdSplit, Packing::Wrapped] {
        group.bench_function(format!("pack/{packing:?}"), |b| {
            b.iter(|| black_box(pack(&lengths, 1024, packing)));
        });
    }
    group.bench_function("randperm", |b| b.iter(|| black_box(randperm(100_000, 42))));

    let mut loader = Loader::new(dataset, LoaderOptions::default()).expect("rows");
    group.throughput(Throughput::Elements(1));
    group.bench_function("next_update", |b| {
        b.iter(|| black_box(loader.next_update()))
    });
}

/// The texts of the rows, and the tokenizer's folder.
fn texts() -> (Vec<String>, PathBuf) {
    let path = |name: &str, default: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.unwrap_or_else(|| fixtures().join(default))
    };
    let rows = fs::read_to_string(path("SFT_TEXTS", "data/gsm8k_train_small.jsonl"));
    let rows = rows.expect("data");
    let text = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| row[name].as_str().expect("a text").to_owned();
        field("question") + "\n" + &field("answer")
    };
    let texts = rows.lines().map(text).collect();
    (texts, path("SFT_MODEL", "models/llama-tiny"))
}

/// Ids alone and with offsets; `fresh`: by a tokenizer that has met no text before, as in a run.
fn tokenise(c: &mut Criterion) {
    let (texts, folder) = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut group = c.benchmark_group("tokenise");
    group.sample_size(10);
    let bytes = texts.iter().map(|t| t.len() as u64).sum();
    group.throughput(Throughput::Bytes(bytes));

    let open = || Tokenizer::open(&folder).expect("a tokenizer");
    let ids = |tokenizer: &Tokenizer| -> usize {
        let ids = texts.par_iter().map(|t| tokenizer.ids(t, false));
        ids.map(|ids| ids.expect("ids").len()).sum()
    };
    let offsets = |tokenizer: &Tokenizer| -> usize {
        let encodings = texts.par_iter().map(|t| tokenizer.encode(t, false));
        encodings.map(|e| e.expect("ids").offsets.len()).sum()
    };
    let crate_open = || {
        let path = folder.join("tokenizer.json");
        tokenizers::Tokenizer::from_file(path).expect("a tokenizer")
    };
    let crate_ids = |tokenizer: &tokenizers::Tokenizer| -> usize {
        let encodings = tokenizer.encode_batch_fast(texts.clone(), false);
        encodings.expect("ids").iter().map(|e| e.len()).sum()
    };
    let crate_offsets = |tokenizer: &tokenizers::Tokenizer| -> usize {
        let encodings = tokenizer.encode_batch(texts.clone(), false);
        encodings.expect("ids").iter().map(|e| e.len()).sum()
    };
    assert_eq!(ids(&open()), crate_ids(&crate_open()));

    let warm = open();
    group.bench_function("ids", |b| b.iter(|| ids(&warm)));
    group.bench_function("offsets", |b| b.iter(|| offsets(&warm)));
    group.bench_function("ids/fresh", |b| {
        b.iter_batched_ref(open, |t| ids(t), BatchSize::PerIteration)
    });
    let warm = crate_open();
    group.bench_function("crate/ids", |b| b.iter(|| crate_ids(&warm)));
    group.bench_function("crate/offsets", |b| b.iter(|| crate_offsets(&warm)));
    group.bench_function("crate/ids/fresh", |b| {
        b.iter_batched_ref(crate_open, |t| crate_ids(t), BatchSize::PerIteration)
    });
    group.finish();
    let mut group = c.benchmark_group("open");
    group.sample_size(10);
    group.bench_function("tokenizer", |b| b.iter(|| black_box(open())));
    group.bench_function("crate", |b| b.iter(|| black_box(crate_open())));
}

criterion_group!(benches, data_path, tokenise);
criterion_main!(benches);
