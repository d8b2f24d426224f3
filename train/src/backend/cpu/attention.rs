use std::ops::Range;

use rayon::prelude::*;

use super::matmul::{Strides, matmul};
use super::vector::{dot, largest, sum, vectorized};
use super::{Cpu, math};
use crate::backend::{Attention, Span};

/// Softmax of `scale * row` over its first `visible` values; the rest becomes 0.
#[inline(always)]
fn softmax(row: &mut [f32], visible: usize, scale: f32) {
    let (seen, hidden) = row.split_at_mut(visible);
    let max = largest(seen);
    for x in seen.iter_mut() {
        *x = math::exp((*x - max) * scale);
    }
    let inverse = 1.0
        / sum(
            seen,
            #[inline(always)]
            |x| x,
        );
    for x in seen.iter_mut() {
        *x *= inverse;
    }
    hidden.fill(0.0);
}

/// One sequence's rows of queries and of keys, and which key is the first query's own.
#[derive(Clone)]
struct Sequence {
    queries: Range<usize>,
    keys: Range<usize>,
    first_query: usize,
}

impl Attention<'_> {
    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn scale(&self) -> f32 {
        (self.head_width as f32).powf(-0.5)
    }

    fn sequences(&self) -> Vec<Sequence> {
        let sequence = |(s, rows): (usize, &[usize])| {
            let keys = rows[0]..rows[1];
            match self.queries {
                None => Sequence { queries: keys.clone(), first_query: 0, keys },
                Some(queries) => Sequence { queries: s..s + 1, first_query: queries[s] - keys.start, keys },
            }
        };
        self.starts.windows(2).enumerate().map(sequence).collect()
    }

    /// Of one product of all queries with all keys.
    fn product_flops(&self, sequences: &[Sequence]) -> f64 {
        let pairs: usize = sequences.iter().map(|s| s.queries.len() * s.keys.len()).sum();
        2.0 * (pairs * self.width()) as f64
    }

    /// softmax(q · kᵀ / sqrt(head_width)) as `[queries, keys]`, from one head's columns.
    fn probabilities<'a>(&self, probs: &'a mut Vec<f32>, s: &Sequence, q: &[f32], k: &[f32], arch: pulp::Arch) -> &'a mut [f32] {
        let (queries, keys, width) = (s.queries.len(), s.keys.len(), self.width());
        probs.resize(probs.len().max(queries * keys), 0.0);
        let probs = &mut probs[..queries * keys];
        let dims = (queries, keys, self.head_width);
        let k = (k, Strides::rows_of(2 * width).transposed());
        matmul(dims, (probs, Strides::rows_of(keys)), (q, Strides::rows_of(width)), k, false, 1.0, gemm::Parallelism::None);
        vectorized(
            arch,
            #[inline(always)]
            || {
                for (i, row) in probs.chunks_exact_mut(keys).enumerate() {
                    softmax(row, if self.causal { s.first_query + i + 1 } else { keys }, self.scale());
                }
            },
        );
        probs
    }
}

/// Consecutive pieces of a slice, of these lengths.
fn pieces(mut x: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    lengths
        .map(|length| {
            let (piece, rest) = std::mem::take(&mut x).split_at_mut(length);
            x = rest;
            piece
        })
        .collect()
}

pub(super) fn forward(cpu: &mut Cpu, out: Span, q: Span, kv: Span, shape: Attention) {
    let (arch, width, d) = (cpu.arch, shape.width(), shape.head_width);
    let sequences = shape.sequences();
    cpu.flops += 2.0 * shape.product_flops(&sequences);
    cpu.with(out, |cpu, out| {
        let (q, kv) = (cpu.get(q), cpu.get(kv));
        let outs = pieces(out, sequences.iter().map(|s| s.queries.len() * width));
        outs.into_par_iter().zip(&sequences).for_each_init(Vec::new, |probs, (out, s)| {
            for head in (0..width).step_by(d) {
                let (q, k) = (&q[s.queries.start * width + head..], &kv[s.keys.start * 2 * width + head..]);
                let probs = shape.probabilities(probs, s, q, k, arch);
                let dims = (s.queries.len(), d, s.keys.len());
                let (out, probs) = ((&mut out[head..], Strides::rows_of(width)), (&*probs, Strides::rows_of(s.keys.len())));
                matmul(dims, out, probs, (&k[width..], Strides::rows_of(2 * width)), false, 1.0, gemm::Parallelism::None);
            }
        });
    });
}

pub(super) fn backward(cpu: &mut Cpu, dq: Span, dkv: Span, dout: Span, q: Span, kv: Span, shape: Attention) {
    let (arch, width, d) = (cpu.arch, shape.width(), shape.head_width);
    let (plain, pair) = (Strides::rows_of(width), Strides::rows_of(2 * width));
    let none = gemm::Parallelism::None;
    let sequences = shape.sequences();
    cpu.flops += 5.0 * shape.product_flops(&sequences);
    cpu.with2(dq, dkv, |cpu, dq, dkv| {
        let (q, kv, dout) = (cpu.get(q), cpu.get(kv), cpu.get(dout));
        let dqs = pieces(dq, sequences.iter().map(|s| s.queries.len() * width));
        let dkvs = pieces(dkv, sequences.iter().map(|s| s.keys.len() * 2 * width));
        let work = dqs.into_par_iter().zip(dkvs).zip(&sequences);
        work.for_each_init(
            || (Vec::new(), Vec::new()),
            |(probs, dprobs), ((dq, dkv), s)| {
                let (queries, keys) = (s.queries.len(), s.keys.len());
                let square = Strides::rows_of(keys);
                for head in (0..width).step_by(d) {
                    let (q, k) = (&q[s.queries.start * width + head..], &kv[s.keys.start * 2 * width + head..]);
                    let (v, dout) = (&k[width..], &dout[s.queries.start * width + head..]);
                    let probs = &*shape.probabilities(probs, s, q, k, arch);
                    dprobs.resize(dprobs.len().max(queries * keys), 0.0);
                    let dprobs = &mut dprobs[..queries * keys];
                    // dv = probsᵀ · dout, dprobs = dout · vᵀ
                    let dv = (&mut dkv[width + head..], pair);
                    matmul((keys, d, queries), dv, (probs, square.transposed()), (dout, plain), false, 1.0, none);
                    matmul((queries, keys, d), (dprobs, square), (dout, plain), (v, pair.transposed()), false, 1.0, none);
                    // Through the softmax: ds = p * (dp - sum(p * dp)), with the scale of the logits.
                    vectorized(
                        arch,
                        #[inline(always)]
                        || {
                            for (dp, p) in dprobs.chunks_exact_mut(keys).zip(probs.chunks_exact(keys)) {
                                let along = dot(dp, p);
                                let scale = shape.scale();
                                for (dp, &p) in dp.iter_mut().zip(p) {
                                    *dp = p * (*dp - along) * scale;
                                }
                            }
                        },
                    );
                    matmul((queries, d, keys), (&mut dq[head..], plain), (dprobs, square), (k, pair), false, 1.0, none);
                    let dk = (&mut dkv[head..], pair);
                    matmul((keys, d, queries), dk, (dprobs, square.transposed()), (q, plain), false, 1.0, none);
                }
            },
        );
    });
}
