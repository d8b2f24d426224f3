mod attention;
mod loss;
mod math;
mod matmul;
mod memory;
mod vector;

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Activation, AdamW, AdamWState, Attended, Attention, AttentionGrads, Backend, Epilogue, Gemm, LayerNormGrads, LossGrads, Pixels, Span,
};
pub use matmul::inner_products;
use matmul::{Strides, matmul};
use memory::Memory;
pub(crate) use vector::vectorized;
use vector::{add_to, dot, sum};

/// Rows that one task works on, and over which partial sums are taken: fixed, so that results do not depend on the
/// number of threads.
const ROWS: usize = 64;
/// The same for whole samples.
const SAMPLES: usize = 8;
/// Elements per task of elementwise work.
const CHUNK: usize = 1 << 14;

/// float32 on all cores: matrix products by `gemm`, the rest by rayon with the widest vectors that the CPU has.
#[derive(Default)]
pub struct Cpu {
    buffers: Vec<Memory>,
    flops: f64,
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

    fn epilogue(&mut self, out: Span, n: usize, epilogue: Epilogue) {
        let arch = self.arch;
        match epilogue {
            Epilogue::None => {}
            Epilogue::Bias(bias) => self.with(out, |cpu, out| {
                let bias = cpu.get(bias);
                out.par_chunks_mut(ROWS * n).for_each(|rows| {
                    vectorized(
                        arch,
                        #[inline(always)]
                        || rows.chunks_exact_mut(n).for_each(|row| add_to(row, bias)),
                    );
                });
            }),
            Epilogue::Activate { bias, activation, to } => self.with2(out, to, |cpu, out, to| {
                let bias = cpu.get(bias);
                out.par_chunks_mut(ROWS * n).zip(to.par_chunks_mut(ROWS * n)).for_each(|(rows, to)| {
                    vectorized(
                        arch,
                        #[inline(always)]
                        || match activation {
                            Activation::Gelu => activate(rows, to, bias, math::gelu),
                            Activation::QuickGelu => activate(rows, to, bias, math::quick_gelu),
                        },
                    );
                });
            }),
            Epilogue::Residual { bias, x } => self.with(out, |cpu, out| {
                let (bias, x) = (cpu.get(bias), cpu.get(x));
                out.par_chunks_mut(ROWS * n).zip(x.par_chunks(ROWS * n)).for_each(|(rows, x)| {
                    vectorized(
                        arch,
                        #[inline(always)]
                        || {
                            for (row, x) in rows.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                                for i in 0..n {
                                    row[i] += bias[i] + x[i];
                                }
                            }
                        },
                    );
                });
            }),
        }
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

/// `rows += bias`, `to = f(rows)`.
#[inline(always)]
fn activate(rows: &mut [f32], to: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32) {
    let n = bias.len();
    for (row, to) in rows.chunks_exact_mut(n).zip(to.chunks_exact_mut(n)) {
        for i in 0..n {
            row[i] += bias[i];
            to[i] = f(row[i]);
        }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("CPU, {} threads, float32", rayon::current_num_threads())
    }

    fn kind(&self) -> &'static str {
        "the CPU"
    }

    fn alloc(&mut self, len: usize) -> Span {
        self.buffers.push(Memory::zeros(len));
        Span { buffer: self.buffers.len() - 1, start: 0, len }
    }

    fn alloc_parameters(&mut self, len: usize) -> Span {
        self.alloc(len)
    }

    fn alloc_activations(&mut self, len: usize) -> Span {
        self.alloc(len)
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

    fn gemm(&mut self, g: Gemm) {
        self.flops += 2.0 * (g.m * g.n * g.k) as f64;
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
        });
        self.epilogue(g.out, g.n, g.epilogue);
    }

    fn flops(&self) -> f64 {
        self.flops
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

    fn layer_norm(&mut self, out: Span, stats: Span, x: Span, gamma: Span, beta: Span, eps: f32) {
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
                            let rstd = 1.0 / (variance + eps).sqrt();
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

    fn activate_backward(&mut self, activation: Activation, dy: Span, x: Span) {
        match activation {
            Activation::Gelu => self.map(
                dy,
                x,
                #[inline(always)]
                |dy, x| dy * math::gelu_derivative(x),
            ),
            Activation::QuickGelu => self.map(
                dy,
                x,
                #[inline(always)]
                |dy, x| dy * math::quick_gelu_derivative(x),
            ),
        }
    }

    fn attention(&mut self, out: Span, _: Span, q: Span, kv: Span, shape: Attention) {
        attention::forward(self, out, q, kv, shape);
    }

    fn attention_backward(&mut self, grads: AttentionGrads, dout: Span, of: Attended, shape: Attention) {
        attention::backward(self, grads.dq, grads.dkv, dout, of.q, of.kv, shape);
    }

    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], starts: &[usize]) {
        let dim = out.len / ids.len();
        self.with(out, |cpu, out| {
            let (table, positions) = (cpu.get(table), cpu.get(positions));
            for rows in starts.windows(2) {
                for (row, position) in (rows[0]..rows[1]).zip(positions.chunks_exact(dim)) {
                    let out = &mut out[row * dim..][..dim];
                    out.copy_from_slice(&table[ids[row] as usize * dim..][..dim]);
                    add_to(out, position);
                }
            }
        });
    }

    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], starts: &[usize]) {
        let dim = dout.len / ids.len();
        self.with(dtable, |cpu, dtable| {
            for (dout, &id) in cpu.get(dout).chunks_exact(dim).zip(ids) {
                add_to(&mut dtable[id as usize * dim..][..dim], dout);
            }
        });
        self.with(dpositions, |cpu, dpositions| {
            let dout = cpu.get(dout);
            for rows in starts.windows(2) {
                add_to(dpositions, &dout[rows[0] * dim..rows[1] * dim]);
            }
        });
    }

    fn patchify(&mut self, out: Span, pixels: Pixels, size: usize, patch: usize) {
        let side = size / patch;
        let (sample_in, sample_out) = (3 * size * size, side * side * 3 * patch * patch);
        // One line of a patch, from the first pixel of it in its image.
        let line = |out: &mut [f32], sample: usize, channel: usize, from: usize| match pixels {
            Pixels::Values(values) => out.copy_from_slice(&values[sample * sample_in + channel * size * size + from..][..patch]),
            Pixels::Bytes { bytes, mean, std } => {
                let (scale, shift) = (1.0 / (255.0 * std[channel]), mean[channel] / std[channel]);
                let bytes = bytes[sample * sample_in + 3 * from..].chunks_exact(3);
                out.iter_mut().zip(bytes).for_each(|(out, pixel)| *out = f32::from(pixel[channel]) * scale - shift);
            }
        };
        self.with(out, |_, out| {
            out.par_chunks_mut(sample_out).enumerate().for_each(|(sample, out)| {
                let mut rows = out.chunks_exact_mut(patch);
                for (py, px) in (0..side).flat_map(|py| (0..side).map(move |px| (py, px))) {
                    for (channel, y) in (0..3).flat_map(|channel| (0..patch).map(move |y| (channel, y))) {
                        let from = (py * patch + y) * size + px * patch;
                        line(rows.next().expect("one row per patch line"), sample, channel, from);
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
        let all: Vec<&[f32]> = self.get(dout).chunks(sample * SAMPLES).collect();
        let sums = self.reduce(all.len(), sample, |block, sum| all[block].chunks_exact(sample).for_each(|dout| add_to(sum, dout)));
        self.with(dpositions, |_, out| add_to(out, &sums));
        self.with(dclass, |_, out| add_to(out, &sums[..dim]));
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

    fn contrastive_loss(&mut self, to: LossGrads, losses: Span, images: Span, texts: Span, ln_scale: Span) {
        let scale = self.get(ln_scale)[0].exp();
        let d_ln_scale = loss::contrastive(self, to, losses, images, texts, scale);
        self.with(to.d_ln_scale, |_, out| out[0] += d_ln_scale);
    }

    fn clamp(&mut self, x: Span, low: f32, high: f32) {
        self.with(x, |_, x| x[0] = x[0].clamp(low, high));
    }

    fn square_sum(&mut self, x: Span) -> f64 {
        let arch = self.arch;
        let square = |x: &[f32]| {
            vectorized(
                arch,
                #[inline(always)]
                || f64::from(dot(x, x)),
            )
        };
        self.get(x).par_chunks(CHUNK).map(square).collect::<Vec<f64>>().iter().sum()
    }

    fn adamw(&mut self, state: AdamWState, decayed: &[(Range<usize>, bool)], hyper: AdamW) {
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay, step, gradient_scale } = hyper;
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
                                let g = gradient_scale * g[i];
                                m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
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
