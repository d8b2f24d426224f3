//! Searching an index: partitions ranked by our own products, looked into by Lance, and what they propose looked at again
//! by the full vectors. Rows that the index does not hold yet are searched exactly beside it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{Array, ArrayRef, AsArray, Float16Array, Float32Array, UInt32Array};
use arrow::datatypes::{DataType, Float16Type, Float32Type, UInt64Type};
use async_trait::async_trait;
use futures::future::{BoxFuture, try_join_all};
use futures::{FutureExt, TryStreamExt};
use half::f16;
use lance::dataset::index::LanceIndexStoreExt;
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap};
use lance::index::prefilter::DatasetPreFilter;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance::table::format::IndexMetadata;
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::prefilter::{NoFilter, PreFilter};
use lance_index::scalar::IndexStore;
use lance_index::scalar::lance_format::LanceIndexStore;
use lance_index::vector::{ApproxMode, Query, VectorIndex};
use rayon::prelude::*;
use storage::{Rows, VectorColumn};
use tokio::sync::OnceCell;

use crate::exact::{SPARE, Wanted, exact_of, rerank};
use crate::indexes::{IndexInfo, joined};
use crate::kernel::{dots_of_stored, products};
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
    lists: OnceCell<Arc<Vec<Vec<Vec<u64>>>>>,
}

#[derive(Debug)]
struct Piece {
    index: Arc<dyn VectorIndex>,
    metadata: IndexMetadata,
    /// The fragments that it answers for.
    holds: HashSet<u32>,
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

fn scaled(vector: &[f32], by: f32) -> impl Iterator<Item = f32> + '_ {
    vector.iter().map(move |x| x * by)
}

/// The rows of each partition of a piece, in the order of the partitions: Lance keeps them in that order.
async fn rows_of_partitions(column: &VectorColumn, metadata: &IndexMetadata, index: &dyn VectorIndex) -> Result<Vec<Vec<u64>>> {
    let Some(dataset) = column.dataset() else { return Ok(Vec::new()) };
    let store = LanceIndexStore::from_dataset_for_existing(dataset, metadata).await.map_err(Error::lance)?;
    let file = store.open_index_file(lance_index::INDEX_AUXILIARY_FILE_NAME).await.map_err(Error::lance)?;
    let mut lists = Vec::with_capacity(index.total_partitions());
    if file.num_rows() == 0 {
        return Ok(vec![Vec::new(); index.total_partitions()]);
    }
    let ids = file.read_range(0..file.num_rows(), Some(&["_rowid"])).await.map_err(Error::lance)?;
    let ids = ids["_rowid"].as_primitive::<UInt64Type>().values();
    let mut from = 0;
    for partition in 0..index.total_partitions() {
        let n = index.partition_size(partition);
        let mut rows = ids[from..from + n].to_vec();
        rows.sort_unstable(); // neighbours in memory
        lists.push(rows);
        from += n;
    }
    Ok(lists)
}

/// So many queries are worked on together; fewer one by one.
const MANY: usize = 32;

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
                covered.extend(of_piece.iter().copied());
                let index = dataset.open_vector_index(&info.column, &piece.uuid, &NoOpMetricsCollector).await.map_err(Error::lance)?;
                let dead = match DatasetPreFilter::create_restricted_deletion_mask(dataset.clone(), bits) {
                    Some(mask) => Some(mask.await.map_err(Error::lance)?),
                    None => None,
                };
                let (dim, centroids) = centroids_of(index.as_ref())?;
                let squares = centroids.chunks_exact(dim).map(|c| products(c, c).xx).collect();
                pieces.push(Piece { index, metadata: piece, holds: of_piece.into_iter().collect(), centroids, squares, dead });
            }
            Ok(Searcher { info, distance, column, pieces, covered, lists: OnceCell::new() })
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
        if k == 0 {
            return Ok(vec![Vec::new(); n]);
        }
        if n >= MANY && self.column.is_mapped() && !self.info.kind.is_some_and(|kind| kind.has_graph()) {
            let lists = self.lists().await?;
            let (this, queries, allowed, stop) = (self.clone(), queries.clone(), allowed.cloned(), stop.clone());
            let work = move || {
                let candidates = this.grouped(&lists, &queries, k, effort.nprobes, allowed.as_deref(), &stop)?;
                this.finish(&queries, k, within, candidates, allowed.as_deref(), &stop)
            };
            return tokio::task::spawn_blocking(work).await.map_err(joined)?;
        }
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

    /// The rows of each partition of each piece, read once.
    async fn lists(&self) -> Result<Arc<Vec<Vec<Vec<u64>>>>> {
        let read = async || {
            let mut all = Vec::new();
            for piece in &self.pieces {
                all.push(rows_of_partitions(&self.column, &piece.metadata, piece.index.as_ref()).await?);
            }
            Ok::<_, Error>(Arc::new(all))
        };
        self.lists.get_or_try_init(read).await.cloned()
    }

    /// Many queries at once: the rows of a partition are read once, by their full vectors, for all queries that look into
    /// it, and compared with each.
    fn grouped(
        &self,
        lists: &[Vec<Vec<u64>>],
        queries: &[f32],
        k: usize,
        nprobes: usize,
        allowed: Option<&Rows>,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let dim = self.column.dim();
        let n = queries.len() / dim;
        let unit: Vec<f32> = match self.distance {
            Distance::Cosine => queries.chunks_exact(dim).flat_map(|query| scaled(query, 1.0 / products(query, query).xx.sqrt())).collect(),
            _ => queries.to_vec(),
        };
        let live = self.column.live();
        let tops: Vec<Mutex<Top>> = (0..n).map(|_| Mutex::new(Top::new(k.saturating_add(SPARE)))).collect();
        for (piece, lists) in self.pieces.iter().zip(lists) {
            let probes = |query: &[f32]| self.rank(piece, query, nprobes).0.values().to_vec();
            let probes: Vec<Vec<u32>> = unit.par_chunks_exact(dim).map(probes).collect();
            let mut lookers: Vec<Vec<u32>> = vec![Vec::new(); lists.len()];
            for (query, probes) in probes.iter().enumerate() {
                probes.iter().for_each(|partition| lookers[*partition as usize].push(query as u32));
            }
            lookers.par_iter().zip(lists).filter(|(lookers, rows)| !lookers.is_empty() && !rows.is_empty()).try_for_each(
                |(lookers, rows)| {
                    let wanted: Vec<f32> = lookers.iter().flat_map(|&q| &unit[q as usize * dim..(q as usize + 1) * dim]).copied().collect();
                    let counts = |row: &u64| {
                        piece.holds.contains(&((row >> 32) as u32)) && live.has(*row) && allowed.is_none_or(|rows| rows.has(*row))
                    };
                    let rows: Vec<u64> = rows.iter().copied().filter(counts).collect();
                    let mut found: Vec<Top> = lookers.iter().map(|_| Top::new(k.saturating_add(SPARE))).collect();
                    let mut bounds: Vec<f32> =
                        lookers.iter().map(|&q| tops[q as usize].lock().unwrap_or_else(|e| e.into_inner()).bound()).collect();
                    let mut dots = vec![0f32; lookers.len()];
                    if stop.load(Ordering::Relaxed) {
                        return Err(Error::Stopped);
                    }
                    self.column.take(&rows, &mut |i, vector| {
                        let Some(vector) = vector else { return };
                        let squares = dots_of_stored(vector, self.column.is_half(), &wanted, &mut dots);
                        let scale = if self.distance == Distance::Cosine { 1.0 / squares.sqrt() } else { 1.0 };
                        for ((dot, top), bound) in dots.iter().zip(&mut found).zip(&mut bounds) {
                            let distance = if self.distance == Distance::L2 { squares - 2.0 * dot } else { -dot * scale };
                            if distance <= *bound {
                                top.push(Neighbour { distance, row: rows[i] });
                                *bound = bound.min(top.bound());
                            }
                        }
                    })?;
                    for (found, &query) in found.into_iter().zip(lookers) {
                        let mut top = tops[query as usize].lock().unwrap_or_else(|e| e.into_inner());
                        found.into_sorted().into_iter().for_each(|neighbour| top.push(neighbour));
                    }
                    Ok(())
                },
            )?;
        }
        Ok(tops.into_iter().map(|top| top.into_inner().unwrap_or_else(|e| e.into_inner()).into_sorted()).collect())
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
        let rows = allowed.unwrap_or(self.column.live());
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
        let n = n.max(1).min(ranked.len());
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
            Distance::Cosine => scaled(query, 1.0 / products(query, query).xx.sqrt()).collect(),
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
