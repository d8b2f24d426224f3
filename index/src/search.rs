//! Searching an index: partitions ranked by our own products, looked into by Lance, and what they propose looked at again
//! by the full vectors. Rows that the index does not hold yet are searched exactly beside it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow::array::{Array, ArrayRef, AsArray, Float16Array, Float32Array, UInt32Array};
use arrow::datatypes::{DataType, Float16Type, Float32Type, UInt64Type};
use async_trait::async_trait;
use futures::future::{BoxFuture, try_join_all};
use futures::{FutureExt, TryStreamExt};
use half::f16;
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap};
use lance::index::prefilter::DatasetPreFilter;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::prefilter::{NoFilter, PreFilter};
use lance_index::vector::{ApproxMode, Query, VectorIndex};
use storage::{Rows, VectorColumn};

use crate::exact::{Wanted, exact_of, rerank};
use crate::indexes::{IndexInfo, joined};
use crate::kernel::products;
use crate::top::{Neighbour, Top};
use crate::{Distance, Effort, Error, Result};

/// An index that is open, at one version of the pool.
#[derive(Debug)]
pub struct Searcher {
    info: IndexInfo,
    distance: Distance,
    column: Arc<VectorColumn>,
    pieces: Vec<Piece>,
    covered: HashSet<u32>,
}

#[derive(Debug)]
struct Piece {
    index: Arc<dyn VectorIndex>,
    /// `[partitions, dim]`.
    centroids: Vec<f32>,
    squares: Vec<f32>,
    /// What is deleted or replaced since it was built.
    dead: Option<Arc<RowAddrMask>>,
}

/// Rows that count, for Lance.
struct Masked(Arc<RowAddrMask>);

#[async_trait]
impl PreFilter for Masked {
    async fn wait_for_ready(&self) -> lance::Result<()> {
        Ok(())
    }

    fn is_empty(&self) -> bool {
        false
    }

    fn mask(&self) -> Arc<RowAddrMask> {
        self.0.clone()
    }

    fn filter_row_ids<'a>(&self, ids: Box<dyn Iterator<Item = &'a u64> + 'a>) -> Vec<u64> {
        self.0.selected_indices(ids)
    }
}

/// The centroids of an index, `[partitions, dim]`.
pub(crate) fn centroids_of(index: &dyn VectorIndex) -> Result<(usize, Vec<f32>)> {
    let model = index.ivf_model();
    let Some(centroids) = &model.centroids else { return Ok((1, Vec::new())) };
    let values = centroids.values();
    let values = match values.data_type() {
        DataType::Float16 => values.as_primitive::<Float16Type>().values().iter().map(|x| x.to_f32()).collect(),
        DataType::Float32 => values.as_primitive::<Float32Type>().values().to_vec(),
        other => return Err(Error::NotAVector { got: other.to_string() }),
    };
    Ok((centroids.value_length() as usize, values))
}

/// Queries that are searched at the same time.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

impl Searcher {
    /// Opens an index over the column.
    pub fn open<'a>(info: IndexInfo, column: Arc<VectorColumn>) -> BoxFuture<'a, Result<Searcher>> {
        async move {
            let kind = info.kind.filter(|kind| kind.is_vector());
            let (Some(_), Some(distance)) = (kind, info.distance) else {
                let kind = info.kind.map_or("unknown", |kind| kind.name());
                return Err(Error::NotAVectorIndex { name: info.name, kind });
            };
            let Some(dataset) = column.dataset().cloned() else {
                return Err(Error::IndexMissing { name: info.name, known: String::new() });
            };
            let existing: HashSet<u32> = column.fragments().map(|(id, _)| id).collect();
            let (mut pieces, mut covered) = (Vec::new(), HashSet::new());
            for piece in dataset.load_indices_by_name(&info.name).await.map_err(Error::lance)? {
                let Some(bits) = piece.fragment_bitmap.clone() else { continue };
                let of_piece: Vec<u32> = bits.iter().filter(|id| existing.contains(id)).collect();
                if of_piece.is_empty() {
                    continue;
                }
                covered.extend(of_piece);
                let index = dataset.open_vector_index(&info.column, &piece.uuid, &NoOpMetricsCollector).await.map_err(Error::lance)?;
                let dead = match DatasetPreFilter::create_restricted_deletion_mask(dataset.clone(), bits) {
                    Some(mask) => Some(mask.await.map_err(Error::lance)?),
                    None => None,
                };
                let (dim, centroids) = centroids_of(index.as_ref())?;
                let squares = centroids.chunks_exact(dim).map(|c| products(c, c).xx).collect();
                pieces.push(Piece { index, centroids, squares, dead });
            }
            Ok(Searcher { info, distance, column, pieces, covered })
        }
        .boxed()
    }

    pub fn info(&self) -> &IndexInfo {
        &self.info
    }

    pub fn distance(&self) -> Distance {
        self.distance
    }

    pub fn column(&self) -> &Arc<VectorColumn> {
        &self.column
    }

    /// Reads all of it into memory, as far as there is room for it.
    pub(crate) async fn prewarm(&self) -> Result<()> {
        for piece in &self.pieces {
            piece.index.prewarm().await.map_err(Error::lance)?;
        }
        Ok(())
    }

    /// Partitions of the largest piece.
    pub fn partitions(&self) -> usize {
        self.pieces.iter().map(|piece| piece.squares.len()).max().unwrap_or(0)
    }

    /// Rows of the pool that it does not hold.
    pub fn is_lagging(&self) -> bool {
        self.column.fragments().any(|(id, _)| !self.covered.contains(&id))
    }

    /// For each query `[n, dim]` the nearest rows that count, by their exact distances, nearest first. Rows that the index
    /// does not hold are searched exactly; where it proposes fewer rows than are wanted, all are.
    pub async fn search(
        self: &Arc<Self>,
        queries: &Arc<Vec<f32>>,
        k: usize,
        within: f32,
        effort: Effort,
        allowed: Option<&Arc<Rows>>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let dim = self.column.dim();
        let n = queries.len() / dim;
        let masks = self.masks(allowed);
        let groups = at_once().min(n).max(1);
        let per_group = n.div_ceil(groups).max(1);
        let tasks = (0..n).step_by(per_group).map(|from| {
            let (this, queries, masks) = (self.clone(), queries.clone(), masks.clone());
            let alone = n == 1;
            let stop = stop.clone();
            async move {
                let mut all = Vec::new();
                for query in from..n.min(from + per_group) {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return Err(Error::Stopped);
                    }
                    all.push(this.candidates(&queries[query * dim..(query + 1) * dim], k, effort, &masks, alone).await?);
                }
                Ok::<_, Error>(all)
            }
        });
        let candidates: Vec<Vec<Neighbour>> = match n {
            1 => try_join_all(tasks).await?.concat(),
            _ => {
                let tasks: Vec<_> = tasks.map(tokio::spawn).collect();
                let mut all = Vec::with_capacity(n);
                for task in tasks {
                    all.extend(task.await.map_err(joined)??);
                }
                all
            }
        };
        let (this, queries, allowed, stop) = (self.clone(), queries.clone(), allowed.cloned(), stop.clone());
        let finish = move || this.finish(&queries, k, within, candidates, allowed.as_deref(), &stop);
        // Where vectors lie in memory, one query is done before another thread has woken.
        match n == 1 && self.column.is_mapped() && !self.is_lagging() {
            true => tokio::task::block_in_place(finish),
            false => tokio::task::spawn_blocking(finish).await.map_err(joined)?,
        }
    }

    /// Candidates by their full vectors, with the rows that the index does not hold.
    fn finish(
        &self,
        queries: &[f32],
        k: usize,
        within: f32,
        candidates: Vec<Vec<Neighbour>>,
        allowed: Option<&Rows>,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let wanted = Wanted { queries, distance: self.distance, k, within };
        let mut found = rerank(&self.column, wanted, candidates)?;
        let live = self.column.live();
        let rows = allowed.unwrap_or(&live);
        if self.is_lagging() {
            let rest = exact_of(&self.column, wanted, rows, &|id| !self.covered.contains(&id), stop)?;
            for (found, rest) in found.iter_mut().zip(rest) {
                let mut top = Top::new(k);
                std::mem::take(found).into_iter().chain(rest).for_each(|neighbour| top.push(neighbour));
                *found = top.into_sorted();
            }
        }
        if within == f32::INFINITY {
            let most = if allowed.is_some() { rows.named() } else { self.column.len() };
            let short: Vec<usize> = (0..found.len()).filter(|&i| (found[i].len() as u64) < most.min(k as u64)).collect();
            if !short.is_empty() {
                let dim = self.column.dim();
                let again: Vec<f32> = short.iter().flat_map(|&i| &queries[i * dim..(i + 1) * dim]).copied().collect();
                let wanted = Wanted { queries: &again, ..wanted };
                for (i, all) in short.into_iter().zip(exact_of(&self.column, wanted, rows, &|_| true, stop)?) {
                    found[i] = all;
                }
            }
        }
        Ok(found)
    }

    /// What each piece may look at; `None` for all of it.
    fn masks(&self, allowed: Option<&Arc<Rows>>) -> Arc<Vec<Option<Arc<RowAddrMask>>>> {
        let allowed = allowed.map(|rows| {
            let ids = rows.addresses();
            RowAddrMask::from_allowed(RowAddrTreeMap::from_sorted_runs([&ids[..]]))
        });
        let of_piece = |piece: &Piece| match (&allowed, &piece.dead) {
            (None, dead) => dead.clone(),
            (Some(allowed), None) => Some(Arc::new(allowed.clone())),
            (Some(allowed), Some(dead)) => Some(Arc::new(allowed.clone() & dead.as_ref().clone())),
        };
        Arc::new(self.pieces.iter().map(of_piece).collect())
    }

    /// The partitions of a piece nearest to a query, nearest first, and how far each is as Lance reckons.
    fn rank(&self, piece: &Piece, query: &[f32], n: usize) -> (UInt32Array, Float32Array) {
        let square = products(query, query).xx;
        let mut ranked: Vec<(f32, u32)> = piece
            .centroids
            .chunks_exact(query.len())
            .zip(&piece.squares)
            .enumerate()
            .map(|(i, (centroid, squares))| {
                let product = crate::kernel::dot(centroid, query);
                let distance = match self.distance {
                    Distance::Dot => 1.0 - product,
                    Distance::Cosine | Distance::L2 => (square + squares - 2.0 * product).max(0.0),
                };
                (distance, i as u32)
            })
            .collect();
        let n = n.clamp(1, ranked.len());
        if n < ranked.len() {
            ranked.select_nth_unstable_by(n - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            ranked.truncate(n);
        }
        ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (distances, ids): (Vec<f32>, Vec<u32>) = ranked.into_iter().unzip();
        (ids.into(), distances.into())
    }

    async fn candidates(
        &self,
        query: &[f32],
        k: usize,
        effort: Effort,
        masks: &[Option<Arc<RowAddrMask>>],
        alone: bool,
    ) -> Result<Vec<Neighbour>> {
        let unit: Vec<f32> = match self.distance {
            Distance::Cosine => {
                let scale = 1.0 / products(query, query).xx.sqrt();
                query.iter().map(|x| x * scale).collect()
            }
            _ => query.to_vec(),
        };
        let key: ArrayRef = match self.column.is_half() {
            true => Arc::new(Float16Array::from_iter_values(unit.iter().map(|x| f16::from_f32(*x)))),
            false => Arc::new(Float32Array::from(unit.clone())),
        };
        let k = k.saturating_mul(effort.refine.max(1)).min(1 << 20);
        let mut streams = Vec::new();
        for (piece, mask) in self.pieces.iter().zip(masks) {
            let (ids, distances) = self.rank(piece, &unit, effort.nprobes);
            let query = Query {
                column: self.info.column.clone(),
                key: key.clone(),
                k,
                lower_bound: None,
                upper_bound: None,
                minimum_nprobes: 1,
                maximum_nprobes: Some(ids.len()),
                search_effort: 0.5,
                ef: self.info.kind.is_some_and(|kind| kind.has_graph()).then_some(k + k / 2),
                refine_factor: None,
                metric_type: None,
                use_index: true,
                query_parallelism: 0,
                dist_q_c: 0.0,
                approx_mode: ApproxMode::Normal,
            };
            let (n, ids, distances) = (ids.len(), Arc::new(ids), Arc::new(distances));
            // One query alone has all cores.
            let parts = if alone { at_once().min(n).max(1) } else { 1 };
            for part in 0..parts {
                let (from, to) = (n * part / parts, n * (part + 1) / parts);
                let filter: Arc<dyn PreFilter> = match mask {
                    Some(mask) => Arc::new(Masked(mask.clone())),
                    None => Arc::new(NoFilter),
                };
                let (index, query, ids, distances) = (piece.index.clone(), query.clone(), ids.clone(), distances.clone());
                streams.push(async move {
                    let metrics = Arc::new(NoOpMetricsCollector);
                    let found = index.search_partitions(query, ids, distances, from, to, filter, None, metrics);
                    let batches: Vec<_> = found.await?.try_collect().await?;
                    Ok::<_, lance::Error>(batches)
                });
            }
        }
        let mut top = Top::new(k);
        for batch in try_join_all(streams).await.map_err(Error::lance)?.into_iter().flatten() {
            let distances = batch["_distance"].as_primitive::<Float32Type>();
            let rows = batch["_rowid"].as_primitive::<UInt64Type>();
            for (distance, row) in distances.values().iter().zip(rows.values()) {
                top.push(Neighbour { distance: *distance, row: *row });
            }
        }
        Ok(top.into_sorted())
    }
}
