use crate::harness::*;
use crate::precision::*;
use sft::ops::AttentionShape;
use std::ops::Range;

struct Case {
    /// Of all but lse.
    format: DType,
    shape: AttentionShape,
    /// First row of each sequence, and the number of tokens.
    starts: Vec<i32>,
    qkv: Vec<f32>,
    dout: Vec<f32>,
}

struct Outputs {
    out: Vec<f32>,
    lse: Vec<f32>,
    dqkv: Vec<f32>,
}

fn case(
    format: DType,
    ([heads, kv_heads, head_dim], window, lengths): ([usize; 3], Option<usize>, &[usize]),
) -> Case {
    let shape = AttentionShape {
        heads,
        kv_heads,
        head_dim,
        window,
    };
    let mut starts = vec![0];
    for &length in lengths {
        starts.push(starts[starts.len() - 1] + length as i32);
    }
    let tokens = lengths.iter().sum::<usize>();
    Case {
        format,
        shape,
        starts,
        qkv: normals_in(format, 1, tokens * shape.qkv_size()),
        dout: normals_in(format, 2, tokens * shape.q_size()),
    }
}

/// Heads, key heads and width of a head; window; lengths. Nothing, one token, lengths around the blocks
/// of 64 queries (the CPU: 96 queries and 256 keys), groups of 3, a head of 80, windows of 1, 2, a block,
/// of more than a block of keys, and more than the sequence; sequences without tokens; more sequences
/// than a warp has lanes.
fn cases() -> impl Iterator<Item = Case> {
    let shapes: [([usize; 3], Option<usize>, &[usize]); 14] = [
        ([3, 1, 4], None, &[]),
        ([3, 1, 4], None, &[0]),
        ([1, 1, 1], None, &[1]),
        ([3, 1, 4], None, &[63, 1, 65, 64]),
        ([2, 1, 3], None, &[129]),
        ([2, 1, 4], None, &[96, 97, 257]),
        ([2, 1, 6], Some(270), &[389]),
        ([2, 2, 80], None, &[5, 1, 7]),
        ([6, 2, 16], Some(1), &[3, 37]),
        ([3, 1, 8], Some(2), &[64, 5]),
        ([3, 3, 4], Some(64), &[129, 63]),
        ([3, 1, 4], Some(17), &[0, 131, 0, 2]),
        ([2, 1, 8], Some(1000), &[31]),
        ([1, 1, 8], None, &[2; 70]),
    ];
    every_format_of(shapes).map(|(format, shape)| case(format, shape))
}

impl Case {
    fn tokens(&self) -> usize {
        self.starts[self.starts.len() - 1] as usize
    }

    /// The case of some rows as one sequence.
    fn alone(&self, rows: Range<usize>) -> Case {
        let part = |x: &[f32], width: usize| x[rows.start * width..rows.end * width].to_vec();
        Case {
            format: self.format,
            shape: self.shape,
            starts: vec![0, rows.len() as i32],
            qkv: part(&self.qkv, self.shape.qkv_size()),
            dout: part(&self.dout, self.shape.q_size()),
        }
    }

    /// The columns of all queries, all keys or all values.
    fn columns_of(&self, which: usize) -> Range<usize> {
        let (q, kv) = (self.shape.q_size(), self.shape.kv_size());
        [0..q, q..q + kv, q + kv..q + 2 * kv][which].clone()
    }

    /// Calls with each row and the rows that it sees: from its sequence's start or the window's, up
    /// to itself.
    fn for_each_row(&self, mut f: impl FnMut(usize, Range<usize>)) {
        for sequence in self.starts.windows(2) {
            for i in sequence[0] as usize..sequence[1] as usize {
                let window = self.shape.window.unwrap_or(usize::MAX);
                let first = (sequence[0] as usize).max((i + 1).saturating_sub(window));
                f(i, first..i + 1);
            }
        }
    }

    /// Where row t of a query head starts in qkv, and of the key and the value that it meets.
    fn columns(&self, t: usize, head: usize) -> [Range<usize>; 3] {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim: d,
            ..
        } = self.shape;
        let kv_head = head / (heads / kv_heads);
        [head, heads + kv_head, heads + kv_heads + kv_head].map(|column| {
            let start = (t * (heads + 2 * kv_heads) + column) * d;
            start..start + d
        })
    }
}

fn run<B: Device>(backend: B, case: &Case) -> Outputs {
    let mut memory = Memory::new(backend);
    let starts = memory.put_indices(&case.starts);
    let [qkv, dout] = [&case.qkv, &case.dout].map(|x| memory.put_as(x, case.format));
    let out = memory.garbage_as(case.dout.len(), case.format);
    let lse = memory.garbage(case.shape.heads * case.tokens());
    let dqkv = memory.garbage_as(case.qkv.len(), case.format);
    memory
        .backend
        .attention_forward(case.shape, starts, qkv, out, lse);
    memory
        .backend
        .attention_backward(case.shape, starts, qkv, out, lse, dout, dqkv);
    Outputs {
        out: memory.get(out),
        lse: memory.get(lse),
        dqkv: memory.get(dqkv),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_of_sizes(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// out `(T, heads·head_dim)` and lse `(heads, T)`.
fn reference(case: &Case, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let AttentionShape {
        heads, head_dim: d, ..
    } = case.shape;
    let mut out = vec![0.0; case.tokens() * heads * d];
    let mut lse = vec![0.0; heads * case.tokens()];
    for head in 0..heads {
        case.for_each_row(|i, seen| {
            let q = &qkv[case.columns(i, head)[0].clone()];
            let score = |j: usize| {
                let [_, k, _] = case.columns(j, head);
                dot(q, &qkv[k]) / (d as f64).sqrt()
            };
            let scores: Vec<f64> = seen.clone().map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            lse[head * case.tokens() + i] = top + total.ln();
            let out = &mut out[(i * heads + head) * d..][..d];
            for (score, j) in scores.iter().zip(seen) {
                let [_, _, v] = case.columns(j, head);
                let p = (score - top).exp() / total;
                out.iter_mut().zip(&qkv[v]).for_each(|(o, v)| *o += p * v);
            }
        });
    }
    (out, lse)
}

/// Absolute errors that float32 may show, with P and dS kept in the operands' format on the way to
/// the products.
struct Bounds {
    out: Vec<f64>,
    lse: Vec<f64>,
    dqkv: Vec<f64>,
}

/// Walks through the formulas once more with absolute values.
///
/// A score errs by ε = (roundings of a sum of head_dim, and 3 of the products and the scale) · U ·
/// s Σ|q k|. The exponential turns absolute errors of its argument into relative ones.
fn bounds(case: &Case) -> Bounds {
    let AttentionShape {
        heads, head_dim: d, ..
    } = case.shape;
    let (qkv, dout) = (wide(&case.qkv), wide(&case.dout));
    let (_, lse) = reference(case, &qkv);
    let s = 1.0 / (d as f64).sqrt();
    let of_d = sum_roundings(d);
    let mut bounds = Bounds {
        out: vec![0.0; dout.len()],
        lse: vec![0.0; lse.len()],
        dqkv: vec![0.0; qkv.len()],
    };
    // Sums over the queries of a key: those of the whole group.
    let of_queries = sum_roundings(case.tokens() * heads);
    for head in 0..heads {
        case.for_each_row(|i, seen| {
            let of_keys = sum_roundings(seen.len());
            let [q_columns, ..] = case.columns(i, head);
            let q = &qkv[q_columns.clone()];
            let lse = lse[head * case.tokens() + i];
            let score = |j: usize| dot(q, &qkv[case.columns(j, head)[1].clone()]) * s;
            let p = |j: usize| (score(j) - lse).exp();
            // ε of the worst score, in units of U; and the largest exponent.
            let (mut epsilon, mut exponent) = (0.0f64, 0.0f64);
            for j in seen.clone() {
                let sizes = dot_of_sizes(q, &qkv[case.columns(j, head)[1].clone()]) * s;
                epsilon = epsilon.max((of_d + 3.0) * sizes);
                exponent = exponent.max(lse - score(j));
            }
            // lse = top + ln Σ e^(s − top): the differences, 2 ulp of the exponential, the sum, an
            // ulp of ln, the sum with top.
            let ln_total = (seen.len() as f64).ln();
            let of_lse = epsilon + exponent + 4.0 + of_keys + 2.0 * ln_total + lse.abs();
            bounds.lse[head * case.tokens() + i] = U * of_lse;
            // P relative to itself: its own exponential and the total's, or lse; 4 for 1/Σ and so on.
            let of_p = epsilon + exponent + 4.0 + of_lse + 4.0;

            let keeping = |x: f64| keeping(case.format, x);
            let (mut out_terms, mut out_kept) = (vec![0.0; d], vec![0.0; d]);
            for j in seen.clone() {
                let v = &qkv[case.columns(j, head)[2].clone()];
                for c in 0..d {
                    out_terms[c] += p(j) * v[c].abs();
                    out_kept[c] += keeping(p(j)) * v[c].abs();
                }
            }
            let dout = &dout[(i * heads + head) * d..][..d];
            for c in 0..d {
                bounds.out[(i * heads + head) * d + c] =
                    U * (of_p + of_keys + 1.0) * out_terms[c] + out_kept[c];
            }
            // dS = P (dP − δ), where |dP| + |δ| is at most Σ|dO V| + Σ|dO| Σ P|V|. δ is computed of
            // the output as it is stored.
            let delta = dot_of_sizes(dout, &out_terms);
            let delta_kept: f64 = (0..d)
                .map(|c| dout[c].abs() * (out_kept[c] + keeping(out_terms[c] + out_kept[c])))
                .sum();
            let of_ds = of_p + (of_p + of_keys + 1.0) + of_d + 4.0;
            for j in seen {
                let [_, k, v] = case.columns(j, head);
                let ds = p(j) * (dot_of_sizes(dout, &qkv[v.clone()]) + delta);
                let ds_kept = p(j) * delta_kept + keeping(ds + p(j) * delta_kept);
                for c in 0..d {
                    let (key, query, dout) = (qkv[k.start + c].abs(), q[c].abs(), dout[c].abs());
                    bounds.dqkv[q_columns.start + c] +=
                        s * key * (U * (of_ds + of_keys + 3.0) * ds + ds_kept);
                    bounds.dqkv[k.start + c] +=
                        s * query * (U * (of_ds + of_queries + 3.0) * ds + ds_kept);
                    bounds.dqkv[v.start + c] +=
                        dout * (U * (of_p + of_queries + 1.0) * p(j) + keeping(p(j)));
                }
            }
        });
    }
    bounds
}

fn forward_agrees_with_the_reference<B: Device>() {
    for case in cases() {
        let outputs = run(B::with_threads(2), &case);
        let (out, lse) = reference(&case, &wide(&case.qkv));
        let bounds = bounds(&case);
        assert_stored("out", case.format, &outputs.out, &out, |i| bounds.out[i]);
        assert_within("lse", &outputs.lse, &lse, |i| bounds.lse[i]);
    }
}

fn backward_agrees_with_finite_differences<B: Device>() {
    for case in cases() {
        let Outputs { dqkv, .. } = run(B::with_threads(2), &case);
        let bounds = bounds(&case);
        assert_gradient(
            "dqkv",
            case.format,
            &dqkv,
            &vec![0.0; dqkv.len()],
            &case.qkv,
            |qkv| weigh(&case.dout, &reference(&case, qkv).0),
            |i| bounds.dqkv[i],
        );
    }
}

/// As an eager framework computes it: the scores and their scaling rounded, the softmax and its
/// gradient one operation each, the gradients of a group's heads rounded and added.
fn plain(case: &Case, round: &dyn Fn(f64) -> f64) -> [Vec<f64>; 3] {
    let AttentionShape {
        heads, head_dim: d, ..
    } = case.shape;
    let (qkv, dout) = (wide(&case.qkv), wide(&case.dout));
    let mut out = vec![0.0; dout.len()];
    let mut lse = vec![0.0; heads * case.tokens()];
    let mut dqkv = vec![0.0; qkv.len()];
    for head in 0..heads {
        // Of this head alone; k and v of the group's other heads are added below.
        let mut of_head = vec![0.0; qkv.len()];
        case.for_each_row(|i, seen| {
            let q = case.columns(i, head)[0].clone();
            let s = round(1.0 / (d as f64).sqrt());
            let scores: Vec<f64> = (seen.clone())
                .map(|j| {
                    round(round(dot(&qkv[q.clone()], &qkv[case.columns(j, head)[1].clone()])) * s)
                })
                .collect();
            let total: f64 = scores.iter().map(|s| s.exp()).sum();
            lse[head * case.tokens() + i] = round(total.ln());
            let p: Vec<f64> = scores.iter().map(|s| round(s.exp() / total)).collect();
            let at = (i * heads + head) * d;
            for (p, j) in p.iter().zip(seen.clone()) {
                let v = &qkv[case.columns(j, head)[2].clone()];
                (0..d).for_each(|c| out[at + c] += p * v[c]);
            }
            out[at..at + d].iter_mut().for_each(|o| *o = round(*o));

            let dout = &dout[at..at + d];
            let dp: Vec<f64> = (seen.clone())
                .map(|j| round(dot(dout, &qkv[case.columns(j, head)[2].clone()])))
                .collect();
            let delta = dot(&p, &dp);
            for ((p, dp), j) in p.iter().zip(&dp).zip(seen) {
                let [_, k, v] = case.columns(j, head);
                let ds = round(round(p * (dp - delta)) * s);
                for c in 0..d {
                    of_head[q.start + c] += ds * qkv[k.start + c];
                    of_head[k.start + c] += ds * qkv[q.start + c];
                    of_head[v.start + c] += p * dout[c];
                }
            }
        });
        for (sum, part) in dqkv.iter_mut().zip(of_head) {
            *sum = round(*sum + round(part));
        }
    }
    [out, lse, dqkv]
}

/// The widths of heads that models have, one between two of them, and more than one block of each.
fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    let shapes: [([usize; 3], Option<usize>, &[usize]); 9] = [
        ([3, 1, 16], None, &[63, 1, 65]),
        ([2, 2, 80], None, &[5, 33]),
        ([6, 2, 8], Some(17), &[131]),
        ([4, 2, 64], None, &[3, 260]),
        ([2, 1, 80], Some(70), &[150]),
        ([2, 2, 96], Some(33), &[131, 9]),
        ([2, 1, 128], None, &[170, 1]),
        ([1, 1, 144], None, &[65]),
        ([2, 1, 256], Some(90), &[150]),
    ];
    for (format, shape) in every_format_of(shapes).filter(|(format, _)| *format != F32) {
        let case = case(format, shape);
        let outputs = run(B::with_threads(2), &case);
        // Queries, keys and values apart, so that none hides behind a larger one.
        let of = |x: &[f32], which: usize| -> Vec<f32> {
            let rows = x.chunks(case.shape.qkv_size());
            rows.flat_map(|row| row[case.columns_of(which)].to_vec())
                .collect()
        };
        let dqkv = [0, 1, 2].map(|which| of(&outputs.dqkv, which));
        let got = [
            ("out", format, &outputs.out[..]),
            ("lse", F32, &outputs.lse),
            ("dq", format, &dqkv[0]),
            ("dk", format, &dqkv[1]),
            ("dv", format, &dqkv[2]),
        ];
        assert_twice_plain(format, got, |round| {
            let [out, lse, dqkv] = plain(&case, round);
            let of = |which: usize| -> Vec<f64> {
                let rows = dqkv.chunks(case.shape.qkv_size());
                rows.flat_map(|row| row[case.columns_of(which)].to_vec())
                    .collect()
            };
            [out, lse, of(0), of(1), of(2)]
        });
    }
}

/// Scores of ±10⁴ make a hard choice, not an overflow.
fn huge_scores_stay_finite<B: Device>() {
    for format in FORMATS {
        let mut case = case(format, ([2, 1, 8], None, &[70, 3]));
        for row in case.qkv.chunks_mut(case.shape.qkv_size()) {
            row[..24].iter_mut().for_each(|x| *x *= 100.0);
        }
        case.qkv = rounded(format, &case.qkv);
        let outputs = run(B::with_threads(2), &case);
        let (out, lse) = reference(&case, &wide(&case.qkv));
        assert!(lse.iter().any(|&lse| lse > 1e4));
        let bounds = bounds(&case);
        assert_stored("out", format, &outputs.out, &out, |i| bounds.out[i]);
        assert_within("lse", &outputs.lse, &lse, |i| bounds.lse[i]);
        assert!(outputs.dqkv.iter().all(|g| g.is_finite()));
    }
}

/// What stands before and behind a sequence does not show in its bits, forward or backward.
fn a_packed_sequence_has_the_bits_of_one_alone<B: Device>() {
    let shapes = [None, Some(33)].map(|window| [20, 24].map(|width| (width, window)));
    for (format, (width, window)) in every_format_of(shapes.concat()) {
        let packed = case(format, ([6, 2, width], window, &[7, 129, 1, 65]));
        let all = run(B::with_threads(2), &packed);
        let (q, row) = (packed.shape.q_size(), packed.shape.qkv_size());
        for starts in packed.starts.windows(2) {
            let rows = starts[0] as usize..starts[1] as usize;
            let one = run(B::with_threads(2), &packed.alone(rows.clone()));
            let (a, b) = (rows.start, rows.end);
            assert_eq!(bits(&one.out), bits(&all.out[a * q..b * q]), "out {rows:?}");
            assert_eq!(
                bits(&one.dqkv),
                bits(&all.dqkv[a * row..b * row]),
                "dqkv {rows:?}"
            );
            for head in 0..packed.shape.heads {
                let all = &all.lse[head * packed.tokens()..][rows.clone()];
                let one = &one.lse[head * rows.len()..][..rows.len()];
                assert_eq!(bits(one), bits(all), "lse {rows:?}");
            }
        }
    }
}

/// A prompt's keys and values enter the cache at once, further ones row by row.
fn decode_agrees_with_the_last_row<B: Device>() {
    for (format, (heads, window, length)) in every_format_of([
        ([1, 1, 1], None, 1),
        ([3, 1, 8], None, 70),
        ([4, 4, 80], None, 5),
        ([6, 2, 16], Some(1), 9),
        ([6, 2, 16], Some(2), 9),
        ([3, 1, 20], Some(64), 131),
        ([3, 1, 4], Some(1000), 131),
        ([2, 1, 8], None, 520),
    ]) {
        let case = case(format, (heads, window, &[length]));
        let shape = case.shape;
        let (q, row) = (shape.q_size(), shape.qkv_size());
        let (expected, _) = reference(&case, &wide(&case.qkv));
        let bounds = bounds(&case);
        let mut memory = Memory::new(B::with_threads(2));
        // A longer cache than there are tokens: its rest is neither read nor written.
        let cache = memory.garbage_as((length + 3) * 2 * shape.kv_size(), format);
        let prompt = (length / 2).max(length.saturating_sub(70));
        let rows = memory.put_as(&case.qkv[..prompt * row], format);
        memory.backend.attention_cache(shape, 0, rows, cache);
        for t in prompt..length {
            let qkv = memory.put_as(&case.qkv[t * row..][..row], format);
            let out = memory.garbage_as(q, format);
            memory.backend.attention_cache(shape, t, qkv, cache);
            memory.backend.attention_decode(shape, t, qkv, cache, out);
            let expected = &expected[t * q..][..q];
            let tolerance = |i: usize| bounds.out[t * q + i];
            assert_stored("out", format, &memory.get(out), expected, tolerance);
        }
        let rest = cache.slice(length * 2 * shape.kv_size(), 3 * 2 * shape.kv_size());
        assert!(memory.get(rest).iter().all(|x| x.is_nan()));
    }
}

fn threads_do_not_change_bits<B: Device>() {
    let many: &[usize] = &[131, 1, 67, 200];
    // One long sequence with one key head: too few tasks for threads unless it is cut.
    let shapes: [([usize; 3], Option<usize>, &[usize]); 5] = [
        ([6, 2, 20], None, many),
        ([6, 2, 20], Some(50), many),
        ([6, 2, 24], Some(50), many),
        ([3, 1, 20], None, &[1, 600]),
        ([2, 1, 24], Some(300), &[700]),
    ];
    for (format, shape) in every_format_of(shapes) {
        let case = case(format, shape);
        assert_same_bits(|backend: B| {
            let outputs = run(backend, &case);
            vec![outputs.out, outputs.lse, outputs.dqkv]
        });
    }
    for format in FORMATS {
        let case = case(format, ([6, 2, 20], None, &[600]));
        assert_same_bits(|backend: B| {
            let mut memory = Memory::new(backend);
            let q = case.shape.q_size();
            let rows = case.qkv.chunks(case.shape.qkv_size());
            let cache: Vec<f32> = rows.flat_map(|row| row[q..].to_vec()).collect();
            let last = case.qkv.len() - case.shape.qkv_size();
            let qkv = memory.put_as(&case.qkv[last..], format);
            let cache = memory.put_as(&cache, format);
            let out = memory.garbage_as(q, format);
            memory
                .backend
                .attention_decode(case.shape, 599, qkv, cache, out);
            vec![memory.get(out)]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    backward_agrees_with_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    huge_scores_stay_finite,
    a_packed_sequence_has_the_bits_of_one_alone,
    decode_agrees_with_the_last_row,
    threads_do_not_change_bits,
);
