//! Rows equal to those that TRL prepares (see the README beside the fixtures).

use std::fs;

use serde_json::Value;
use sft::data::{Batch, DataOptions, Dataset, IGNORE, Packing, RowOptions, Tokenizer, randperm};

use crate::{file, fixtures, template, tokenizer};

fn read(path: &str) -> Value {
    let path = fixtures().join(path);
    serde_json::from_slice(&fs::read(&path).expect("a fixture")).expect("JSON")
}

fn options(config: &Value) -> DataOptions {
    let mut options = DataOptions::default();
    for (key, value) in config.as_object().expect("an object") {
        match key.as_str() {
            "max_length" => options.rows.max_length = value.as_u64().map(|n| n as usize),
            "assistant_only_loss" => options.assistant_only_loss = value.as_bool().expect("a bool"),
            "completion_only_loss" => options.completion_only_loss = value.as_bool(),
            "dataset_text_field" => {
                options.dataset_text_field = value.as_str().expect("a text").into();
            }
            "packing" => {}
            "packing_strategy" => {
                options.rows.packing = serde_json::from_value(value.clone()).expect("a strategy");
            }
            other => panic!("the fixture has an option unknown here: {other}"),
        }
    }
    options
}

fn ints(value: &Value) -> Vec<i32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

/// Rows as batches, against the peer's. The first label of a sequence never counts, and the peer
/// sets it to -100 only in some of its forms, so those are not compared.
fn assert_rows(name: &str, dataset: &Dataset, prepared: &[Value]) {
    let rows: Vec<Batch> = dataset.batches(1).collect();
    assert_eq!(rows.len(), prepared.len(), "{name}: number of rows");
    for (i, (row, peer)) in rows.iter().zip(prepared).enumerate() {
        assert_eq!(
            row.tokens,
            ints(&peer["input_ids"]),
            "{name}: ids of row {i}"
        );
        let starts: Vec<usize> = row.sequences().map(|s| s.start).collect();
        let without_starts = |mut labels: Vec<i32>| {
            starts.iter().for_each(|&s| labels[s] = IGNORE);
            labels
        };
        assert_eq!(
            without_starts(row.labels.clone()),
            without_starts(ints(&peer["labels"])),
            "{name}: labels of row {i}"
        );
        if let Some(lengths) = peer.get("seq_lengths") {
            let ours: Vec<i32> = row.sequences().map(|s| s.len() as i32).collect();
            assert_eq!(ours, ints(lengths), "{name}: sequences of row {i}");
        }
    }
}

fn open_rows(rows: &[Value], options: &DataOptions) -> sft::Result<Dataset> {
    open_with(&tokenizer(), rows, options)
}

fn open_with(tokenizer: &Tokenizer, rows: &[Value], options: &DataOptions) -> sft::Result<Dataset> {
    let lines: String = rows.iter().map(|r| format!("{r}\n")).collect();
    let (_folder, path) = file(&lines);
    let template = template(tokenizer);
    Dataset::open(&[path], tokenizer, Some(&template), options).map(|(dataset, _)| dataset)
}

/// The row that the peer's fixtures made of a line of GSM8K.
fn gsm8k_row(line: &str, format: &str) -> Value {
    let row: Value = serde_json::from_str(line).expect("JSON");
    let (q, a) = (
        row["question"].as_str().expect("a text"),
        row["answer"].as_str().expect("a text"),
    );
    match format {
        "text" => serde_json::json!({"text": format!("Question: {q}\nAnswer: {a}")}),
        "prompt-completion" => serde_json::json!({
            "prompt": format!("Question: {q}\nAnswer:"), "completion": format!(" {a}")}),
        "messages" => serde_json::json!({"messages": [
            {"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
        other => panic!("unknown format {other}"),
    }
}

#[test]
fn gsm8k_rows_are_the_peer_s() {
    let lines = fs::read_to_string(fixtures().join("data/gsm8k_train_small.jsonl")).expect("data");
    let mut compared = 0;
    for entry in fs::read_dir(fixtures().join("tokens")).expect("fixtures") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_str().expect("UTF-8");
        if name.ends_with("corners.json") {
            continue;
        }
        let doc = read(&format!("tokens/{name}"));
        let format = doc["format"].as_str().expect("a text");
        let rows = doc["rows"].as_u64().expect("a number") as usize;
        let rows: Vec<Value> = lines
            .lines()
            .take(rows)
            .map(|l| gsm8k_row(l, format))
            .collect();
        let dataset = open_rows(&rows, &options(&doc["config"])).expect("valid rows");
        assert_rows(name, &dataset, doc["prepared"].as_array().expect("rows"));
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} fixtures were found");
}

/// What differs on purpose; every other case must be equal.
const DIFFERENT: [(&str, &str); 2] = [
    ("sharegpt", "roles are mapped to those of chat templates"),
    (
        "messages-no-assistant-assistant-only",
        "the row is left out and counted instead of ending the run",
    ),
];

fn assert_corners(tokenizer: &Tokenizer, cases: &Value) -> usize {
    let mut compared = 0;
    for case in cases.as_array().expect("cases") {
        let name = case["name"].as_str().expect("a text");
        if DIFFERENT.iter().any(|(n, _)| *n == name) {
            continue;
        }
        let rows = case["rows"].as_array().expect("rows");
        let dataset = open_with(tokenizer, rows, &options(&case["config"]));
        let dataset = dataset.unwrap_or_else(|e| panic!("{name}: {e}"));
        let prepared = case.get("prepared").and_then(Value::as_array);
        assert_rows(name, &dataset, prepared.expect("the peer takes it"));
        compared += 1;
    }
    compared
}

#[test]
fn corner_cases_are_the_peer_s() {
    let doc = read("tokens/llama-tiny.corners.json");
    assert!(assert_corners(&tokenizer(), &doc["cases"]) >= 30);
}

#[test]
fn other_kinds_of_tokenizer_are_the_peer_s() {
    let lines = fs::read_to_string(fixtures().join("data/gsm8k_train_small.jsonl")).expect("data");
    for kind in ["bos-regex", "byte-fallback"] {
        let tokenizer = Tokenizer::open(fixtures().join("tokenizers").join(kind));
        let tokenizer = tokenizer.expect("the fixture's tokenizer");
        let doc = read(&format!("tokens/{kind}.corners.json"));
        for entry in doc["texts"].as_array().expect("texts") {
            let text = entry["text"].as_str().expect("a text");
            let ids = |special| tokenizer.encode(text, special).expect("ids").ids;
            assert_eq!(ids(true), ints(&entry["input_ids"]), "{kind}: {text:?}");
            assert_eq!(
                ids(false),
                ints(&entry["without_special_tokens"]),
                "{kind}: {text:?}"
            );
        }
        for (format, prepared) in doc["prepared"].as_object().expect("formats") {
            let prepared = prepared.as_array().expect("rows");
            let lines = lines.lines().take(prepared.len());
            let rows: Vec<Value> = lines.map(|l| gsm8k_row(l, format)).collect();
            let dataset = open_with(&tokenizer, &rows, &DataOptions::default());
            assert_rows(
                &format!("{kind} {format}"),
                &dataset.expect("valid rows"),
                prepared,
            );
        }
        assert!(assert_corners(&tokenizer, &doc["cases"]) >= 15, "{kind}");
    }
}

#[test]
fn row_order_is_the_peer_s() {
    let doc = read("randperm.json");
    for order in doc["orders"].as_array().expect("orders") {
        let n = order["n"].as_u64().expect("a number") as usize;
        let seed = order["seed"].as_u64().expect("a number");
        let rows = randperm(n, seed);
        let first: Vec<u32> = serde_json::from_value(order["first"].clone()).expect("a list");
        assert_eq!(rows[..first.len()], first, "n = {n}, seed = {seed}");
        let mut sorted = rows.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..n as u32), "n = {n}, seed = {seed}");
    }
}

#[test]
fn packing_the_documented_example() {
    let documents: Vec<Vec<i32>> = [11, 4, 5, 3, 7].iter().map(|&n| (0..n).collect()).collect();
    let lengths = |packing| {
        let pairs = documents.iter().map(|d| (d.as_slice(), d.as_slice()));
        let options = RowOptions {
            max_length: Some(8),
            packing: Some(packing),
        };
        let (dataset, _) = Dataset::from_documents(pairs, options).expect("documents");
        let lengths = |b: Batch| b.sequences().map(|s| s.len()).collect::<Vec<_>>();
        dataset.batches(1).map(lengths).collect::<Vec<_>>()
    };
    assert_eq!(
        lengths(Packing::Bfd),
        [vec![8], vec![7], vec![5, 3], vec![4]]
    );
    assert_eq!(
        lengths(Packing::BfdSplit),
        [vec![8], vec![7], vec![5, 3], vec![4, 3]]
    );
    assert_eq!(lengths(Packing::Wrapped), [[8], [8], [8], [6]]);
}
