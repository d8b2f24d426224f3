//! The operations that the model is written over. A backend owns all memory; the model holds `Span`s into it.

mod check;
mod cpu;
mod cuda;
#[cfg(feature = "libtorch")]
mod libtorch;

pub use check::{Check, check_operations};
pub(crate) use cpu::vectorized;
pub use cpu::{Cpu, inner_products};
pub use cuda::{Cuda, Precision, kernel_source, refuses};

#[cfg(feature = "libtorch")]
pub use libtorch::Libtorch;

use crate::Result;

/// A range of values in a backend's memory: a device pointer with its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    buffer: usize,
    start: usize,
    pub len: usize,
}

impl Span {
    /// `len` values from `start` on.
    pub fn at(self, start: usize, len: usize) -> Span {
        assert!(start + len <= self.len, "{start}+{len} is outside a span of {}", self.len);
        Span { buffer: self.buffer, start: self.start + start, len }
    }

    /// The first `len` values.
    pub fn first(self, len: usize) -> Span {
        self.at(0, len)
    }
}

/// `out[m, n] (+)= op(a)[m, k] · op(b)[k, n]`, all row-major, then the epilogue; `op` transposes where asked.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    pub out: Span,
    pub a: Span,
    pub b: Span,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transpose_a: bool,
    pub transpose_b: bool,
    /// Adds to `out` instead of replacing it.
    pub accumulate: bool,
    pub epilogue: Epilogue,
}

/// What becomes of a product's rows while they are at hand.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue {
    None,
    /// `out += bias[n]`.
    Bias(Span),
    /// `out += bias[n]`, and `to[m, n] = activation(out)`.
    Activate {
        bias: Span,
        activation: Activation,
        to: Span,
    },
    /// `out += bias[n] + x[m, n]`.
    Residual {
        bias: Span,
        x: Span,
    },
}

/// Self-attention within sequences that lie one after another in the rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Sequence s has rows `starts[s]..starts[s + 1]` of keys and values.
    pub starts: &'a [usize],
    /// One query a sequence, that of these rows of the keys; otherwise every row has one.
    pub queries: Option<&'a [usize]>,
    pub heads: usize,
    pub head_width: usize,
    /// A query sees the keys of its sequence up to its own row.
    pub causal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact (erf) GELU.
    Gelu,
    /// x * sigmoid(1.702 x), of OpenAI's models.
    QuickGelu,
}

/// Hyper-parameters of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Counted from 1, for the bias correction.
    pub step: u64,
    /// Factor of all gradients, below 1 where they are clipped.
    pub gradient_scale: f32,
}

/// An output span never overlaps an input of the same call, unless the operation says that it works in place.
/// `rows` is always the product of the leading dimensions.
///
/// Memory is of three sorts: parameters, which matrix products read; activations and their gradients, in the precision
/// that the backend computes in; and the rest, always float32 (gradients of parameters, moments, statistics, features).
pub trait Backend: Send {
    /// What computes, for people.
    fn name(&self) -> String;
    /// `len` zeros of float32.
    fn alloc(&mut self, len: usize) -> Span;
    fn alloc_parameters(&mut self, len: usize) -> Span;
    fn alloc_activations(&mut self, len: usize) -> Span;
    fn write(&mut self, to: Span, values: &[f32]);
    fn read(&self, from: Span) -> Vec<f32>;
    fn zero(&mut self, span: Span);
    /// The first error: what was computed and read after it means nothing.
    fn check(&self) -> Result<()> {
        Ok(())
    }
    /// The same for all backends that compute the same in the same way.
    fn kind(&self) -> &'static str;
    /// The GPU, where it is one, for what no model does.
    fn gpu(&mut self) -> Option<&mut gpu::Device> {
        None
    }
    /// Where backends of several processes can meet, to exchange by a way of their own; none where they have none.
    fn meeting_point(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// With the first process's meeting point; all processes call it at once.
    fn meet(&mut self, _at: &[u8], _rank: usize, _world: usize) -> Result<()> {
        Ok(())
    }
    /// After `meet` alone. Each process has its own part of `span`, by its rank, and gets the others'.
    fn all_gather(&mut self, _span: Span, _world: usize) {
        unreachable!("no way was opened");
    }
    /// After `meet` alone. The sums over all processes.
    fn all_reduce(&mut self, _span: Span) {
        unreachable!("no way was opened");
    }

    fn gemm(&mut self, gemm: Gemm);
    /// Floating-point operations of all matrix products so far, attention's included: 2 m n k each.
    fn flops(&self) -> f64;
    /// `out[n] += sum over rows of x[rows, n]`.
    fn add_column_sums(&mut self, out: Span, x: Span);

    /// `out[rows, dim]` from `x[rows, dim]`; `stats[rows, 2]` keeps mean and reciprocal deviation.
    fn layer_norm(&mut self, out: Span, stats: Span, x: Span, gamma: Span, beta: Span, eps: f32);
    /// `dx += `, `dgamma += `, `dbeta += ` from `dy`.
    fn layer_norm_backward(&mut self, grads: LayerNormGrads, dy: Span, x: Span, stats: Span, gamma: Span);

    /// `dy *= activation'(x)`, in place.
    fn activate_backward(&mut self, activation: Activation, dy: Span, x: Span);

    /// `out[queries, width]` from `q[queries, width]` and `kv[rows, 2 * width]`, width being `heads * head_width`.
    /// `lse[queries, heads]` is the backend's own, for `attention_backward`.
    fn attention(&mut self, out: Span, lse: Span, q: Span, kv: Span, shape: Attention);
    /// `dq = `, `dkv = ` from `dout`; the probabilities are computed again.
    fn attention_backward(&mut self, grads: AttentionGrads, dout: Span, of: Attended, shape: Attention);

    /// `out[rows, dim] = table[ids] + positions[row - start of its sequence]`.
    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], starts: &[usize]);
    /// `dtable += `, `dpositions += ` from `dout`.
    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], starts: &[usize]);

    /// Images of `size` into `out[batch * (size/patch)^2, 3 * patch * patch]`, normalised, channel-major as a convolution's
    /// weight.
    fn patchify(&mut self, out: Span, pixels: Pixels, size: usize, patch: usize);
    /// `out[batch, 1 + n, dim]`: the class token, then the patches, each plus its position.
    fn embed_patches(&mut self, out: Span, patches: Span, class: Span, positions: Span);
    /// `dpatches = `, `dclass += `, `dpositions += ` from `dout`.
    fn embed_patches_backward(&mut self, dpatches: Span, dclass: Span, dpositions: Span, dout: Span);

    /// `out[i] = x[rows[i]]`, rows of `dim` values.
    fn gather(&mut self, out: Span, x: Span, rows: &[usize], dim: usize);
    /// `dx[rows[i]] += dout[i]`.
    fn gather_backward(&mut self, dx: Span, dout: Span, rows: &[usize], dim: usize);

    /// Rows of `x[rows, dim]` divided by their Euclidean norm, which `norms[rows]` keeps.
    fn normalize(&mut self, out: Span, norms: Span, x: Span);
    /// `dx = ` from `dy` and the output `y`.
    fn normalize_backward(&mut self, dx: Span, dy: Span, y: Span, norms: Span);

    /// CLIP's symmetric cross entropy over `images[n, dim]` and `texts[n, dim]`, normalised, with logits
    /// `exp(ln_scale) * images · textsᵀ`, which are never held all at once. `losses[n]` gets each sample's part, their
    /// mean being the loss; writes `d_images` and `d_texts`, adds to `d_ln_scale`.
    fn contrastive_loss(&mut self, to: LossGrads, losses: Span, images: Span, texts: Span, ln_scale: Span);

    /// The sum of the squares of all values.
    fn square_sum(&mut self, x: Span) -> f64;
    /// The one value of `x` into `[low, high]`.
    fn clamp(&mut self, x: Span, low: f32, high: f32);

    /// One step over `params`, with moments `m` and `v`. Decay is decoupled; `decayed` is given per range of `params`.
    fn adamw(&mut self, state: AdamWState, decayed: &[(std::ops::Range<usize>, bool)], hyper: AdamW);
}

/// Where `layer_norm_backward` adds.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormGrads {
    pub dx: Span,
    pub dgamma: Span,
    pub dbeta: Span,
}

/// Where `contrastive_loss` writes.
#[derive(Debug, Clone, Copy)]
pub struct LossGrads {
    pub d_images: Span,
    pub d_texts: Span,
    pub d_ln_scale: Span,
}

/// Where `attention_backward` writes.
#[derive(Debug, Clone, Copy)]
pub struct AttentionGrads {
    pub dq: Span,
    pub dkv: Span,
}

/// What `attention` read and wrote.
#[derive(Debug, Clone, Copy)]
pub struct Attended {
    pub out: Span,
    pub lse: Span,
    pub q: Span,
    pub kv: Span,
}

/// Images in the program's memory.
#[derive(Debug, Clone, Copy)]
pub enum Pixels<'a> {
    /// `[batch, 3, size, size]`, normalised.
    Values(&'a [f32]),
    /// `[batch, size, size, 3]` of 8 bits, to be normalised by each channel's mean and deviation, both of values in [0, 1].
    Bytes { bytes: &'a [u8], mean: [f32; 3], std: [f32; 3] },
}

impl Pixels<'_> {
    /// Values or bytes, three a pixel.
    pub fn len(&self) -> usize {
        match self {
            Pixels::Values(values) => values.len(),
            Pixels::Bytes { bytes, .. } => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The flat arenas of an optimizer, all of one length.
#[derive(Debug, Clone, Copy)]
pub struct AdamWState {
    pub params: Span,
    pub grads: Span,
    pub m: Span,
    pub v: Span,
}
