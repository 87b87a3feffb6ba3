//! The loss curve of a run, as one line for the terminal and as an SVG file: pure functions from
//! points to text.

use std::fmt::Write;

/// The points to draw: `(update, value)`, updates ascending.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Curve {
    /// Training loss of each update.
    pub train: Vec<(u64, f64)>,
    /// Evaluation losses.
    pub eval: Vec<(u64, f64)>,
    /// The value of the target rule.
    pub target: Option<f64>,
}

/// `values` as a line of `width` bars at most, each the mean of its share; NaN and infinity show as
/// `×`. Empty for no values.
pub fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = width.min(values.len());
    let means: Vec<f64> = (0..columns)
        .map(|i| {
            let share = &values[i * values.len() / columns..(i + 1) * values.len() / columns];
            share.iter().sum::<f64>() / share.len() as f64
        })
        .collect();
    let Some((low, high)) = range(means.iter().copied()) else {
        return "×".repeat(columns);
    };
    let bar = |mean: f64| {
        let share = if high > low {
            (mean - low) / (high - low)
        } else {
            0.0
        };
        BARS[(share * (BARS.len() - 1) as f64).round() as usize]
    };
    means
        .into_iter()
        .map(|m| if m.is_finite() { bar(m) } else { '×' })
        .collect()
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 45.0;

const TRAIN: &str = "#9bb7d4";
const SMOOTH: &str = "#1f5f99";
const EVAL: &str = "#c4511d";
const TARGET: &str = "#2e7d32";

/// The curve as an SVG document: training loss (thin) with its moving average (bold), evaluation
/// loss (dots) and the target (dashed). A point that is not finite leaves a gap.
pub fn svg(curve: &Curve) -> String {
    let values = curve
        .train
        .iter()
        .chain(&curve.eval)
        .map(|&(_, y)| y)
        .chain(curve.target);
    let (low, high) = range(values).unwrap_or((0.0, 1.0));
    let margin = if high > low { 0.05 * (high - low) } else { 0.5 };
    let (low, high) = (low - margin, high + margin);
    let last = curve
        .train
        .iter()
        .chain(&curve.eval)
        .map(|&(x, _)| x)
        .max()
        .unwrap_or(1)
        .max(1);
    let place = |x: u64, y: f64| {
        let right = LEFT + (WIDTH - LEFT - RIGHT) * x as f64 / last as f64;
        let down = TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low);
        (right, down)
    };

    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <title>Loss by update</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for tick in ticks(low, high) {
        let (_, y) = place(0, tick);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{:.0}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            short(tick),
        );
    }
    for tick in ticks(0.0, last as f64)
        .into_iter()
        .filter(|t| t.fract() == 0.0)
    {
        let (x, _) = place(tick as u64, low);
        let y = HEIGHT - BOTTOM + 18.0;
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{tick}</text>"
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">update</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );

    let mut legend = Vec::new();
    if !curve.train.is_empty() {
        out += &line(&curve.train, &place, TRAIN, 1.0);
        out += &line(&moving_average(&curve.train), &place, SMOOTH, 2.0);
        legend.push((SMOOTH, "train loss".to_owned()));
    }
    if let Some(target) = curve.target {
        let (_, y) = place(0, target);
        let right = WIDTH - RIGHT;
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"{TARGET}\" stroke-dasharray=\"6 4\"/>"
        );
        legend.push((TARGET, format!("target {}", short(target))));
    }
    if !curve.eval.is_empty() {
        out += &line(&curve.eval, &place, EVAL, 1.5);
        for &(step, loss) in curve.eval.iter().filter(|(_, y)| y.is_finite()) {
            let (x, y) = place(step, loss);
            let _ = writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{EVAL}\"/>"
            );
        }
        legend.push((EVAL, "eval loss".to_owned()));
    }
    for (i, (colour, name)) in legend.iter().enumerate() {
        let x = LEFT + 130.0 * i as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"16\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"22\">{name}</text>",
            x + 20.0
        );
    }
    out += "</svg>\n";
    out
}

/// One path; a point that is not finite ends a stretch.
fn line(
    points: &[(u64, f64)],
    place: &impl Fn(u64, f64) -> (f64, f64),
    colour: &str,
    width: f64,
) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    for &(step, value) in points {
        if !value.is_finite() {
            pen = 'M';
            continue;
        }
        let (x, y) = place(step, value);
        let _ = write!(path, "{pen}{x:.1} {y:.1}");
        pen = 'L';
    }
    format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\n")
}

/// Mean over a window of a twentieth of the run; what is not finite is left out.
fn moving_average(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let window = (points.len() / 20).max(1);
    (0..points.len())
        .map(|i| {
            let share = &points[(i + 1).saturating_sub(window)..=i];
            let finite = share.iter().map(|p| p.1).filter(|y| y.is_finite());
            (
                points[i].0,
                finite.clone().sum::<f64>() / finite.count() as f64,
            )
        })
        .collect()
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .filter(|v| v.is_finite())
        .fold(None, |range, v| match range {
            None => Some((v, v)),
            Some((low, high)) => Some((v.min(low), v.max(high))),
        })
}

/// Four to ten round numbers between `low` and `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    if high <= low {
        return Vec::new();
    }
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|&s| s >= rough);
    let Some(step) = step else { return Vec::new() };
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_spans_its_values() {
        assert_eq!(sparkline(&[8.0, 4.5, 1.0], 10), "█▅▁");
        assert_eq!(sparkline(&[1.0, 3.0, 5.0, 7.0], 2), "▁█");
    }

    #[test]
    fn a_sparkline_of_odd_values() {
        assert_eq!(sparkline(&[], 10), "");
        assert_eq!(sparkline(&[1.0], 0), "");
        assert_eq!(sparkline(&[2.0, 2.0], 10), "▁▁");
        assert_eq!(sparkline(&[1.0, f64::NAN, 2.0], 10), "▁×█");
        assert_eq!(sparkline(&[f64::NAN, f64::INFINITY], 10), "××");
    }

    #[test]
    fn the_svg_shows_train_eval_and_target() {
        let curve = Curve {
            train: (1..=100).map(|i| (i, 4.0 / i as f64)).collect(),
            eval: vec![(50, 0.2), (100, 0.1)],
            target: Some(0.15),
        };
        let text = svg(&curve);
        assert_eq!(text.matches("<circle").count(), 2);
        assert!(text.contains("target 0.15") && text.contains("stroke-dasharray"));
        assert!(text.contains("eval loss") && text.contains("train loss"));
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn the_svg_never_holds_a_number_that_is_none() {
        let odd = [
            Curve::default(),
            Curve {
                train: vec![(1, 2.0)],
                ..Curve::default()
            },
            Curve {
                train: vec![(1, f64::NAN), (2, f64::INFINITY)],
                ..Curve::default()
            },
            Curve {
                train: vec![(1, 3.0), (2, f64::NAN), (3, 1.0)],
                ..Curve::default()
            },
        ];
        for curve in odd {
            let text = svg(&curve);
            assert!(
                !text.contains("NaN") && !text.contains("inf"),
                "{curve:?}: {text}"
            );
        }
    }

    #[test]
    fn a_gap_in_the_training_loss_splits_its_line() {
        let curve = Curve {
            train: vec![(1, 3.0), (2, 2.5), (3, f64::NAN), (4, 1.0), (5, 0.5)],
            ..Curve::default()
        };
        let thin = svg(&curve);
        let path = thin.lines().find(|l| l.contains(TRAIN)).unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 5.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(ticks(1.0, 1.0).is_empty());
        let wide = ticks(-3.0, 997.0);
        assert!(wide.len() >= 4 && wide.iter().all(|t| (-3.0..=997.0).contains(t)));
    }
}
