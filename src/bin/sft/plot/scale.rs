//! An axis: from values to places between 0 and 1, and the round numbers beside it.

use super::number::{trimmed, with_exponent};

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Evenly.
    Linear {
        /// The value at 0.
        low: f64,
        /// The value at 1.
        high: f64,
    },
    /// By their logarithm; both ends are positive.
    Log {
        /// The value at 0.
        low: f64,
        /// The value at 1.
        high: f64,
    },
}

/// A round number beside an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// The value.
    pub value: f64,
    /// How it is written.
    pub label: String,
}

/// Largest and least of the finite values.
pub fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|v| v.is_finite());
    finite.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((v.min(low), v.max(high))),
    })
}

impl Scale {
    /// An even axis over the finite `values` with some air. It starts at 0 where that costs little.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let Some((low, high)) = range(values) else {
            return Scale::Linear {
                low: 0.0,
                high: 1.0,
            };
        };
        let air = if high > low {
            0.05 * (high - low).min(f64::MAX)
        } else if low == 0.0 {
            0.5
        } else {
            0.5 * low.abs()
        };
        let bottom = if low >= 0.0 && low <= 0.3 * high {
            0.0
        } else {
            (low - air).max(f64::MIN)
        };
        let top = if high <= 0.0 && low < 0.0 && high >= 0.3 * low {
            0.0
        } else {
            (high + air).min(f64::MAX)
        };
        Scale::Linear {
            low: bottom,
            high: top,
        }
    }

    /// By the logarithm if the positive ones of `values` span two decades and none is negative, else
    /// even. A zero has no place on a logarithmic axis.
    pub fn fitting(values: impl IntoIterator<Item = f64> + Clone) -> Self {
        let finite = || values.clone().into_iter().filter(|v| v.is_finite());
        let positive = range(finite().filter(|&v| v > 0.0));
        match positive {
            Some((low, high)) if high / low >= 100.0 && finite().all(|v| v >= 0.0) => {
                let air = (high / low).powf(0.04).min(10.0);
                Scale::Log {
                    low: (low / air).max(f64::from_bits(1)),
                    high: (high * air).min(f64::MAX),
                }
            }
            _ => Self::linear(finite()),
        }
    }

    /// The values at both ends.
    pub fn ends(self) -> (f64, f64) {
        match self {
            Scale::Linear { low, high } | Scale::Log { low, high } => (low, high),
        }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high end. `None` for what has no place.
    pub fn place(self, value: f64) -> Option<f64> {
        let (value, low, high) = match self {
            Scale::Linear { low, high } => (value, low, high),
            Scale::Log { .. } if value <= 0.0 => return None,
            Scale::Log { low, high } => (value.ln(), low.ln(), high.ln()),
        };
        // Halved, so that no difference of finite numbers overflows.
        let share = (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0);
        share.is_finite().then_some(share)
    }

    /// About `wanted` round numbers on the axis, ascending.
    pub fn ticks(self, wanted: usize) -> Vec<Tick> {
        match self {
            Scale::Linear { low, high } => linear_ticks(low, high, wanted),
            Scale::Log { low, high } => log_ticks(low, high, wanted),
        }
    }
}

fn linear_ticks(low: f64, high: f64, wanted: usize) -> Vec<Tick> {
    let rough = (high - low) / wanted.max(1) as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return Vec::new();
    }
    let power = rough.log10().floor() as i32;
    let round = [1.0, 2.0, 5.0, 10.0].map(|digit| scaled(digit, power));
    let Some(step) = round.into_iter().find(|&step| step >= rough * 0.999) else {
        return Vec::new();
    };
    // A range so narrow around a large number that its steps cannot be told apart has no ticks.
    if low + step == low {
        return Vec::new();
    }
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    let values: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
    let largest = values.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    values
        .into_iter()
        .map(|value| Tick {
            value,
            label: label(value, step, largest),
        })
        .collect()
}

/// digit × 10^power, as exact as a decimal literal.
fn scaled(digit: f64, power: i32) -> f64 {
    format!("{digit}e{power}").parse().unwrap_or(f64::NAN)
}

/// `value` with as many digits as tell it from its neighbours, a `step` away.
fn label(value: f64, step: f64, largest: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = if largest >= 1e6 && step % 1e5 == 0.0 && largest < 1e9 {
        format!("{}M", trimmed(&format!("{:.1}", value / 1e6)))
    } else if largest >= 1e4 && step % 100.0 == 0.0 && largest < 1e6 {
        format!("{}k", trimmed(&format!("{:.1}", value / 1e3)))
    } else if (1e-3..1e6).contains(&largest) {
        let decimals = (-(step * 1.001).log10().floor()).max(0.0) as usize;
        format!("{value:.decimals$}")
    } else {
        let digits = (largest.log10().floor() - (step * 1.001).log10().floor()).max(0.0) as usize;
        return with_exponent(&format!("{value:.digits$e}"));
    };
    text.replace('-', "−")
}

fn log_ticks(low: f64, high: f64, wanted: usize) -> Vec<Tick> {
    let (first, last) = (low.log10().floor() as i32, high.log10().floor() as i32);
    // The decade that the axis begins in rarely begins on it.
    let decades = (last - first).max(1) as usize;
    let stride = decades.div_ceil(wanted.max(1));
    let inside = |value: &f64| (low..=high).contains(value);
    let digits: &[f64] = if (high / low).log10() < 2.5 {
        &[1.0, 3.0]
    } else {
        &[1.0]
    };
    (first..=last)
        .filter(|power| power.rem_euclid(stride as i32) == 0)
        .flat_map(|power| digits.iter().map(move |&digit| scaled(digit, power)))
        .filter(inside)
        .map(|value| Tick {
            value,
            label: label(value, value, value),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks(5).into_iter().map(|tick| tick.label).collect()
    }

    fn linear(low: f64, high: f64) -> Scale {
        Scale::Linear { low, high }
    }

    #[test]
    fn ticks_are_round_and_tell_each_other_apart() {
        assert_eq!(labels(linear(0.0, 5.0)), ["0", "1", "2", "3", "4", "5"]);
        assert_eq!(
            labels(linear(-1.0, 1.0)),
            ["−1.0", "−0.5", "0", "0.5", "1.0"]
        );
        assert_eq!(
            labels(linear(1000.05, 1000.35)),
            ["1000.1", "1000.2", "1000.3"]
        );
        assert_eq!(
            labels(linear(0.0, 2e-5)),
            ["0", "5e−6", "1e−5", "1.5e−5", "2e−5"]
        );
        assert_eq!(
            labels(linear(0.0, 100_000.0)),
            ["0", "20k", "40k", "60k", "80k", "100k"]
        );
        assert_eq!(labels(linear(0.0, 3e6)), ["0", "1M", "2M", "3M"]);
    }

    #[test]
    fn ticks_lie_inside_for_any_range() {
        let ends = [
            -1e300, -7.3, 0.0, 1e-300, 1e-9, 0.017, 3.0, 997.0, 1e12, 1e300,
        ];
        for (i, &low) in ends.iter().enumerate() {
            for &high in &ends[i + 1..] {
                let ticks = linear(low, high).ticks(5);
                assert!(ticks.len() <= 11, "{low} {high}: {ticks:?}");
                let place = |tick: &Tick| linear(low, high).place(tick.value).unwrap();
                assert!(
                    ticks
                        .iter()
                        .all(|t| (-1e-9..=1.0 + 1e-9).contains(&place(t))),
                    "{low} {high}: {ticks:?}"
                );
            }
        }
        assert!(linear(1.0, 1.0).ticks(5).is_empty());
        assert!(linear(1e16, 1e16 + 2.0).ticks(5).len() < 12);
    }

    #[test]
    fn a_span_of_two_decades_is_logarithmic() {
        let scale = Scale::fitting([0.5, 70.0, f64::NAN]);
        assert!(matches!(scale, Scale::Log { .. }), "{scale:?}");
        assert_eq!(labels(scale), ["1", "3", "10", "30"]);
        assert_eq!(scale.place(0.0), None);
        assert!(matches!(Scale::fitting([0.5, 20.0]), Scale::Linear { .. }));
        assert!(matches!(
            Scale::fitting([-1.0, 0.1, 99.0]),
            Scale::Linear { .. }
        ));
        let wide = Scale::fitting([1e-8, 1e12]);
        let ticks = wide.ticks(5);
        assert!((3..=7).contains(&ticks.len()), "{ticks:?}");
        assert_eq!(
            labels(Scale::fitting([1.0, 1e4])),
            ["1", "10", "100", "1000", "10k"]
        );
    }

    #[test]
    fn the_axis_holds_all_finite_values() {
        for values in [
            vec![1.0, 2.0],
            vec![2e-5],
            vec![0.0],
            vec![-3.0, -2.0],
            vec![f64::MAX, -f64::MAX],
            vec![1e-320, 1e300],
            vec![f64::NAN, 4.0, f64::INFINITY],
            vec![],
        ] {
            for scale in [
                Scale::linear(values.clone()),
                Scale::fitting(values.clone()),
            ] {
                for &value in values.iter().filter(|v| v.is_finite()) {
                    let place = scale.place(value).unwrap();
                    assert!(
                        (-1e-9..=1.0 + 1e-9).contains(&place),
                        "{values:?} {scale:?}"
                    );
                }
                assert_eq!(scale.place(f64::NAN), None);
            }
        }
    }

    #[test]
    fn a_positive_quantity_starts_at_zero() {
        assert_eq!(Scale::linear([1.0, 9.0]).ends().0, 0.0);
        assert!(Scale::linear([8.0, 9.0]).ends().0 > 7.0);
    }
}
