//! Exact search: one pass over a column, shared by all queries, on all cores.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use storage::{Rows, Stretch, VectorColumn};

use crate::gpu;
use crate::kernel::{multiply, products_of_stored, widen};
use crate::top::{Neighbour, Top};
use crate::{Distance, Result};

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `[n, dim]`, row by row.
    pub queries: &'a [f32],
    pub distance: Distance,
    /// The nearest of each query, at most.
    pub k: usize,
    /// How far they may be.
    pub within: f32,
}

/// Queries up to here are worked on one by one, where reading bounds; more as one matrix.
const FEW: usize = 4;
/// Rows whose products with all queries are made at once, and queries.
const TILE_ROWS: usize = 256;
const TILE_QUERIES: usize = 1024;
/// Products are summed in another order than single distances are: so many more are looked at again.
pub(crate) const SPARE: usize = 16;

/// For each query the nearest rows of a column, nearest first, of equals the first row; `live` are the rows that count.
/// Rows without a vector do not. Memory: the answers of all queries, once a core.
pub fn exact(column: &VectorColumn, wanted: Wanted, live: &Rows, stop: &AtomicBool) -> Result<Vec<Vec<Neighbour>>> {
    exact_of(column, wanted, live, &|_| true, stop)
}

/// As `exact`, over some of the fragments.
pub(crate) fn exact_of(
    column: &VectorColumn,
    wanted: Wanted,
    live: &Rows,
    fragments: &(dyn Fn(u32) -> bool + Sync),
    stop: &AtomicBool,
) -> Result<Vec<Vec<Neighbour>>> {
    let dim = column.dim();
    let n = wanted.queries.len() / dim;
    let few = n <= FEW;
    let spare = if few { 0 } else { SPARE };
    let norms: Vec<f32> = wanted.queries.chunks_exact(dim).map(|q| q.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
    let tops: Vec<Mutex<Top>> = (0..n).map(|_| Mutex::new(Top::new(wanted.k.saturating_add(spare)))).collect();
    let within = if few { wanted.within } else { slack(wanted.within) };
    let rows: usize = column.fragments().filter(|(id, _)| fragments(*id)).map(|(_, rows)| rows).sum();
    let mut gpu = if few { None } else { gpu::gpu(2.0 * (n * dim) as f64 * rows as f64)? };
    if let Some(gpu) = &mut gpu {
        gpu.look_for(wanted, &norms);
    }
    let (gpu, failed) = (Mutex::new(gpu), Mutex::new(None));
    let on_gpu = lock(&gpu).is_some();
    column.for_each_of(fragments, stop, &|stretch| {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let rows = live.of(stretch.fragment);
        let mut found: Vec<Top> = tops.iter().map(|top| Top::new(lock(top).capacity())).collect();
        let bounds: Vec<f32> = tops.iter().map(|top| lock(top).bound().min(within)).collect();
        match few {
            true => one_by_one(&stretch, wanted, rows, &bounds, &mut found),
            false if on_gpu => {
                let there = |i: &usize| rows.is_none_or(|live| live.has(stretch.first as usize + i)) && stretch.vector(*i).is_some();
                let which: Vec<usize> = (0..stretch.rows).filter(there).collect();
                let done = lock(&gpu).as_mut().map(|gpu| gpu.near(&stretch, &which, wanted, bounds.clone(), &mut found));
                match done {
                    Some(Ok(())) => {}
                    Some(Err(e)) if !gpu::is_auto() => drop(lock(&failed).get_or_insert(e)),
                    // It has failed, perhaps for want of memory: the CPU goes on, and begins with what this may have left.
                    _ => {
                        *lock(&gpu) = None;
                        found.iter_mut().for_each(|top| *top = Top::new(top.capacity()));
                        as_matrix(&stretch, wanted, &norms, rows, &bounds, &mut found);
                    }
                }
            }
            false => as_matrix(&stretch, wanted, &norms, rows, &bounds, &mut found),
        }
        for (found, top) in found.into_iter().zip(&tops).filter(|(found, _)| found.len() > 0) {
            let mut top = lock(top);
            found.into_sorted().into_iter().for_each(|neighbour| top.push(neighbour));
        }
    })?;
    if let Some(e) = lock(&failed).take() {
        return Err(e);
    }
    let tops = tops.into_iter().map(|top| top.into_inner().unwrap_or_else(|e| e.into_inner()).into_sorted());
    if few {
        return Ok(tops.collect());
    }
    // The distances as they are of single pairs.
    let found: Vec<Vec<Neighbour>> = tops.collect();
    rerank(column, wanted, found)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The first `n` rows that count and have no vector.
pub fn without_vector(column: &VectorColumn, live: &Rows, n: usize) -> Result<Vec<u64>> {
    let deleted = column.live();
    let mut found = Vec::new();
    for (id, rows) in column.fragments() {
        for from in (0..rows).step_by(1 << 14) {
            let rows: Vec<u64> = (from..rows.min(from + (1 << 14))).map(|row| u64::from(id) << 32 | row as u64).collect();
            column.take(&rows, &mut |i, vector| {
                if vector.is_none() && found.len() < n && live.has(rows[i]) && deleted.has(rows[i]) {
                    found.push(rows[i]);
                }
            })?;
            if found.len() == n {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// A bound with room for sums in another order.
fn slack(within: f32) -> f32 {
    within + within.abs().max(1.0) * 1e-4
}

/// Candidates of each query by their exact distances, cut to what is wanted.
pub fn rerank(column: &VectorColumn, wanted: Wanted, candidates: Vec<Vec<Neighbour>>) -> Result<Vec<Vec<Neighbour>>> {
    let dim = column.dim();
    let queries = wanted.queries.chunks_exact(dim);
    let exactly = candidates.into_iter().zip(queries).map(|(candidates, query)| {
        let mut rows: Vec<u64> = candidates.into_iter().map(|candidate| candidate.row).collect();
        rows.sort_unstable();
        rows.dedup();
        let mut top = Top::new(wanted.k);
        column.take(&rows, &mut |i, vector| {
            if let Some(vector) = vector {
                let distance = wanted.distance.of(products_of_stored(vector, column.is_half(), query));
                if distance <= wanted.within || (distance.is_nan() && wanted.within == f32::INFINITY) {
                    top.push(Neighbour { distance, row: rows[i] });
                }
            }
        })?;
        Ok(top.into_sorted())
    });
    exactly.collect()
}

fn one_by_one(stretch: &Stretch, wanted: Wanted, live: Option<&storage::Bits>, bounds: &[f32], found: &mut [Top]) {
    let queries: Vec<&[f32]> = wanted.queries.chunks_exact(stretch.dim).collect();
    let mut bounds = bounds.to_vec();
    for i in 0..stretch.rows {
        if live.is_some_and(|live| !live.has(stretch.first as usize + i)) {
            continue;
        }
        let Some(vector) = stretch.vector(i) else { continue };
        for ((query, top), bound) in queries.iter().zip(&mut *found).zip(&mut bounds) {
            let distance = wanted.distance.of(products_of_stored(vector, stretch.half, query));
            if distance > *bound {
                continue;
            }
            if distance.is_nan() && wanted.within < f32::INFINITY {
                continue;
            }
            top.push(Neighbour { distance, row: stretch.address(i) });
            *bound = bound.min(top.bound());
        }
    }
}

fn as_matrix(stretch: &Stretch, wanted: Wanted, norms: &[f32], live: Option<&storage::Bits>, bounds: &[f32], found: &mut [Top]) {
    let dim = stretch.dim;
    let mut bounds = bounds.to_vec();
    let (mut rows, mut squares, mut which) = (vec![0f32; TILE_ROWS * dim], vec![0f32; TILE_ROWS], Vec::with_capacity(TILE_ROWS));
    let mut products = vec![0f32; TILE_ROWS * TILE_QUERIES.min(norms.len())];
    let mut next = 0;
    while next < stretch.rows {
        which.clear();
        while next < stretch.rows && which.len() < TILE_ROWS {
            let i = next;
            next += 1;
            if live.is_some_and(|live| !live.has(stretch.first as usize + i)) {
                continue;
            }
            let Some(vector) = stretch.vector(i) else { continue };
            let at = which.len();
            squares[at] = widen(vector, stretch.half, &mut rows[at * dim..(at + 1) * dim]);
            which.push(i);
        }
        let n = which.len();
        if n == 0 {
            continue;
        }
        if wanted.distance == Distance::Cosine {
            for (row, square) in rows.chunks_exact_mut(dim).zip(&squares[..n]) {
                let scale = 1.0 / square.sqrt();
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        for (tile, queries) in wanted.queries.chunks(TILE_QUERIES * dim).enumerate() {
            // [queries, rows]: what belongs to a query lies together.
            multiply(queries, &rows[..n * dim], dim, &mut products);
            for (j, products) in products[..queries.len() / dim * n].chunks_exact(n).enumerate() {
                let q = tile * TILE_QUERIES + j;
                let (top, bound) = (&mut found[q], &mut bounds[q]);
                let first = *bound;
                let mut keep = |i: usize, distance: f32| {
                    if distance <= *bound || (distance.is_nan() && wanted.within == f32::INFINITY) {
                        top.push(Neighbour { distance, row: stretch.address(which[i]) });
                        *bound = bound.min(top.bound());
                    }
                };
                match wanted.distance {
                    Distance::Cosine => {
                        let scale = 1.0 / norms[q];
                        near(products, first, |xy, _| 1.0 - xy * scale, &squares, &mut keep);
                    }
                    Distance::Dot => near(products, first, |xy, _| 1.0 - xy, &squares, &mut keep),
                    Distance::L2 => {
                        let square = norms[q] * norms[q];
                        // Not above what it is, whatever was lost to rounding: single distances decide.
                        near(products, first, |xy, xx| ((xx + square) * (1.0 - 1e-5) - 2.0 * xy).max(0.0).sqrt(), &squares, &mut keep);
                    }
                }
            }
        }
    }
}

/// Hands on what is not farther than the bound, a block of 16 at a time passed over where none is.
#[inline(always)]
fn near(products: &[f32], bound: f32, distance: impl Fn(f32, f32) -> f32, squares: &[f32], keep: &mut impl FnMut(usize, f32)) {
    const LANES: usize = 16;
    for (block, products) in products.chunks(LANES).enumerate() {
        let start = block * LANES;
        let mut distances = [f32::INFINITY; LANES];
        let squares = &squares[start..start + products.len()];
        let mut any = false;
        for i in 0..products.len() {
            distances[i] = distance(products[i], squares[i]);
            any |= distances[i] <= bound || distances[i].is_nan();
        }
        if any {
            for (i, distance) in distances[..products.len()].iter().enumerate() {
                keep(start + i, *distance); // which looks again
            }
        }
    }
}
