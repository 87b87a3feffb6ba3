//! Charts as SVG, from plain points: pure functions, for the report of a run and for its loss curve.

pub mod chart;
pub mod number;
pub mod scale;
pub mod thin;

/// A point of a series: the update, and the value, which may be no finite number.
pub type Point = (f64, f64);

/// How the parts of a [`chart::Chart`] look; colours are variables that the page sets.
pub const STYLE: &str = include_str!("plot.css");

/// Points that a mean is taken over, at most.
const LONGEST_WINDOW: usize = 500;

/// Points that [`moving_average`] takes each mean over: a twentieth of the series.
pub fn window(points: usize) -> usize {
    (points / 20).clamp(1, LONGEST_WINDOW)
}

/// Mean over the trailing [`window`]; what is not finite stays in its place and enters no mean.
pub fn moving_average(points: &[Point]) -> Vec<Point> {
    let window = window(points.len());
    let mean = |i: usize| {
        let share = &points[(i + 1).saturating_sub(window)..=i];
        let finite = share.iter().map(|p| p.1).filter(|y| y.is_finite());
        finite.clone().sum::<f64>() / finite.count() as f64
    };
    let smooth = |(i, &(x, y)): (usize, &Point)| (x, if y.is_finite() { mean(i) } else { y });
    points.iter().enumerate().map(smooth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moving_average_is_the_mean_of_its_window() {
        let points: Vec<Point> = (0..60).map(|i| (f64::from(i), f64::from(i))).collect();
        let means = moving_average(&points);
        assert_eq!(means[0], (0.0, 0.0));
        assert!((means[59].1 - 58.0).abs() < 1e-9, "{:?}", means[59]);
    }

    #[test]
    fn the_moving_average_passes_over_what_is_not_finite() {
        let mut points: Vec<Point> = (0..40).map(|i| (f64::from(i), 4.0)).collect();
        points[20].1 = f64::NAN;
        points[21].1 = 6.0;
        let means = moving_average(&points);
        assert!(means[20].1.is_nan());
        assert_eq!((means[19].1, means[21].1, means[22].1), (4.0, 6.0, 5.0));
        assert!(moving_average(&[]).is_empty());
    }
}
