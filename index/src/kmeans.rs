//! k-means over a column: Lloyd's or in mini-batches, over samples read anew in each iteration, so that memory holds the
//! centroids and their sums, and 8 bytes a sample.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use storage::{Rows, VectorColumn};

use crate::assign::assign;
use crate::kernel::{products, widen};
use crate::{Error, Result};

/// How centroids are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KMeans {
    pub k: usize,
    pub iterations: usize,
    pub seed: u64,
    /// Samples and centroids of length 1, and the largest cosine; otherwise as they are, and the least distance.
    pub spherical: bool,
    pub start: Start,
    /// The rows drawn, at most; faiss draws 256 a centroid.
    pub samples: usize,
    /// Samples an iteration in mini-batches; 0 for all of them (Lloyd's algorithm).
    pub batch: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Samples drawn at random.
    Random,
    /// Samples drawn one after the other, each with a probability by its squared distance from those before (Arthur and
    /// Vassilvitskii 2007), among 65,536 of them.
    PlusPlus,
}

/// Where k-means has got to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Clusters {
    pub iteration: usize,
    /// `[k, dim]`, row by row.
    pub centroids: Vec<f32>,
    /// Samples of each centroid: of the last iteration, in mini-batches of all.
    pub counts: Vec<u64>,
    /// For each iteration the mean over its samples, before the centroids moved: of the cosine with the nearest centroid
    /// where spherical, otherwise of the squared distance.
    pub objective: Vec<f64>,
}

impl Clusters {
    /// k·Σn²/(Σn)²: 1 where all clusters have as many samples (as faiss has it).
    pub fn imbalance(&self) -> f64 {
        let sum: f64 = self.counts.iter().map(|&n| n as f64).sum();
        let squares: f64 = self.counts.iter().map(|&n| (n as f64) * (n as f64)).sum();
        self.counts.len() as f64 * squares / (sum * sum)
    }
}

/// Samples that are worked on at once.
const CHUNK: usize = 16384;
/// How far a split centroid's halves lie apart, as in faiss.
const SPLIT: f32 = 1.0 / 1024.0;
const PLUS_PLUS_SAMPLES: usize = 65536;

/// Finds `k` centroids, from where `from` has got to; `each` hears of every iteration. The same for the same column, rows,
/// options and seed, whatever the number of cores.
pub fn kmeans(
    column: &VectorColumn,
    live: &Rows,
    options: KMeans,
    from: Option<Clusters>,
    each: &mut dyn FnMut(&Clusters) -> Result<()>,
    stop: &AtomicBool,
) -> Result<Clusters> {
    let (k, dim) = (options.k, column.dim());
    let rows = draw(column, live, options.samples, options.seed)?;
    if k == 0 || rows.len() < k {
        return Err(Error::FewSamples { k, samples: rows.len() });
    }
    let mut at = match from.filter(|from| from.centroids.len() == k * dim && from.counts.len() == k) {
        Some(from) => from,
        None => Clusters { centroids: start(column, &rows, options)?, counts: vec![0; k], ..Clusters::default() },
    };
    while at.iteration < options.iterations {
        let mini = options.batch > 0 && options.batch < rows.len();
        let batch = match mini {
            true => {
                let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ (0x6261_7463_6800 + at.iteration as u64));
                let mut drawn: Vec<usize> = sample(&mut rng, rows.len(), options.batch).into_vec();
                drawn.sort_unstable();
                drawn.into_iter().map(|i| rows[i]).collect()
            }
            false => rows.clone(),
        };
        let (mut sums, mut counts, mut objective) = (vec![0f32; k * dim], vec![0u64; k], 0f64);
        for chunk in batch.chunks(CHUNK) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let samples = read(column, chunk, options.spherical)?;
            let nearest = assign(&samples, &at.centroids, dim, !options.spherical)?;
            objective += nearest.iter().map(|(_, score)| f64::from(*score)).sum::<f64>();
            add(&samples, &nearest, dim, &mut sums, &mut counts);
        }
        at.objective.push(objective / batch.len() as f64);
        for c in 0..k {
            let (centroid, sum) = (&mut at.centroids[c * dim..(c + 1) * dim], &sums[c * dim..(c + 1) * dim]);
            let n = counts[c];
            at.counts[c] = if mini { at.counts[c] + n } else { n };
            if n > 0 {
                let rate = 1.0 / at.counts[c] as f32;
                let keep = 1.0 - n as f32 * rate;
                centroid.iter_mut().zip(sum).for_each(|(x, sum)| *x = *x * keep + sum * rate);
            }
        }
        // A first mini-batch does not reach all centroids.
        if !mini || (at.iteration + 1) * options.batch >= rows.len() {
            split_empty(&mut at, dim, options);
        }
        if options.spherical {
            at.centroids.chunks_exact_mut(dim).for_each(normalize);
        }
        at.iteration += 1;
        each(&at)?;
    }
    Ok(at)
}

/// Addresses of rows with a vector, at most `n`, drawn without replacement, in order.
pub(crate) fn draw(column: &VectorColumn, live: &Rows, n: usize, seed: u64) -> Result<Vec<u64>> {
    let places: Vec<(u32, usize)> = column.fragments().collect();
    let total: usize = places.iter().map(|(_, rows)| rows).sum();
    // Rows that are deleted or have no vector fall out: more are drawn until there are enough, or all have been.
    let mut ask = n;
    loop {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn = match ask < total {
            true => sample(&mut rng, total, ask).into_vec(),
            false => (0..total).collect(),
        };
        drawn.sort_unstable();
        let (mut rows, mut before, mut at) = (Vec::with_capacity(drawn.len()), 0, 0);
        for place in drawn {
            while place - before >= places[at].1 {
                before += places[at].1;
                at += 1;
            }
            rows.push(u64::from(places[at].0) << 32 | (place - before) as u64);
        }
        let mut there = vec![false; rows.len()];
        column.take(&rows, &mut |i, vector| there[i] = vector.is_some_and(|vector| vector.iter().any(|byte| *byte & 0x7f != 0)))?;
        let mut there = there.into_iter();
        rows.retain(|row| there.next() == Some(true) && live.has(*row));
        if rows.len() >= n || ask >= total {
            // Thinned evenly, not cut off at the end.
            let keep = n.min(rows.len());
            return Ok((0..keep).map(|i| rows[i * rows.len() / keep]).collect());
        }
        ask = (ask * 2).max(ask * n / rows.len().max(1)).min(total);
    }
}

/// Vectors of rows as float32, `[n, dim]`; of length 1 where `unit`.
pub(crate) fn read(column: &VectorColumn, rows: &[u64], unit: bool) -> Result<Vec<f32>> {
    let dim = column.dim();
    let mut out = vec![0f32; rows.len() * dim];
    column.take(rows, &mut |i, vector| {
        if let Some(vector) = vector {
            let to = &mut out[i * dim..(i + 1) * dim];
            let squares = widen(vector, column.is_half(), to);
            if unit && squares > 0.0 {
                let scale = 1.0 / squares.sqrt();
                to.iter_mut().for_each(|x| *x *= scale);
            }
        }
    })?;
    Ok(out)
}

fn normalize(vector: &mut [f32]) {
    let square = products(vector, vector).xx;
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        vector.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Adds samples to the sums of their centroids, in their order.
fn add(samples: &[f32], nearest: &[(u32, f32)], dim: usize, sums: &mut [f32], counts: &mut [u64]) {
    let mut order: Vec<u32> = (0..nearest.len() as u32).collect();
    order.sort_by_key(|&i| nearest[i as usize].0); // stable
    nearest.iter().for_each(|(c, _)| counts[*c as usize] += 1);
    const GROUP: usize = 64;
    sums.par_chunks_mut(GROUP * dim).enumerate().for_each(|(group, sums)| {
        let (from, to) = ((group * GROUP) as u32, ((group + 1) * GROUP) as u32);
        let start = order.partition_point(|&i| nearest[i as usize].0 < from);
        for &i in order[start..].iter().take_while(|&&i| nearest[i as usize].0 < to) {
            let at = (nearest[i as usize].0 - from) as usize * dim;
            let sample = &samples[i as usize * dim..(i as usize + 1) * dim];
            sums[at..at + dim].iter_mut().zip(sample).for_each(|(sum, x)| *sum += x);
        }
    });
}

/// Gives each centroid without samples half of one that has many, drawn by how many: as faiss does.
fn split_empty(at: &mut Clusters, dim: usize, options: KMeans) {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ (0x7370_6c69_7400 + at.iteration as u64));
    for empty in (0..options.k).filter(|&c| at.counts[c] == 0).collect::<Vec<_>>() {
        let total: u64 = at.counts.iter().map(|n| n.saturating_sub(1)).sum();
        if total == 0 {
            return;
        }
        let mut left = rng.random_range(0..total);
        let from = at.counts.iter().position(|n| {
            let n = n.saturating_sub(1);
            let here = left < n;
            left = left.saturating_sub(n);
            here
        });
        let Some(from) = from else { return };
        for d in 0..dim {
            let x = at.centroids[from * dim + d];
            let sign = if d % 2 == 0 { SPLIT } else { -SPLIT };
            at.centroids[empty * dim + d] = x * (1.0 + sign);
            at.centroids[from * dim + d] = x * (1.0 - sign);
        }
        at.counts[empty] = at.counts[from] / 2;
        at.counts[from] -= at.counts[empty];
    }
}

fn start(column: &VectorColumn, rows: &[u64], options: KMeans) -> Result<Vec<f32>> {
    let (k, dim) = (options.k, column.dim());
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ 0x7374_6172_7400);
    if options.start == Start::Random {
        let mut drawn = sample(&mut rng, rows.len(), k).into_vec();
        drawn.sort_unstable();
        let rows: Vec<u64> = drawn.into_iter().map(|i| rows[i]).collect();
        return read(column, &rows, options.spherical);
    }
    let mut drawn = sample(&mut rng, rows.len(), rows.len().min(PLUS_PLUS_SAMPLES.max(k))).into_vec();
    drawn.sort_unstable();
    let rows: Vec<u64> = drawn.into_iter().map(|i| rows[i]).collect();
    let samples = read(column, &rows, options.spherical)?;
    let mut centroids = Vec::with_capacity(k * dim);
    let first = rng.random_range(0..rows.len());
    centroids.extend_from_slice(&samples[first * dim..(first + 1) * dim]);
    let mut distances = vec![f32::INFINITY; rows.len()];
    while centroids.len() < k * dim {
        let last = &centroids[centroids.len() - dim..];
        samples
            .par_chunks_exact(dim)
            .zip(&mut distances)
            .for_each(|(sample, distance)| *distance = distance.min(products(sample, last).dd));
        let total: f64 = distances.iter().map(|d| f64::from(*d)).sum();
        let mut left = rng.random::<f64>() * total;
        let next = distances.iter().position(|d| {
            left -= f64::from(*d);
            left < 0.0
        });
        // Samples that are all alike: any of them.
        let next = next.unwrap_or_else(|| rng.random_range(0..rows.len()));
        centroids.extend_from_slice(&samples[next * dim..(next + 1) * dim]);
    }
    Ok(centroids)
}
