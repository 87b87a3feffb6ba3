//! The optimizer over the parameter table: norm, clip, AdamW.

use super::network::Network;
use crate::ops::{AdamWStep, Backend, ClipStats};

/// The settings of the optimizer, learning rate apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// Weight decay of tensors that decay.
    pub weight_decay: f64,
    /// Norm to clip to; 0 does not clip.
    pub max_grad_norm: f64,
}

impl<B: Backend> Network<B> {
    /// Applies the accumulated gradient and zeroes it. When its norm is not finite, the weights and
    /// the optimizer's state stay as they were.
    pub fn update(&mut self, options: &AdamWOptions, learning_rate: f64) -> ClipStats {
        let l = &self.layout;
        self.backend
            .grad_norm(l.gradients, 1.0, options.max_grad_norm as f32, l.clip);
        let mut step = AdamWStep {
            learning_rate,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: 0.0,
            step: self.updates + 1,
        };
        // Neighbours in the table that decay alike are updated together.
        let mut params = self.table.params.iter().filter(|p| p.trainable).peekable();
        while let Some(first) = params.next() {
            let mut end = first.offset + first.len();
            while let Some(next) = params.next_if(|p| p.decay == first.decay && p.offset == end) {
                end += next.len();
            }
            let part = |all: crate::ops::Region| all.slice(first.offset, end - first.offset);
            step.weight_decay = if first.decay {
                options.weight_decay
            } else {
                0.0
            };
            let (weights, gradients) = (part(l.weights), part(l.gradients));
            self.backend
                .adamw(step, l.clip, weights, gradients, part(l.m), part(l.v), None);
        }
        let mut clip = [0.0; ClipStats::WIDTH];
        self.backend.download(l.clip, &mut clip);
        let clip = ClipStats::from_slice(&clip);
        if clip.finite != 0.0 {
            self.updates += 1;
        }
        clip
    }

    /// Throws the accumulated gradient away, as after a failed micro-batch.
    pub fn zero_gradients(&mut self) {
        self.backend.fill(self.layout.gradients, 0.0);
        self.pending_stats = 0;
        self.sums = Default::default();
    }
}
