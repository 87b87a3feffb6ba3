//! What became of the rows of a data set, in numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Documents of some kind: how many, and where the first few are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub rows: u64,
    /// Lines of the first [`Count::SHOWN`], from 1; with several files, lines of their file.
    pub first_lines: Vec<u64>,
}

impl Count {
    /// How many lines are named.
    pub const SHOWN: usize = 5;

    pub(super) fn add(&mut self, line: u64) {
        self.rows += 1;
        if self.first_lines.len() < Self::SHOWN {
            self.first_lines.push(line);
        }
    }
}

/// What became of the rows of a data set. Nothing is cut or left out without a number here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Rows read.
    pub rows_read: u64,
    /// Rows that training sees: documents, or packed rows.
    pub rows: u64,
    /// Tokens that training sees.
    pub tokens: u64,
    /// Tokens that are trained on: supervised and not first of their sequence.
    pub supervised_tokens: u64,
    /// Tokens of the longest sequence that training sees.
    pub longest: u64,
    /// Documents longer than `max_length` that lost their end.
    pub truncated: Count,
    /// Tokens that they lost.
    pub truncated_tokens: u64,
    /// Documents without a token; they are left out.
    pub empty: Count,
    /// Documents without a supervised token, if need be after truncation. Without packing they are
    /// left out; a packed row keeps them.
    pub masked: Count,
    /// Documents whose prompt alone has other tokens than the prompt at the beginning of the whole,
    /// so that the model sees at inference what it was not trained on.
    pub prompt_diverges: Count,
    /// Documents that never train the end-of-sequence token: a model learns from it when to stop.
    pub eos_untrained: Count,
    /// Whether the tokenised rows came from the cache.
    pub from_cache: bool,
}

impl fmt::Display for DataReport {
    /// One line, such as `7473 rows, 1203120 tokens, 899120 trained on; 3 truncated (lines 7, …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows from {} read, {} tokens, {} trained on",
            self.rows, self.rows_read, self.tokens, self.supervised_tokens
        )?;
        let mut part = |count: &Count, what: String| match count.rows {
            0 => Ok(()),
            n => {
                let more = if n as usize > count.first_lines.len() {
                    ", …"
                } else {
                    ""
                };
                let lines: Vec<_> = count.first_lines.iter().map(u64::to_string).collect();
                write!(f, "; {n} {what} (lines {}{more})", lines.join(", "))
            }
        };
        part(
            &self.truncated,
            format!("truncated by {} tokens", self.truncated_tokens),
        )?;
        part(&self.empty, "empty".into())?;
        part(&self.masked, "without a supervised token".into())?;
        part(
            &self.prompt_diverges,
            "whose prompt has other tokens alone than in the whole".into(),
        )?;
        part(
            &self.eos_untrained,
            "that never train the end-of-sequence token".into(),
        )
    }
}
