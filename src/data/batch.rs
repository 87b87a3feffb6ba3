//! A batch: a flat stream of tokens with the starts of its sequences, without padding.

use crate::error::{Error, ErrorKind, Result};

/// The label of a position that is not trained on, as PyTorch's cross-entropy has it.
pub const IGNORE: i32 = -100;

/// Sequences laid end to end. `labels[i]` belongs to `tokens[i]` (not shifted): position `i`
/// predicts `labels[i + 1]`, and the first label of each sequence never counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `(tokens)`.
    pub tokens: Vec<i32>,
    /// The same ids, or [`IGNORE`] where not trained on, `(tokens)`.
    pub labels: Vec<i32>,
    /// First position of each sequence, ascending from 0, `(sequences)`.
    pub seq_starts: Vec<i32>,
}

impl Batch {
    /// Adds one sequence; an empty one is skipped.
    pub fn push(&mut self, tokens: &[i32], labels: &[i32]) {
        assert_eq!(tokens.len(), labels.len());
        if tokens.is_empty() {
            return;
        }
        self.seq_starts.push(self.tokens.len() as i32);
        self.tokens.extend_from_slice(tokens);
        self.labels.extend_from_slice(labels);
    }

    /// Start and end of each sequence.
    pub fn sequences(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let ends = self.seq_starts.iter().skip(1).copied();
        let ends = ends.chain(std::iter::once(self.tokens.len() as i32));
        self.seq_starts
            .iter()
            .zip(ends)
            .map(|(&s, e)| s as usize..e as usize)
    }

    /// Positions that are trained on: labels other than [`IGNORE`] that are not first of a sequence.
    pub fn supervised(&self) -> usize {
        self.sequences()
            .map(|s| {
                self.labels[s]
                    .iter()
                    .skip(1)
                    .filter(|&&l| l != IGNORE)
                    .count()
            })
            .sum()
    }

    /// Checks lengths, ids against the vocabulary, labels and sequence starts.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let fail = |message: String| Err(Error::new(ErrorKind::Batch, message));
        if self.labels.len() != self.tokens.len() {
            return fail(format!(
                "{} labels for {} tokens; there must be one label for each token",
                self.labels.len(),
                self.tokens.len()
            ));
        }
        if self.tokens.is_empty() != self.seq_starts.is_empty() {
            return fail("seq_starts must hold 0 when there are tokens".into());
        }
        for (i, pair) in self.seq_starts.windows(2).enumerate() {
            if pair[0] >= pair[1] {
                return fail(format!(
                    "seq_starts[{}] = {} does not come after seq_starts[{i}] = {}",
                    i + 1,
                    pair[1],
                    pair[0]
                ));
            }
        }
        match (self.seq_starts.first(), self.seq_starts.last()) {
            (Some(&first), _) if first != 0 => {
                return fail(format!("seq_starts[0] is {first}, must be 0"));
            }
            (_, Some(&last)) if last as usize >= self.tokens.len() => {
                return fail(format!(
                    "the last sequence starts at {last}, past the {} tokens",
                    self.tokens.len()
                ));
            }
            _ => {}
        }
        let in_vocab = |id: i32| id >= 0 && (id as usize) < vocab_size;
        if let Some(i) = self.tokens.iter().position(|&t| !in_vocab(t)) {
            return fail(format!(
                "tokens[{i}] = {} is outside the vocabulary of {vocab_size}",
                self.tokens[i]
            ));
        }
        if let Some(i) = self
            .labels
            .iter()
            .position(|&l| l != IGNORE && !in_vocab(l))
        {
            return fail(format!(
                "labels[{i}] = {} is neither {IGNORE} nor in the vocabulary of {vocab_size}",
                self.labels[i]
            ));
        }
        Ok(())
    }
}
