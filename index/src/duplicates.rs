//! Semantic duplicates (SemDeDup, Abbas et al. 2023): within each cluster the samples whose embedding is nearer than a
//! threshold to that of a sample before them, in the order in which they would be kept.

use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use storage::{Rows, VectorColumn};

use crate::assign::assign;
use crate::kernel::multiply;
use crate::kmeans::read;
use crate::{Error, Result, VectorSet};

/// A row that is dropped, and the row before it that it is most like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Duplicate {
    pub row: u64,
    pub like: u64,
    pub similarity: f32,
}

/// What is kept of rows that are alike, of equals the first row.
pub enum Keep<'a> {
    /// That with the least similarity to its centroid, as published.
    Hard,
    /// That with the largest.
    Easy,
    /// That with the highest score, which this gives for rows in order; NaN and NULL count as the lowest.
    Score(&'a dyn Fn(&[u64]) -> Result<Vec<f32>>),
}

/// Bytes that the rows of the clusters worked on at once take.
const CLUSTERS_BYTES: usize = 256 << 20;
/// Rows that are assigned at once.
const CHUNK: usize = 16384;
const TILE: usize = 512;
/// Marks a row that is in no cluster.
const NONE: u32 = u32::MAX;

/// Hands over the duplicates, cluster by cluster in the order of the clusters, by row within. The clusters of all rows wait
/// in a temporary file (4 bytes a row); memory is that of the clusters worked on at once.
pub fn duplicates(
    column: &VectorColumn,
    live: &Rows,
    centroids: &VectorSet,
    threshold: f32,
    keep: &Keep,
    found: &mut dyn FnMut(Vec<Duplicate>) -> Result<()>,
    stop: &AtomicBool,
) -> Result<()> {
    let dim = column.dim();
    if centroids.dim() != dim {
        return Err(Error::Dimensions { left: dim, right: centroids.dim() });
    }
    let spilled = |e: std::io::Error| Error::Spill { source: e };
    let mut file = BufWriter::new(tempfile::tempfile().map_err(spilled)?);
    let mut sizes = vec![0usize; centroids.len()];
    let all = || column.fragments().flat_map(|(id, rows)| (0..rows as u64).map(move |row| u64::from(id) << 32 | row));
    let mut rows = all();
    loop {
        let chunk: Vec<u64> = rows.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let samples = read(column, &chunk, true)?;
        let nearest = assign(&samples, centroids.values(), dim, false)?;
        for ((row, sample), (cluster, _)) in chunk.iter().zip(samples.chunks_exact(dim)).zip(nearest) {
            let is_there = live.has(*row) && sample.iter().any(|x| *x != 0.0);
            let cluster = if is_there { cluster } else { NONE };
            if is_there {
                sizes[cluster as usize] += 1;
            }
            file.write_all(&cluster.to_le_bytes()).map_err(spilled)?;
        }
    }
    let mut file = file.into_inner().map_err(|e| spilled(e.into_error()))?;
    let most = CLUSTERS_BYTES / 16;
    let mut from = 0;
    while from < sizes.len() {
        let (mut to, mut held) = (from, 0);
        while to < sizes.len() && (to == from || held + sizes[to] <= most) {
            held += sizes[to];
            to += 1;
        }
        let mut members: Vec<Vec<u64>> = sizes[from..to].iter().map(|n| Vec::with_capacity(*n)).collect();
        file.rewind().map_err(spilled)?;
        let mut clusters = BufReader::with_capacity(1 << 20, &file);
        for row in all() {
            let mut cluster = [0; 4];
            clusters.read_exact(&mut cluster).map_err(spilled)?;
            let cluster = u32::from_le_bytes(cluster) as usize;
            if (from..to).contains(&cluster) {
                members[cluster - from].push(row);
            }
        }
        for (i, rows) in members.into_iter().enumerate().filter(|(_, rows)| rows.len() > 1) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let of_cluster = within(column, rows, centroids.vector(from + i), threshold, keep)?;
            if !of_cluster.is_empty() {
                found(of_cluster)?;
            }
        }
        from = to;
    }
    Ok(())
}

/// The duplicates among the rows of a cluster.
fn within(column: &VectorColumn, rows: Vec<u64>, centroid: &[f32], threshold: f32, keep: &Keep) -> Result<Vec<Duplicate>> {
    let dim = column.dim();
    let mut priorities = match keep {
        Keep::Score(scores) => scores(&rows)?,
        Keep::Hard | Keep::Easy => {
            let mut products = vec![0f32; rows.len()];
            for (rows, products) in rows.chunks(CHUNK).zip(products.chunks_mut(CHUNK)) {
                multiply(&read(column, rows, true)?, centroid, dim, products);
            }
            if matches!(keep, Keep::Hard) { products.iter().map(|x| -x).collect() } else { products }
        }
    };
    priorities.iter_mut().filter(|p| p.is_nan()).for_each(|p| *p = f32::NEG_INFINITY);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| priorities[b].total_cmp(&priorities[a]).then(rows[a].cmp(&rows[b])));
    let rows: Vec<u64> = order.into_iter().map(|i| rows[i]).collect();
    // Each tile of rows with all tiles before it, and itself.
    let tiles: Vec<&[u64]> = rows.chunks(TILE).collect();
    let of_tile = |(t, tile): (usize, &&[u64])| -> Result<Vec<Duplicate>> {
        let these = read(column, tile, true)?;
        let mut most = vec![(f32::NEG_INFINITY, 0usize); tile.len()];
        let mut products = vec![0f32; TILE * TILE];
        for (before, other) in tiles[..=t].iter().enumerate() {
            let others = if before == t { these.clone() } else { read(column, other, true)? };
            multiply(&these, &others, dim, &mut products);
            for (i, (products, most)) in products[..tile.len() * other.len()].chunks_exact(other.len()).zip(&mut most).enumerate() {
                let earlier = if before == t { &products[..i] } else { products };
                for (j, &similarity) in earlier.iter().enumerate() {
                    if similarity > most.0 {
                        *most = (similarity, before * TILE + j);
                    }
                }
            }
        }
        let dropped = tile.iter().zip(most).filter(|(_, (similarity, _))| *similarity > threshold);
        Ok(dropped.map(|(&row, (similarity, like))| Duplicate { row, like: rows[like], similarity }).collect())
    };
    let mut found: Vec<Duplicate> = tiles.par_iter().enumerate().map(of_tile).collect::<Result<Vec<_>>>()?.concat();
    found.sort_unstable_by_key(|duplicate| duplicate.row);
    Ok(found)
}
