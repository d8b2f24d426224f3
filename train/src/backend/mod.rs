//! The operations that the model is written over. A backend owns all memory; the model holds `Span`s into it.

mod cpu;

pub(crate) use cpu::vectorized;
pub use cpu::{Cpu, inner_products};

/// A range of float32 values in a backend's memory: a device pointer with its length.
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
pub trait Backend {
    /// `len` zeros.
    fn alloc(&mut self, len: usize) -> Span;
    fn write(&mut self, to: Span, values: &[f32]);
    fn read(&self, from: Span) -> Vec<f32>;
    fn zero(&mut self, span: Span);

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
    fn attention(&mut self, out: Span, q: Span, kv: Span, shape: Attention);
    /// `dq = `, `dkv = ` from `dout`; the probabilities are computed again.
    fn attention_backward(&mut self, dq: Span, dkv: Span, dout: Span, q: Span, kv: Span, shape: Attention);

    /// `out[rows, dim] = table[ids] + positions[row - start of its sequence]`.
    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], starts: &[usize]);
    /// `dtable += `, `dpositions += ` from `dout`.
    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], starts: &[usize]);

    /// `pixels[batch, 3, size, size]` into `out[batch * (size/patch)^2, 3 * patch * patch]`, channel-major as a
    /// convolution's weight.
    fn patchify(&mut self, out: Span, pixels: Span, size: usize, patch: usize);
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
    /// `scale * images · textsᵀ`, which are never held all at once. `losses[n]` gets each sample's part, their mean
    /// being the loss; writes `d_images` and `d_texts`; returns d loss / d ln(scale).
    fn contrastive_loss(&mut self, to: LossGrads, losses: Span, images: Span, texts: Span, scale: f32) -> f32;

    /// The sum of the squares of all values.
    fn square_sum(&self, x: Span) -> f64;

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
}

/// The flat arenas of an optimizer, all of one length.
#[derive(Debug, Clone, Copy)]
pub struct AdamWState {
    pub params: Span,
    pub grads: Span,
    pub m: Span,
    pub v: Span,
}
