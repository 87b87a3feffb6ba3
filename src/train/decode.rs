//! Text, one token at a time: the prompt in one forward that fills the key and value cache, then a
//! forward of one row for each new token.

use super::block::Uploaded;
use super::network::{Fill, Network};
use crate::data::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Purpose;
use crate::ops::Backend;

impl<B: Backend> Network<B> {
    /// Reads the prompt and returns the logits `(V)` of the token after it.
    ///
    /// # Errors
    /// `Batch` for an empty prompt, one longer than planned, or ids outside the vocabulary; `Device`.
    pub fn prefill(&mut self, prompt: &[i32]) -> Result<Vec<f32>> {
        if prompt.is_empty() {
            return Err(Error::new(ErrorKind::Batch, "the prompt has no tokens"));
        }
        let mut batch = Batch::default();
        batch.push(prompt, prompt);
        let up = self.upload(&batch, Fill::Nothing)?;
        self.run_blocks(up, |block, backend, out| block.prefill(backend, out));
        self.last_logits(up)
    }

    /// Reads one more token at `position` and returns the logits `(V)` of the next.
    ///
    /// # Errors
    /// `Batch` when the position does not fit in the cache or the id is outside the vocabulary;
    /// `Device`.
    pub fn decode(&mut self, token: i32, position: usize) -> Result<Vec<f32>> {
        let capacity = match self.work.purpose {
            Purpose::Generate { capacity } => capacity,
            _ => 0,
        };
        if position >= capacity {
            return Err(Error::new(
                ErrorKind::Batch,
                format!("position {position} is outside the cache of {capacity} tokens"),
            ));
        }
        let batch = Batch {
            tokens: vec![token],
            labels: vec![token],
            seq_starts: vec![0],
        };
        let up = self.upload(&batch, Fill::Nothing)?;
        self.backend
            .upload_indices(self.layout.positions.first(1), &[position as i32]);
        self.run_blocks(up, |block, backend, out| {
            block.decode(backend, position, out)
        });
        self.last_logits(up)
    }

    /// Logits of the last position.
    fn last_logits(&mut self, up: Uploaded) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let last = up.tokens as i32 - 1;
        self.head_logits(up, &[last], &mut |_, row| logits.extend_from_slice(row))?;
        Ok(logits)
    }
}
