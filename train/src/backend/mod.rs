//! The operations that the model is written over. A backend owns all memory; the model holds `Span`s into it.

mod cpu;
mod math;

pub use cpu::Cpu;

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

/// `out[m, n] (+)= op(a)[m, k] · op(b)[k, n] (+ bias[n])`, all row-major; `op` transposes where asked.
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
    pub bias: Option<Span>,
}

/// The shape of self-attention over packed queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub head_width: usize,
    /// Token t sees tokens 0..=t only.
    pub causal: bool,
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
}

/// An output span never overlaps an input of the same call, unless the operation says that it works in place.
/// `rows` is always the product of the leading dimensions.
pub trait Backend {
    /// `len` zeros.
    fn alloc(&mut self, len: usize) -> Span;
    fn write(&mut self, to: Span, values: &[f32]);
    fn read(&self, from: Span) -> Vec<f32>;
    fn zero(&mut self, span: Span);
    /// `out = x`.
    fn copy(&mut self, out: Span, x: Span);
    /// `out += x`.
    fn add(&mut self, out: Span, x: Span);

    fn gemm(&mut self, gemm: Gemm);
    /// `out[n] += sum over rows of x[rows, n]`.
    fn add_column_sums(&mut self, out: Span, x: Span);

    /// `out[rows, dim]` from `x[rows, dim]`, epsilon 1e-5; `stats[rows, 2]` keeps mean and reciprocal deviation.
    fn layer_norm(&mut self, out: Span, stats: Span, x: Span, gamma: Span, beta: Span);
    /// `dx += `, `dgamma += `, `dbeta += ` from `dy`.
    fn layer_norm_backward(&mut self, grads: LayerNormGrads, dy: Span, x: Span, stats: Span, gamma: Span);

    /// The exact (erf) GELU.
    fn gelu(&mut self, out: Span, x: Span);
    /// `dy *= gelu'(x)`, in place.
    fn gelu_backward(&mut self, dy: Span, x: Span);

    /// `out[batch, tokens, heads * head_width]` from `qkv[batch, tokens, 3 * heads * head_width]`.
    fn attention(&mut self, out: Span, qkv: Span, shape: Attention);
    /// `dqkv` from `dout`; the probabilities are computed again.
    fn attention_backward(&mut self, dqkv: Span, dout: Span, qkv: Span, shape: Attention);

    /// `out[batch, tokens, dim] = table[ids] + positions[tokens]`; `ids` is `[batch, tokens]`.
    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], tokens: usize);
    /// `dtable += `, `dpositions += ` from `dout`.
    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], tokens: usize);

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
    /// `scale * images · textsᵀ`. Writes `d_images`, `d_texts`; returns the loss and d loss / d ln(scale).
    fn contrastive_loss(&mut self, d_images: Span, d_texts: Span, images: Span, texts: Span, n: usize, scale: f32) -> (f32, f32);

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

/// The flat arenas of an optimizer, all of one length.
#[derive(Debug, Clone, Copy)]
pub struct AdamWState {
    pub params: Span,
    pub grads: Span,
    pub m: Span,
    pub v: Span,
}
