//! AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"), in the form of
//! `torch.optim.AdamW`. At update t, with g already clipped:
//!
//! ```text
//! w ← w − lr · weight_decay · w
//! m ← β₁ m + (1 − β₁) g
//! v ← β₂ v + (1 − β₂) g²
//! w ← w − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```

use super::cpu::element::{Element, by_format};
use super::cpu::vector::vectorised;
use super::{Cpu, Region};
use rayon::prelude::*;

/// The numbers of one optimizer update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// ε, added to the root.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, from 1.
    pub step: u64,
}

/// The optimizer.
pub trait AdamW {
    /// Updates weights, m and v, all `(n)` float32, from gradients `(n)` times the factor in clip
    /// ([`ClipStats`](super::ClipStats)), and zeroes the gradients for the next accumulation. When
    /// clip says that the norm is not finite, only the gradients are zeroed. `operands` `(n)`, if
    /// given, gets the new weights rounded to its half-precision format, for the matrix products.
    #[allow(clippy::too_many_arguments)]
    fn adamw(
        &mut self,
        step: AdamWStep,
        clip: Region,
        weights: Region,
        gradients: Region,
        m: Region,
        v: Region,
        operands: Option<Region>,
    );
}

/// Elements that one task updates.
const ELEMENTS_PER_TASK: usize = 1 << 14;

impl AdamW for Cpu {
    fn adamw(
        &mut self,
        step: AdamWStep,
        clip: Region,
        weights: Region,
        gradients: Region,
        m: Region,
        v: Region,
        operands: Option<Region>,
    ) {
        let operands = operands.unwrap_or(Region::EMPTY);
        let ([clip], [], [weights, gradients, m, v, operands]) =
            self.arena
                .views([clip], [], [weights, gradients, m, v, operands]);
        let (clip, gradients) = (clip.f32(), gradients.f32());
        let (scale, finite) = (clip[1], clip[2] != 0.0);
        if !finite {
            gradients.fill(0.0);
            return;
        }
        let update = Update::new(step, scale);
        let tasks = (weights.f32().par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(gradients.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(m.f32().par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(v.f32().par_chunks_mut(ELEMENTS_PER_TASK));
        let pool = &self.pool;
        by_format!(operands.dtype, T => {
            let operands = operands.of::<T>();
            pool.install(|| match operands.is_empty() {
                true => tasks.for_each(|(((w, g), m), v)| update.apply::<T>(w, g, m, v, None)),
                false => tasks
                    .zip(operands.par_chunks_mut(ELEMENTS_PER_TASK))
                    .for_each(|((((w, g), m), v), operands)| {
                        update.apply(w, g, m, v, Some(operands));
                    }),
            });
        });
    }
}

/// The constants of one update, rounded to float32 once.
struct Update {
    scale: f32,
    decay: f32,
    rate: f32,
    root_scale: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    epsilon: f32,
}

/// Elements whose new weights are still in the first cache when they are rounded.
const ROUNDED_AT_ONCE: usize = 1 << 10;

impl Update {
    fn new(step: AdamWStep, scale: f32) -> Self {
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = (1.0 - step.beta2.powf(step.step as f64)).sqrt();
        Self {
            scale,
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            rate: (step.learning_rate / correction1) as f32,
            root_scale: (1.0 / correction2) as f32,
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            rest1: (1.0 - step.beta1) as f32,
            rest2: (1.0 - step.beta2) as f32,
            epsilon: step.epsilon as f32,
        }
    }

    /// Updates some elements, and rounds the new weights.
    fn apply<T: Element>(
        &self,
        weights: &mut [f32],
        gradients: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        mut operands: Option<&mut [T]>,
    ) {
        vectorised(
            #[inline(always)]
            || {
                let moments = (m.chunks_mut(ROUNDED_AT_ONCE)).zip(v.chunks_mut(ROUNDED_AT_ONCE));
                let values = (weights.chunks_mut(ROUNDED_AT_ONCE))
                    .zip(gradients.chunks_mut(ROUNDED_AT_ONCE));
                for (i, ((weights, gradients), (m, v))) in values.zip(moments).enumerate() {
                    self.apply_to(weights, gradients, m, v);
                    if let Some(operands) = &mut operands {
                        let start = i * ROUNDED_AT_ONCE;
                        T::narrow(weights, &mut operands[start..start + weights.len()]);
                    }
                }
            },
        );
    }

    #[inline(always)]
    fn apply_to(&self, weights: &mut [f32], gradients: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let Update { beta1, beta2, .. } = *self;
        let moments = m.iter_mut().zip(v);
        let values = weights.iter_mut().zip(gradients);
        for ((w, gradient), (m, v)) in values.zip(moments) {
            let g = *gradient * self.scale;
            *gradient = 0.0;
            *m = beta1 * *m + self.rest1 * g;
            *v = beta2 * *v + self.rest2 * g * g;
            let root = v.sqrt() * self.root_scale;
            *w = *w * self.decay - self.rate * *m / (root + self.epsilon);
        }
    }
}
