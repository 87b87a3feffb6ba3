//! What another patience and another threshold would have done: each written rule among its neighbours,
//! replayed over the log. One table a rule: thresholds down, patience across.

use sft::stop::replay::Row as LogRow;
use sft::stop::{DivergenceRule, Metric, MinDelta, PlateauRule, Rule, StopConfig};

use super::rules::{Judgement, alone, best_of};
use super::run::Run;
use super::table::{Cell, Row, Table};
use crate::plot::number::{count, short};

/// Rules times rows that are replayed at most: a page must not take longer than it is worth.
const MOST_WORK: usize = 8_000_000;

/// A table for each written rule that has something to choose.
pub fn tables(run: &Run, judgement: &Judgement) -> Vec<Table> {
    let written = judgement.rules.iter().filter(|rule| rule.written);
    let mut work = 0;
    let mut tables = Vec::new();
    for rule in written.map(|rule| &rule.rule) {
        let Some(grid) = Grid::around(rule) else {
            continue;
        };
        work += grid.patiences.len() * grid.thresholds.len() * run.rows.len();
        if work > MOST_WORK {
            break;
        }
        tables.push(grid.table(rule, &run.rows, &judgement.stop));
    }
    tables
}

/// A rule's neighbours.
struct Grid {
    /// Observations in a row, ascending.
    patiences: Vec<u64>,
    /// The rule with other thresholds, and what each is called; the rule's own among them.
    thresholds: Vec<(String, Rule)>,
}

impl Grid {
    fn around(rule: &Rule) -> Option<Self> {
        let (patience, thresholds) = match rule {
            Rule::Plateau(own) => {
                let deltas = match own.min_delta {
                    MinDelta::Absolute(0.0) => [0.0, 0.001, 0.01, 0.1].map(MinDelta::Absolute),
                    MinDelta::Absolute(x) => {
                        [0.0, round(0.5 * x), x, round(2.0 * x)].map(MinDelta::Absolute)
                    }
                    MinDelta::Relative(x) => {
                        [0.0, round(0.5 * x), x, round(2.0 * x)].map(MinDelta::Relative)
                    }
                };
                let with = |min_delta| {
                    Rule::Plateau(PlateauRule {
                        min_delta,
                        ..own.clone()
                    })
                };
                (own.patience, deltas.map(with).to_vec())
            }
            Rule::Target(own) => {
                let with = |factor: f64| {
                    let scaled = |bound: Option<f64>| bound.map(|x| round(x * factor));
                    let mut other = own.clone();
                    if factor != 1.0 {
                        (other.at_most, other.at_least) =
                            (scaled(own.at_most), scaled(own.at_least));
                    }
                    Rule::Target(other)
                };
                (
                    own.patience(),
                    [0.9, 0.95, 1.0, 1.05, 1.1].map(with).to_vec(),
                )
            }
            Rule::Divergence(own) => {
                let mut factors = vec![1.5, 2.0, 3.0, 5.0, own.factor];
                factors.sort_by(f64::total_cmp);
                factors.dedup();
                let with = |factor| {
                    Rule::Divergence(DivergenceRule {
                        factor,
                        ..own.clone()
                    })
                };
                (own.patience, factors.into_iter().map(with).collect())
            }
            Rule::Overfit(own) => (own.patience, vec![Rule::Overfit(own.clone())]),
            Rule::NonFinite(_) | Rule::Budget(_) => return None,
        };
        let mut patiences = vec![1, 2, 3, 5, 10, patience];
        patiences.sort_unstable();
        patiences.dedup();
        let mut named: Vec<(String, Rule)> = Vec::new();
        for rule in thresholds {
            let name = threshold(&rule);
            if named.iter().all(|(other, _)| *other != name) {
                named.push((name, rule));
            }
        }
        Some(Self {
            patiences,
            thresholds: named,
        })
    }

    fn table(&self, rule: &Rule, log: &[LogRow], stop: &StopConfig) -> Table {
        let rows = self.thresholds.iter().map(|(name, other)| {
            let cell = |&patience: &u64| {
                let variant = with_patience(other, patience);
                let is_own =
                    variant == with_patience(rule, patience_of(rule)) && threshold(rule) == *name;
                let text = outcome(log, &variant, stop);
                if is_own {
                    Cell::Own(text)
                } else {
                    Cell::Number(text)
                }
            };
            let cells = [Cell::Code(name.clone())]
                .into_iter()
                .chain(self.patiences.iter().map(cell));
            Row {
                class: "",
                cells: cells.collect(),
            }
        });
        let head = self
            .patiences
            .iter()
            .map(|patience| format!("patience {patience}"));
        Table {
            caption: caption(rule, log),
            head: ["settings".to_owned()].into_iter().chain(head).collect(),
            rows: rows.collect(),
        }
    }
}

/// The update after which a rule alone ends the run, and the best value by then.
fn outcome(log: &[LogRow], rule: &Rule, stop: &StopConfig) -> String {
    let Ok(result) = alone(log, rule, stop) else {
        return "–".to_owned();
    };
    match (result.step, result.best_value) {
        (Some(step), Some(best)) => format!("{} · {}", count(step), short(best)),
        (Some(step), None) => count(step),
        (None, _) => "never".to_owned(),
    }
}

fn caption(rule: &Rule, log: &[LogRow]) -> String {
    let metric = rule.metric().map_or("", Metric::name);
    format!(
        "Other settings of {} on {metric}, alone: ends after update · best {} by then",
        rule.kind(),
        best_of(rule, log)
    )
}

/// The setting of a rule that patience stands beside.
fn threshold(rule: &Rule) -> String {
    match rule {
        Rule::Target(rule) => match (rule.at_most, rule.at_least) {
            (Some(bound), _) => format!("at_most: {}", short(bound)),
            (None, bound) => format!("at_least: {}", short(bound.unwrap_or(f64::NAN))),
        },
        Rule::Plateau(rule) => format!("min_delta: {}", delta(rule.min_delta)),
        Rule::Divergence(rule) => format!("factor: {}", short(rule.factor)),
        Rule::Overfit(rule) => format!("min_delta: {}", delta(rule.min_delta)),
        Rule::NonFinite(_) | Rule::Budget(_) => String::new(),
    }
}

fn delta(delta: MinDelta) -> String {
    match delta {
        MinDelta::Absolute(x) => short(x),
        MinDelta::Relative(x) => format!("{{relative: {}}}", short(x)),
    }
}

fn patience_of(rule: &Rule) -> u64 {
    match rule {
        Rule::Target(rule) => rule.patience(),
        Rule::Plateau(rule) => rule.patience,
        Rule::Divergence(rule) => rule.patience,
        Rule::Overfit(rule) => rule.patience,
        Rule::NonFinite(rule) => rule.patience,
        Rule::Budget(_) => 0,
    }
}

fn with_patience(rule: &Rule, patience: u64) -> Rule {
    let mut rule = rule.clone();
    match &mut rule {
        Rule::Target(rule) => rule.patience = Some(patience),
        Rule::Plateau(rule) => rule.patience = patience,
        Rule::Divergence(rule) => rule.patience = patience,
        Rule::Overfit(rule) => rule.patience = patience,
        Rule::NonFinite(rule) => rule.patience = patience,
        Rule::Budget(_) => {}
    }
    rule
}

/// Three significant digits.
fn round(x: f64) -> f64 {
    format!("{x:.2e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sft::stop::replay::read_log;

    fn table(rule: &str, losses: &[f64]) -> Vec<Vec<String>> {
        let log: String = losses
            .iter()
            .zip(1..)
            .map(|(loss, step)| format!("{{\"step\": {step}, \"eval_loss\": {loss}}}\n"))
            .collect();
        let stop = StopConfig::from_text(rule).unwrap();
        let grid = Grid::around(&stop.rules[0]).unwrap();
        let table = grid.table(&stop.rules[0], &read_log(&log).unwrap(), &stop);
        let text = |cell: &Cell| match cell {
            Cell::Text(text) | Cell::Number(text) | Cell::Code(text) => text.clone(),
            Cell::Own(text) => format!("[{text}]"),
            Cell::Share(..) => String::new(),
        };
        table
            .rows
            .iter()
            .map(|row| row.cells.iter().map(text).collect())
            .collect()
    }

    #[test]
    fn a_rule_stands_among_its_neighbours() {
        let rows = table("[{rule: overfit, patience: 4}]", &[2.0, 1.0]);
        assert_eq!(
            rows,
            [[
                "min_delta: 0",
                "never",
                "never",
                "never",
                "[never]",
                "never",
                "never"
            ]]
        );
        let rows = table(
            "[{rule: plateau, patience: 2, min_delta: 0.2}]",
            &[3.0, 2.0, 2.5, 1.875, 1.75],
        );
        let first: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(
            first,
            [
                "min_delta: 0",
                "min_delta: 0.1",
                "min_delta: 0.2",
                "min_delta: 0.4"
            ]
        );
        assert_eq!(rows[2][1..3], ["3 · 2", "[4 · 1.875]"].map(str::to_owned));
        assert_eq!(rows[0][2], "never");
    }
}
