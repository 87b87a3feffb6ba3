//! Memory for the tensors of a test, comparison within a bound, and finite differences.
//!
//! **Tolerances** count roundings. One float32 operation errs by at most `U` times its result, so
//! a value that is a sum of terms errs by at most (roundings on the way) · U · Σ|terms|. Each test
//! counts the roundings of its formula; none has a number that was found by trying.

pub use crate::device::Device;
pub(crate) use crate::device::on_every_backend;
use crate::precision::storing;
use sft::dtype::DType;
use sft::ops::{Backend, Indices, Region};
use sft::rng::Stream;

/// Unit roundoff of float32.
pub const U: f64 = f32::EPSILON as f64 / 2.0;

/// Bytes of a test's arena; pages that are not touched cost nothing on the CPU.
const ARENA: usize = 64 << 20;

/// Numbers between two tensors that nobody may write.
const GUARD: usize = 16;

/// What stands there.
const GUARD_VALUE: f32 = 12345.678;

/// A device whose arena is handed out tensor by tensor, with guarded gaps between them.
pub struct Memory<B> {
    pub backend: B,
    used: usize,
    guards: Vec<Region>,
}

impl<B: Backend> Memory<B> {
    pub fn new(mut backend: B) -> Self {
        let workspace = Region {
            offset: ARENA,
            len: B::WORKSPACE_BYTES / 4,
            dtype: DType::F32,
        };
        backend
            .allocate(ARENA + B::WORKSPACE_BYTES, workspace)
            .unwrap();
        Self {
            backend,
            used: 0,
            guards: Vec::new(),
        }
    }

    fn place(&mut self, len: usize, dtype: DType) -> Region {
        let mut next = |len: usize, dtype: DType, align: usize| {
            let offset = self.used.next_multiple_of(align);
            self.used = offset + len * dtype.size();
            assert!(self.used <= ARENA, "the test's arena is full");
            Region { offset, len, dtype }
        };
        // The guard follows at once, but for the alignment of its own numbers.
        let region = next(len, dtype, 16);
        let guard = next(GUARD, DType::F32, 4);
        self.backend.fill(guard, GUARD_VALUE);
        self.guards.push(guard);
        region
    }

    /// A float32 tensor with these values.
    pub fn put(&mut self, values: &[f32]) -> Region {
        self.put_as(values, DType::F32)
    }

    /// A tensor with these values, rounded to the format.
    pub fn put_as(&mut self, values: &[f32], dtype: DType) -> Region {
        let region = self.place(values.len(), dtype);
        self.backend.upload(region, values);
        region
    }

    /// A float32 tensor that is to be overwritten: NaN, which every use of an old value would show.
    pub fn garbage(&mut self, len: usize) -> Region {
        self.garbage_as(len, DType::F32)
    }

    /// A tensor of a format that is to be overwritten.
    pub fn garbage_as(&mut self, len: usize, dtype: DType) -> Region {
        self.put_as(&vec![f32::NAN; len], dtype)
    }

    pub fn put_indices(&mut self, values: &[i32]) -> Indices {
        let Region { offset, len, .. } = self.place(values.len(), DType::F32);
        let indices = Indices { offset, len };
        self.backend.upload_indices(indices, values);
        indices
    }

    /// The values of a tensor of any format, once no guard is found overwritten.
    pub fn get(&mut self, region: Region) -> Vec<f32> {
        self.backend.status().unwrap();
        for &guard in &self.guards {
            let mut values = [0.0; GUARD];
            self.backend.download(guard, &mut values);
            assert_eq!(values, [GUARD_VALUE; GUARD], "a write beyond a tensor");
        }
        let mut values = vec![0.0; region.len];
        self.backend.download(region, &mut values);
        values
    }
}

/// Standard normal numbers.
pub fn normals(seed: u64, n: usize) -> Vec<f32> {
    let stream = Stream::new(seed, 0);
    (0..n as u64).map(|i| stream.normal(i) as f32).collect()
}

/// Whole numbers below `end`.
pub fn integers(seed: u64, n: usize, end: usize) -> Vec<i32> {
    let stream = Stream::new(seed, 1);
    let draw = |i| (stream.uniform(i) * end as f64) as i32;
    (0..n as u64).map(draw).collect()
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Σ aᵢ·bᵢ: a scalar loss whose gradient by b is a.
pub fn weigh(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum()
}

/// Roundings, in units of `U · Σ|terms|`, that a sum of n terms in any order shows: at most n − 1,
/// and at most 4√n with a probability near 1, as roundings go either way (Higham and Mary 2019, "A
/// new approach to probabilistic rounding error analysis").
pub fn sum_roundings(n: usize) -> f64 {
    (n as f64).min(4.0 * (n as f64).sqrt())
}

/// Fails at the first number that is further from `expected` than `tolerance(i)`.
pub fn assert_within(what: &str, got: &[f32], expected: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (difference, tolerance) = ((f64::from(got) - expected).abs(), tolerance(i));
        assert!(
            difference <= tolerance,
            "{what}[{i}]: {got:e}, expected {expected:e}; off by {difference:e}, \
             allowed {tolerance:e}"
        );
    }
}

/// Elements of a gradient whose own difference quotient is computed.
const SAMPLES: usize = 150;

/// Compares the gradient of `loss` at `x`, added to `start`, with central differences: element by
/// element, for 150 spread evenly when there are more, and along one direction through all of them.
/// `tolerance(i)` bounds a float32 result, which was then stored in the format.
pub fn assert_gradient(
    what: &str,
    format: DType,
    got: &[f32],
    start: &[f32],
    x: &[f32],
    loss: impl Fn(&[f64]) -> f64,
    tolerance: impl Fn(usize) -> f64,
) {
    assert_eq!(got.len(), x.len(), "{what}: length");
    let (what, x) = (format!("{what} in {format}"), wide(x));
    // The quotient's own error: h²/6 times the third derivative, and the loss's float64 rounding
    // (2⁻⁵³ of at most a few thousand terms) divided by h. Both stay below 1e-8 of the numbers here.
    let quotient = |step: &dyn Fn(usize) -> f64, length: f64| {
        let h = 1e-5 / length;
        let moved =
            |h: f64| -> Vec<f64> { x.iter().enumerate().map(|(i, x)| x + h * step(i)).collect() };
        let slope = (loss(&moved(h)) - loss(&moved(-h))) / (2.0 * h);
        (slope, 1e-8 * length * (1.0 + slope.abs()))
    };
    let n = x.len();
    for sample in 0..n.min(SAMPLES) {
        let i = if n > SAMPLES {
            sample * (n - 1) / (SAMPLES - 1)
        } else {
            sample
        };
        let (slope, error) = quotient(&|j| f64::from(u8::from(i == j)), 1.0);
        let expected = f64::from(start[i]) + slope;
        let difference = (f64::from(got[i]) - expected).abs();
        let allowed = tolerance(i) + error;
        let allowed = allowed + storing(format, expected.abs() + allowed);
        assert!(
            difference <= allowed,
            "{what}[{i}]: {:e}, expected {expected:e}; off by {difference:e}, allowed {allowed:e}",
            got[i]
        );
    }
    let direction = Stream::new(97, 2);
    let sign = |i: usize| {
        if direction.uniform(i as u64) < 0.5 {
            -1.0
        } else {
            1.0
        }
    };
    let (slope, error) = quotient(&sign, (n.max(1) as f64).sqrt());
    let change = |i: usize| f64::from(got[i]) - f64::from(start[i]);
    let along: f64 = (0..n).map(|i| sign(i) * change(i)).sum();
    let stored = |i: usize| tolerance(i) + storing(format, f64::from(got[i]));
    let allowed = error + (0..n).map(stored).sum::<f64>();
    let difference = (along - slope).abs();
    assert!(
        difference <= allowed,
        "{what}: {along:e} along a direction, expected {slope:e}; off by {difference:e}, allowed \
         {allowed:e}"
    );
}

/// Runs on 1, 1 again, 2 and 3 threads; every output has the same bits each time.
pub fn assert_same_bits<B: Device>(run: impl Fn(B) -> Vec<Vec<f32>>) {
    let bits = |threads| -> Vec<Vec<u32>> {
        let outputs = run(B::with_threads(threads));
        outputs.iter().map(|output| bits(output)).collect()
    };
    let first = bits(1);
    for threads in [1, 2, 3] {
        for (n, (a, b)) in first.iter().zip(bits(threads)).enumerate() {
            let differing = a.iter().zip(&b).position(|(a, b)| a != b);
            assert_eq!(differing, None, "output {n} on {threads} threads");
        }
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
