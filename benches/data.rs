//! The data path: tokenising and masking rows, packing, drawing an epoch's order, copying batches.
//!
//! `cargo bench --bench data`

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
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

criterion_group!(benches, data_path);
criterion_main!(benches);
