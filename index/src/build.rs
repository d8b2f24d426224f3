//! Builds Lance's indexes over vectors with centroids of our own, and the partition of each row found by matrix products:
//! Lance's way there is by single distances, several times slower.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow::array::{
    FixedSizeListArray, Float16Array, Float32Array, RecordBatch, RecordBatchIterator, RecordBatchReader, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use async_trait::async_trait;
use half::f16;
use lance::Dataset;
use lance::dataset::{InsertBuilder, WriteParams};
use lance::index::vector::VectorIndexParams;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt, IndexBuildProgress};
use lance::table::format::IndexMetadata;
use lance_index::metrics::NoOpMetricsCollector;
use storage::{OnProgress, Progress, VectorColumn, Writer};

use crate::assign::assign;
use crate::indexes::{IndexInfo, NewIndex, joined, set_effort};
use crate::kind::{Sizes, vector_params};
use crate::kmeans::{KMeans, Start, draw, kmeans, read};
use crate::{Distance, Effort, Error, Kind, Result};

/// Samples a centroid that partitions are trained with, and iterations.
const SAMPLES_A_PARTITION: usize = 64;
const ITERATIONS: usize = 10;
/// Rows of a graph, about: a partition of an index with graphs holds so many.
const ROWS_A_GRAPH: u64 = 1 << 18;
/// Rows of a piece of an index at most: the partitions of all of them are held while it is built (some 30 bytes a row).
const PIECE_ROWS: u64 = 16 << 20;
/// Rows that are assigned at once.
const CHUNK: usize = 16384;

/// Trains the partitions and builds the pieces of an index, and commits it.
pub(crate) async fn create_over_vectors(
    writer: &Writer,
    dataset: &mut Dataset,
    new: &NewIndex,
    name: &str,
    on_progress: OnProgress<'_>,
) -> Result<()> {
    let distance = new.distance()?;
    let column = Arc::new(VectorColumn::open(Arc::new(dataset.clone()), &new.column).await?);
    let dim = column.dim();
    let sizes = new.sizes(dim)?;
    let rows = column.len();
    let by_default = match new.kind.has_graph() {
        true => rows.div_ceil(ROWS_A_GRAPH),
        false => (rows as f64).sqrt().round() as u64,
    };
    let partitions = new.number("partitions", 1..=1 << 20, "1 to 1048576")?.unwrap_or(by_default.clamp(1, 1 << 17) as usize);
    let seed = new.number("seed", 0..=u64::MAX, "an integer of at least 0")?.unwrap_or(0);
    let what = |step: &str| format!("index {name}: {step}");
    let report = |step: &str, done: u64, total: u64, unit| on_progress(Progress { what: what(step), done, total, unit });
    report("training", 0, ITERATIONS as u64, "iterations");
    let trained = {
        let (column, unit) = (column.clone(), distance == Distance::Cosine);
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let work = tokio::task::spawn_blocking(move || {
            train(&column, partitions, seed, unit, &|done| {
                let _ = told.send(done);
            })
        });
        while let Some(done) = hears.recv().await {
            report("training", done, ITERATIONS as u64, "iterations");
        }
        work.await.map_err(joined)??
    };
    let partitions = trained.len() / dim;
    let mut fragments: Vec<Vec<u32>> = vec![Vec::new()];
    let mut held = 0;
    for (id, rows) in column.fragments() {
        if held > 0 && held + rows as u64 > PIECE_ROWS {
            fragments.push(Vec::new());
            held = 0;
        }
        held += rows as u64;
        fragments.last_mut().expect("at least one").push(id);
    }
    let mut pieces = Vec::new();
    for fragments in fragments {
        pieces.push(build_piece(dataset, &column, new.kind, name, distance, &trained, sizes, fragments, on_progress).await?);
    }
    // Before, so that the index never is without; of one that does not come to be nobody asks.
    let effort = Effort { nprobes: Effort::default().nprobes.min(partitions), ..Effort::default() };
    set_effort(dataset, name, effort).await?;
    let pieces = pieces.into_iter().map(|piece| IndexMetadata { name: name.to_string(), ..piece }).collect();
    Ok(writer.replace_index(dataset, name, pieces).await?)
}

/// Centroids `[partitions, dim]`; fewer where there are not as many vectors, one of zeros where there is none.
fn train(column: &VectorColumn, partitions: usize, seed: u64, unit: bool, told: &dyn Fn(u64)) -> Result<Vec<f32>> {
    let stop = AtomicBool::new(false);
    let rows = draw(column, column.live(), partitions, seed)?;
    if rows.is_empty() {
        return Ok(vec![0.0; column.dim()]);
    }
    let k = partitions.min(rows.len());
    if k == rows.len() {
        return read(column, &rows, unit);
    }
    let options =
        KMeans { k, iterations: ITERATIONS, seed, spherical: unit, start: Start::Random, samples: k * SAMPLES_A_PARTITION, batch: 0 };
    let mut told = |clusters: &crate::Clusters| {
        told(clusters.iteration as u64);
        Ok(())
    };
    Ok(kmeans(column, column.live(), options, None, &mut told, &stop)?.centroids)
}

/// Builds a piece of an index over these fragments, which no version holds yet.
#[expect(clippy::too_many_arguments)]
async fn build_piece(
    dataset: &mut Dataset,
    column: &Arc<VectorColumn>,
    kind: Kind,
    name: &str,
    distance: Distance,
    centroids: &[f32],
    sizes: Sizes,
    fragments: Vec<u32>,
    on_progress: OnProgress<'_>,
) -> Result<IndexMetadata> {
    let dim = column.dim();
    let folder = tempfile::tempdir().map_err(|source| Error::Spill { source })?;
    let file = folder.path().join("partitions").display().to_string();
    let rows: u64 = column.fragments().filter(|(id, _)| fragments.contains(id)).map(|(_, rows)| rows as u64).sum();
    write_partitions(column, &fragments, centroids, distance, &file, &|done| {
        on_progress(Progress { what: format!("index {name}: assigning"), done, total: rows, unit: "rows" });
    })
    .await?;
    let half = column.is_half();
    let array = Arc::new(list_array(centroids, dim, half)?);
    let params: VectorIndexParams = vector_params(kind, distance, dim, array, file, sizes)?;
    let progress = Arc::new(Watch::new(format!("index {name}")));
    let columns = [column.name()];
    let builder = dataset.create_index_builder(&columns, kind.index_type(), &params);
    // Under a name of its own, which no index has: nothing is committed here.
    let mut builder = builder.name(format!("{name}__new")).fragments(fragments).progress(progress.clone());
    let mut made = progress.during(builder.execute_uncommitted(), on_progress).await.map_err(Error::lance)?;
    made.name = name.to_string();
    Ok(made)
}

/// Writes a Lance dataset with the partition of each row that has a vector.
async fn write_partitions(
    column: &Arc<VectorColumn>,
    fragments: &[u32],
    centroids: &[f32],
    distance: Distance,
    file: &str,
    told: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    let schema =
        Arc::new(Schema::new(vec![Field::new("row_id", DataType::UInt64, false), Field::new("partition", DataType::UInt32, false)]));
    let (told_of, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let chunks: Vec<(u32, usize, usize)> = column
        .fragments()
        .filter(|(id, _)| fragments.contains(id))
        .flat_map(|(id, rows)| (0..rows).step_by(CHUNK).map(move |from| (id, from, rows.min(from + CHUNK))))
        .collect();
    let (column, centroids, of_batch) = (column.clone(), centroids.to_vec(), schema.clone());
    let mut done = 0;
    // Made as they are written.
    let batches = chunks.into_iter().map(move |(id, from, to)| {
        let rows: Vec<u64> = (from..to).map(|row| u64::from(id) << 32 | row as u64).collect();
        done += rows.len() as u64;
        let _ = told_of.send(done);
        partitions_of(&column, &rows, &centroids, distance, &of_batch).map_err(|e| ArrowError::from_external_error(Box::new(e)))
    });
    let batches: Box<dyn RecordBatchReader + Send> = Box::new(RecordBatchIterator::new(batches, schema));
    let (default, insert) = (WriteParams::default(), InsertBuilder::new(file));
    let insert = insert.with_params(&default);
    let mut work = std::pin::pin!(insert.execute_stream(batches));
    loop {
        tokio::select! {
            written = &mut work => return written.map(drop).map_err(Error::lance),
            Some(done) = hears.recv() => told(done),
        }
    }
}

fn partitions_of(column: &VectorColumn, rows: &[u64], centroids: &[f32], distance: Distance, schema: &Arc<Schema>) -> Result<RecordBatch> {
    let (live, dim, unit) = (column.live(), column.dim(), distance == Distance::Cosine);
    let vectors = read(column, rows, unit)?;
    let nearest = assign(&vectors, centroids, dim, distance == Distance::L2)?;
    // Only a cosine has no use for zeros; rows without a vector are left out by Lance.
    let there = |(row, vector): &(&u64, &[f32])| live.has(**row) && (!unit || vector.iter().any(|x| *x != 0.0));
    let kept = rows.iter().zip(vectors.chunks_exact(dim)).zip(nearest).filter(|(of, _)| there(of));
    let (rows, partitions): (Vec<u64>, Vec<u32>) = kept.map(|((row, _), (partition, _))| (*row, partition)).unzip();
    let columns: Vec<arrow::array::ArrayRef> = vec![Arc::new(UInt64Array::from(rows)), Arc::new(UInt32Array::from(partitions))];
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| Error::lance(e.into()))
}

fn list_array(values: &[f32], dim: usize, half: bool) -> Result<FixedSizeListArray> {
    let (item, values): (DataType, arrow::array::ArrayRef) = match half {
        true => (DataType::Float16, Arc::new(Float16Array::from_iter_values(values.iter().map(|x| f16::from_f32(*x))))),
        false => (DataType::Float32, Arc::new(Float32Array::from(values.to_vec()))),
    };
    let list = FixedSizeListArray::try_new(Arc::new(Field::new("item", item, true)), dim as i32, values, None);
    list.map_err(|e| Error::lance(e.into()))
}

/// One more piece, with the centroids of the first.
pub(crate) async fn extend(
    dataset: &mut Dataset,
    index: &IndexInfo,
    kind: Kind,
    distance: Distance,
    on_progress: OnProgress<'_>,
) -> Result<()> {
    let pieces = dataset.load_indices_by_name(&index.name).await.map_err(Error::lance)?;
    let Some(first) = pieces.first() else { return Ok(()) };
    let opened = dataset.open_vector_index(&index.column, &first.uuid, &NoOpMetricsCollector).await.map_err(Error::lance)?;
    let (_, centroids) = crate::search::centroids_of(opened.as_ref())?;
    let column = Arc::new(VectorColumn::open(Arc::new(dataset.clone()), &index.column).await?);
    let lagging = dataset.unindexed_fragments(&index.name).await.map_err(Error::lance)?;
    let lagging: Vec<u32> = lagging.iter().map(|fragment| fragment.id as u32).collect();
    let described = dataset.describe_indices(None).await.map_err(Error::lance)?;
    let details = described.iter().find(|other| other.name() == index.name).and_then(|index| index.details().ok());
    let details: serde_json::Value = details.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let bits = details["compression"]["num_bits"].as_u64().and_then(|bits| u8::try_from(bits).ok());
    let sizes = Sizes { bits, sub_vectors: None, neighbours: None, candidates: None };
    let piece = build_piece(dataset, &column, kind, &index.name, distance, &centroids, sizes, lagging, on_progress).await?;
    dataset.commit_existing_index_segments(&index.name, &index.column, vec![piece]).await.map_err(Error::lance)?;
    Ok(())
}

/// Hears of Lance's steps on its threads, and tells of them on ours.
#[derive(Debug)]
pub(crate) struct Watch {
    what: String,
    step: std::sync::Mutex<(String, u64, u64)>,
}

impl Watch {
    pub fn new(what: String) -> Watch {
        Watch { what, step: Default::default() }
    }

    pub async fn during<T>(&self, work: impl Future<Output = lance::Result<T>>, on_progress: OnProgress<'_>) -> lance::Result<T> {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(200));
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = tick.tick() => {
                    let (step, done, total) = self.step.lock().unwrap_or_else(|e| e.into_inner()).clone();
                    if !step.is_empty() {
                        on_progress(Progress { what: format!("{}: {step}", self.what), done, total, unit: "steps" });
                    }
                }
            }
        }
    }
}

#[async_trait]
impl IndexBuildProgress for Watch {
    async fn stage_start(&self, stage: &str, total: Option<u64>, _unit: &str) -> lance::Result<()> {
        *self.step.lock().unwrap_or_else(|e| e.into_inner()) = (stage.replace('_', " "), 0, total.unwrap_or(0));
        Ok(())
    }

    async fn stage_progress(&self, _stage: &str, completed: u64) -> lance::Result<()> {
        self.step.lock().unwrap_or_else(|e| e.into_inner()).1 = completed;
        Ok(())
    }

    async fn stage_complete(&self, _stage: &str) -> lance::Result<()> {
        Ok(())
    }
}
