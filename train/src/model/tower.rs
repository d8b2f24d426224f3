//! What both towers share: blocks, the pooled token, the last norm and the projection.

use std::ops::Range;

use super::block::{self, Activations, Scratch, Shape, layer_norm, layer_norm_backward, weight_backward};
use crate::backend::{Attention, Backend, Epilogue, Gemm, Span};
use crate::parameters::{Block, LayerNorm, part};

/// Activations of one micro-batch.
pub struct Tower {
    /// Of every block but the last; fewer where nothing goes backward, used in turn.
    blocks: Vec<Activations>,
    last: Activations,
    ln: Span,
    ln_stats: Span,
}

/// Gradients of activations, shared by all towers.
pub struct Workspace {
    pub scratch: Scratch,
    /// Of the residual stream.
    pub stream: Span,
    /// Of what comes before the first block.
    pub before: Span,
    pooled: [Span; 2],
}

/// A tower's parameters in order.
pub struct TowerParameters<'a> {
    pub blocks: &'a [Block],
    pub ln: &'a LayerNorm,
    /// `[width, E]`.
    pub projection: &'a Range<usize>,
}

/// The parts of an arena that a tower's forward and backward touch.
#[derive(Clone, Copy)]
pub struct Arenas {
    pub values: Span,
    pub grads: Span,
}

/// One micro-batch of a tower: its shape, and the row of each sequence that is pooled.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub shape: Shape<'a>,
    pub pooled: &'a [usize],
}

impl<'a> Input<'a> {
    fn last(&self) -> Shape<'a> {
        Shape { attention: Attention { queries: Some(self.pooled), ..self.shape.attention }, ..self.shape }
    }
}

/// The most that a tower is given at once.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    pub batch: usize,
    pub rows: usize,
    pub width: usize,
    pub hidden: usize,
    pub heads: usize,
    pub layers: usize,
}

impl Capacity {
    /// Values that a tower keeps for its backward.
    pub fn values(&self) -> usize {
        let per_row = Activations::values_per_row(self.width, self.hidden);
        (self.layers - 1) * self.rows * per_row + self.rows * 3 * self.width + self.batch * per_row
    }
}

impl Tower {
    /// With `backward` false two sets of activations serve all blocks.
    pub fn new(b: &mut dyn Backend, c: Capacity, backward: bool) -> Tower {
        let sets = if backward { c.layers - 1 } else { (c.layers - 1).min(2) };
        Tower {
            blocks: (0..sets).map(|_| Activations::new(b, c.rows, None, c.heads, c.width, c.hidden)).collect(),
            last: Activations::new(b, c.rows, Some(c.batch), c.heads, c.width, c.hidden),
            ln: b.alloc_activations(c.batch * c.width),
            ln_stats: b.alloc(c.batch * 2),
        }
    }

    /// `features[batch, E]` from `x[rows, width]`.
    pub fn forward(&self, b: &mut dyn Backend, values: Span, p: &TowerParameters, mut x: Span, input: Input, features: Span) {
        let (width, batch) = (input.shape.width, input.pooled.len());
        let (last, blocks) = p.blocks.split_last().expect("a tower has a block");
        let rows = x.len;
        for (i, parameters) in blocks.iter().enumerate() {
            let activations = &self.blocks[i % self.blocks.len()];
            block::forward(b, values, parameters, activations, x, &input.shape);
            x = activations.out.first(rows);
        }
        block::forward(b, values, last, &self.last, x, &input.last());
        let (ln, stats) = (self.ln.first(batch * width), self.ln_stats.first(batch * 2));
        layer_norm(b, values, p.ln, ln, stats, self.last.out.first(batch * width), input.shape.eps);
        let projection = part(values, p.projection);
        b.gemm(Gemm {
            out: features,
            a: ln,
            b: projection,
            m: batch,
            n: projection.len / width,
            k: width,
            transpose_a: false,
            transpose_b: false,
            accumulate: false,
            epilogue: Epilogue::None,
        });
    }

    /// The gradient of `x`, in `w.stream`, from that of the features.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        b: &mut dyn Backend,
        arenas: Arenas,
        p: &TowerParameters,
        w: &Workspace,
        x: Span,
        input: Input,
        dfeatures: Span,
    ) -> Span {
        let Arenas { values, grads } = arenas;
        let (width, batch) = (input.shape.width, input.pooled.len());
        let [dln, dpooled] = w.pooled.map(|span| span.first(batch * width));
        let (ln, stats) = (self.ln.first(batch * width), self.ln_stats.first(batch * 2));
        let embed_dim = dfeatures.len / batch;
        weight_backward(b, part(grads, p.projection), ln, dfeatures, [width, embed_dim, batch]);
        b.gemm(Gemm {
            out: dln,
            a: dfeatures,
            b: part(values, p.projection),
            m: batch,
            n: width,
            k: embed_dim,
            transpose_a: false,
            transpose_b: true,
            accumulate: false,
            epilogue: Epilogue::None,
        });
        b.zero(dpooled);
        layer_norm_backward(b, values, grads, p.ln, dpooled, dln, self.last.out.first(batch * width), stats);

        let (last, blocks) = p.blocks.split_last().expect("a tower has a block");
        let d = w.stream.first(x.len);
        let input_of = |i: usize| if i == 0 { x } else { self.blocks[i - 1].out.first(x.len) };
        block::backward(b, values, grads, last, &self.last, &w.scratch, dpooled, d, input_of(blocks.len()), &input.last());
        for (i, parameters) in blocks.iter().enumerate().rev() {
            block::backward(b, values, grads, parameters, &self.blocks[i], &w.scratch, d, d, input_of(i), &input.shape);
        }
        d
    }
}

impl Workspace {
    /// How many values `new` takes for towers of these capacities: seven streams, and the hidden layer.
    pub fn values(towers: [Capacity; 2]) -> usize {
        let largest = |values: fn(&Capacity) -> usize| towers.iter().map(values).max().unwrap_or(0);
        7 * largest(|c| c.rows * c.width) + largest(|c| c.rows * c.hidden) + 2 * largest(|c| c.batch * c.width)
    }

    /// For towers of these capacities.
    pub fn new(b: &mut dyn Backend, towers: [Capacity; 2]) -> Workspace {
        let largest = |values: fn(&Capacity) -> usize| towers.iter().map(values).max().unwrap_or(0);
        let (stream, hidden) = (largest(|c| c.rows * c.width), largest(|c| c.rows * c.hidden));
        let pooled = largest(|c| c.batch * c.width);
        Workspace {
            scratch: Scratch::new(b, stream, hidden),
            stream: b.alloc_activations(stream),
            before: b.alloc_activations(stream),
            pooled: [b.alloc_activations(pooled), b.alloc_activations(pooled)],
        }
    }
}
