//! The numbers of a log by name, and the charts that show them.

use std::collections::BTreeMap;

use sft::stop::{Metric, Rule, Smoothing};

use super::rules::Judgement;
use super::run::Run;
use crate::plot::chart::{Axis, Chart, Line, Look, Moment};
use crate::plot::number::{count, counted, short};
use crate::plot::scale::Scale;
use crate::plot::{Point, moving_average, window};

/// Points that a line has at least before a smoothed one is drawn over it.
const NOISY: usize = 40;
/// Charts of numbers that only this log has.
const OTHERS: usize = 6;

/// Every number of a log, under the names that rules use.
pub struct Series {
    points: BTreeMap<String, Vec<Point>>,
}

/// A chart with its words.
pub struct Figure {
    /// The heading.
    pub title: String,
    /// What the lines are.
    pub caption: String,
    /// The drawing.
    pub chart: Chart,
}

impl Series {
    /// Gathers the numbers of `run`.
    pub fn of(run: &Run) -> Self {
        let mut points: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        let mut add = |name: &str, point: Point| match points.get_mut(name) {
            Some(series) => series.push(point),
            None => {
                points.insert(name.to_owned(), vec![point]);
            }
        };
        for row in &run.rows {
            let at = row.step as f64;
            for (name, value) in &row.metrics {
                add(name, (at, *value));
            }
            // The norm of a gradient that overflowed is left out of the rows, because no rule may see
            // it. On the chart it is a gap like any other.
            let has = |metric: &str| row.metrics.iter().any(|(name, _)| name == metric);
            if has("loss_scale") && has("train_loss") && !has("grad_norm") {
                add("grad_norm", (at, f64::NAN));
            }
        }
        Self { points }
    }

    /// The points of `name`; none if the log lacks it.
    pub fn get(&self, name: &str) -> &[Point] {
        self.points.get(name).map_or(&[], Vec::as_slice)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.points.keys().map(String::as_str)
    }

    /// The last value of `name`.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.get(name).last().map(|point| point.1)
    }

    /// Evaluation sets of their own: (`name`, the series of its `eval_<name>_<what>`).
    fn sets<'a>(&'a self, what: &'a str) -> impl Iterator<Item = (&'a str, &'a [Point])> {
        let set_of = move |name: &'a str| {
            let set = name
                .strip_prefix("eval_")?
                .strip_suffix(what)?
                .strip_suffix('_')?;
            (!set.is_empty()).then_some(set)
        };
        self.points
            .iter()
            .filter_map(move |(name, points)| Some((set_of(name)?, points.as_slice())))
    }

    /// For each series with values that are not finite: its name, how many, and the first few updates.
    pub fn lost(&self) -> Vec<(&str, usize, Vec<u64>)> {
        let lost = |points: &[Point]| -> Vec<u64> {
            let points = points.iter().filter(|point| !point.1.is_finite());
            points.map(|point| point.0 as u64).collect()
        };
        let all = self
            .points
            .iter()
            .map(|(name, points)| (name.as_str(), lost(points)));
        all.filter(|(name, steps)| !steps.is_empty() && *name != "smoothed_loss")
            .map(|(name, steps)| (name, steps.len(), steps.into_iter().take(5).collect()))
            .collect()
    }

    /// First and last update over all series.
    fn updates(&self) -> (f64, f64) {
        let all = || self.points.values().flatten().map(|point| point.0);
        let (first, last) = (
            all().fold(f64::INFINITY, f64::min),
            all().fold(0.0, f64::max),
        );
        // From the start of the run, unless the log begins far from it.
        let first = if first <= 0.25 * last {
            0.0
        } else {
            first.min(last)
        };
        (first, last)
    }
}

/// The charts of a run, the loss first. Empty for an empty log.
pub fn figures(run: &Run, series: &Series, judgement: &Judgement) -> Vec<Figure> {
    let figures = [
        loss(run, series),
        accuracy(series),
        simple(series, "learning_rate", "Learning rate", "Of each update."),
        gradient_norm(run, series),
        noisy(
            series,
            "tokens_per_second",
            "Throughput",
            "Input tokens per second",
        ),
        simple(
            series,
            "loss_scale",
            "Loss scale",
            "What the loss is multiplied by in float16.",
        ),
        noisy(
            series,
            "entropy",
            "Entropy",
            "Mean entropy of the predictions, in nats",
        ),
    ];
    let mut figures: Vec<Figure> = figures.into_iter().flatten().collect();
    let others = series.names().filter(|name| is_other(name));
    figures.extend(
        others
            .take(OTHERS)
            .filter_map(|name| simple(series, name, name, "As the log has it.")),
    );
    for (i, figure) in figures.iter_mut().enumerate() {
        let chart = &mut figure.chart;
        chart.moments = moments(run, judgement, i == 0);
        chart.marks = run.checkpoints.iter().map(|&step| step as f64).collect();
        let (first, last) = chart.updates;
        chart
            .moments
            .retain(|moment| (first..=last).contains(&moment.update));
        chart.marks.retain(|mark| (first..=last).contains(mark));
    }
    figures
}

/// Whether no other chart or table shows the series.
fn is_other(name: &str) -> bool {
    const SHOWN: [&str; 16] = [
        "train_loss",
        "smoothed_loss",
        "grad_norm",
        "learning_rate",
        "entropy",
        "token_accuracy",
        "supervised_tokens",
        "loss_scale",
        "skipped_updates",
        "tokens_per_second",
        "model_flops_per_second",
        "ceiling_ratio",
        "total_flos",
        "eval_runtime",
        "eval_samples_per_second",
        "eval_steps_per_second",
    ];
    const ENDINGS: [&str; 8] = [
        "_loss",
        "_token_accuracy",
        "_entropy",
        "_tokens",
        "_runtime",
        "_perplexity",
        "_samples_per_second",
        "_steps_per_second",
    ];
    let of_evaluation = name.starts_with("eval_") && ENDINGS.iter().any(|end| name.ends_with(end));
    !SHOWN.contains(&name) && !of_evaluation
}

fn line(name: &str, points: &[Point], style: usize, look: Look) -> Line {
    Line {
        name: name.to_owned(),
        points: points.to_vec(),
        style,
        look,
    }
}

fn loss(run: &Run, series: &Series) -> Option<Figure> {
    let train = series.get("train_loss");
    let smoothed = series.get("smoothed_loss");
    let mut lines = Vec::new();
    let mut caption = Vec::new();
    if !smoothed.is_empty() {
        lines.push(line("train", train, 0, Look::Faint));
        lines.push(line("train, smooth", smoothed, 0, Look::Bold));
        caption.push(format!(
            "Training: each update (thin) and as the stop rule sees it{} (bold).",
            smoothing(run)
        ));
    } else if train.len() >= NOISY {
        lines.push(line("train", train, 0, Look::Faint));
        lines.push(line("train, smooth", &moving_average(train), 0, Look::Bold));
        let over = counted(window(train.len()) as u64, "value");
        caption.push(format!(
            "Training: each update (thin) and the mean of the last {over} (bold)."
        ));
    } else if !train.is_empty() {
        lines.push(line("train", train, 0, Look::Bold));
        caption.push("Training: each update.".to_owned());
    }
    let eval = series.get("eval_loss");
    if !eval.is_empty() {
        lines.push(line("eval", eval, 1, Look::Dotted));
        caption.push("Evaluation: dashed.".to_owned());
    }
    for ((set, points), style) in series.sets("loss").zip(2..) {
        lines.push(line(&format!("eval {set}"), points, style, Look::Dotted));
    }
    if lines.is_empty() {
        return None;
    }
    let mut chart = Chart::over(series.updates(), lines, targets(run), Axis::Calm);
    chart.height = 300.0;
    if let Scale::Log { .. } = chart.scale {
        caption.push("Logarithmic axis.".to_owned());
    }
    Some(Figure {
        title: "Loss".to_owned(),
        caption: caption.join(" "),
        chart,
    })
}

/// How the first rule that smooths the training loss does it.
fn smoothing(run: &Run) -> String {
    let rules = run
        .config
        .as_ref()
        .map(|config| config.stop.rules.as_slice());
    let of = |rule: &Rule| match rule {
        Rule::Target(rule) if rule.metric == Metric::TrainLoss => rule.smoothing,
        Rule::Plateau(rule) if rule.metric == Metric::TrainLoss => rule.smoothing,
        Rule::Divergence(rule) if rule.metric == Metric::TrainLoss => rule.smoothing,
        _ => Smoothing::None,
    };
    let mut smooth = rules.unwrap_or_default().iter().map(of);
    match smooth.find(|smoothing| *smoothing != Smoothing::None) {
        Some(Smoothing::Ema(weight)) => format!(", ema {weight}"),
        Some(Smoothing::Mean(length)) => format!(", mean of {length}"),
        Some(Smoothing::Median(length)) => format!(", median of {length}"),
        Some(Smoothing::None) | None => String::new(),
    }
}

/// The bounds of the target rules on a loss.
fn targets(run: &Run) -> Vec<(f64, String)> {
    let rules = run
        .config
        .as_ref()
        .map(|config| config.stop.rules.as_slice());
    let target = |rule: &Rule| match rule {
        Rule::Target(target) => {
            let bound = target.at_most?;
            let name = target.metric.name();
            let is_loss =
                name == "train_loss" || (name.starts_with("eval_") && name.ends_with("_loss"));
            is_loss.then(|| (bound, format!("target {name} {}", short(bound))))
        }
        _ => None,
    };
    rules
        .unwrap_or_default()
        .iter()
        .filter_map(target)
        .collect()
}

fn accuracy(series: &Series) -> Option<Figure> {
    let train = series.get("token_accuracy");
    let mut lines = smooth_lines("train", train);
    let mut caption =
        vec!["Share of the supervised tokens that the model would have chosen itself."];
    for name in ["eval_token_accuracy", "eval_mean_token_accuracy"] {
        let eval = series.get(name);
        if !eval.is_empty() {
            lines.push(line("eval", eval, 1, Look::Dotted));
            caption.push("Evaluation: dashed.");
        }
    }
    let sets = series.sets("mean_token_accuracy").chain(
        series
            .sets("token_accuracy")
            .filter(|(set, _)| *set != "mean" && !set.ends_with("_mean")),
    );
    for ((set, points), style) in sets.zip(2..) {
        lines.push(line(&format!("eval {set}"), points, style, Look::Dotted));
    }
    (!lines.is_empty()).then(|| Figure {
        title: "Token accuracy".to_owned(),
        caption: caption.join(" "),
        chart: Chart::over(series.updates(), lines, Vec::new(), Axis::Even),
    })
}

fn gradient_norm(run: &Run, series: &Series) -> Option<Figure> {
    let points = series.get("grad_norm");
    if points.is_empty() {
        return None;
    }
    let limit = run
        .config
        .as_ref()
        .map(|config| config.max_grad_norm)
        .filter(|&norm| norm > 0.0);
    let least = points
        .iter()
        .map(|p| p.1)
        .filter(|y| y.is_finite())
        .fold(0.0, f64::max);
    // A limit far above all norms would only flatten them.
    let bound = limit.filter(|&limit| limit <= 2.0 * least);
    let bounds = bound.map(|limit| (limit, format!("clipped to {}", short(limit))));
    let chart = Chart::over(
        series.updates(),
        smooth_lines("norm", points),
        bounds.into_iter().collect(),
        Axis::Wide,
    );
    let axis = match chart.scale {
        Scale::Log { .. } => ", on a logarithmic axis",
        Scale::Linear { .. } => "",
    };
    let zeros = points.iter().filter(|point| point.1 == 0.0).count() as u64;
    let zeros = match chart.scale {
        Scale::Log { .. } if zeros > 0 => {
            format!(" {} of 0 cannot be shown on it.", counted(zeros, "value"))
        }
        _ => String::new(),
    };
    Some(Figure {
        title: "Gradient norm".to_owned(),
        caption: format!("L2 norm before clipping{axis}.{zeros}"),
        chart,
    })
}

fn simple(series: &Series, name: &str, title: &str, caption: &str) -> Option<Figure> {
    let points = series.get(name);
    let axis = if name == "loss_scale" {
        Axis::Wide
    } else {
        Axis::Even
    };
    let lines = vec![line(&last_word(title), points, 0, Look::Bold)];
    (!points.is_empty()).then(|| Figure {
        title: title.to_owned(),
        caption: caption.to_owned(),
        chart: Chart::over(series.updates(), lines, Vec::new(), axis),
    })
}

/// `Learning rate` as `rate`: beside its line the rest is plain.
fn last_word(title: &str) -> String {
    title.rsplit(' ').next().unwrap_or(title).to_lowercase()
}

fn noisy(series: &Series, name: &str, title: &str, caption: &str) -> Option<Figure> {
    let points = series.get(name);
    let lines = smooth_lines(&last_word(title), points);
    let smooth = match points.len() >= NOISY {
        true => format!(
            ": each update (thin), mean of {} (bold)",
            count(window(points.len()) as u64)
        ),
        false => String::new(),
    };
    (!points.is_empty()).then(|| Figure {
        title: title.to_owned(),
        caption: format!("{caption}{smooth}."),
        chart: Chart::over(series.updates(), lines, Vec::new(), Axis::Even),
    })
}

/// A line, or where it has many points a faint one under its moving average.
fn smooth_lines(name: &str, points: &[Point]) -> Vec<Line> {
    if points.is_empty() {
        Vec::new()
    } else if points.len() < NOISY {
        vec![line(name, points, 0, Look::Bold)]
    } else {
        vec![
            line(name, points, 0, Look::Faint),
            line(name, &moving_average(points), 0, Look::Bold),
        ]
    }
}

fn moments(run: &Run, judgement: &Judgement, labelled: bool) -> Vec<Moment> {
    let label = |text: String| labelled.then_some(text);
    let best = judgement.best.as_ref().map(|best| Moment {
        update: best.step as f64,
        class: "best",
        label: label(format!("best {}", count(best.step))),
    });
    let end = run
        .end
        .as_ref()
        .and_then(|end| end.step)
        .map(|step| Moment {
            update: step as f64,
            class: "stop",
            label: label(format!("stop {}", count(step))),
        });
    best.into_iter().chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sft::stop::replay::read_log;

    fn series(log: &str) -> Series {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, log).unwrap();
        assert!(read_log(log).is_ok());
        Series::of(&Run::read(&path, None).unwrap())
    }

    #[test]
    fn an_overflow_is_a_gap_in_the_gradient_norm() {
        let all = series(
            "{\"step\": 1, \"loss\": 2, \"grad_norm\": \"inf\", \"loss_scale\": 65536}\n\
             {\"step\": 2, \"loss\": 2, \"grad_norm\": 1, \"loss_scale\": 32768}\n",
        );
        assert!(all.get("grad_norm")[0].1.is_nan());
        assert_eq!(all.get("grad_norm")[1], (2.0, 1.0));
        assert_eq!(all.lost(), [("grad_norm", 1, vec![1])]);
    }

    #[test]
    fn sets_of_their_own_are_told_from_the_whole() {
        let all = series(
            "{\"step\": 1, \"eval_loss\": 2, \"eval_code_loss\": 3, \"eval_my_set_loss\": 4, \
             \"eval_code_mean_token_accuracy\": 0.5, \"eval_mean_token_accuracy\": 0.4}\n",
        );
        let sets: Vec<_> = all
            .sets("loss")
            .map(|(set, points)| (set, points[0].1))
            .collect();
        assert_eq!(sets, [("code", 3.0), ("my_set", 4.0)]);
        let sets: Vec<_> = all
            .sets("mean_token_accuracy")
            .map(|(set, _)| set)
            .collect();
        assert_eq!(sets, ["code"]);
    }

    #[test]
    fn the_axis_begins_where_the_log_does() {
        assert_eq!(
            series("{\"step\": 9000, \"loss\": 1}\n{\"step\": 9100, \"loss\": 1}\n").updates(),
            (9000.0, 9100.0)
        );
        assert_eq!(
            series("{\"step\": 1, \"loss\": 1}\n{\"step\": 50, \"loss\": 1}\n").updates(),
            (0.0, 50.0)
        );
        assert_eq!(series("{\"step\": 1, \"loss\": 1}\n").updates(), (1.0, 1.0));
    }

    #[test]
    fn only_numbers_that_nothing_else_shows_get_a_chart_of_their_own() {
        for name in [
            "train_loss",
            "eval_loss",
            "eval_code_loss",
            "eval_runtime",
            "supervised_tokens",
        ] {
            assert!(!is_other(name), "{name}");
        }
        assert!(is_other("bleu") && is_other("eval_bleu"));
    }
}
