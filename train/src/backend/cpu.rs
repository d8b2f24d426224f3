use std::ops::Range;

use rayon::prelude::*;

use super::{AdamW, AdamWState, Attention, Backend, Gemm, LayerNormGrads, Span, math};

/// Rows that one task works on, and over which partial sums are taken: fixed, so that results do not depend on the
/// number of threads.
const ROWS: usize = 64;
/// Elements per task of elementwise work.
const CHUNK: usize = 1 << 14;

/// float32 on all cores: matrix products by `gemm`, the rest by rayon with the widest vectors that the CPU has.
#[derive(Default)]
pub struct Cpu {
    buffers: Vec<Vec<f32>>,
    arch: pulp::Arch,
}

impl Cpu {
    pub fn new() -> Cpu {
        Cpu::default()
    }

    fn get(&self, span: Span) -> &[f32] {
        &self.buffers[span.buffer][span.start..span.start + span.len]
    }

    /// Runs `f` on an output while inputs stay readable; they lie in other buffers.
    fn with<R>(&mut self, out: Span, f: impl FnOnce(&Cpu, &mut [f32]) -> R) -> R {
        let mut buffer = std::mem::take(&mut self.buffers[out.buffer]);
        let result = f(self, &mut buffer[out.start..out.start + out.len]);
        self.buffers[out.buffer] = buffer;
        result
    }

    /// The same with two outputs in different buffers.
    fn with2<R>(&mut self, a: Span, b: Span, f: impl FnOnce(&Cpu, &mut [f32], &mut [f32]) -> R) -> R {
        assert_ne!(a.buffer, b.buffer, "outputs of one call lie in different buffers");
        let mut buffer = std::mem::take(&mut self.buffers[b.buffer]);
        let result = self.with(a, |cpu, out| f(cpu, out, &mut buffer[b.start..b.start + b.len]));
        self.buffers[b.buffer] = buffer;
        result
    }

    /// `out[i] = f(out[i], x[i])` on all cores.
    fn map(&mut self, out: Span, x: Span, f: impl Fn(f32, f32) -> f32 + Sync) {
        assert_eq!(out.len, x.len);
        let arch = self.arch;
        self.with(out, |cpu, out| {
            let x = cpu.get(x);
            out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        for (o, &x) in out.iter_mut().zip(x) {
                            *o = f(*o, x);
                        }
                    },
                );
            });
        });
    }

    /// The gradient of a parameter vector: `f` adds each block of rows into a partial sum, and the partial sums are
    /// added in order.
    fn reduce(&self, blocks: usize, len: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
        let partial: Vec<Vec<f32>> = (0..blocks)
            .into_par_iter()
            .map(|block| {
                let mut sum = vec![0.0; len];
                vectorized(
                    self.arch,
                    #[inline(always)]
                    || f(block, &mut sum),
                );
                sum
            })
            .collect();
        let mut total = vec![0.0; len];
        for sum in &partial {
            add_to(&mut total, sum);
        }
        total
    }
}

/// Runs `f` compiled for the widest vectors of this CPU. `f` must be marked `#[inline(always)]`, and is taken as
/// `FnMut` because a call through `FnOnce` is a function of its own, compiled for the oldest CPU.
#[inline(always)]
fn vectorized<R>(arch: pulp::Arch, f: impl FnMut() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnMut() -> R> pulp::WithSimd for Op<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(mut self, _simd: S) -> R {
            (self.0)()
        }
    }
    arch.dispatch(Op(f))
}

#[inline(always)]
fn add_to(out: &mut [f32], x: &[f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o += x;
    }
}

/// Sum with sixteen running totals, so that it vectorises.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut totals = [0.0; 16];
    let chunks = x.chunks_exact(16);
    let mut rest = 0.0;
    for &x in chunks.remainder() {
        rest += f(x);
    }
    for chunk in chunks {
        for (total, &x) in totals.iter_mut().zip(chunk) {
            *total += f(x);
        }
    }
    totals.iter().sum::<f32>() + rest
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    for (i, &x) in chunks.remainder().iter().enumerate() {
        largest[i] = x;
    }
    for chunk in chunks {
        for (largest, &x) in largest.iter_mut().zip(chunk) {
            *largest = if x > *largest { x } else { *largest };
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut totals = [0.0; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let mut rest = 0.0;
    for (a, b) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        rest += a * b;
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..16 {
            totals[i] += a[i] * b[i];
        }
    }
    totals.iter().sum::<f32>() + rest
}

/// A matrix inside a slice: element `(i, j)` is at `i * row + j * column`.
#[derive(Clone, Copy)]
struct Strides {
    row: usize,
    column: usize,
}

impl Strides {
    fn rows_of(row: usize) -> Strides {
        Strides { row, column: 1 }
    }

    fn transposed(self) -> Strides {
        Strides { row: self.column, column: self.row }
    }

    fn last(self, rows: usize, columns: usize) -> usize {
        (rows - 1) * self.row + (columns - 1) * self.column
    }
}

/// `out[m, n] = keep * out + factor * a[m, k] · b[k, n]`.
#[allow(clippy::too_many_arguments)]
fn matmul(
    (m, n, k): (usize, usize, usize),
    (out, out_strides): (&mut [f32], Strides),
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
    keep: bool,
    factor: f32,
    parallelism: gemm::Parallelism,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(out_strides.last(m, n) < out.len() && a_strides.last(m, k) < a.len() && b_strides.last(k, n) < b.len());
    // SAFETY: the assertion keeps every element that the strides reach inside its slice, and `out` is borrowed
    // mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_strides.column as isize,
            out_strides.row as isize,
            keep,
            a.as_ptr(),
            a_strides.column as isize,
            a_strides.row as isize,
            b.as_ptr(),
            b_strides.column as isize,
            b_strides.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

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

impl Attention {
    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn scale(&self) -> f32 {
        (self.head_width as f32).powf(-0.5)
    }

    /// Queries, keys and values of one head inside one sample's `qkv[tokens, 3 * width]`.
    fn head<'a>(&self, qkv: &'a [f32], head: usize) -> [&'a [f32]; 3] {
        let at = head * self.head_width;
        [&qkv[at..], &qkv[self.width() + at..], &qkv[2 * self.width() + at..]]
    }

    /// softmax(q · kᵀ / sqrt(head_width)) as `[tokens, tokens]`.
    fn probabilities(&self, probs: &mut [f32], q: &[f32], k: &[f32], arch: pulp::Arch) {
        let t = self.tokens;
        let packed = Strides::rows_of(3 * self.width());
        let dims = (t, t, self.head_width);
        matmul(dims, (probs, Strides::rows_of(t)), (q, packed), (k, packed.transposed()), false, 1.0, gemm::Parallelism::None);
        vectorized(
            arch,
            #[inline(always)]
            || {
                for (i, row) in probs.chunks_exact_mut(t).enumerate() {
                    softmax(row, if self.causal { i + 1 } else { t }, self.scale());
                }
            },
        );
    }
}

impl Backend for Cpu {
    fn alloc(&mut self, len: usize) -> Span {
        self.buffers.push(vec![0.0; len]);
        Span { buffer: self.buffers.len() - 1, start: 0, len }
    }

    fn write(&mut self, to: Span, values: &[f32]) {
        self.with(to, |_, out| out.copy_from_slice(values));
    }

    fn read(&self, from: Span) -> Vec<f32> {
        self.get(from).to_vec()
    }

    fn zero(&mut self, span: Span) {
        self.with(span, |_, out| out.par_chunks_mut(CHUNK).for_each(|out| out.fill(0.0)));
    }

    fn copy(&mut self, out: Span, x: Span) {
        self.map(
            out,
            x,
            #[inline(always)]
            |_, x| x,
        );
    }

    fn add(&mut self, out: Span, x: Span) {
        self.map(
            out,
            x,
            #[inline(always)]
            |o, x| o + x,
        );
    }

    fn gemm(&mut self, g: Gemm) {
        assert!(g.out.len == g.m * g.n && g.a.len == g.m * g.k && g.b.len == g.k * g.n, "shapes of {g:?}");
        self.with(g.out, |cpu, out| {
            let strides = |transpose, rows, columns| match transpose {
                false => Strides::rows_of(columns),
                true => Strides::rows_of(rows).transposed(),
            };
            let a = (cpu.get(g.a), strides(g.transpose_a, g.m, g.k));
            let b = (cpu.get(g.b), strides(g.transpose_b, g.k, g.n));
            let parallelism = gemm::Parallelism::Rayon(0);
            matmul((g.m, g.n, g.k), (out, Strides::rows_of(g.n)), a, b, g.accumulate, 1.0, parallelism);
            if let Some(bias) = g.bias {
                let bias = cpu.get(bias);
                out.par_chunks_mut(ROWS * g.n).for_each(|rows| rows.chunks_exact_mut(g.n).for_each(|row| add_to(row, bias)));
            }
        });
    }

    fn add_column_sums(&mut self, out: Span, x: Span) {
        let n = out.len;
        let rows = self.get(x);
        let blocks: Vec<&[f32]> = rows.chunks(ROWS * n).collect();
        let total = self.reduce(blocks.len(), n, |block, sum| {
            blocks[block].chunks_exact(n).for_each(|row| add_to(sum, row));
        });
        self.with(out, |_, out| add_to(out, &total));
    }

    fn layer_norm(&mut self, out: Span, stats: Span, x: Span, gamma: Span, beta: Span) {
        let (arch, dim) = (self.arch, gamma.len);
        self.with2(out, stats, |cpu, out, stats| {
            let (x, gamma, beta) = (cpu.get(x), cpu.get(gamma), cpu.get(beta));
            let blocks = out.par_chunks_mut(ROWS * dim).zip(stats.par_chunks_mut(ROWS * 2)).zip(x.par_chunks(ROWS * dim));
            blocks.for_each(|((out, stats), x)| {
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        for ((out, stats), x) in out.chunks_exact_mut(dim).zip(stats.chunks_exact_mut(2)).zip(x.chunks_exact(dim)) {
                            let mean = sum(
                                x,
                                #[inline(always)]
                                |x| x,
                            ) / dim as f32;
                            let variance = sum(
                                x,
                                #[inline(always)]
                                |x| (x - mean) * (x - mean),
                            ) / dim as f32;
                            let rstd = 1.0 / (variance + 1e-5).sqrt();
                            (stats[0], stats[1]) = (mean, rstd);
                            for i in 0..dim {
                                out[i] = (x[i] - mean) * rstd * gamma[i] + beta[i];
                            }
                        }
                    },
                );
            });
        });
    }

    fn layer_norm_backward(&mut self, grads: LayerNormGrads, dy: Span, x: Span, stats: Span, gamma: Span) {
        let (arch, dim) = (self.arch, gamma.len);
        let rows = x.len / dim;
        let range = |block: usize, width: usize| block * ROWS * width..((block + 1) * ROWS).min(rows) * width;
        let (dy_s, x_s, stats_s) = (self.get(dy), self.get(x), self.get(stats));
        let sums = self.reduce(rows.div_ceil(ROWS), 2 * dim, |block, total| {
            let (dgamma, dbeta) = total.split_at_mut(dim);
            let rows = dy_s[range(block, dim)].chunks_exact(dim).zip(x_s[range(block, dim)].chunks_exact(dim));
            for ((dy, x), stats) in rows.zip(stats_s[range(block, 2)].chunks_exact(2)) {
                for i in 0..dim {
                    dgamma[i] += dy[i] * (x[i] - stats[0]) * stats[1];
                    dbeta[i] += dy[i];
                }
            }
        });
        self.with(grads.dgamma, |_, out| add_to(out, &sums[..dim]));
        self.with(grads.dbeta, |_, out| add_to(out, &sums[dim..]));
        self.with(grads.dx, |cpu, dx| {
            let (dy, x, stats, gamma) = (cpu.get(dy), cpu.get(x), cpu.get(stats), cpu.get(gamma));
            let blocks = dx.par_chunks_mut(ROWS * dim).zip(dy.par_chunks(ROWS * dim)).zip(x.par_chunks(ROWS * dim));
            blocks.zip(stats.par_chunks(ROWS * 2)).for_each(|(((dx, dy), x), stats)| {
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        let rows = dx.chunks_exact_mut(dim).zip(dy.chunks_exact(dim)).zip(x.chunks_exact(dim));
                        for (((dx, dy), x), stats) in rows.zip(stats.chunks_exact(2)) {
                            let (mean, rstd) = (stats[0], stats[1]);
                            let along_one = dot(dy, gamma) / dim as f32;
                            let mut totals = [0.0; 16];
                            for i in 0..dim {
                                totals[i % 16] += dy[i] * gamma[i] * (x[i] - mean);
                            }
                            let along_x = totals.iter().sum::<f32>() * rstd * rstd / dim as f32;
                            for i in 0..dim {
                                dx[i] += rstd * (dy[i] * gamma[i] - along_one - (x[i] - mean) * along_x);
                            }
                        }
                    },
                );
            });
        });
    }

    fn gelu(&mut self, out: Span, x: Span) {
        self.map(
            out,
            x,
            #[inline(always)]
            |_, x| math::gelu(x),
        );
    }

    fn gelu_backward(&mut self, dy: Span, x: Span) {
        self.map(
            dy,
            x,
            #[inline(always)]
            |dy, x| dy * math::gelu_derivative(x),
        );
    }

    fn attention(&mut self, out: Span, qkv: Span, shape: Attention) {
        let (arch, t, width) = (self.arch, shape.tokens, shape.width());
        self.with(out, |cpu, out| {
            let samples = out.par_chunks_mut(t * width).zip(cpu.get(qkv).par_chunks(t * 3 * width));
            samples.for_each_init(
                || vec![0.0; t * t],
                |probs, (out, qkv)| {
                    for head in 0..shape.heads {
                        let [q, k, v] = shape.head(qkv, head);
                        shape.probabilities(probs, q, k, arch);
                        let out = (&mut out[head * shape.head_width..], Strides::rows_of(width));
                        let v = (v, Strides::rows_of(3 * width));
                        let dims = (t, shape.head_width, t);
                        matmul(dims, out, (probs, Strides::rows_of(t)), v, false, 1.0, gemm::Parallelism::None);
                    }
                },
            );
        });
    }

    fn attention_backward(&mut self, dqkv: Span, dout: Span, qkv: Span, shape: Attention) {
        let (arch, t, width, d) = (self.arch, shape.tokens, shape.width(), shape.head_width);
        let (packed, square, plain) = (Strides::rows_of(3 * width), Strides::rows_of(t), Strides::rows_of(width));
        let none = gemm::Parallelism::None;
        self.with(dqkv, |cpu, dqkv| {
            let (qkv, dout) = (cpu.get(qkv), cpu.get(dout));
            let samples = dqkv.par_chunks_mut(t * 3 * width).zip(qkv.par_chunks(t * 3 * width)).zip(dout.par_chunks(t * width));
            samples.for_each_init(
                || (vec![0.0; t * t], vec![0.0; t * t]),
                |(probs, dprobs), ((dqkv, qkv), dout)| {
                    for head in 0..shape.heads {
                        let [q, k, v] = shape.head(qkv, head);
                        let (dq, dk, dv) = (head * d, width + head * d, 2 * width + head * d);
                        let dout = &dout[head * d..];
                        shape.probabilities(probs, q, k, arch);
                        // dv = probsᵀ · dout, dprobs = dout · vᵀ
                        matmul((t, d, t), (&mut dqkv[dv..], packed), (probs, square.transposed()), (dout, plain), false, 1.0, none);
                        matmul((t, t, d), (dprobs, square), (dout, plain), (v, packed.transposed()), false, 1.0, none);
                        // Through the softmax: ds = p * (dp - sum(p * dp)), with the scale of the logits.
                        vectorized(
                            arch,
                            #[inline(always)]
                            || {
                                for (dp, p) in dprobs.chunks_exact_mut(t).zip(probs.chunks_exact(t)) {
                                    let along = dot(dp, p);
                                    let scale = shape.scale();
                                    for (dp, &p) in dp.iter_mut().zip(p) {
                                        *dp = p * (*dp - along) * scale;
                                    }
                                }
                            },
                        );
                        matmul((t, d, t), (&mut dqkv[dq..], packed), (dprobs, square), (k, packed), false, 1.0, none);
                        matmul((t, d, t), (&mut dqkv[dk..], packed), (dprobs, square.transposed()), (q, packed), false, 1.0, none);
                    }
                },
            );
        });
    }

    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], tokens: usize) {
        let dim = out.len / ids.len();
        self.with(out, |cpu, out| {
            let (table, positions) = (cpu.get(table), cpu.get(positions));
            out.par_chunks_mut(dim).zip(ids.par_iter()).enumerate().for_each(|(i, (out, &id))| {
                out.copy_from_slice(&table[id as usize * dim..][..dim]);
                add_to(out, &positions[i % tokens * dim..][..dim]);
            });
        });
    }

    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], tokens: usize) {
        let dim = dout.len / ids.len();
        self.with(dtable, |cpu, dtable| {
            for (dout, &id) in cpu.get(dout).chunks_exact(dim).zip(ids) {
                add_to(&mut dtable[id as usize * dim..][..dim], dout);
            }
        });
        self.with(dpositions, |cpu, dpositions| {
            for sample in cpu.get(dout).chunks_exact(tokens * dim) {
                add_to(dpositions, sample);
            }
        });
    }

    fn patchify(&mut self, out: Span, pixels: Span, size: usize, patch: usize) {
        let side = size / patch;
        let (sample_in, sample_out) = (3 * size * size, side * side * 3 * patch * patch);
        self.with(out, |cpu, out| {
            out.par_chunks_mut(sample_out).zip(cpu.get(pixels).par_chunks(sample_in)).for_each(|(out, pixels)| {
                let mut rows = out.chunks_exact_mut(patch);
                for py in 0..side {
                    for px in 0..side {
                        for channel in pixels.chunks_exact(size * size) {
                            for y in 0..patch {
                                let from = (py * patch + y) * size + px * patch;
                                rows.next().expect("one row per patch line").copy_from_slice(&channel[from..from + patch]);
                            }
                        }
                    }
                }
            });
        });
    }

    fn embed_patches(&mut self, out: Span, patches: Span, class: Span, positions: Span) {
        let dim = class.len;
        self.with(out, |cpu, out| {
            let (patches, class, positions) = (cpu.get(patches), cpu.get(class), cpu.get(positions));
            let samples = out.par_chunks_mut(positions.len()).zip(patches.par_chunks(positions.len() - dim));
            samples.for_each(|(out, patches)| {
                out[..dim].copy_from_slice(class);
                out[dim..].copy_from_slice(patches);
                add_to(out, positions);
            });
        });
    }

    fn embed_patches_backward(&mut self, dpatches: Span, dclass: Span, dpositions: Span, dout: Span) {
        let (dim, sample) = (dclass.len, dpositions.len);
        self.with(dpatches, |cpu, dpatches| {
            let samples = dpatches.par_chunks_mut(sample - dim).zip(cpu.get(dout).par_chunks(sample));
            samples.for_each(|(dpatches, dout)| dpatches.copy_from_slice(&dout[dim..]));
        });
        for dout in self.get(dout).to_vec().chunks_exact(sample) {
            self.with(dpositions, |_, out| add_to(out, dout));
            self.with(dclass, |_, out| add_to(out, &dout[..dim]));
        }
    }

    fn gather(&mut self, out: Span, x: Span, rows: &[usize], dim: usize) {
        self.with(out, |cpu, out| {
            let x = cpu.get(x);
            out.chunks_exact_mut(dim).zip(rows).for_each(|(out, row)| out.copy_from_slice(&x[row * dim..][..dim]));
        });
    }

    fn gather_backward(&mut self, dx: Span, dout: Span, rows: &[usize], dim: usize) {
        self.with(dx, |cpu, dx| {
            for (dout, row) in cpu.get(dout).chunks_exact(dim).zip(rows) {
                add_to(&mut dx[row * dim..][..dim], dout);
            }
        });
    }

    fn normalize(&mut self, out: Span, norms: Span, x: Span) {
        let dim = x.len / norms.len;
        self.with2(out, norms, |cpu, out, norms| {
            for ((out, norm), x) in out.chunks_exact_mut(dim).zip(norms).zip(cpu.get(x).chunks_exact(dim)) {
                *norm = dot(x, x).sqrt().max(1e-12);
                out.iter_mut().zip(x).for_each(|(o, x)| *o = x / *norm);
            }
        });
    }

    fn normalize_backward(&mut self, dx: Span, dy: Span, y: Span, norms: Span) {
        let dim = y.len / norms.len;
        self.with(dx, |cpu, dx| {
            let rows = cpu.get(dy).chunks_exact(dim).zip(cpu.get(y).chunks_exact(dim)).zip(cpu.get(norms));
            for (dx, ((dy, y), norm)) in dx.chunks_exact_mut(dim).zip(rows) {
                let along = dot(dy, y);
                for i in 0..dim {
                    dx[i] = (dy[i] - along * y[i]) / norm;
                }
            }
        });
    }

    fn contrastive_loss(&mut self, d_images: Span, d_texts: Span, images: Span, texts: Span, n: usize, scale: f32) -> (f32, f32) {
        let dim = images.len / n;
        let (rows, square) = (Strides::rows_of(dim), Strides::rows_of(n));
        let all = gemm::Parallelism::Rayon(0);
        let mut logits = vec![0.0; n * n];
        let (i, t) = (self.get(images), self.get(texts));
        matmul((n, n, dim), (&mut logits, square), (i, rows), (t, rows.transposed()), false, scale, all);
        let arch = self.arch;
        // Log-sum-exp of each row and of each column.
        let row_lse: Vec<f32> = logits
            .par_chunks(n)
            .map(|row| {
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        let max = largest(row);
                        max + sum(
                            row,
                            #[inline(always)]
                            |x| math::exp(x - max),
                        )
                        .ln()
                    },
                )
            })
            .collect();
        let blocks: Vec<&[f32]> = logits.chunks(ROWS * n).collect();
        let mut column_max = logits[..n].to_vec();
        for row in logits.chunks_exact(n) {
            column_max.iter_mut().zip(row).for_each(|(max, &x)| *max = if x > *max { x } else { *max });
        }
        let column_sums = self.reduce(blocks.len(), n, |block, total| {
            for row in blocks[block].chunks_exact(n) {
                for j in 0..n {
                    total[j] += math::exp(row[j] - column_max[j]);
                }
            }
        });
        let column_lse: Vec<f32> = column_max.iter().zip(&column_sums).map(|(max, sum)| max + sum.ln()).collect();
        let loss = (0..n).map(|i| 0.5 * f64::from(row_lse[i] + column_lse[i]) - f64::from(logits[i * n + i]));
        let loss = (loss.sum::<f64>() / n as f64) as f32;
        // d loss / d logits = (softmax over rows + softmax over columns - 2 on the diagonal) / 2n
        let half = 0.5 / n as f32;
        let mut d_logits = vec![0.0; n * n];
        d_logits.par_chunks_mut(n).zip(logits.par_chunks(n)).enumerate().for_each(|(i, (row, logits))| {
            vectorized(
                arch,
                #[inline(always)]
                || {
                    for j in 0..n {
                        row[j] = half * (math::exp(logits[j] - row_lse[i]) + math::exp(logits[j] - column_lse[j]));
                    }
                },
            );
            row[i] -= 2.0 * half;
        });
        let by_row: Vec<f32> = d_logits
            .par_chunks(n)
            .zip(logits.par_chunks(n))
            .map(|(g, l)| {
                vectorized(
                    arch,
                    #[inline(always)]
                    || dot(g, l),
                )
            })
            .collect();
        let d_ln_scale = by_row.iter().map(|&x| f64::from(x)).sum::<f64>() as f32;
        self.with(d_images, |cpu, out| {
            matmul((n, dim, n), (out, rows), (&d_logits, square), (cpu.get(texts), rows), false, scale, all);
        });
        self.with(d_texts, |cpu, out| {
            matmul((n, dim, n), (out, rows), (&d_logits, square.transposed()), (cpu.get(images), rows), false, scale, all);
        });
        (loss, d_ln_scale)
    }

    fn adamw(&mut self, state: AdamWState, decayed: &[(Range<usize>, bool)], hyper: AdamW) {
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay, step } = hyper;
        let correction1 = 1.0 - (f64::from(beta1)).powf(step as f64) as f32;
        let correction2 = (1.0 - f64::from(beta2).powf(step as f64)).sqrt() as f32;
        let step_size = learning_rate / correction1;
        let arch = self.arch;
        let mut params = std::mem::take(&mut self.buffers[state.params.buffer]);
        self.with2(state.m, state.v, |cpu, m, v| {
            let grads = cpu.get(state.grads);
            for (range, decay) in decayed {
                let keep = if *decay { 1.0 - learning_rate * weight_decay } else { 1.0 };
                let params = &mut params[state.params.start..][range.clone()];
                let chunks = params.par_chunks_mut(CHUNK).zip(grads[range.clone()].par_chunks(CHUNK));
                let moments = m[range.clone()].par_chunks_mut(CHUNK).zip(v[range.clone()].par_chunks_mut(CHUNK));
                chunks.zip(moments).for_each(|((p, g), (m, v))| {
                    vectorized(
                        arch,
                        #[inline(always)]
                        || {
                            for i in 0..p.len() {
                                m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
                                v[i] = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
                                p[i] = p[i] * keep - step_size * m[i] / (v[i].sqrt() / correction2 + eps);
                            }
                        },
                    );
                });
            }
        });
        self.buffers[state.params.buffer] = params;
    }
}
