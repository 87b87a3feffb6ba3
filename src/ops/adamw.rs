//! AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"), in the form of
//! `torch.optim.AdamW`. At update t, with g already clipped:
//!
//! ```text
//! w ← w − lr · weight_decay · w
//! m ← β₁ m + (1 − β₁) g
//! v ← β₂ v + (1 − β₂) g²
//! w ← w − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```

use super::cpu::vector::vectorised;
use super::{Cast, Cpu, Region};
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
        let master = weights;
        let ([clip], [weights, gradients, m, v]) =
            self.arena.split([clip], [weights, gradients, m, v]);
        let (scale, finite) = (clip[1], clip[2] != 0.0);
        if !finite {
            gradients.fill(0.0);
            return;
        }
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = (1.0 - step.beta2.powf(step.step as f64)).sqrt();
        let decay = (1.0 - step.learning_rate * step.weight_decay) as f32;
        let rate = (step.learning_rate / correction1) as f32;
        let root_scale = (1.0 / correction2) as f32;
        let (beta1, beta2, epsilon) = (step.beta1 as f32, step.beta2 as f32, step.epsilon as f32);
        let (rest1, rest2) = ((1.0 - step.beta1) as f32, (1.0 - step.beta2) as f32);
        self.pool.install(|| {
            weights
                .par_chunks_mut(ELEMENTS_PER_TASK)
                .zip(gradients.par_chunks_mut(ELEMENTS_PER_TASK))
                .zip(m.par_chunks_mut(ELEMENTS_PER_TASK))
                .zip(v.par_chunks_mut(ELEMENTS_PER_TASK))
                .for_each(|(((weights, gradients), m), v)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            let moments = m.iter_mut().zip(v.iter_mut());
                            let values = weights.iter_mut().zip(gradients.iter_mut());
                            for ((w, gradient), (m, v)) in values.zip(moments) {
                                let g = *gradient * scale;
                                *gradient = 0.0;
                                *m = beta1 * *m + rest1 * g;
                                *v = beta2 * *v + rest2 * g * g;
                                *w = *w * decay - rate * *m / (v.sqrt() * root_scale + epsilon);
                            }
                        },
                    );
                });
        });
        if let Some(operands) = operands {
            self.cast(master, operands);
        }
    }
}
