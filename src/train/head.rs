//! The LM head with its loss. Only supervised positions are normed and projected, a chunk of rows at a
//! time, so that the full logits never exist; the chunk's logits become their own gradient in place.

use super::block::Uploaded;
use super::network::Network;
use crate::error::Result;
use crate::ops::{Backend, LinearShape, Region};
use std::ops::Range;

impl<B: Backend> Network<B> {
    /// Loss of the supervised positions; leaves the residual stream's gradient in `dx`.
    pub(super) fn head_forward_backward(&mut self, up: Uploaded, scale: f32) {
        self.head_norm(up);
        let h = self.spec.hidden_size;
        let (weight, dweight) = (
            self.weight(self.table.lm_head),
            self.gradient(self.table.lm_head),
        );
        for rows in self.head_chunks(up) {
            let (normed, logits, shape) = self.head_project(&rows);
            let labels = self.layout.targets.slice(rows.start, rows.len());
            let stats = self.reserve_stats(rows.len());
            let b = &mut self.backend;
            b.cross_entropy_forward_backward(logits, labels, stats, scale);
            let dnormed = self
                .layout
                .dhead_normed
                .slice(rows.start * h, rows.len() * h);
            b.linear_backward_input(shape, logits, weight, dnormed);
            b.linear_backward_weight(shape, logits, normed, dweight, None);
        }
        let (norm, dnorm) = (self.weight(self.table.norm), self.gradient(self.table.norm));
        let l = &self.layout;
        let len = up.supervised * h;
        let (x, inv_rms) = (l.head_x.first(len), l.head_inv_rms.first(up.supervised));
        let (dnormed, dx) = (l.dhead_normed.first(len), l.dhead_x.first(len));
        self.backend.fill(dx, 0.0); // the norm adds to it
        self.backend
            .rms_norm_backward(x, norm, inv_rms, dnormed, dx, dnorm);
        let rows = l.rows.first(up.supervised);
        self.backend
            .rows_backward(dx, rows, l.dx.first(up.tokens * h), h);
    }

    /// Loss of the supervised positions.
    pub(super) fn head_forward(&mut self, up: Uploaded) {
        self.head_norm(up);
        for rows in self.head_chunks(up) {
            let (_, logits, _) = self.head_project(&rows);
            let labels = self.layout.targets.slice(rows.start, rows.len());
            let stats = self.reserve_stats(rows.len());
            self.backend.cross_entropy_forward(logits, labels, stats);
        }
    }

    /// Logits of some positions, handed to `each` with the number of their first row.
    pub(super) fn head_logits(
        &mut self,
        up: Uploaded,
        positions: &[i32],
        each: &mut impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.backend
            .upload_indices(self.layout.rows.first(positions.len()), positions);
        let up = Uploaded {
            supervised: positions.len(),
            ..up
        };
        self.head_norm(up);
        let mut host = Vec::new();
        for rows in self.head_chunks(up) {
            let (_, logits, _) = self.head_project(&rows);
            host.resize(logits.len, 0.0);
            self.backend.download(logits, &mut host);
            self.backend.status()?;
            each(rows.start, &host);
        }
        Ok(())
    }

    /// Gathers the supervised rows of `x_final` and norms them.
    fn head_norm(&mut self, up: Uploaded) {
        let h = self.spec.hidden_size;
        let norm = self.weight(self.table.norm);
        let l = &self.layout;
        let len = up.supervised * h;
        let (x, normed) = (l.head_x.first(len), l.head_normed.first(len));
        let rows = l.rows.first(up.supervised);
        self.backend
            .rows_forward(l.x_final.first(up.tokens * h), rows, x, h);
        let inv_rms = l.head_inv_rms.first(up.supervised);
        self.backend
            .rms_norm_forward(x, norm, normed, inv_rms, self.spec.rms_norm_eps);
    }

    /// Logits of some supervised rows: their normed input `(rows, H)`, the logits `(rows, V)`.
    fn head_project(&mut self, rows: &Range<usize>) -> (Region, Region, LinearShape) {
        let (h, v) = (self.spec.hidden_size, self.spec.vocab_size);
        let shape = LinearShape {
            rows: rows.len(),
            inputs: h,
            outputs: v,
        };
        let normed = self
            .layout
            .head_normed
            .slice(rows.start * h, rows.len() * h);
        let logits = self.layout.logits.first(rows.len() * v);
        let weight = self.weight(self.table.lm_head);
        self.backend
            .linear_forward(shape, normed, weight, None, None, logits);
        (normed, logits, shape)
    }

    fn head_chunks(&self, up: Uploaded) -> impl Iterator<Item = Range<usize>> + use<B> {
        let (step, end) = (self.work.head_rows, up.supervised);
        (0..end)
            .step_by(step)
            .map(move |start| start..(start + step).min(end))
    }

    /// Room for the statistics of `rows` positions; copies the pending ones to the host when full.
    fn reserve_stats(&mut self, rows: usize) -> Region {
        const WIDTH: usize = crate::ops::TokenStats::WIDTH;
        if (self.pending_stats + rows) * WIDTH > self.layout.stats.len {
            self.flush_stats();
        }
        let region = self
            .layout
            .stats
            .slice(self.pending_stats * WIDTH, rows * WIDTH);
        self.pending_stats += rows;
        region
    }
}
