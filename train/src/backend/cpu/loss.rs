use rayon::prelude::*;

use super::matmul::{Strides, matmul};
use super::vector::{dot, largest, sum, vectorized};
use super::{Cpu, math};
use crate::backend::{LossGrads, Span};

/// Logits held at a time: a block of rows of the `[n, n]`.
const BLOCK_VALUES: usize = 1 << 24;

/// See `Backend::contrastive_loss`.
pub(super) fn contrastive(cpu: &mut Cpu, to: LossGrads, losses: Span, images: Span, texts: Span, scale: f32) -> f32 {
    let block = (BLOCK_VALUES / losses.len).clamp(1, losses.len);
    in_blocks(cpu, to, losses, images, texts, scale, block)
}

/// Two passes over blocks of rows: the log-sum-exp of all rows and columns, then the gradients. Where one block holds
/// all, its logits are computed once.
fn in_blocks(cpu: &mut Cpu, to: LossGrads, losses: Span, images: Span, texts: Span, scale: f32, block: usize) -> f32 {
    let (arch, n) = (cpu.arch, losses.len);
    let dim = images.len / n;
    let rows = Strides::rows_of(dim);
    let all = gemm::Parallelism::Rayon(0);
    let mut logits = vec![0.0; block * n];
    let fill = |cpu: &Cpu, logits: &mut [f32], first: usize| {
        let m = logits.len() / n;
        let images = &cpu.get(images)[first * dim..][..m * dim];
        matmul((m, n, dim), (logits, Strides::rows_of(n)), (images, rows), (cpu.get(texts), rows.transposed()), false, scale, all);
    };

    let mut row_lse = Vec::with_capacity(n);
    let mut diagonal = Vec::with_capacity(n);
    // Of the logits so far: each column's largest, and the sum of the exponentials of the differences from it.
    let (mut column_max, mut column_sum) = (vec![f32::NEG_INFINITY; n], vec![0.0; n]);
    for first in (0..n).step_by(block) {
        let m = block.min(n - first);
        let logits = &mut logits[..m * n];
        fill(cpu, logits, first);
        row_lse.par_extend(logits.par_chunks(n).map(|row| log_sum_exp(arch, row)));
        diagonal.extend((0..m).map(|i| logits[i * n + first + i]));
        column_max.par_chunks_mut(COLUMNS).zip(column_sum.par_chunks_mut(COLUMNS)).enumerate().for_each(|(i, (max, sum))| {
            vectorized(
                arch,
                #[inline(always)]
                || add_columns(max, sum, logits, i * COLUMNS, n),
            );
        });
    }
    let column_lse: Vec<f32> = column_max.iter().zip(&column_sum).map(|(max, sum)| max + sum.ln()).collect();
    cpu.with(losses, |_, losses| {
        for (i, loss) in losses.iter_mut().enumerate() {
            *loss = 0.5 * (row_lse[i] + column_lse[i]) - diagonal[i];
        }
    });

    // d loss / d logits = (softmax over rows + softmax over columns - 2 on the diagonal) / 2n, in place of the logits.
    let half = 0.5 / n as f32;
    let mut d_ln_scale = 0.0;
    for first in (0..n).step_by(block) {
        let m = block.min(n - first);
        let logits = &mut logits[..m * n];
        if m < n {
            fill(cpu, logits, first);
        }
        let along: Vec<f32> = logits
            .par_chunks_mut(n)
            .enumerate()
            .map_init(Vec::new, |before: &mut Vec<f32>, (i, row)| {
                before.clear();
                before.extend_from_slice(row);
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        for (x, column) in row.iter_mut().zip(&column_lse) {
                            *x = half * (math::exp(*x - row_lse[first + i]) + math::exp(*x - column));
                        }
                        row[first + i] -= 2.0 * half;
                        dot(row, before)
                    },
                )
            })
            .collect();
        d_ln_scale += along.iter().map(|&x| f64::from(x)).sum::<f64>();
        let square = Strides::rows_of(n);
        cpu.with(to.d_images, |cpu, out| {
            let out = &mut out[first * dim..][..m * dim];
            matmul((m, dim, n), (out, rows), (logits, square), (cpu.get(texts), rows), false, scale, all);
        });
        cpu.with(to.d_texts, |cpu, out| {
            let images = &cpu.get(images)[first * dim..][..m * dim];
            matmul((n, dim, m), (out, rows), (logits, square.transposed()), (images, rows), first > 0, scale, all);
        });
    }
    d_ln_scale as f32
}

/// Columns that one task works on.
const COLUMNS: usize = 256;

fn log_sum_exp(arch: pulp::Arch, row: &[f32]) -> f32 {
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
}

/// Takes the columns from `first` on of `logits[_, n]` into their running maxima and sums.
#[inline(always)]
fn add_columns(max: &mut [f32], sum: &mut [f32], logits: &[f32], first: usize, n: usize) {
    let mut new_max = max.to_vec();
    for row in logits.chunks_exact(n) {
        for (max, &x) in new_max.iter_mut().zip(&row[first..]) {
            *max = if x > *max { x } else { *max };
        }
    }
    for ((sum, max), new) in sum.iter_mut().zip(max.iter_mut()).zip(&new_max) {
        *sum *= math::exp(*max - new);
        *max = *new;
    }
    for row in logits.chunks_exact(n) {
        for ((sum, max), &x) in sum.iter_mut().zip(max.iter()).zip(&row[first..]) {
            *sum += math::exp(x - max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    #[test]
    fn blocks_give_what_the_whole_gives() {
        const N: usize = 300;
        const DIM: usize = 8;
        let values = |seed: usize| (0..N * DIM).map(|i| ((i * 7919 + seed) % 1000) as f32 / 1000.0 - 0.5).collect::<Vec<f32>>();
        let run = |block: usize| {
            let mut cpu = Cpu::new();
            let [d_images, d_texts, images, texts] = [(); 4].map(|()| cpu.alloc(N * DIM));
            let (losses, d_ln_scale) = (cpu.alloc(N), cpu.alloc(1));
            cpu.write(images, &values(1));
            cpu.write(texts, &values(4));
            let d_scale = in_blocks(&mut cpu, LossGrads { d_images, d_texts, d_ln_scale }, losses, images, texts, 14.0, block);
            [vec![d_scale], cpu.read(losses), cpu.read(d_images), cpu.read(d_texts)]
        };
        let whole = run(N);
        for block in [1, 7, 128, 299] {
            for (what, (whole, parts)) in ["d_scale", "losses", "d_images", "d_texts"].iter().zip(whole.iter().zip(&run(block))) {
                let size = whole.iter().map(|x| x * x).sum::<f32>().sqrt();
                let distance = whole.iter().zip(parts).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
                assert!(distance <= 1e-5 * size, "{what} in blocks of {block} differs by {distance} of {size}");
            }
        }
    }
}
