//! Dynamic loss scaling for float16, by the rule of `torch.amp.GradScaler`. Pure.
//!
//! Gradients of activations pass through float16, whose smallest normal number is 6·10⁻⁵: what is
//! smaller would lose its digits and then vanish. So the loss is multiplied by a power of two, the
//! optimizer divides it out again, and the largest power that does not overflow is found by trying:
//!
//! ```text
//! gradient not finite:            the update is skipped, scale ← scale / 2
//! 2000 applied updates in a row:  scale ← 2 · scale
//! ```
//!
//! Two questions that the rule raises, and the answers here:
//!
//! - **What do the stop rules see of an overflow?** Nothing while a smaller scale is left to try: it is
//!   a fault of the scale, not of the model, and expected in the first updates of every run. At the
//!   smallest scale, 1, nothing is scaled any more, so an overflow is the model's and the `non_finite`
//!   rule counts it. The loss is computed before the scale is applied, so a NaN loss is always the
//!   model's and always counted. (GradScaler has no smallest scale: a broken model makes it halve for
//!   ever, towards zero gradients.)
//! - **What else does a skipped update advance?** Its number, the epoch and the learning-rate schedule,
//!   so that the learning rate depends on the update's number alone; not the optimizer's own count of
//!   steps. So does the peer with its default, the fused AdamW. (With `optim: adamw_torch` its schedule
//!   waits: accelerate sees only what the optimizer did not do itself.)

use crate::report::MIN_LOSS_SCALE;
use serde::{Deserialize, Serialize};

/// The factor on the loss, and how long it has held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f64,
    applied_in_a_row: u32,
}

impl LossScale {
    /// The scale of the first update.
    pub const INITIAL: f64 = 65536.0;
    /// Applied updates after which the scale grows.
    pub const GROWTH_INTERVAL: u32 = 2000;
    const GROWTH: f64 = 2.0;
    const BACKOFF: f64 = 0.5;

    /// What the next update's loss is multiplied by: a power of two.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes in whether the gradient of an update was finite, that is, whether it was applied.
    pub fn observe(&mut self, applied: bool) {
        if !applied {
            self.scale = (self.scale * Self::BACKOFF).max(MIN_LOSS_SCALE);
            self.applied_in_a_row = 0;
            return;
        }
        self.applied_in_a_row += 1;
        if self.applied_in_a_row == Self::GROWTH_INTERVAL {
            let grown = self.scale * Self::GROWTH;
            if grown <= f64::from(f32::MAX) {
                self.scale = grown;
            }
            self.applied_in_a_row = 0;
        }
    }
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            scale: Self::INITIAL,
            applied_in_a_row: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule as PyTorch's `_amp_update_scale_` has it, in float32, with the floor.
    fn reference((scale, tracker): (f32, u32), finite: bool) -> (f32, u32) {
        match finite {
            false => ((scale * 0.5).max(1.0), 0),
            true if tracker + 1 < 2000 => (scale, tracker + 1),
            true if (scale * 2.0).is_finite() => (scale * 2.0, 0),
            true => (scale, 0),
        }
    }

    proptest! {
        #[test]
        fn the_scale_is_that_of_the_peer_and_survives_serialisation(
            runs in prop::collection::vec((0usize..4500, 0usize..4), 1..20),
            cut in 0usize..20,
        ) {
            let mut state = LossScale::default();
            let mut expected = (65536.0f32, 0);
            for (i, &(applied, skipped)) in runs.iter().enumerate() {
                if i == cut {
                    let text = serde_json::to_string(&state).unwrap();
                    state = serde_json::from_str(&text).unwrap();
                }
                for update in 0..applied + skipped {
                    state.observe(update < applied);
                    expected = reference(expected, update < applied);
                    prop_assert_eq!(state.scale(), f64::from(expected.0));
                }
                // A power of two: no fraction beside the exponent.
                prop_assert_eq!(state.scale().to_bits() << 12, 0);
            }
        }
    }

    #[test]
    fn a_model_that_always_overflows_reaches_the_smallest_scale_and_stays() {
        let mut state = LossScale::default();
        let scales: Vec<f64> = (0..20)
            .map(|_| {
                state.observe(false);
                state.scale()
            })
            .collect();
        assert_eq!(scales[0], 32768.0);
        assert_eq!(scales[15], 1.0);
        assert_eq!(scales[19], 1.0);
    }

    #[test]
    fn one_skipped_update_starts_the_count_again() {
        let mut state = LossScale::default();
        (0..1999).for_each(|_| state.observe(true));
        state.observe(false);
        (0..1999).for_each(|_| state.observe(true));
        assert_eq!(state.scale(), 32768.0);
        state.observe(true);
        assert_eq!(state.scale(), 65536.0);
    }

    #[test]
    fn the_scale_stays_a_float32() {
        let mut state = LossScale::default();
        (0..200 * 2000).for_each(|_| state.observe(true));
        // The largest power of two, 2^127.
        assert_eq!(state.scale(), f64::from(f32::from_bits(0x7f00_0000)));
    }
}
