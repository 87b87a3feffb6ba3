//! The page: what a run was, from the answer at the top to the last key of its configuration.

use sft::Result;
use sft::report::StopReason;
use sft::stop::Rule;

use super::facts;
use super::rules::{Best, JudgedRule, Judgement, best_of, judge, settings};
use super::run::{End, Run};
use super::series::{Figure, Series, figures};
use super::table::{Cell, Row, Table};
use super::{alternatives, evaluations};
use crate::markup::Markup;
use crate::plot::STYLE;
use crate::plot::number::{bytes, count, counted, duration, percent, short, significant};
use crate::plot::scale::Scale;

const CSS: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("hover.js");

/// The whole page about `run`.
///
/// # Errors
/// Those of rules that contradict themselves.
pub fn html(run: &Run) -> Result<String> {
    let series = Series::of(run);
    let judgement = judge_run(run)?;
    let mut body = Markup::default();
    body.within("main", &[], |page| {
        headline(page, run, &series, &judgement);
        notes(page, run, &series);
        charts(page, &figures(run, &series, &judgement));
        stop_rules(page, run, &judgement);
        if let Some(table) = evaluations::table(run, judgement.best.as_ref()) {
            page.element("h2", &[], "Evaluations");
            folded(
                page,
                &table,
                &counted(table.rows.len() as u64, "evaluation"),
            );
        }
        made_of(page, run);
        configuration(page, run);
    });
    footer(&mut body, run);
    Ok(document(&run.name, body))
}

/// The judgement of the rules, with the best that the run itself wrote down.
fn judge_run(run: &Run) -> Result<Judgement> {
    let mut judgement = judge(&run.rows, run.config.as_ref())?;
    let own = run
        .end
        .as_ref()
        .and_then(|end| end.best_step.zip(end.best_value));
    if let Some((step, value)) = own {
        let metric = judgement
            .best
            .map_or("best value".to_owned(), |best| best.metric);
        judgement.best = Some(Best {
            metric,
            step,
            value,
        });
    }
    Ok(judgement)
}

/// The document around `body`. No script runs but our own: its nonce comes from the page's content, so
/// nothing within the content can know it.
fn document(name: &str, body: Markup) -> String {
    let nonce = blake3::hash(body.as_str().as_bytes()).to_hex();
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; \
         base-uri 'none'; form-action 'none'"
    );
    let mut page = Markup::default();
    page.within("html", &[("lang", "en")], |html| {
        html.within("head", &[], |head| {
            head.empty("meta", &[("charset", "utf-8")]);
            let policy = [
                ("http-equiv", "Content-Security-Policy"),
                ("content", &policy),
            ];
            head.empty("meta", &policy);
            let viewport = [
                ("name", "viewport"),
                ("content", "width=device-width, initial-scale=1"),
            ];
            head.empty("meta", &viewport);
            head.element("title", &[], &format!("{name} – training report"));
            head.within("style", &[], |style| {
                style.newline();
                style.verbatim(STYLE);
                style.verbatim(CSS);
            });
        });
        html.newline();
        html.within("body", &[], |out| {
            out.append(body);
            out.within("script", &[("nonce", &nonce)], |script| {
                script.newline();
                script.verbatim(SCRIPT);
            });
        });
    });
    format!("<!DOCTYPE html>\n{}\n", page.as_str())
}

/// How a run ended, for the first line: a sign, its class, and words.
fn outcome(end: Option<&End>) -> (&'static str, &'static str, String) {
    let Some(end) = end else {
        return ("…", "", "Not finished".to_owned());
    };
    let Some(reason) = end.reason.as_deref() else {
        return ("·", "", "Ended".to_owned());
    };
    let (sign, class, words) = match reason {
        "target_reached" => ("✓", "good", "Target reached"),
        "plateau" => ("✓", "good", "No more improvement"),
        "max_steps" => ("✓", "good", "All updates done"),
        "max_epochs" => ("✓", "good", "All epochs done"),
        "max_tokens" => ("✓", "good", "Token budget used up"),
        "max_time" => ("✓", "good", "Time budget used up"),
        "overfit" => ("!", "warn", "Overfitting"),
        "cancelled" => ("!", "warn", "Cancelled"),
        "callback" => ("!", "warn", "Stopped by the host"),
        "diverged" => ("✕", "bad", "Diverged"),
        "non_finite" => ("✕", "bad", "Loss or gradient not finite"),
        other => ("·", "", other),
    };
    (sign, class, words.to_owned())
}

fn headline(page: &mut Markup, run: &Run, series: &Series, judgement: &Judgement) {
    page.within("header", &[], |page| {
        page.element("p", &[("class", "run")], &run.name);
        let (sign, class, words) = outcome(run.end.as_ref());
        page.within("h1", &[], |h1| {
            let class = format!("sign {class}");
            h1.element(
                "span",
                &[("class", class.trim()), ("aria-hidden", "true")],
                sign,
            );
            h1.text(&match (run.last_step(), run.end.is_some()) {
                (0, _) => format!("{words}: no update yet"),
                (n, true) => format!("{words} after {}", counted(n, "update")),
                (n, false) => format!("{words}: {} so far", counted(n, "update")),
            });
        });
        if let Some(end) = &run.end {
            page.within("p", &[], |p| {
                if let Some(reason) = &end.reason {
                    p.element("code", &[], reason);
                }
                if let Some(detail) = end.detail.as_deref().filter(|detail| !detail.is_empty()) {
                    p.text(&format!(" · {detail}"));
                }
            });
        } else if !run.rows.is_empty() {
            page.element(
                "p",
                &[],
                "The log has no last row: the run is still going, or was killed.",
            );
        }
    });
    page.within("dl", &[("class", "tiles")], |list| {
        for (name, value, more) in tiles(run, series, judgement) {
            list.within("div", &[], |tile| {
                tile.element("dt", &[], &name);
                tile.within("dd", &[], |dd| {
                    dd.text(&value);
                    if !more.is_empty() {
                        dd.element("span", &[("class", "more")], &more);
                    }
                });
            });
        }
    });
    page.newline();
}

/// Name, value and what else there is to say.
fn tiles(run: &Run, series: &Series, judgement: &Judgement) -> Vec<(String, String, String)> {
    let mut tiles = Vec::new();
    let mut tile =
        |name: &str, value: String, more: String| tiles.push((name.to_owned(), value, more));
    if let Some(best) = &judgement.best {
        let name = format!("Best {}", best.metric.replace('_', " "));
        let restored = run
            .config
            .as_ref()
            .is_some_and(|config| config.load_best_model_at_end);
        let whose = if restored && run.end.is_some() {
            "; its weights are kept"
        } else {
            ""
        };
        tile(
            &name,
            significant(best.value, 5),
            format!("after update {}{whose}", count(best.step)),
        );
    }
    for (series_name, name) in [
        ("train_loss", "Last train loss"),
        ("eval_loss", "Last eval loss"),
    ] {
        if let Some(&(step, value)) = series.get(series_name).last() {
            let first = series
                .get(series_name)
                .first()
                .filter(|first| first.0 < step);
            let more = first.map(|first| {
                format!(
                    "from {} at update {}",
                    short(first.1),
                    count(first.0 as u64)
                )
            });
            tile(name, significant(value, 5), more.unwrap_or_default());
        }
    }
    let last = run.rows.iter().rev();
    let epoch = last.clone().find_map(|row| row.epoch);
    let seconds = last.clone().find_map(|row| row.seconds);
    let tokens = last.clone().find_map(|row| row.tokens);
    let planned = run.record.as_ref().and_then(|record| record.total_steps);
    let planned = planned
        .map(|n| format!("of {} planned", count(n)))
        .unwrap_or_default();
    tile("Updates", count(run.last_step()), planned);
    if let Some(epoch) = epoch {
        tile("Epochs", significant(epoch, 4), String::new());
    }
    if let Some(tokens) = tokens {
        let rate = seconds.filter(|&s| s > 0.0).map(|s| tokens as f64 / s);
        let rate = rate.map(|rate| format!("{} a second, all in all", count(rate.round() as u64)));
        tile("Tokens", count(tokens), rate.unwrap_or_default());
    }
    if let Some(seconds) = seconds {
        let evaluating: f64 = series.get("eval_runtime").iter().map(|point| point.1).sum();
        let more = match evaluating > 0.0 && seconds > 0.0 {
            true => format!(
                "{} of it in evaluations",
                percent((evaluating / seconds).min(1.0))
            ),
            false => String::new(),
        };
        tile("Time", duration(seconds), more);
    }
    if let Some(record) = &run.record {
        tile("Device", record.device.clone(), String::new());
        let memory = format!("{} allocated", bytes(record.memory.total_bytes as u64));
        tile("Precision", record.precision.clone(), memory);
        let model = format!("{} parameters", count(record.model.parameters));
        tile("Model", record.model.model_type.clone(), model);
        let resumed = match &record.resumed[..] {
            [] => String::new(),
            [once] => format!("resumed at update {}", count(once.step)),
            [.., last] => format!(
                "resumed {} times, last at update {}",
                record.resumed.len(),
                count(last.step)
            ),
        };
        tile(
            "Started",
            record.started.replace('T', " ").replace('Z', " UTC"),
            resumed,
        );
    }
    if let Some(skipped) = series.last("skipped_updates").filter(|&n| n > 0.0) {
        tile(
            "Updates not applied",
            count(skipped as u64),
            "their gradient was not finite".to_owned(),
        );
    }
    if !run.checkpoints.is_empty() {
        let last = run
            .checkpoints
            .last()
            .map(|&step| format!("the last of update {}", count(step)));
        tile(
            "Checkpoints",
            count(run.checkpoints.len() as u64),
            last.unwrap_or_default(),
        );
    }
    tiles
}

fn notes(page: &mut Markup, run: &Run, series: &Series) {
    for note in &run.notes {
        page.element("p", &[("class", "note")], note);
    }
    for (name, lost, first) in series.lost() {
        let first: Vec<_> = first.into_iter().map(count).collect();
        let more = if lost > first.len() { ", …" } else { "" };
        let text = format!(
            "{name}: {} not finite, at update {}{more}. A gap in its line, with a × at the upper edge.",
            counted(lost as u64, "value"),
            first.join(", ")
        );
        page.element("p", &[("class", "note")], &text);
    }
}

fn charts(page: &mut Markup, figures: &[Figure]) {
    if figures.is_empty() {
        return;
    }
    page.element("h2", &[], "Curves");
    legend(page, figures);
    page.within("div", &[("class", "charts")], |page| {
        for (i, figure) in figures.iter().enumerate() {
            figure_of(page, figure, i);
        }
    });
}

/// What the marks mean that all charts share.
fn legend(page: &mut Markup, figures: &[Figure]) {
    let chart = &figures[0].chart;
    let has = |class: &str| chart.moments.iter().any(|moment| moment.class == class);
    let upright = |svg: &mut Markup, class: &str| {
        svg.empty(
            "line",
            &[
                ("class", class),
                ("x1", "8"),
                ("x2", "8"),
                ("y1", "0"),
                ("y2", "14"),
            ],
        );
    };
    page.within("p", &[("class", "key")], |key| {
        let mut entry = |shown: bool, text: &str, draw: &dyn Fn(&mut Markup)| {
            if shown {
                key.within("span", &[], |span| {
                    span.within("svg", &[("aria-hidden", "true")], draw);
                    span.text(text);
                });
            }
        };
        entry(has("best"), "best", &|svg| upright(svg, "moment best"));
        entry(has("stop"), "end of the run", &|svg| {
            upright(svg, "moment stop")
        });
        let lost = figures.iter().any(|figure| figure.chart.has_gaps());
        entry(lost, "not finite", &|svg| {
            let place = [("class", "lost"), ("x", "8"), ("y", "12")];
            svg.element("text", &place, "×");
        });
        let spikes = figures.iter().any(|figure| figure.chart.has_spikes());
        entry(spikes, "beyond the axis", &|svg| {
            svg.empty("path", &[("class", "spike"), ("d", "M8 3l4 7h-8z")]);
        });
        entry(!chart.marks.is_empty(), "checkpoint on disk", &|svg| {
            svg.empty("path", &[("class", "checkpoint"), ("d", "M8 2l5 8h-10z")]);
        });
    });
    page.newline();
}

fn figure_of(page: &mut Markup, figure: &Figure, i: usize) {
    let class = if i == 0 { "wide" } else { "" };
    page.within("figure", &[("class", class)], |out| {
        out.within("figcaption", &[], |caption| {
            caption.element("h3", &[], &figure.title);
            caption.element("p", &[], &figure.caption);
            let names = [("class", "names"), ("aria-hidden", "true")];
            caption.within("p", &names, |names| figure.chart.names(names));
        });
        let chart = &figure.chart;
        let (title, words) = (format!("chart-{i}-title"), format!("chart-{i}-words"));
        let (low, high) = chart.scale.ends();
        let number = |x: f64| x.to_string();
        let log = if matches!(chart.scale, Scale::Log { .. }) {
            "1"
        } else {
            ""
        };
        let attributes = [
            ("class", "plot"),
            ("role", "img"),
            ("aria-labelledby", &format!("{title} {words}")[..]),
            ("height", &number(chart.height)),
            ("data-first", &number(chart.updates.0)),
            ("data-last", &number(chart.updates.1)),
            ("data-low", &number(low)),
            ("data-high", &number(high)),
            ("data-log", log),
        ];
        out.within("div", &[("class", "frame")], |frame| {
            frame.within("svg", &attributes, |svg| {
                svg.element(
                    "title",
                    &[("id", &title)],
                    &format!("{} by update", figure.title),
                );
                svg.element("desc", &[("id", &words)], &chart.describe());
                chart.draw(svg);
            });
        });
        out.element("output", &[("aria-hidden", "true")], "");
    });
    page.newline();
}

fn stop_rules(page: &mut Markup, run: &Run, judgement: &Judgement) {
    if run.rows.is_empty() {
        return;
    }
    page.element("h2", &[], "Stop rules");
    if run.config.is_none() {
        let text = "The configuration of this run is not known (there is no run.json, and no --config \
                    was given), so only the rule that is always in force is here.";
        page.element("p", &[], text);
    } else if let Some(text) = disagreement(run, judgement) {
        page.element("p", &[("class", "note")], &text);
    }
    let agreed = run.end.is_some() && disagreement(run, judgement).is_none();
    let row = |rule: &JudgedRule| {
        let whose = match (rule.written, rule.fired, agreed) {
            (_, true, true) => " (ended the run)",
            (_, true, false) => " (fires first)",
            (true, false, _) => "",
            (false, false, _) => " (always there)",
        };
        Row {
            class: if rule.fired { "marked" } else { "" },
            cells: vec![
                Cell::Text(format!("{}{whose}", rule.rule.kind())),
                Cell::Code(settings(&rule.rule)),
                Cell::Text(rule.status.clone()),
                Cell::Text(alone(rule, run.last_step(), best_of(&rule.rule, &run.rows))),
            ],
        }
    };
    Table {
        caption: "Each rule over this log, and where it alone would have ended the run".to_owned(),
        head: ["rule", "settings", "at the end", "alone"]
            .map(str::to_owned)
            .to_vec(),
        rows: judgement.rules.iter().map(row).collect(),
    }
    .write(page);
    for table in alternatives::tables(run, judgement) {
        table.write(page);
    }
}

/// Where a rule alone would have ended the run.
fn alone(rule: &JudgedRule, last: u64, what: &str) -> String {
    let replay = &rule.alone;
    let (Some(step), Some(reason)) = (replay.step, replay.reason) else {
        return "never".to_owned();
    };
    let best = replay.best_value.zip(replay.best_step);
    let best = best.map(|(value, at)| format!("; best {what} {} at {}", short(value), count(at)));
    let of = if step < last {
        format!(" of {}", count(last))
    } else {
        String::new()
    };
    let whose = match rule.rule {
        Rule::NonFinite(_) => "",
        _ if reason == StopReason::NonFinite => ", where a number is not finite",
        _ => "",
    };
    format!(
        "after update {}{of}{whose}{}",
        count(step),
        best.unwrap_or_default()
    )
}

/// Where the rules over the log do not end it as the run ended.
fn disagreement(run: &Run, judgement: &Judgement) -> Option<String> {
    let verdict = judgement.verdict.as_ref();
    let (step, reason) = (verdict.map(|v| v.step), verdict.map(|v| v.reason.code()));
    let rules = match (step, reason) {
        (Some(step), Some(reason)) => format!("end it after update {} ({reason})", count(step)),
        _ => "do not end it".to_owned(),
    };
    let end = run.end.as_ref();
    let went_on = match (end.and_then(|end| end.reason.as_deref()), step) {
        (Some(ended), _) => {
            let by_host = matches!(ended, "cancelled" | "callback");
            let agrees = (step, reason) == (end.and_then(|end| end.step), Some(ended));
            if agrees || (verdict.is_none() && by_host) {
                return None;
            }
            format!(
                "the run ended after update {} ({ended})",
                count(run.last_step())
            )
        }
        (None, Some(step)) if step < run.last_step() => {
            format!("the log goes on to update {}", count(run.last_step()))
        }
        (None, _) => return None,
    };
    Some(format!(
        "These rules over the log {rules}; {went_on}. The rules are not those of the run, or the log \
         lacks what they saw."
    ))
}

/// A table; a long one only on request.
fn folded(page: &mut Markup, table: &Table, summary: &str) {
    const LONG: usize = 16;
    if table.rows.len() <= LONG {
        return table.write(page);
    }
    page.within("details", &[], |details| {
        details.element("summary", &[], summary);
        table.write(details);
    });
}

/// Rows, model and memory.
fn made_of(page: &mut Markup, run: &Run) {
    let Some(record) = &run.record else { return };
    if !record.data.is_empty() {
        page.element("h2", &[], "Data");
        facts::data(record).write(page);
        let warnings = facts::data_warnings(record);
        if !warnings.is_empty() {
            page.within("ul", &[], |list| {
                for warning in &warnings {
                    list.element("li", &[], warning);
                }
            });
        }
    }
    page.element("h2", &[], "Model and memory");
    page.within("div", &[("class", "pair")], |pair| {
        facts::model(run, record).write(pair);
        facts::memory(record).write(pair);
    });
}

fn configuration(page: &mut Markup, run: &Run) {
    let Some(config) = facts::configuration(run) else {
        return;
    };
    page.element("h2", &[], "Configuration");
    facts::changed(&config).write(page);
    let rest = facts::unchanged(&config);
    page.within("details", &[], |details| {
        let text = format!(
            "{} that have their defaults",
            counted(rest.rows.len() as u64, "key")
        );
        details.element("summary", &[], &text);
        rest.write(details);
    });
}

fn footer(page: &mut Markup, run: &Run) {
    let rows = counted(run.rows.len() as u64, "row");
    let library = run
        .record
        .as_ref()
        .map(|record| format!(" Trained by {}.", record.library));
    page.element(
        "footer",
        &[],
        &format!(
            "From {} of {}.{} Written by sft {}. This page loads nothing from elsewhere.",
            rows,
            run.log.file_name().unwrap_or_default().to_string_lossy(),
            library.unwrap_or_default(),
            env!("CARGO_PKG_VERSION")
        ),
    );
    page.newline();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(log: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, log).unwrap();
        html(&Run::read(&path, None).unwrap()).unwrap()
    }

    #[test]
    fn the_scripts_nonce_is_the_policy_s_and_of_the_content() {
        let one = page("{\"step\": 1, \"loss\": 1}\n");
        let two = page("{\"step\": 1, \"loss\": 2}\n");
        let nonce = |page: &str| {
            let (_, rest) = page.split_once("script nonce=\"").unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        assert!(one.contains(&format!("&#39;nonce-{}&#39;", nonce(&one))));
        assert_ne!(nonce(&one), nonce(&two));
    }

    #[test]
    fn a_log_without_rows_still_makes_a_page() {
        let page = page("");
        assert!(
            page.contains("no update yet") && !page.contains("<figure"),
            "{page}"
        );
    }

    #[test]
    fn nothing_is_shown_as_nan_but_what_is_one() {
        let page = page("{\"step\": 1, \"loss\": 1, \"grad_norm\": 1}\n");
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        let lost = self::page("{\"step\": 1, \"loss\": \"nan\"}\n");
        assert!(
            lost.contains("train_loss: 1 value not finite, at update 1."),
            "{lost}"
        );
    }

    #[test]
    fn every_reason_has_words() {
        let words = |reason: &str| {
            let end = End {
                reason: Some(reason.to_owned()),
                ..End::default()
            };
            outcome(Some(&end)).2
        };
        for reason in [
            "target_reached",
            "plateau",
            "non_finite",
            "diverged",
            "overfit",
            "max_steps",
            "max_epochs",
            "max_tokens",
            "max_time",
            "cancelled",
            "callback",
        ] {
            assert_ne!(words(reason), reason);
        }
        assert_eq!(words("<new>"), "<new>");
    }
}
