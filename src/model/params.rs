//! The parameter table: one list of all tensors of a model with their Hugging Face names, shapes and
//! facts, laid out in one flat space. Weights, gradients and optimizer state share that layout.
//!
//! All matrices come first, then all vectors (norms and biases): with half-precision operands only the
//! matrices have a rounded copy, and that is then one range. Tensors that one matrix product reads
//! together (q, k, v; gate, up) stand next to each other, so that the fused matrix is a slice and
//! nothing is ever fused or split on disk.

use super::spec::ModelSpec;

/// Every tensor or fused group starts at a multiple of this many elements.
pub const ALIGNMENT: usize = 64;

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Name in the safetensors file.
    pub name: String,
    /// `(out, in)` for a matrix, `(n)` for a vector.
    pub shape: Vec<usize>,
    /// First element in the flat space.
    pub offset: usize,
    /// Weight decay applies (every tensor but norms and biases).
    pub decay: bool,
    /// The optimizer updates it.
    pub trainable: bool,
}

impl Param {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A range of the flat parameter space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// Where the tensors of one block lie. H hidden, F intermediate, D head_dim, Q and K the widths of
/// all query and key heads.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSlots {
    /// `(H)`
    pub input_norm: Slot,
    /// q, k and v end to end, `(Q + 2K, H)`
    pub qkv_proj: Slot,
    /// `(Q + 2K)`
    pub qkv_bias: Option<Slot>,
    /// `(D)`
    pub q_norm: Option<Slot>,
    /// `(D)`
    pub k_norm: Option<Slot>,
    /// `(H, Q)`
    pub o_proj: Slot,
    /// `(H)`
    pub o_bias: Option<Slot>,
    /// `(H)`
    pub post_attention_norm: Slot,
    /// gate and up end to end, `(2F, H)`
    pub gate_up_proj: Slot,
    /// `(2F)`
    pub gate_up_bias: Option<Slot>,
    /// `(H, F)`
    pub down_proj: Slot,
    /// `(H)`
    pub down_bias: Option<Slot>,
}

/// All tensors of a model and where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamTable {
    /// From the embedding to the head, as the model reads them; the order of offsets is another one.
    pub params: Vec<Param>,
    /// `(V, H)`
    pub embed_tokens: Slot,
    /// One entry for each block.
    pub layers: Vec<LayerSlots>,
    /// `(H)`
    pub norm: Slot,
    /// `(V, H)`; the embedding's own slot when tied.
    pub lm_head: Slot,
    /// Elements of the flat space, alignment gaps included.
    pub len: usize,
    /// Elements of its first part, which holds all matrices; the rest holds all vectors.
    pub matrices_len: usize,
}

impl ParamTable {
    /// Lays out the tensors of `spec` under their Hugging Face names. The families that this library
    /// supports (Llama, Qwen2, Qwen3, Mistral) share these names.
    pub fn new(spec: &ModelSpec) -> Self {
        // Where the vectors start is known once the matrices are placed.
        Self::lay_out(spec, Self::lay_out(spec, 0).matrices_len)
    }

    fn lay_out(spec: &ModelSpec, vectors: usize) -> Self {
        let mut layout = Layout {
            params: Vec::new(),
            matrices_end: 0,
            vectors_end: vectors,
        };
        let (h, f, d) = (spec.hidden_size, spec.intermediate_size, spec.head_dim);
        let (q, kv) = (spec.q_size(), spec.kv_size());
        let embed_tokens = layout.tensor("model.embed_tokens.weight", &[spec.vocab_size, h]);
        let layers = (0..spec.num_layers)
            .map(|i| {
                let name = |rest: &str| format!("model.layers.{i}.{rest}");
                LayerSlots {
                    input_norm: layout.tensor(name("input_layernorm.weight"), &[h]),
                    qkv_proj: layout.group(&[
                        (name("self_attn.q_proj.weight"), &[q, h]),
                        (name("self_attn.k_proj.weight"), &[kv, h]),
                        (name("self_attn.v_proj.weight"), &[kv, h]),
                    ]),
                    qkv_bias: spec.qkv_bias.then(|| {
                        layout.group(&[
                            (name("self_attn.q_proj.bias"), &[q]),
                            (name("self_attn.k_proj.bias"), &[kv]),
                            (name("self_attn.v_proj.bias"), &[kv]),
                        ])
                    }),
                    q_norm: spec
                        .qk_norm
                        .then(|| layout.tensor(name("self_attn.q_norm.weight"), &[d])),
                    k_norm: spec
                        .qk_norm
                        .then(|| layout.tensor(name("self_attn.k_norm.weight"), &[d])),
                    o_proj: layout.tensor(name("self_attn.o_proj.weight"), &[h, q]),
                    o_bias: spec
                        .o_bias
                        .then(|| layout.tensor(name("self_attn.o_proj.bias"), &[h])),
                    post_attention_norm: layout
                        .tensor(name("post_attention_layernorm.weight"), &[h]),
                    gate_up_proj: layout.group(&[
                        (name("mlp.gate_proj.weight"), &[f, h]),
                        (name("mlp.up_proj.weight"), &[f, h]),
                    ]),
                    gate_up_bias: spec.mlp_bias.then(|| {
                        layout.group(&[
                            (name("mlp.gate_proj.bias"), &[f]),
                            (name("mlp.up_proj.bias"), &[f]),
                        ])
                    }),
                    down_proj: layout.tensor(name("mlp.down_proj.weight"), &[h, f]),
                    down_bias: spec
                        .mlp_bias
                        .then(|| layout.tensor(name("mlp.down_proj.bias"), &[h])),
                }
            })
            .collect();
        let norm = layout.tensor("model.norm.weight", &[h]);
        let lm_head = if spec.tie_word_embeddings {
            embed_tokens
        } else {
            layout.tensor("lm_head.weight", &[spec.vocab_size, h])
        };
        Self {
            params: layout.params,
            embed_tokens,
            layers,
            norm,
            lm_head,
            len: layout.vectors_end.next_multiple_of(ALIGNMENT),
            matrices_len: layout.matrices_end.next_multiple_of(ALIGNMENT),
        }
    }

    /// Number of parameters, without alignment gaps.
    pub fn num_parameters(&self) -> usize {
        self.params.iter().map(Param::len).sum()
    }
}

struct Layout {
    params: Vec<Param>,
    matrices_end: usize,
    vectors_end: usize,
}

impl Layout {
    fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        self.group(&[(name.into(), shape)])
    }

    /// Matrices or vectors end to end, the first one aligned.
    fn group(&mut self, tensors: &[(String, &[usize])]) -> Slot {
        let end = match tensors {
            [(_, [_]), ..] => &mut self.vectors_end,
            _ => &mut self.matrices_end,
        };
        *end = end.next_multiple_of(ALIGNMENT);
        let offset = *end;
        for (name, shape) in tensors {
            self.params.push(Param {
                name: name.clone(),
                shape: shape.to_vec(),
                offset: *end,
                decay: decays(name),
                trainable: true,
            });
            *end += shape.iter().product::<usize>();
        }
        Slot {
            offset,
            len: *end - offset,
        }
    }
}

/// The peer's rule: no decay for norms and biases, decay for all else, embeddings included.
fn decays(name: &str) -> bool {
    !(name.ends_with(".bias") || name.split('.').any(|part| part.ends_with("norm")))
}
