//! Softmax cross-entropy over a chunk of logits, and its gradient in place.
//!
//! With lse = log Σⱼ e^zⱼ and pⱼ = e^(zⱼ − lse):
//!
//! ```text
//! forward   loss = lse − z_label,   entropy = lse − Σⱼ pⱼ zⱼ
//! backward  dzⱼ  = scale · (pⱼ − [j = label])
//! ```

use super::cpu::element::{Element, by_format, with_buffers};
use super::cpu::vector::{exp, max, sum2, vectorised};
use super::{Cpu, Indices, Region};
use rayon::prelude::*;

/// What is known of one supervised position, as it lies in a region: `(S, 3)` float32.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct TokenStats {
    /// −log p of the label, in nats.
    pub loss: f32,
    /// Entropy of the prediction, in nats.
    pub entropy: f32,
    /// 1 where the label is the most likely token (the first of equals), else 0.
    pub correct: f32,
}

impl TokenStats {
    /// Numbers of one position.
    pub const WIDTH: usize = 3;
}

/// The loss of predicting labels from logits, which may be in half precision.
pub trait CrossEntropy {
    /// logits `(S, vocab)`, labels `(S)` → stats `(S, 3)`.
    fn cross_entropy_forward(&mut self, logits: Region, labels: Indices, stats: Region);

    /// As the forward, and turns logits into `scale` times their gradient.
    fn cross_entropy_forward_backward(
        &mut self,
        logits: Region,
        labels: Indices,
        stats: Region,
        scale: f32,
    );
}

impl CrossEntropy for Cpu {
    fn cross_entropy_forward(&mut self, logits: Region, labels: Indices, stats: Region) {
        let ([logits], [labels], [stats]) = self.arena.views([logits], [labels], [stats]);
        let stats = stats.f32();
        let pool = &self.pool;
        by_format!(logits.dtype, T => {
            pool.install(|| forward(logits.of::<T>(), labels, stats))
        });
    }

    fn cross_entropy_forward_backward(
        &mut self,
        logits: Region,
        labels: Indices,
        stats: Region,
        scale: f32,
    ) {
        let ([], [labels], [logits, stats]) = self.arena.views([], [labels], [logits, stats]);
        let stats = stats.f32();
        let pool = &self.pool;
        by_format!(logits.dtype, T => {
            pool.install(|| forward_backward(logits.of::<T>(), labels, stats, scale))
        });
    }
}

fn forward<T: Element>(logits: &[T], labels: &[i32], stats: &mut [f32]) {
    let vocab = logits.len() / labels.len().max(1);
    stats
        .par_chunks_mut(TokenStats::WIDTH)
        .zip(logits.par_chunks(vocab.max(1)))
        .zip(labels)
        .for_each(|((stats, logits), &label)| {
            with_buffers(|[buffer, ..]| {
                let (row, _) = vectorised(
                    #[inline(always)]
                    || forward_row(T::read(logits, buffer), label as usize),
                );
                stats.copy_from_slice(&[row.loss, row.entropy, row.correct]);
            });
        });
}

fn forward_backward<T: Element>(logits: &mut [T], labels: &[i32], stats: &mut [f32], scale: f32) {
    let vocab = logits.len() / labels.len().max(1);
    stats
        .par_chunks_mut(TokenStats::WIDTH)
        .zip(logits.par_chunks_mut(vocab.max(1)))
        .zip(labels)
        .for_each(|((stats, logits), &label)| {
            with_buffers(|[buffer, ..]| {
                vectorised(
                    #[inline(always)]
                    || {
                        let row = T::update(
                            logits,
                            buffer,
                            #[inline(always)]
                            |logits| forward_backward_row(logits, label as usize, scale),
                        );
                        stats.copy_from_slice(&[row.loss, row.entropy, row.correct]);
                    },
                );
            });
        });
}

/// The statistics of one position; its logits become `scale` times their gradient.
#[inline(always)]
fn forward_backward_row(logits: &mut [f32], label: usize, scale: f32) -> TokenStats {
    let (row, [top, log_total]) = forward_row(logits, label);
    // lse = top + log_total, subtracted one by one: their sum would round to the precision of the
    // largest logit.
    for z in logits.iter_mut() {
        *z = scale * exp((*z - top) - log_total);
    }
    logits[label] -= scale;
    row
}

/// The statistics of one position, and its lse as the sum of the largest logit and the rest.
#[inline(always)]
fn forward_row(logits: &[f32], label: usize) -> (TokenStats, [f32; 2]) {
    let top = max(logits);
    let total = sum2(logits, logits, |z, _| exp(z - top));
    // A logit of −∞ has p = 0 and no part in the entropy: 0 times a finite number, not 0 · ∞.
    let weighted = sum2(logits, logits, |z, _| {
        exp(z - top) * (z - top).max(f32::MIN)
    });
    let log_total = total.ln();
    let z = logits[label];
    let correct = z == top && !logits[..label].contains(&top);
    let stats = TokenStats {
        loss: log_total - (z - top),
        entropy: log_total - weighted / total,
        correct: f32::from(u8::from(correct)),
    };
    (stats, [top, log_total])
}
