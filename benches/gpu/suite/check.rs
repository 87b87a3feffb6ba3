//! One operation on the device beside the CPU, number by number.
//!
//! The CPU gets the operands rounded to the device's format and computes in float32, so what is
//! left is what the device rounds. **The bound** follows from counts, none was found by trying:
//!
//! ```text
//! |device − cpu| ≤ (2 · halves · u + floats · U) · max(|cpu|, rms, terms)
//! ```
//!
//! `halves` is how many times the plain computation in the half-precision format, each tensor of
//! the formula rounded, rounds on the way to the output; twice its error is allowed. u and U are the
//! unit roundoffs of the half format and of float32. `floats` counts float32 roundings.

use super::tensors::Tensors;
use serde_json::{Value, json};
use sft::Result;
use sft::cuda::Cuda;
use sft::dtype::DType;
use sft::ops::{Backend, Cpu, Region};

/// What an operation wrote.
pub struct Output {
    name: &'static str,
    values: Vec<f32>,
    halves: f64,
    floats: f64,
    terms: f64,
}

impl Output {
    pub fn new(name: &'static str, values: Vec<f32>, halves: f64, floats: f64) -> Self {
        Self {
            name,
            values,
            halves,
            floats,
            terms: 0.0,
        }
    }

    /// Says that terms of this size were added up, which may have cancelled.
    pub fn terms(mut self, size: f64) -> Self {
        self.terms = size;
        self
    }

    /// Downloads a tensor.
    pub fn of<B: Backend>(
        tensors: &mut Tensors<B>,
        name: &'static str,
        region: Region,
        halves: f64,
        floats: f64,
    ) -> Self {
        Self::new(name, tensors.get(region), halves, floats)
    }
}

/// Roundings of a sum of n normal numbers in any order, relative to the sum's standard deviation:
/// 4 √n for each of the terms (see `tests/ops/harness.rs`), which add up to 0.8 n, over √n.
pub fn sum(n: usize) -> f64 {
    3.2 * n as f64
}

/// Roundings of a sum of n positive numbers, relative to it.
pub fn positive_sum(n: usize) -> f64 {
    4.0 * (n as f64).sqrt() + 8.0
}

/// An operation at one shape.
pub trait Check {
    /// The operation's name.
    const OP: &'static str;

    /// Makes the operands and runs forward and backward.
    fn run<B: Backend>(&self, tensors: &mut Tensors<B>) -> Vec<Output>;
}

/// The two backends, and what they said so far.
pub struct Bench {
    pub cuda: Tensors<Cuda>,
    cpu: Tensors<Cpu>,
    pub rows: Vec<Value>,
}

impl Bench {
    pub fn new(cuda: Cuda, arena: usize) -> Result<Self> {
        Ok(Self {
            cuda: Tensors::new(cuda, arena)?,
            cpu: Tensors::new(Cpu::new(0)?, arena)?,
            rows: Vec::new(),
        })
    }

    /// Compares the outputs of one operation in each format.
    pub fn check<C: Check>(&mut self, case: &str, check: &C) -> Result<()> {
        for format in [DType::F32, DType::BF16, DType::F16] {
            self.cuda.clear(format, format);
            self.cpu.clear(format, DType::F32);
            let got = check.run(&mut self.cuda);
            self.cuda.backend.status()?;
            let expected = check.run(&mut self.cpu);
            let outputs: Vec<Value> = got
                .iter()
                .zip(&expected)
                .map(|(got, expected)| compare(got, expected, format))
                .collect();
            let passed = outputs.iter().all(|output| output["passed"] == true);
            self.rows.push(json!({
                "op": C::OP, "case": case, "format": format.name(), "passed": passed,
                "outputs": outputs,
            }));
        }
        Ok(())
    }
}

/// The largest error, and the largest share of its bound that an error takes.
pub fn compare(got: &Output, expected: &Output, format: DType) -> Value {
    // The unit roundoff, and half of the smallest step.
    let (unit, smallest) = match format {
        DType::F32 => (0.0, 0.0),
        DType::BF16 => (2f64.powi(-8), 0.0),
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
    };
    let (halves, floats) = (expected.halves, expected.floats);
    let relative = 2.0 * halves * unit + floats * 2f64.powi(-24);
    let absolute = 2.0 * halves * smallest;
    let squares: f64 = expected.values.iter().map(|&x| f64::from(x).powi(2)).sum();
    let rms = (squares / expected.values.len().max(1) as f64).sqrt();
    let size = rms.max(expected.terms);
    let (mut largest, mut share, mut at) = (0.0f64, 0.0f64, 0);
    for (i, (&got, &expected)) in got.values.iter().zip(&expected.values).enumerate() {
        if got.to_bits() == expected.to_bits() {
            continue;
        }
        let (got, expected) = (f64::from(got), f64::from(expected));
        let error = (got - expected).abs();
        let bound = relative * expected.abs().max(size) + absolute;
        // What is no number takes more than any bound.
        let taken = if bound.is_finite() && error <= bound * 1e9 {
            error / bound
        } else {
            f64::INFINITY
        };
        largest = largest.max(error);
        if taken > share {
            (share, at) = (taken, i);
        }
    }
    let same_length = got.values.len() == expected.values.len();
    let passed = same_length && share <= 1.0;
    let mut row = json!({
        "name": got.name, "numbers": got.values.len(), "passed": passed, "max_error": largest,
        "rms": rms, "share_of_bound": share,
    });
    if !passed {
        row["at"] = json!(at);
        row["got"] = json!(got.values.get(at).map(|x| x.to_string()));
        row["expected"] = json!(expected.values.get(at).map(|x| x.to_string()));
    }
    row
}
