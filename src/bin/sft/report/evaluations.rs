//! Every evaluation of a log as a table, one row an update.

use std::collections::BTreeMap;

use super::rules::Best;
use super::run::Run;
use super::table::{Cell, Row, Table};
use crate::plot::number::{count, significant};

/// Rows of the table at most.
const MOST: usize = 200;

/// The evaluations of `run`, the best one marked; `None` if it has none.
pub fn table(run: &Run, best: Option<&Best>) -> Option<Table> {
    let mut rows: BTreeMap<u64, (Option<f64>, BTreeMap<&str, f64>)> = BTreeMap::new();
    for row in &run.rows {
        let of_evaluation = row.metrics.iter().filter(|(name, _)| is_shown(name));
        for (name, value) in of_evaluation {
            let (epoch, values) = rows.entry(row.step).or_default();
            *epoch = row.epoch.or(*epoch);
            values.insert(name, *value);
        }
    }
    let mut columns: Vec<&str> = rows
        .values()
        .flat_map(|row| row.1.keys().copied())
        .collect();
    columns.sort_by_key(|name| (*name != "eval_loss", !name.ends_with("_loss"), *name));
    columns.dedup();
    if columns.is_empty() {
        return None;
    }
    let best = best
        .filter(|best| best.metric.starts_with("eval_"))
        .map(|best| best.step);
    let stride = rows.len().div_ceil(MOST);
    let last = rows.len() - 1;
    let kept = |(i, (step, _)): &(usize, (&u64, _))| {
        i.is_multiple_of(stride) || *i == last || Some(**step) == best
    };
    let body = rows
        .iter()
        .enumerate()
        .filter(kept)
        .map(|(_, (step, (epoch, values)))| {
            let is_best = Some(*step) == best;
            let update = if is_best {
                format!("{} best", count(*step))
            } else {
                count(*step)
            };
            let epoch = epoch.map(|epoch| significant(epoch, 3));
            let mut cells = vec![
                Cell::Number(update),
                Cell::Number(epoch.unwrap_or_default()),
            ];
            cells.extend(columns.iter().map(|name| {
                let value = values.get(name).map(|&value| significant(value, 5));
                Cell::Number(value.unwrap_or_default())
            }));
            Row {
                class: if is_best { "marked" } else { "" },
                cells,
            }
        });
    let head = ["update", "epoch"]
        .into_iter()
        .chain(columns.iter().copied());
    Some(Table {
        caption: if stride > 1 {
            "Evaluations, some left out"
        } else {
            "Evaluations"
        }
        .to_owned(),
        head: head.map(|name| name.replace('_', " ")).collect(),
        rows: body.collect(),
    })
}

/// Losses, accuracies and what a host adds; not how the evaluation went.
fn is_shown(name: &str) -> bool {
    const OTHER: [&str; 5] = [
        "_entropy",
        "_tokens",
        "_runtime",
        "_samples_per_second",
        "_steps_per_second",
    ];
    name.starts_with("eval_") && !OTHER.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(log: &str) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, log).unwrap();
        Run::read(&path, None).unwrap()
    }

    #[test]
    fn rows_of_one_update_are_one_row() {
        let run = run("{\"step\": 2, \"epoch\": 0.5, \"eval_b_loss\": 3}\n\
             {\"step\": 2, \"epoch\": 0.5, \"eval_loss\": \"nan\", \"eval_runtime\": 9}\n");
        let table = table(&run, None).unwrap();
        assert_eq!(table.head, ["update", "epoch", "eval loss", "eval b loss"]);
        assert_eq!(table.rows.len(), 1);
        assert!(matches!(&table.rows[0].cells[2], Cell::Number(text) if text == "NaN"));
    }

    #[test]
    fn a_long_table_keeps_its_best_and_its_last() {
        let log: String = (1..=1001)
            .map(|i| format!("{{\"step\": {i}, \"eval_loss\": 1}}\n"))
            .collect();
        let best = Best {
            metric: "eval_loss".into(),
            step: 777,
            value: 1.0,
        };
        let run = run(&log);
        let table = table(&run, Some(&best)).unwrap();
        assert!(table.rows.len() <= MOST + 2, "{}", table.rows.len());
        let first = |row: &Row| match &row.cells[0] {
            Cell::Number(text) => text.clone(),
            _ => String::new(),
        };
        let updates: Vec<_> = table.rows.iter().map(first).collect();
        assert!(updates.contains(&"777 best".to_owned()));
        assert_eq!(updates.last().unwrap(), "1,001");
    }

    #[test]
    fn a_log_without_evaluations_has_no_table() {
        assert!(table(&run("{\"step\": 1, \"loss\": 1}\n"), None).is_none());
    }
}
