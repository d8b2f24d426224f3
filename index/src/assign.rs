//! The nearest of a set for each of many vectors, by blocks of matrix products on all cores.

use rayon::prelude::*;

use crate::Result;
use crate::gpu;
use crate::kernel::{argmax, multiply, products};

/// Vectors whose products with the set are made at once.
pub(crate) const BLOCK_ROWS: usize = 256;
/// Vectors of the set whose products are held at once.
pub(crate) const BLOCK_SET: usize = 4096;

/// For each vector the place of the nearest of the set, the first of equals, and how near: by the largest inner product,
/// or where `squared` by the least squared distance. Vectors `[n, dim]`, set `[m, dim]`.
pub(crate) fn assign(vectors: &[f32], set: &[f32], dim: usize, squared: bool) -> Result<Vec<(u32, f32)>> {
    // |x - c|² = |x|² - 2 (x·c - |c|²/2)
    let halves: Vec<f32> = if squared { set.chunks_exact(dim).map(|c| products(c, c).xx / 2.0).collect() } else { Vec::new() };
    let distances = |vectors: &[f32], best: &mut [(u32, f32)]| {
        if squared {
            for (x, (_, score)) in vectors.chunks_exact(dim).zip(best) {
                *score = (products(x, x).xx - 2.0 * *score).max(0.0);
            }
        }
    };
    if let Some(mut gpu) = gpu::gpu(2.0 * vectors.len() as f64 * (set.len() / dim) as f64)? {
        match gpu.best(vectors, set, dim, &halves) {
            Ok(mut best) => {
                distances(vectors, &mut best);
                return Ok(best);
            }
            Err(e) if !gpu::is_auto() => return Err(e),
            // It has failed, perhaps for want of memory: the CPU goes on.
            Err(_) => {}
        }
    }
    let of_block = |block: &[f32]| {
        let mut scratch = vec![0f32; BLOCK_ROWS * BLOCK_SET.min(set.len() / dim)];
        let mut best = vec![(0u32, f32::NEG_INFINITY); block.len() / dim];
        best_of_block(block, set, dim, &halves, &mut scratch, &mut best);
        distances(block, &mut best);
        best
    };
    Ok(vectors.par_chunks(BLOCK_ROWS * dim).flat_map_iter(of_block).collect())
}

/// As `assign`, for at most `BLOCK_ROWS` vectors on this core; `minus` is taken from the products with each of the set,
/// where it is not empty. `scratch` has room for the products.
pub(crate) fn best_of_block(block: &[f32], set: &[f32], dim: usize, minus: &[f32], scratch: &mut [f32], best: &mut [(u32, f32)]) {
    let rows = block.len() / dim;
    for (i, part) in set.chunks(BLOCK_SET * dim).enumerate() {
        let (start, n) = (i * BLOCK_SET, part.len() / dim);
        multiply(block, part, dim, scratch);
        for (products, best) in scratch[..rows * n].chunks_exact_mut(n).zip(&mut *best) {
            if !minus.is_empty() {
                products.iter_mut().zip(&minus[start..start + n]).for_each(|(product, minus)| *product -= minus);
            }
            if let Some((at, most)) = argmax(products)
                && most > best.1
            {
                *best = ((start + at) as u32, most);
            }
        }
    }
}
