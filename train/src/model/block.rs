use crate::backend::{Attention, Backend, Gemm, LayerNormGrads, Span};
use crate::parameters::{Block, LayerNorm, Linear, part};

/// What a block's forward keeps for its backward, for up to `rows` = B*T tokens of width C.
pub struct Activations {
    ln_1: Span,
    ln_1_stats: Span,
    qkv: Span,
    attention: Span,
    /// The residual stream after attention, and after the block.
    middle: Span,
    ln_2: Span,
    ln_2_stats: Span,
    fc: Span,
    gelu: Span,
    pub out: Span,
}

/// Gradients that every block's backward uses in turn.
pub struct Scratch {
    wide: Span,
    packed: Span,
    plain: Span,
}

impl Activations {
    pub fn new(b: &mut impl Backend, rows: usize, width: usize) -> Activations {
        let mut alloc = |columns: usize| b.alloc(rows * columns);
        Activations {
            ln_1: alloc(width),
            ln_1_stats: alloc(2),
            qkv: alloc(3 * width),
            attention: alloc(width),
            middle: alloc(width),
            ln_2: alloc(width),
            ln_2_stats: alloc(2),
            fc: alloc(4 * width),
            gelu: alloc(4 * width),
            out: alloc(width),
        }
    }

    /// The same for the first `rows` tokens.
    fn first(&self, rows: usize, width: usize) -> Activations {
        Activations {
            ln_1: self.ln_1.first(rows * width),
            ln_1_stats: self.ln_1_stats.first(rows * 2),
            qkv: self.qkv.first(rows * 3 * width),
            attention: self.attention.first(rows * width),
            middle: self.middle.first(rows * width),
            ln_2: self.ln_2.first(rows * width),
            ln_2_stats: self.ln_2_stats.first(rows * 2),
            fc: self.fc.first(rows * 4 * width),
            gelu: self.gelu.first(rows * 4 * width),
            out: self.out.first(rows * width),
        }
    }
}

impl Scratch {
    pub fn new(b: &mut impl Backend, rows: usize, width: usize) -> Scratch {
        Scratch { wide: b.alloc(rows * 4 * width), packed: b.alloc(rows * 3 * width), plain: b.alloc(rows * width) }
    }
}

/// `out[rows, n] = x[rows, k] · weightᵀ + bias`.
pub fn linear(b: &mut impl Backend, values: Span, layer: &Linear, out: Span, x: Span, accumulate: bool) {
    let (n, k) = (layer.bias.len(), layer.weight.len() / layer.bias.len());
    b.gemm(Gemm {
        out,
        a: x,
        b: part(values, &layer.weight),
        m: x.len / k,
        n,
        k,
        transpose_a: false,
        transpose_b: true,
        accumulate,
        bias: Some(part(values, &layer.bias)),
    });
}

/// `dx = dy · weight`, and the gradients of weight and bias.
fn linear_backward(b: &mut impl Backend, values: Span, grads: Span, layer: &Linear, dx: Span, dy: Span, x: Span) {
    let (n, k) = (layer.bias.len(), layer.weight.len() / layer.bias.len());
    let m = x.len / k;
    matmul_backward(b, part(values, &layer.weight), part(grads, &layer.weight), Some(dx), dy, x, [m, n, k], true);
    b.add_column_sums(part(grads, &layer.bias), dy);
}

/// Backward of `y[m, n] = x[m, k] · w`, where `w` is `[n, k]` if `transposed` and `[k, n]` otherwise.
#[allow(clippy::too_many_arguments)]
pub fn matmul_backward(
    b: &mut impl Backend,
    w: Span,
    dw: Span,
    dx: Option<Span>,
    dy: Span,
    x: Span,
    [m, n, k]: [usize; 3],
    transposed: bool,
) {
    let (rows, columns, left, right) = if transposed { (n, k, dy, x) } else { (k, n, x, dy) };
    b.gemm(Gemm {
        out: dw,
        a: left,
        b: right,
        m: rows,
        n: columns,
        k: m,
        transpose_a: true,
        transpose_b: false,
        accumulate: true,
        bias: None,
    });
    if let Some(dx) = dx {
        b.gemm(Gemm { out: dx, a: dy, b: w, m, n: k, k: n, transpose_a: false, transpose_b: !transposed, accumulate: false, bias: None });
    }
}

pub fn layer_norm(b: &mut impl Backend, values: Span, layer: &LayerNorm, out: Span, stats: Span, x: Span) {
    b.layer_norm(out, stats, x, part(values, &layer.weight), part(values, &layer.bias));
}

/// `dx += `, and the gradients of the layer's weight and bias.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(b: &mut impl Backend, values: Span, grads: Span, layer: &LayerNorm, dx: Span, dy: Span, x: Span, stats: Span) {
    let to = LayerNormGrads { dx, dgamma: part(grads, &layer.weight), dbeta: part(grads, &layer.bias) };
    b.layer_norm_backward(to, dy, x, stats, part(values, &layer.weight));
}

/// `a.out[B*T, C]` from `x[B*T, C]`.
pub fn forward(b: &mut impl Backend, values: Span, block: &Block, a: &Activations, x: Span, shape: Attention) {
    let width = shape.heads * shape.head_width;
    let a = a.first(shape.batch * shape.tokens, width);
    layer_norm(b, values, &block.ln_1, a.ln_1, a.ln_1_stats, x);
    linear(b, values, &block.qkv, a.qkv, a.ln_1, false);
    b.attention(a.attention, a.qkv, shape);
    b.copy(a.middle, x);
    linear(b, values, &block.out, a.middle, a.attention, true);

    layer_norm(b, values, &block.ln_2, a.ln_2, a.ln_2_stats, a.middle);
    linear(b, values, &block.fc, a.fc, a.ln_2, false);
    b.gelu(a.gelu, a.fc);
    b.copy(a.out, a.middle);
    linear(b, values, &block.proj, a.out, a.gelu, true);
}

/// Turns `d[B*T, C]`, the gradient of the block's output, into that of its input `x`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    b: &mut impl Backend,
    values: Span,
    grads: Span,
    block: &Block,
    a: &Activations,
    s: &Scratch,
    d: Span,
    x: Span,
    shape: Attention,
) {
    let width = shape.heads * shape.head_width;
    let rows = shape.batch * shape.tokens;
    let a = a.first(rows, width);
    let (wide, packed, plain) = (s.wide.first(rows * 4 * width), s.packed.first(rows * 3 * width), s.plain.first(rows * width));

    linear_backward(b, values, grads, &block.proj, wide, d, a.gelu);
    b.gelu_backward(wide, a.fc);
    linear_backward(b, values, grads, &block.fc, plain, wide, a.ln_2);
    layer_norm_backward(b, values, grads, &block.ln_2, d, plain, a.middle, a.ln_2_stats);

    linear_backward(b, values, grads, &block.out, plain, d, a.attention);
    b.attention_backward(packed, plain, a.qkv, shape);
    linear_backward(b, values, grads, &block.qkv, plain, packed, a.ln_1);
    layer_norm_backward(b, values, grads, &block.ln_1, d, plain, x, a.ln_1_stats);
}
