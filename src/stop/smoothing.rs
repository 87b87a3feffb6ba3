//! Smoothing of a noisy metric before a rule looks at it.

use crate::number::Number;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How a rule smooths its metric: `none`, `{ema: 0.9}`, `{mean: 10}` or `{median: 5}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smoothing {
    /// The metric as it is.
    #[default]
    None,
    /// Exponential moving average with this weight of the past, in [0, 1), corrected for its start:
    /// after n values, Σ (1−d)·dⁿ⁻ⁱ·xᵢ / (1 − dⁿ). The first value stands for itself.
    Ema(f64),
    /// Mean of the last so many values (of all there are, until there are that many).
    Mean(usize),
    /// Median of the last so many values; of an even number, the middle of the middle two.
    Median(usize),
}

/// The longest window, in observations.
pub(super) const MAX_WINDOW: usize = 100_000;

/// What a [`Smoothing`] remembers. Only finite values enter it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Smoother {
    /// The smoothed value, none before the first finite one.
    pub value: Option<Number>,
    /// 1 − dⁿ: the weight that an exponential average has gathered.
    weight: f64,
    /// The last values, oldest first, of a window.
    window: VecDeque<Number>,
}

impl Smoother {
    /// Takes in the next value, which must be finite, and returns the smoothed one.
    pub fn push(&mut self, smoothing: Smoothing, x: f64) -> f64 {
        let value = match smoothing {
            Smoothing::None => x,
            Smoothing::Ema(decay) => {
                // As a step towards x, so that a constant stays exactly that constant.
                self.weight = decay * self.weight + (1.0 - decay);
                let previous = self.value.map_or(0.0, |v| v.0);
                match self.value {
                    None => x,
                    Some(_) => previous + (x - previous) * ((1.0 - decay) / self.weight),
                }
            }
            Smoothing::Mean(length) => {
                self.slide(length, x);
                let means = self.window.iter().zip(1u32..);
                means.fold(0.0, |mean, (v, n)| mean + (v.0 - mean) / f64::from(n))
            }
            Smoothing::Median(length) => {
                self.slide(length, x);
                let mut sorted: Vec<f64> = self.window.iter().map(|v| v.0).collect();
                sorted.sort_by(f64::total_cmp);
                let upper = sorted[sorted.len() / 2];
                let lower = sorted[(sorted.len() - 1) / 2];
                lower + (upper - lower) / 2.0
            }
        };
        self.value = Some(Number(value));
        value
    }

    fn slide(&mut self, length: usize, x: f64) {
        while self.window.len() >= length.max(1) {
            self.window.pop_front();
        }
        self.window.push_back(Number(x));
    }
}
