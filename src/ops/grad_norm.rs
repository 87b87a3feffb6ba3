//! The L2 norm of the whole gradient, and the factor that clips it (`torch.nn.utils.clip_grad_norm_`).
//!
//! ```text
//! norm = unscale · √Σ g²,   scale = unscale · min(1, max_norm / (norm + 10⁻⁶)),   no min when max_norm is 0
//! ```
//!
//! `unscale` is one over the loss scale of fp16 training, else 1.

use super::cpu::vector::vectorised;
use super::{Cpu, Region};
use rayon::prelude::*;

/// What [`GradNorm`] leaves on the device for [`AdamW`](super::AdamW) and the host: `(3)` float32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClipStats {
    /// The norm before clipping, without the loss scale.
    pub norm: f32,
    /// What the optimizer multiplies the gradient by.
    pub scale: f32,
    /// 1 when the norm is finite as a float32; 0 makes the optimizer leave everything as it is.
    pub finite: f32,
}

impl ClipStats {
    /// Numbers in the region.
    pub const WIDTH: usize = 3;

    /// The stats of a downloaded region.
    pub fn from_slice(values: &[f32; Self::WIDTH]) -> Self {
        Self {
            norm: values[0],
            scale: values[1],
            finite: values[2],
        }
    }
}

/// Measures the gradient.
pub trait GradNorm {
    /// gradients `(n)`, `1 / unscale` times too large → clip `(3)`, see [`ClipStats`]. `max_norm` 0
    /// does not clip.
    fn grad_norm(&mut self, gradients: Region, unscale: f32, max_norm: f32, clip: Region);
}

/// Elements whose squares one task adds up.
const ELEMENTS_PER_TASK: usize = 1 << 16;

impl GradNorm for Cpu {
    fn grad_norm(&mut self, gradients: Region, unscale: f32, max_norm: f32, clip: Region) {
        let ([gradients], [clip]) = self.arena.split([gradients], [clip]);
        let partials: Vec<f64> = self.pool.install(|| {
            gradients
                .par_chunks(ELEMENTS_PER_TASK)
                .map(sum_of_squares)
                .collect()
        });
        let unscale = f64::from(unscale);
        let norm = unscale * partials.iter().sum::<f64>().sqrt();
        let scale = if max_norm > 0.0 {
            unscale * (f64::from(max_norm) / (norm + 1e-6)).min(1.0)
        } else {
            unscale
        };
        let finite = f32::from(u8::from((norm as f32).is_finite()));
        clip.copy_from_slice(&[norm as f32, scale as f32, finite]);
    }
}

/// Σ g² in float64, 8 partial sums at a time.
fn sum_of_squares(values: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; 8];
            let chunks = values.chunks_exact(8);
            let tail: f64 = chunks
                .remainder()
                .iter()
                .map(|&g| f64::from(g) * f64::from(g))
                .sum();
            for chunk in chunks {
                for i in 0..8 {
                    lanes[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
                }
            }
            lanes.iter().sum::<f64>() + tail
        },
    )
}
