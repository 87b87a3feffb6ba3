//! How large the shapes are.

/// The shape of one block and the LM head of a model.
#[derive(Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub width: usize,
    pub vocab: usize,
}

impl Model {
    /// Width of a fused query, key and value row.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The matrices of a block and the head: name, inputs, outputs.
    pub fn matrices(&self) -> [(&'static str, usize, usize); 5] {
        let attention = self.heads * self.head_dim;
        [
            ("qkv", self.hidden, self.qkv()),
            ("attention_out", attention, self.hidden),
            ("gate_up", self.hidden, 2 * self.width),
            ("down", self.width, self.hidden),
            ("lm_head", self.hidden, self.vocab),
        ]
    }
}

/// Sizes of one run of the suite.
pub struct Scale {
    pub models: &'static [Model],
    /// Lengths of the sequences in a check of an operation; their sum is the number of tokens.
    pub sequences: &'static [usize],
    /// Rows of logits in a check.
    pub head_rows: usize,
    /// Parameters that a check of the optimizer updates.
    pub parameters: usize,
    /// Bytes of each arena.
    pub arena: usize,
    /// Sequences and their length where speed is measured.
    pub speed_sequences: (usize, usize),
    /// Rows of logits where speed is measured.
    pub speed_head_rows: usize,
    /// Parameters that the optimizer updates where its speed is measured.
    pub speed_parameters: usize,
    /// Seconds that one timed batch lasts at least.
    pub batch_seconds: f64,
    /// Presets of `sft init` whose updates are measured, with the rows of a micro-batch, their
    /// length, and updates.
    pub updates: &'static [(&'static str, usize, usize, usize)],
}

impl Scale {
    /// Tokens of a check.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().sum()
    }
}
