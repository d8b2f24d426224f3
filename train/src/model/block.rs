use crate::backend::{Activation, Attended, Attention, AttentionGrads, Backend, Epilogue, Gemm, LayerNormGrads, Span};
use crate::parameters::{Block, LayerNorm, Linear, part};

/// What a tower's blocks have in common, and the sequences that they work on now.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    pub width: usize,
    /// The width between the two layers of the MLP.
    pub hidden: usize,
    pub activation: Activation,
    pub eps: f32,
    /// With one query a sequence the block works on those rows alone: the last block of a tower, of which only one
    /// token is pooled.
    pub attention: Attention<'a>,
}

impl Shape<'_> {
    /// Rows of keys and values, the block's input.
    fn rows(&self) -> usize {
        self.attention.starts[self.attention.starts.len() - 1]
    }

    /// Rows of queries, the block's output.
    fn queries(&self) -> usize {
        self.attention.queries.map_or(self.rows(), <[usize]>::len)
    }
}

/// What a block's forward keeps for its backward, for up to so many rows.
pub struct Activations {
    ln_1: Span,
    ln_1_stats: Span,
    /// The rows of `ln_1` that have queries, where not all have.
    ln_1_queries: Option<Span>,
    q: Span,
    kv: Span,
    attention: Span,
    attention_lse: Span,
    /// The residual stream after attention, and after the block.
    middle: Span,
    ln_2: Span,
    ln_2_stats: Span,
    fc: Span,
    activated: Span,
    pub out: Span,
}

/// Gradients that every block's backward uses in turn.
pub struct Scratch {
    hidden: Span,
    dq: Span,
    dkv: Span,
    plain: Span,
    rows: Span,
}

impl Activations {
    /// `queries` is given where it is less than `rows`.
    pub fn new(b: &mut dyn Backend, rows: usize, queries: Option<usize>, heads: usize, width: usize, hidden: usize) -> Activations {
        let of_queries = queries.unwrap_or(rows);
        let stats = [rows * 2, of_queries * 2, of_queries * heads].map(|len| b.alloc(len));
        let mut alloc = |len: usize| b.alloc_activations(len);
        Activations {
            ln_1: alloc(rows * width),
            ln_1_stats: stats[0],
            ln_1_queries: queries.map(|queries| alloc(queries * width)),
            q: alloc(of_queries * width),
            kv: alloc(rows * 2 * width),
            attention: alloc(of_queries * width),
            attention_lse: stats[2],
            middle: alloc(of_queries * width),
            ln_2: alloc(of_queries * width),
            ln_2_stats: stats[1],
            fc: alloc(of_queries * hidden),
            activated: alloc(of_queries * hidden),
            out: alloc(of_queries * width),
        }
    }

    /// Values a row.
    pub fn values_per_row(width: usize, hidden: usize) -> usize {
        8 * width + 2 * hidden + 4
    }

    /// The same for the first rows.
    fn first(&self, shape: &Shape) -> Activations {
        let (rows, queries, width, hidden) = (shape.rows(), shape.queries(), shape.width, shape.hidden);
        Activations {
            ln_1: self.ln_1.first(rows * width),
            ln_1_stats: self.ln_1_stats.first(rows * 2),
            ln_1_queries: shape.attention.queries.and(self.ln_1_queries).map(|span| span.first(queries * width)),
            q: self.q.first(queries * width),
            kv: self.kv.first(rows * 2 * width),
            attention: self.attention.first(queries * width),
            attention_lse: self.attention_lse.first(queries * shape.attention.heads),
            middle: self.middle.first(queries * width),
            ln_2: self.ln_2.first(queries * width),
            ln_2_stats: self.ln_2_stats.first(queries * 2),
            fc: self.fc.first(queries * hidden),
            activated: self.activated.first(queries * hidden),
            out: self.out.first(queries * width),
        }
    }
}

impl Scratch {
    /// For blocks of up to so many rows times width, and rows times hidden width.
    pub fn new(b: &mut dyn Backend, values: usize, hidden_values: usize) -> Scratch {
        let [dq, plain, rows] = [(); 3].map(|()| b.alloc_activations(values));
        Scratch { hidden: b.alloc_activations(hidden_values), dq, dkv: b.alloc_activations(2 * values), plain, rows }
    }
}

/// `out[rows, n] = x[rows, k] · weightᵀ + bias`.
fn linear(b: &mut dyn Backend, values: Span, layer: &Linear, out: Span, x: Span) {
    linear_then(b, values, layer, out, x, Epilogue::Bias);
}

/// The same, and what is done with it while it is at hand.
fn linear_then(b: &mut dyn Backend, values: Span, layer: &Linear, out: Span, x: Span, epilogue: impl Fn(Span) -> Epilogue) {
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
        accumulate: false,
        epilogue: epilogue(part(values, &layer.bias)),
    });
}

/// `dx (+)= dy · weight`, and the gradients of weight and bias.
#[allow(clippy::too_many_arguments)]
fn linear_backward(b: &mut dyn Backend, values: Span, grads: Span, layer: &Linear, dx: Span, dy: Span, x: Span, accumulate: bool) {
    let (n, k) = (layer.bias.len(), layer.weight.len() / layer.bias.len());
    let m = x.len / k;
    weight_backward(b, part(grads, &layer.weight), dy, x, [n, k, m]);
    let w = part(values, &layer.weight);
    b.gemm(Gemm { out: dx, a: dy, b: w, m, n: k, k: n, transpose_a: false, transpose_b: false, accumulate, epilogue: Epilogue::None });
    b.add_column_sums(part(grads, &layer.bias), dy);
}

/// `dw[m, n] += aᵀ · b`, from `a[k, m]` and `b[k, n]`.
pub fn weight_backward(b: &mut dyn Backend, dw: Span, left: Span, right: Span, [m, n, k]: [usize; 3]) {
    b.gemm(Gemm { out: dw, a: left, b: right, m, n, k, transpose_a: true, transpose_b: false, accumulate: true, epilogue: Epilogue::None });
}

pub fn layer_norm(b: &mut dyn Backend, values: Span, layer: &LayerNorm, out: Span, stats: Span, x: Span, eps: f32) {
    b.layer_norm(out, stats, x, part(values, &layer.weight), part(values, &layer.bias), eps);
}

/// `dx += `, and the gradients of the layer's weight and bias.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(b: &mut dyn Backend, values: Span, grads: Span, layer: &LayerNorm, dx: Span, dy: Span, x: Span, stats: Span) {
    let to = LayerNormGrads { dx, dgamma: part(grads, &layer.weight), dbeta: part(grads, &layer.bias) };
    b.layer_norm_backward(to, dy, x, stats, part(values, &layer.weight));
}

/// `a.out[queries, C]` from `x[rows, C]`.
pub fn forward(b: &mut dyn Backend, values: Span, block: &Block, a: &Activations, x: Span, shape: &Shape) {
    let a = a.first(shape);
    layer_norm(b, values, &block.ln_1, a.ln_1, a.ln_1_stats, x, shape.eps);
    linear(b, values, &block.kv, a.kv, a.ln_1);
    let (ln_1, residual) = match (a.ln_1_queries, shape.attention.queries) {
        (Some(ln_1), Some(queries)) => {
            b.gather(ln_1, a.ln_1, queries, shape.width);
            b.gather(a.out, x, queries, shape.width);
            (ln_1, a.out)
        }
        _ => (a.ln_1, x),
    };
    linear(b, values, &block.q, a.q, ln_1);
    b.attention(a.attention, a.attention_lse, a.q, a.kv, shape.attention);
    linear_then(b, values, &block.out, a.middle, a.attention, |bias| Epilogue::Residual { bias, x: residual });

    layer_norm(b, values, &block.ln_2, a.ln_2, a.ln_2_stats, a.middle, shape.eps);
    let activation = shape.activation;
    linear_then(b, values, &block.fc, a.fc, a.ln_2, |bias| Epilogue::Activate { bias, activation, to: a.activated });
    linear_then(b, values, &block.proj, a.out, a.activated, |bias| Epilogue::Residual { bias, x: a.middle });
}

/// From `d[queries, C]`, the gradient of the block's output, that of its input `x[rows, C]`, in `dx`. Where every row
/// has a query, `d` and `dx` are the same span; otherwise `d` is used up.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    b: &mut dyn Backend,
    values: Span,
    grads: Span,
    block: &Block,
    a: &Activations,
    s: &Scratch,
    d: Span,
    dx: Span,
    x: Span,
    shape: &Shape,
) {
    let a = a.first(shape);
    let (queries, rows) = (shape.queries() * shape.width, shape.rows() * shape.width);
    let (hidden, plain) = (s.hidden.first(shape.queries() * shape.hidden), s.plain.first(queries));

    linear_backward(b, values, grads, &block.proj, hidden, d, a.activated, false);
    b.activate_backward(shape.activation, hidden, a.fc);
    linear_backward(b, values, grads, &block.fc, plain, hidden, a.ln_2, false);
    layer_norm_backward(b, values, grads, &block.ln_2, d, plain, a.middle, a.ln_2_stats);

    linear_backward(b, values, grads, &block.out, plain, d, a.attention, false);
    let (dq, dkv, dln_1) = (s.dq.first(queries), s.dkv.first(2 * rows), s.rows.first(rows));
    let attended = Attended { out: a.attention, lse: a.attention_lse, q: a.q, kv: a.kv };
    b.attention_backward(AttentionGrads { dq, dkv }, plain, attended, shape.attention);
    linear_backward(b, values, grads, &block.kv, dln_1, dkv, a.ln_1, false);
    match (a.ln_1_queries, shape.attention.queries) {
        (Some(ln_1), Some(which)) => {
            linear_backward(b, values, grads, &block.q, plain, dq, ln_1, false);
            b.gather_backward(dln_1, plain, which, shape.width);
            b.zero(dx);
            b.gather_backward(dx, d, which, shape.width);
        }
        _ => linear_backward(b, values, grads, &block.q, dln_1, dq, a.ln_1, true),
    }
    layer_norm_backward(b, values, grads, &block.ln_1, dx, dln_1, x, a.ln_1_stats);
}
