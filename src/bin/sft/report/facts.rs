//! What the run was made of: rows, model, memory and configuration, as tables.

use serde_json::{Map, Value};
use sft::config::{Config, keys};
use sft::data::DataReport;
use sft::engine::RunRecord;
use sft::memory::SegmentKind;

use super::rules::flow;
use super::run::Run;
use super::table::{Cell, Row, Table};
use crate::plot::number::{bytes, count, counted, percent};

/// What became of the rows of each data set.
pub fn data(record: &RunRecord) -> Table {
    type Column = (&'static str, fn(&DataReport) -> String, bool);
    // What is worth a row only where it happened stands with true.
    let columns: [Column; 10] = [
        ("rows read", |r| count(r.rows_read), false),
        ("rows the model sees", |r| count(r.rows), false),
        ("tokens", |r| count(r.tokens), false),
        (
            "trained on",
            |r| match r.tokens {
                0 => "0".to_owned(),
                n => format!(
                    "{} ({})",
                    count(r.supervised_tokens),
                    percent(r.supervised_tokens as f64 / n as f64)
                ),
            },
            false,
        ),
        (
            "mean row, in tokens",
            |r| match r.rows {
                0 => "–".to_owned(),
                n => count((r.tokens as f64 / n as f64).round() as u64),
            },
            false,
        ),
        ("longest row, in tokens", |r| count(r.longest), false),
        (
            "cut",
            |r| match r.truncated.rows {
                0 => "0".to_owned(),
                n => format!("{} (−{})", count(n), counted(r.truncated_tokens, "token")),
            },
            true,
        ),
        ("empty, left out", |r| count(r.empty.rows), true),
        ("nothing to train on", |r| count(r.masked.rows), true),
        (
            "end-of-sequence untrained",
            |r| count(r.eos_untrained.rows),
            true,
        ),
    ];
    let shown = columns.into_iter().filter(|(_, value, only_if_any)| {
        !only_if_any || record.data.values().any(|report| value(report) != "0")
    });
    let columns: Vec<Column> = shown.collect();
    let rows = record.data.iter().map(|(set, report)| {
        let values = columns
            .iter()
            .map(|(_, value, _)| Cell::Number(value(report)));
        let cells = [Cell::Text(set.clone())].into_iter().chain(values);
        Row {
            class: "",
            cells: cells.collect(),
        }
    });
    let head = ["set"]
        .into_iter()
        .chain(columns.iter().map(|column| column.0));
    Table {
        caption: "Rows".to_owned(),
        head: head.map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

/// What is odd about the rows of each data set, in sentences that name lines.
pub fn data_warnings(record: &RunRecord) -> Vec<String> {
    let odd = |set: &str, report: &DataReport| {
        let kinds = [
            (&report.truncated, "cut at max_length"),
            (&report.empty, "left out: no token"),
            (&report.masked, "without a supervised token"),
            (
                &report.prompt_diverges,
                "whose prompt has other tokens alone than in the whole",
            ),
            (
                &report.eos_untrained,
                "that never train the end-of-sequence token",
            ),
        ];
        let odd = kinds.into_iter().filter(|(n, _)| n.rows > 0);
        odd.map(|(n, what)| {
            let lines: Vec<_> = n.first_lines.iter().map(|&line| count(line)).collect();
            let more = if n.rows > lines.len() as u64 {
                ", …"
            } else {
                ""
            };
            format!(
                "{set}: {} {what} (lines {}{more})",
                counted(n.rows, "row"),
                lines.join(", ")
            )
        })
        .collect::<Vec<_>>()
    };
    record
        .data
        .iter()
        .flat_map(|(set, report)| odd(set, report))
        .collect()
}

/// The model.
pub fn model(run: &Run, record: &RunRecord) -> Table {
    let model = &record.model;
    let path = run
        .config
        .as_ref()
        .and_then(|config| config.model_name_or_path.clone());
    let heads = match model.num_heads == model.num_kv_heads {
        true => model.num_heads.to_string(),
        false => format!(
            "{} ({} for keys and values)",
            model.num_heads, model.num_kv_heads
        ),
    };
    let whole = |n: usize| count(n as u64);
    let rows = [
        (
            "folder",
            path.map(|path| path.display().to_string())
                .unwrap_or_default(),
        ),
        ("type", model.model_type.clone()),
        ("parameters", count(model.parameters)),
        ("layers", whole(model.num_layers)),
        ("hidden size", whole(model.hidden_size)),
        ("feed-forward size", whole(model.intermediate_size)),
        ("heads", heads),
        ("vocabulary", whole(model.vocab_size)),
        ("longest sequence", whole(model.max_position_embeddings)),
        (
            "LM head",
            if model.tie_word_embeddings {
                "the embedding"
            } else {
                "its own"
            }
            .to_owned(),
        ),
    ];
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    Table {
        caption: "Model".to_owned(),
        head: vec!["property".to_owned(), "value".to_owned()],
        rows: rows
            .map(|(name, value)| Row {
                class: "",
                cells: vec![Cell::Text(name.to_owned()), Cell::Text(value)],
            })
            .collect(),
    }
}

/// The memory plan.
pub fn memory(record: &RunRecord) -> Table {
    let memory = &record.memory;
    let most = memory.bytes_of.values().copied().max().unwrap_or(0).max(1);
    let mut kinds: Vec<_> = memory.bytes_of.iter().filter(|(_, n)| **n > 0).collect();
    kinds.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let rows = kinds.into_iter().map(|(kind, &n)| Row {
        class: "",
        cells: vec![
            Cell::Text(purpose(*kind).to_owned()),
            Cell::Share(n as f64 / most as f64, bytes(n as u64)),
        ],
    });
    let total = Row {
        class: "marked",
        cells: vec![
            Cell::Text("allocated".to_owned()),
            Cell::Share(
                memory.total_bytes as f64 / most as f64,
                bytes(memory.total_bytes as u64),
            ),
        ],
    };
    Table {
        caption: "Memory plan (tensors that never live together share bytes)".to_owned(),
        head: vec!["purpose".to_owned(), "size".to_owned()],
        rows: rows.chain([total]).collect(),
    }
}

fn purpose(kind: SegmentKind) -> &'static str {
    match kind {
        SegmentKind::Weights => "weights",
        SegmentKind::Gradients => "gradients",
        SegmentKind::Optimizer => "optimizer",
        SegmentKind::Activations => "activations",
        SegmentKind::Scratch => "scratch",
        SegmentKind::Batch => "batch",
        SegmentKind::KvCache => "keys and values",
    }
}

/// The configuration as the page shows it: the record's own words where it has them, which may hold keys
/// that this version does not know.
pub fn configuration(run: &Run) -> Option<Map<String, Value>> {
    if let Some(Ok(Value::Object(map))) = run.config.as_ref().map(serde_json::to_value) {
        return Some(map);
    }
    run.record.as_ref().map(|record| record.config.clone())
}

/// The keys whose values differ from the defaults.
pub fn changed(config: &Map<String, Value>) -> Table {
    let defaults = defaults();
    let differs = |(key, value): &(&String, &Value)| defaults.get(*key) != Some(*value);
    let rows = config.iter().filter(differs).map(|(key, value)| Row {
        class: "",
        cells: vec![
            Cell::Code(key.clone()),
            Cell::Code(flow(value)),
            Cell::Code(defaults.get(key).map(flow).unwrap_or_default()),
        ],
    });
    Table {
        caption: "Keys that differ from the defaults".to_owned(),
        head: ["key", "value", "default"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// The keys that have their defaults.
pub fn unchanged(config: &Map<String, Value>) -> Table {
    let defaults = defaults();
    let same = |key: &str| config.contains_key(key) && config.get(key) == defaults.get(key);
    let rows = keys().iter().filter(|key| same(key.name)).map(|key| Row {
        class: "",
        cells: vec![
            Cell::Code(key.name.to_owned()),
            Cell::Code(config.get(key.name).map(flow).unwrap_or_default()),
            Cell::Text(key.section.to_owned()),
        ],
    });
    Table {
        caption: "Keys that have their defaults".to_owned(),
        head: ["key", "value", "section"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

fn defaults() -> Map<String, Value> {
    match serde_json::to_value(Config::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_one_of_the_two_tables() {
        let config =
            Config::from_yaml_str("seed: 7\nstop: [{rule: overfit}]\n", "run.yaml").unwrap();
        let Ok(Value::Object(map)) = serde_json::to_value(&config) else {
            panic!("a configuration is an object");
        };
        let (changed, unchanged) = (changed(&map), unchanged(&map));
        assert_eq!(changed.rows.len() + unchanged.rows.len(), keys().len());
        let texts: Vec<_> = changed
            .rows
            .iter()
            .map(|row| match &row.cells[..] {
                [Cell::Code(key), Cell::Code(value), Cell::Code(default)] => {
                    (&key[..], &value[..], &default[..])
                }
                _ => ("", "", ""),
            })
            .collect();
        assert!(texts.contains(&("seed", "7", "42")), "{texts:?}");
        assert_eq!(texts.len(), 2, "{texts:?}");
    }
}
