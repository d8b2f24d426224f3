//! How much of the exact answer an index finds, and how long it takes: measured on queries from the pool itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use storage::{OnProgress, Pool, Progress, Table, VectorColumn};

use crate::exact::{Wanted, exact};
use crate::indexes::{joined, named};
use crate::kmeans::{draw, read};
use crate::{Effort, Error, Result, Searcher};

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub k: usize,
    pub queries: usize,
    pub seed: u64,
    /// A column of other vectors whose samples are looked for, such as texts in a column of images: they are farther from
    /// everything, and harder to find.
    pub from: Option<String>,
    /// The settings; without, a ladder of them.
    pub efforts: Vec<Effort>,
}

/// What a setting gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub effort: Effort,
    /// The column that the queries are from.
    pub from: String,
    /// The mean share of the exact k nearest that were found: `index_recall`.
    pub recall: f64,
    /// Milliseconds of single queries, one after the other: the median, and what 95 and 99 of 100 stay below.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

const NPROBES: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const REFINES: [usize; 3] = [1, 4, 10];

/// The ladder for an index of so many partitions.
pub fn ladder(partitions: usize) -> Vec<Effort> {
    let below = NPROBES.into_iter().filter(|n| *n < partitions).chain([partitions.max(1)]).filter(|n| *n <= 1024);
    below.flat_map(|nprobes| REFINES.map(|refine| Effort { nprobes, refine })).collect()
}

/// Measures an index, setting by setting. A query from the indexed column itself is not its own neighbour.
pub fn check_index<'a>(
    pool: &'a Pool,
    name: &'a str,
    check: &'a Check,
    on_progress: OnProgress<'a>,
) -> BoxFuture<'a, Result<Vec<Measured>>> {
    async move {
        let info = named(pool, name).await?;
        let dataset = pool.require(Table::Pool).await?;
        let column = Arc::new(VectorColumn::open(dataset.clone(), &info.column).await?);
        let searcher = Arc::new(Searcher::open(info.clone(), column.clone()).await?);
        searcher.prewarm().await?;
        let mut sources = vec![column.clone()];
        if let Some(from) = &check.from {
            let other = VectorColumn::open(dataset.clone(), from).await?;
            if other.dim() != column.dim() {
                return Err(Error::Dimensions { left: column.dim(), right: other.dim() });
            }
            sources.push(Arc::new(other));
        }
        let efforts = if check.efforts.is_empty() { ladder(searcher.partitions()) } else { check.efforts.clone() };
        let total = (sources.len() * efforts.len()) as u64;
        let mut measured = Vec::new();
        for source in sources {
            let own = source.name() == column.name();
            let (k, n, seed) = (check.k + usize::from(own), check.queries, check.seed);
            let (target, distance) = (column.clone(), searcher.distance());
            let truth = tokio::task::spawn_blocking(move || {
                let rows = draw(&source, source.live(), n, seed)?;
                let queries = read(&source, &rows, false)?;
                let wanted = Wanted { queries: &queries, distance, k, within: f32::INFINITY };
                let found = exact(&target, wanted, target.live(), &AtomicBool::new(false))?;
                Ok::<_, Error>((source.name().to_string(), rows, queries, found))
            });
            let (from, rows, queries, truth) = truth.await.map_err(joined)??;
            for effort in &efforts {
                on_progress(Progress { what: format!("check {name}"), done: measured.len() as u64, total, unit: "settings" });
                let (mut hits, mut all, mut times) = (0, 0, Vec::new());
                for (i, (row, truth)) in rows.iter().zip(&truth).enumerate() {
                    let query = Arc::new(queries[i * column.dim()..(i + 1) * column.dim()].to_vec());
                    let start = Instant::now();
                    let found = searcher.search(&query, k, f32::INFINITY, *effort, None, &Arc::default()).await?;
                    times.push(start.elapsed().as_secs_f64() * 1000.0);
                    let is_other = |neighbour: &&crate::Neighbour| !own || neighbour.row != *row;
                    // A vector of zeros is at no cosine distance from anything.
                    let truth = truth.iter().filter(is_other).map(|neighbour| neighbour.distance).filter(|distance| !distance.is_nan());
                    let truth: Vec<f32> = truth.take(check.k).collect();
                    // Of rows that are equally far any is right.
                    let Some(farthest) = truth.last() else { continue };
                    let near = found[0].iter().filter(is_other).filter(|neighbour| neighbour.distance <= *farthest);
                    hits += near.count().min(truth.len());
                    all += truth.len();
                }
                times.sort_unstable_by(f64::total_cmp);
                let at = |share: f64| {
                    times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or(0.0)
                };
                if all == 0 {
                    return Err(Error::FewSamples { k: check.queries, samples: rows.len() });
                }
                let recall = hits as f64 / all as f64;
                measured.push(Measured { effort: *effort, from: from.clone(), recall, p50: at(0.5), p95: at(0.95), p99: at(0.99) });
            }
        }
        Ok(measured)
    }
    .boxed()
}

/// The fastest setting that reaches the recall for all queries' columns.
pub fn recommend(measured: &[Measured], recall: f64) -> Option<Effort> {
    let reaches = |effort: &Effort| measured.iter().filter(|m| m.effort == *effort).all(|m| m.recall >= recall);
    let slowest = |effort: &Effort| measured.iter().filter(|m| m.effort == *effort).map(|m| m.p50).fold(0.0, f64::max);
    let efforts = measured.iter().map(|m| m.effort).filter(reaches);
    efforts.min_by(|a, b| slowest(a).total_cmp(&slowest(b)).then((a.nprobes, a.refine).cmp(&(b.nprobes, b.refine))))
}
