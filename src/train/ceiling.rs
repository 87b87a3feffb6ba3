//! How fast the device multiplies matrices of the network's own shapes: what the speed of a run can be
//! held against without knowing the device.

use super::network::Network;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Purpose;
use crate::ops::{Backend, LinearShape, Region};
use crate::rng::Stream;
use std::time::{Duration, Instant};

/// Each product is repeated for so long, at least once.
const SPAN: Duration = Duration::from_millis(25);

/// Products are timed so many together that they take this long, next to which the wait for the device
/// is short.
const BURST: f64 = 2e-3;

/// Random numbers that inputs are filled with, again and again.
const RANDOM: usize = 1 << 12;

/// y = x·Wᵀ
#[derive(Clone, Copy)]
struct Product {
    shape: LinearShape,
    x: Region,
    weight: Region,
    y: Region,
}

impl<B: Backend> Network<B> {
    /// Floating-point operations a second of the fastest of the network's widest layers, forward and
    /// alone, in the compute format: at the largest micro-batch that the network was planned for, with
    /// its weights, so load those first. Takes some 0.1 s, or two passes of each layer. Between updates
    /// only: activations are overwritten.
    ///
    /// # Errors
    /// `Device`; `Internal` for a network that was not planned for training.
    pub fn measure_ceiling(&mut self) -> Result<f64> {
        if !matches!(self.work.purpose, Purpose::Train { .. }) {
            return Err(Error::new(
                ErrorKind::Internal,
                "the network was not planned for training",
            ));
        }
        let mut best: f64 = 0.0;
        for product in self.widest_products() {
            self.fill_with_random_numbers(product.x)?;
            best = best.max(self.best_rate(product)?);
        }
        Ok(best)
    }

    fn widest_products(&self) -> Vec<Product> {
        let (h, f) = (self.spec.hidden_size, self.spec.intermediate_size);
        let tokens = B::filled_sizes(self.work.tokens, 1).0;
        let head_rows = self.work.head_rows.min(self.work.tokens);
        let product = |rows, inputs, outputs, x: Region, weight, y: Region| Product {
            shape: LinearShape {
                rows,
                inputs,
                outputs,
            },
            x: x.first(rows * inputs),
            weight,
            y: y.first(rows * outputs),
        };
        let l = &self.layout;
        let (v, head) = (self.spec.vocab_size, self.weight(self.table.lm_head));
        let mut products = vec![product(head_rows, h, v, l.head_normed, head, l.logits)];
        if let (Some(slots), Some(layer)) = (self.table.layers.first(), l.layers.first()) {
            let (gate_up, down) = (
                self.weight(slots.gate_up_proj),
                self.weight(slots.down_proj),
            );
            products.push(product(tokens, h, 2 * f, l.normed, gate_up, layer.gate_up));
            products.push(product(tokens, f, h, l.act, down, l.dnormed));
        }
        products
    }

    /// Zeros would take less power than what is trained on, so that some devices would run faster.
    fn fill_with_random_numbers(&mut self, region: Region) -> Result<()> {
        let stream = Stream::new(0, CEILING_STREAM);
        let numbers: Vec<f32> = (0..RANDOM as u64)
            .map(|i| stream.uniform(i) as f32 - 0.5)
            .collect();
        self.backend.upload_from(region, &|start, piece| {
            for (i, x) in piece.iter_mut().enumerate() {
                *x = numbers[(start + i) % RANDOM];
            }
            Ok(())
        })
    }

    fn best_rate(&mut self, product: Product) -> Result<f64> {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = product.shape;
        let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        self.multiply(product, 1)?; // memory is touched and kernels are loaded for the first time
        let (begun, mut times, mut best) = (Instant::now(), 1, 0.0f64);
        loop {
            let start = Instant::now();
            self.multiply(product, times)?;
            let seconds = start.elapsed().as_secs_f64().max(1e-9);
            best = best.max(f64::from(times) * flops / seconds);
            if begun.elapsed() > SPAN {
                return Ok(best);
            }
            if seconds < BURST {
                times *= 2;
            }
        }
    }

    /// Multiplies and waits until that is done.
    fn multiply(&mut self, product: Product, times: u32) -> Result<()> {
        let Product {
            shape,
            x,
            weight,
            y,
        } = product;
        for _ in 0..times {
            self.backend.linear_forward(shape, x, weight, None, None, y);
        }
        self.backend.download(y.first(1), &mut [0.0]);
        self.backend.status()
    }
}

const CEILING_STREAM: u64 = 0x6365_696c_696e;
