//! The loss curve of a run, as one line for the terminal and as an SVG file: pure functions from
//! points to text.

use crate::markup::Markup;
use crate::plot::chart::{Axis, Chart, Line, Look};
use crate::plot::number::short;
use crate::plot::scale::range;
use crate::plot::{Point, STYLE, moving_average};

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

const WIDTH: &str = "720";
const HEIGHT: &str = "400";

/// The colours of a drawing that stands alone.
const COLOURS: &str = ":root{--page:#fff;--text:#1a1d21;--muted:#555d68;--grid:#e5e7ea;\
    --good:#1a7a3c;--bad:#c01a1a;--c0:#0b62a8;--c1:#b8460e}\
    text{font-family:sans-serif}";

/// The curve as an SVG document: training loss (thin) with its moving average (bold), evaluation
/// loss (dots) and the target (dashed). A point that is not finite leaves a gap.
pub fn svg(curve: &Curve) -> String {
    let points = |values: &[(u64, f64)]| -> Vec<Point> {
        values.iter().map(|&(step, y)| (step as f64, y)).collect()
    };
    let (train, eval) = (points(&curve.train), points(&curve.eval));
    let line = |name: &str, points, style, look| Line {
        name: name.to_owned(),
        points,
        style,
        look,
    };
    let mut lines = Vec::new();
    if !train.is_empty() {
        lines.push(line("train, smooth", moving_average(&train), 0, Look::Bold));
        lines.insert(0, line("train loss", train, 0, Look::Faint));
    }
    if !eval.is_empty() {
        lines.push(line("eval loss", eval, 1, Look::Dotted));
    }
    let updates = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.0);
    let last = updates.fold(1.0, f64::max);
    let target = curve.target.map(|at| (at, format!("target {}", short(at))));
    let chart = Chart {
        height: 320.0,
        ..Chart::over((0.0, last), lines, target.into_iter().collect(), Axis::Calm)
    };

    let mut out = Markup::default();
    let page = [
        ("xmlns", "http://www.w3.org/2000/svg"),
        ("viewBox", &format!("0 0 {WIDTH} {HEIGHT}")),
        ("width", WIDTH),
        ("height", HEIGHT),
        ("role", "img"),
    ];
    out.within("svg", &page, |svg| {
        svg.newline();
        svg.element("title", &[], "Loss by update");
        svg.element("desc", &[], &chart.describe());
        svg.within("style", &[], |style| {
            style.verbatim(COLOURS);
            style.verbatim(STYLE);
        });
        svg.empty(
            "rect",
            &[("width", WIDTH), ("height", HEIGHT), ("fill", "#fff")],
        );
        let area = [
            ("class", "plot"),
            ("x", "60"),
            ("y", "30"),
            ("width", "500"),
            ("height", "320"),
        ];
        svg.within("svg", &area, |svg| chart.draw(svg));
        svg.newline();
    });
    out.newline();
    out.as_str().to_owned()
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
        assert!(text.contains("train, smooth"));
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
}
