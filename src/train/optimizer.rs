//! The optimizer over the parameter table: norm, clip, AdamW.
//!
//! Parameters that are treated alike and lie next to each other are updated together, the alignment
//! gaps between them included: all four arrays hold zeros there, of which AdamW makes zeros.

use super::network::Network;
use crate::error::Result;
use crate::model::{ALIGNMENT, Param, ParamTable};
use crate::ops::{AdamWStep, Backend, ClipStats, Region};
use std::ops::Range;

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

/// A part of the flat parameter space that one launch updates.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UpdateGroup {
    elements: Range<usize>,
    decay: bool,
}

/// The trainable parts of the table, by offset.
pub(super) fn update_groups(table: &ParamTable) -> Vec<UpdateGroup> {
    let mut params: Vec<&Param> = table.params.iter().filter(|p| p.trainable).collect();
    params.sort_by_key(|p| p.offset);
    let mut groups: Vec<UpdateGroup> = Vec::new();
    for param in params {
        let elements = param.offset..param.offset + param.len();
        // Matrices have operands and vectors have not.
        let alike = |group: &UpdateGroup| {
            let first = group.elements.start;
            group.decay == param.decay
                && (first < table.matrices_len) == (param.offset < table.matrices_len)
                && param.offset - group.elements.end < ALIGNMENT
        };
        match groups.last_mut().filter(|group| alike(group)) {
            Some(group) => group.elements.end = elements.end,
            None => groups.push(UpdateGroup {
                elements,
                decay: param.decay,
            }),
        }
    }
    groups
}

impl<B: Backend> Network<B> {
    /// Applies the accumulated gradient, which is `loss_scale` times too large, and zeroes it. When its
    /// norm is not finite, the weights and the optimizer's state stay as they were.
    ///
    /// # Errors
    /// `Device`, also for earlier work that failed.
    pub fn update(
        &mut self,
        options: &AdamWOptions,
        learning_rate: f64,
        loss_scale: f64,
    ) -> Result<ClipStats> {
        let l = &self.layout;
        let (unscale, max_norm) = ((1.0 / loss_scale) as f32, options.max_grad_norm as f32);
        self.backend
            .grad_norm(l.gradients, unscale, max_norm, l.clip);
        let mut step = AdamWStep {
            learning_rate,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: 0.0,
            step: self.updates + 1,
        };
        for group in &self.groups {
            let (start, len) = (group.elements.start, group.elements.len());
            let part = |all: Region| all.slice(start, len);
            let operands = (start < l.operands.len).then(|| part(l.operands));
            step.weight_decay = if group.decay {
                options.weight_decay
            } else {
                0.0
            };
            let (weights, gradients) = (part(l.weights), part(l.gradients));
            let (m, v) = (part(l.m), part(l.v));
            self.backend
                .adamw(step, l.clip, weights, gradients, m, v, operands);
        }
        let results = self.download_results(0);
        let clip = ClipStats::from_slice(&[results[0], results[1], results[2]]);
        self.backend.status()?;
        if clip.finite != 0.0 {
            self.updates += 1;
        }
        Ok(clip)
    }

    /// Throws the accumulated gradient away, as after a failed micro-batch.
    pub fn zero_gradients(&mut self) {
        self.backend.fill(self.layout.gradients, 0.0);
        self.pending_stats = 0;
        self.sums = Default::default();
    }
}
