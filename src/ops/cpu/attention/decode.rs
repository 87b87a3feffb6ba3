//! One new token against the cache of keys and values.

use crate::ops::AttentionShape;
use crate::ops::cpu::element::{Element, with_buffers};
use crate::ops::cpu::vector::{dot, exp, max, sum, vectorised};
use rayon::prelude::*;

/// One query row against the rows of the cache.
pub fn decode<T: Element>(
    shape: AttentionShape,
    position: usize,
    qkv: &[T],
    cache: &[T],
    out: &mut [T],
) {
    let (d, row) = (shape.head_dim, 2 * shape.kv_size());
    let group = shape.heads / shape.kv_heads;
    let keys = shape.first_key(position)..position + 1;
    out.par_chunks_mut(d).enumerate().for_each(|(head, out)| {
        let column = head / group * d;
        with_buffers(|[a, b, c, scores, ..]| {
            let scores = scores.first(keys.len());
            vectorised(
                #[inline(always)]
                || {
                    let q = T::read(&qkv[head * d..][..d], a);
                    for (score, j) in scores.iter_mut().zip(keys.clone()) {
                        let k = T::read(&cache[j * row + column..][..d], b);
                        *score = shape.scale() * dot(q, k);
                    }
                    softmax(scores);
                    T::write(
                        out,
                        c,
                        #[inline(always)]
                        |out| {
                            out.fill(0.0);
                            for (&p, j) in scores.iter().zip(keys.clone()) {
                                let v = &cache[j * row + shape.kv_size() + column..][..d];
                                out.iter_mut()
                                    .zip(T::read(v, b))
                                    .for_each(|(o, &v)| *o = p.mul_add(v, *o));
                            }
                        },
                    );
                },
            );
        });
    });
}

/// Replaces scores by probabilities.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let top = max(scores);
    scores.iter_mut().for_each(|s| *s = exp(*s - top));
    let total = sum(scores);
    let inverse = 1.0 / total;
    scores.iter_mut().for_each(|s| *s *= inverse);
}
