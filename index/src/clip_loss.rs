//! negCLIPLoss (Wang et al. 2024, "CLIPLoss and Norm-Based Data Selection Methods for Multimodal Contrastive Learning"):
//! a pair's similarity less what it would cost among others,
//! s_ii - τ/2 · (ln Σ_j exp(s_ij/τ) + ln Σ_j exp(s_ji/τ)), the mean over the random batches that it is drawn into.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use storage::{Rows, VectorColumn};

use crate::kernel::{dot, multiply};
use crate::kmeans::read;
use crate::{Error, Result};

/// How pairs are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipLoss {
    /// Pairs a batch, about: all batches are of the same size but for one.
    pub batch: usize,
    pub rounds: usize,
    pub temperature: f32,
    pub seed: u64,
}

const TILE: usize = 512;

/// The rows that have both vectors, in order, and their negCLIPLoss: higher is better. All batches are of the same size,
/// which is at most `batch`; sums are scaled to that number of pairs, so that a last batch that is smaller, as the
/// published code has it, raises nobody's score. Memory: 16 bytes a row, and the vectors of a batch.
pub fn neg_clip_loss(
    images: &VectorColumn,
    texts: &VectorColumn,
    live: &Rows,
    options: ClipLoss,
    stop: &AtomicBool,
) -> Result<(Vec<u64>, Vec<f32>)> {
    if images.dim() != texts.dim() {
        return Err(Error::Dimensions { left: images.dim(), right: texts.dim() });
    }
    let rows = with_both(images, texts, live)?;
    let mut scores = vec![0f32; rows.len()];
    if rows.is_empty() || options.rounds == 0 {
        return Ok((rows, scores));
    }
    let batches = rows.len().div_ceil(options.batch.max(1));
    for round in 0..options.rounds {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed ^ ((round as u64) << 32)));
        for b in 0..batches {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let mut drawn = order[rows.len() * b / batches..rows.len() * (b + 1) / batches].to_vec();
            drawn.sort_unstable();
            let of_batch: Vec<u64> = drawn.iter().map(|&i| rows[i as usize]).collect();
            let losses = of_one_batch(images, texts, &of_batch, options, stop)?;
            for (i, loss) in drawn.into_iter().zip(losses) {
                scores[i as usize] += loss / options.rounds as f32;
            }
        }
    }
    Ok((rows, scores))
}

fn with_both(images: &VectorColumn, texts: &VectorColumn, live: &Rows) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for (id, rows) in images.fragments() {
        for from in (0..rows).step_by(1 << 14) {
            let rows: Vec<u64> = (from..rows.min(from + (1 << 14))).map(|row| u64::from(id) << 32 | row as u64).collect();
            let mut there = vec![0u8; rows.len()];
            for column in [images, texts] {
                let is_there = |v: &[u8]| v.iter().any(|byte| *byte & 0x7f != 0);
                column.take(&rows, &mut |i, vector| there[i] += u8::from(vector.is_some_and(is_there)))?;
            }
            all.extend(rows.into_iter().zip(there).filter(|(row, there)| *there == 2 && live.has(*row)).map(|(row, _)| row));
        }
    }
    Ok(all)
}

fn of_one_batch(images: &VectorColumn, texts: &VectorColumn, rows: &[u64], options: ClipLoss, stop: &AtomicBool) -> Result<Vec<f32>> {
    let ClipLoss { temperature, batch, .. } = options;
    let (dim, n) = (images.dim(), rows.len());
    let (f, g) = (read(images, rows, true)?, read(texts, rows, true)?);
    // For each of one side ln mean exp(s/τ) over the other, the products made tile by tile.
    let side = |these: &[f32], others: &[f32]| -> Vec<f32> {
        let tile = |these: &[f32]| {
            let m = these.len() / dim;
            let mut products = vec![0f32; m * TILE];
            let (mut most, mut sums) = (vec![f32::NEG_INFINITY; m], vec![0f32; m]);
            for others in others.chunks(TILE * dim) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                multiply(these, others, dim, &mut products);
                let k = others.len() / dim;
                for ((products, most), sum) in products[..m * k].chunks_exact_mut(k).zip(&mut most).zip(&mut sums) {
                    let here = products.iter().fold(*most, |most, x| if *x > most { *x } else { most });
                    *sum *= exp((*most - here) / temperature);
                    *most = here;
                    products.iter_mut().for_each(|x| *x = exp((*x - here) / temperature));
                    *sum += products.iter().sum::<f32>();
                }
            }
            let logs = most.into_iter().zip(sums).map(|(most, sum)| most / temperature + (sum * (batch as f32 / n as f32)).ln());
            logs.collect::<Vec<f32>>()
        };
        these.par_chunks(TILE * dim).flat_map_iter(tile).collect()
    };
    let (of_images, of_texts) = (side(&f, &g), side(&g, &f));
    let pairs = f.chunks_exact(dim).zip(g.chunks_exact(dim)).zip(of_images.iter().zip(&of_texts));
    Ok(pairs.map(|((f, g), (a, b))| dot(f, g) - temperature / 2.0 * (a + b)).collect())
}

/// e^x for x of at most 0, to some 1e-7 of its size for each unit of x, and 0 below -87: without branches, so that loops of it become vector
/// instructions. 2^f for f in [0, 1) is the Taylor series around the middle.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let t = (x * std::f32::consts::LOG2_E).max(-126.0);
    let whole = t.floor();
    let f = (t - whole - 0.5) * std::f32::consts::LN_2;
    let series = 1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f / 720.0)))));
    let scale = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    let value = std::f32::consts::SQRT_2 * series * scale;
    if x < -87.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeListArray, Float32Array};
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn column(values: Vec<f32>, dim: i32) -> VectorColumn {
        let item = std::sync::Arc::new(Field::new("item", DataType::Float32, true));
        let list = FixedSizeListArray::try_new(item, dim, std::sync::Arc::new(Float32Array::from(values)), None);
        VectorColumn::of_array("v", list.expect("whole rows")).expect("vectors")
    }

    #[test]
    fn agrees_with_the_formula_in_float64() {
        let (n, dim) = (700, 16);
        let value = |i: usize| ((i * 7919) % 1009) as f32 / 1009.0 - 0.4;
        let images: Vec<f32> = (0..n * dim).map(value).collect();
        let texts: Vec<f32> = (0..n * dim).map(|i| value(i) + value(i + 13) * 0.7).collect();
        let unit = |v: &[f32]| {
            let length = v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            v.iter().map(|x| f64::from(*x) / length).collect::<Vec<f64>>()
        };
        let rows = |values: &[f32]| values.chunks_exact(dim).map(unit).collect::<Vec<_>>();
        let (f, g) = (rows(&images), rows(&texts));
        let s = |i: usize, j: usize| f[i].iter().zip(&g[j]).map(|(a, b)| a * b).sum::<f64>();
        let tau = 0.01;
        let options = ClipLoss { batch: n, rounds: 1, temperature: tau as f32, seed: 0 };
        let stop = AtomicBool::new(false);
        let (images, texts) = (column(images, dim as i32), column(texts, dim as i32));
        let (found, scores) = neg_clip_loss(&images, &texts, &Rows::all(), options, &stop).expect("scores");
        assert_eq!(found, (0..n as u64).collect::<Vec<_>>());
        for (i, score) in scores.iter().enumerate() {
            let side = |of: &dyn Fn(usize) -> f64| (0..n).map(|j| (of(j) / tau).exp()).sum::<f64>().ln();
            let expected = s(i, i) - tau / 2.0 * (side(&|j| s(i, j)) + side(&|j| s(j, i)));
            assert!((f64::from(*score) - expected).abs() < 1e-5, "{i}: {score} and {expected}");
        }
        // Batches are drawn anew in every round, and by the seed alone.
        let options = ClipLoss { batch: 100, rounds: 3, ..options };
        let again = || neg_clip_loss(&images, &texts, &Rows::all(), options, &stop).expect("scores").1;
        assert_eq!(again(), again());
    }

    #[test]
    fn exp_is_near_the_library_s() {
        for i in 0..8700 {
            let x = -(i as f32) / 100.0;
            assert!((exp(x) - x.exp()).abs() <= (1e-6 - 1.5e-7 * x) * x.exp(), "{x}");
        }
        assert_eq!(exp(-90.0), 0.0);
    }
}
