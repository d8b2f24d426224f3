//! Indexes of the table `pool`: making, listing, extending and dropping them. They are Lance's; the centroids of those over
//! vectors, and which rows go to which, are found here, by matrix products.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow::array::{FixedSizeListArray, Float16Array, Float32Array, RecordBatch, RecordBatchIterator, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use half::f16;
use lance::dataset::{InsertBuilder, WriteParams};
use lance::index::vector::VectorIndexParams;
use lance::index::{DatasetIndexExt, IndexBuildProgress};
use lance::{Dataset, index::DatasetIndexInternalExt};
use lance_index::IndexParams;
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::{BuiltinIndexType, InvertedIndexParams, ScalarIndexParams};
use storage::{Lock, OnProgress, Pool, Progress, Rows, Table, VectorColumn};

use crate::kind::{Sizes, vector_params};
use crate::kmeans::{KMeans, Start, draw, kmeans, read};
use crate::{Distance, Error, Kind, Result, assign::assign};

/// An index to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIndex {
    /// By default the column and the kind: `l14_img_ivf_rq`.
    pub name: Option<String>,
    pub column: String,
    pub kind: Kind,
    /// By name as in SQL's WITH, their values as text.
    pub options: BTreeMap<String, String>,
    /// Whether one of this name is replaced.
    pub replace: bool,
}

/// An index as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexInfo {
    pub name: String,
    pub column: String,
    pub kind: Option<Kind>,
    /// Lance's word for the kind.
    pub lance_kind: String,
    /// What a vector index goes by.
    pub distance: Option<Distance>,
    /// Rows that it holds, and rows of the pool that came after it.
    pub rows: u64,
    pub lagging: u64,
    /// Pieces that are searched one after the other: one, and one more for each update.
    pub pieces: usize,
    pub bytes: u64,
    /// What searches use where they are not told otherwise.
    pub defaults: Effort,
}

/// How hard an index is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Partitions looked into.
    pub nprobes: usize,
    /// Candidates looked at again by their full vectors, in multiples of k.
    pub refine: usize,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { nprobes: 64, refine: 4 }
    }
}

/// Samples a centroid that partitions are trained with, and iterations.
const SAMPLES_A_PARTITION: usize = 64;
const ITERATIONS: usize = 10;
/// Rows of a graph, about: a partition of an index with graphs holds so many.
const ROWS_A_GRAPH: u64 = 1 << 18;
/// Rows of a piece of an index at most: the partitions of all of them are held while it is built (some 30 bytes a row).
const PIECE_ROWS: u64 = 16 << 20;
/// Rows that are assigned at once.
const CHUNK: usize = 16384;

fn known_options(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::IvfFlat | Kind::IvfSq => &["metric", "partitions", "seed"],
        Kind::IvfRq => &["metric", "partitions", "seed", "bits"],
        Kind::IvfPq => &["metric", "partitions", "seed", "bits", "sub_vectors"],
        Kind::IvfHnswFlat | Kind::IvfHnswSq => &["metric", "partitions", "seed", "m", "ef_construction"],
        Kind::IvfHnswPq => &["metric", "partitions", "seed", "m", "ef_construction", "bits", "sub_vectors"],
        Kind::FullText => &["language", "stem", "stop_words", "positions"],
        _ => &[],
    }
}

impl NewIndex {
    fn check_options(&self) -> Result<()> {
        let known = known_options(self.kind);
        match self.options.keys().find(|option| !known.contains(&option.as_str())) {
            Some(option) => Err(Error::UnknownOption { kind: self.kind.name(), option: option.clone(), known: known.join(", ") }),
            None => Ok(()),
        }
    }

    fn number<T: std::str::FromStr + PartialOrd>(
        &self,
        option: &str,
        range: std::ops::RangeInclusive<T>,
        expected: &'static str,
    ) -> Result<Option<T>> {
        let Some(text) = self.options.get(option) else { return Ok(None) };
        match text.parse().ok().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::OptionValue { option: option.into(), expected, got: text.clone() }),
        }
    }

    fn yes(&self, option: &str, default: bool) -> Result<bool> {
        match self.options.get(option).map(|text| text.to_lowercase()) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| Error::OptionValue { option: option.into(), expected: "true or false", got: text }),
        }
    }

    fn distance(&self) -> Result<Distance> {
        match self.options.get("metric") {
            None => Ok(Distance::Cosine),
            Some(name) => Distance::parse(name).ok_or_else(|| Error::OptionValue {
                option: "metric".into(),
                expected: "cosine, dot or l2",
                got: name.clone(),
            }),
        }
    }

    fn sizes(&self, dim: usize) -> Result<Sizes> {
        let bits = match self.kind {
            Kind::IvfRq => self.number("bits", 1..=9, "1 to 9")?,
            _ => self.number("bits", 4..=8, "4 or 8")?,
        };
        let sub_vectors = self.number("sub_vectors", 1..=dim, "a number that divides the vectors' length")?;
        if let Some(n) = sub_vectors.filter(|n| !dim.is_multiple_of(*n)) {
            let expected = "a number that divides the vectors' length";
            return Err(Error::OptionValue { option: "sub_vectors".into(), expected, got: n.to_string() });
        }
        let neighbours = self.number("m", 4..=256, "4 to 256")?;
        let candidates = self.number("ef_construction", neighbours.unwrap_or(20)..=1 << 16, "at least m, at most 65536")?;
        Ok(Sizes { bits, sub_vectors, neighbours, candidates })
    }
}

/// Makes an index over a column of `pool`. Killed before its end, it leaves the pool as it was.
pub fn create_index<'a>(pool: &'a Pool, new: &'a NewIndex, on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<String>> {
    async move {
        new.check_options()?;
        let lock = Lock::take_swept(pool).await?;
        let dataset = pool.require(Table::Pool).await?;
        let data_type = dataset.schema().field(&new.column).map(|field| field.data_type());
        let data_type = data_type.ok_or_else(|| storage::Error::no_column(&dataset, &new.column))?;
        // Values of a computed column are replaced where what it reads is; an index would not know.
        if storage::is_computed(&dataset, &new.column) {
            return Err(storage::Error::IndexOfComputed { column: new.column.clone() }.into());
        }
        check_column(new, &data_type)?;
        let name = new.name.clone().unwrap_or_else(|| format!("{}_{}", new.column, new.kind.name()));
        if !new.replace && list_indexes(pool).await?.iter().any(|index| index.name == name) {
            return Err(Error::IndexExists { name });
        }
        let mut dataset = Dataset::clone(&dataset);
        // One over another column is no earlier state of this one.
        let other = indexes_of(&dataset).await?.into_iter().find(|index| index.name == name && index.column != new.column);
        let params = if new.kind.is_vector() { None } else { Some(scalar_params(new)?) };
        if other.is_some() && params.is_some() {
            dataset.drop_index(&name).await.map_err(Error::lance)?;
        }
        match params {
            None => create_over_vectors(&mut dataset, new, &name, on_progress).await?,
            Some(params) => {
                let what = format!("index {name}");
                let progress = Arc::new(Watch::new(what));
                let columns = [new.column.as_str()];
                let builder = dataset.create_index_builder(&columns, new.kind.index_type(), params.as_ref());
                let builder = builder.name(name.clone()).replace(new.replace).progress(progress.clone());
                progress.during(async { builder.await.map(drop) }, on_progress).await.map_err(Error::lance)?;
            }
        }
        lock.done();
        Ok(name)
    }
    .boxed()
}

fn check_column(new: &NewIndex, data_type: &DataType) -> Result<()> {
    let wrong =
        |expected| Err(Error::IndexColumn { column: new.column.clone(), got: data_type.to_string(), expected, kind: new.kind.name() });
    let is_text = matches!(data_type, DataType::Utf8 | DataType::LargeUtf8);
    match new.kind {
        kind if kind.is_vector() => match data_type {
            DataType::FixedSizeList(item, dim) if matches!(item.data_type(), DataType::Float16 | DataType::Float32) => match kind {
                Kind::IvfRq if dim % 8 != 0 => wrong("vectors whose length is a multiple of 8"),
                _ => Ok(()),
            },
            _ => wrong("vectors of float16 or float32"),
        },
        Kind::FullText | Kind::NGram if !is_text => wrong("text"),
        Kind::LabelList if !matches!(data_type, DataType::List(_) | DataType::LargeList(_)) => wrong("lists"),
        Kind::FullText | Kind::NGram | Kind::LabelList => Ok(()),
        Kind::BloomFilter if matches!(data_type, DataType::FixedSizeBinary(_)) => wrong("numbers or text (btree takes uids)"),
        _ if data_type.is_nested() => wrong("numbers, text or uids"),
        _ => Ok(()),
    }
}

fn scalar_params(new: &NewIndex) -> Result<Box<dyn IndexParams>> {
    let builtin = match new.kind {
        Kind::BTree => BuiltinIndexType::BTree,
        Kind::Bitmap => BuiltinIndexType::Bitmap,
        Kind::ZoneMap => BuiltinIndexType::ZoneMap,
        Kind::BloomFilter => BuiltinIndexType::BloomFilter,
        Kind::LabelList => BuiltinIndexType::LabelList,
        Kind::NGram => BuiltinIndexType::NGram,
        _ => {
            let params = InvertedIndexParams::default();
            let params = params.stem(new.yes("stem", true)?).remove_stop_words(new.yes("stop_words", true)?);
            let params = params.with_position(new.yes("positions", false)?);
            let language = new.options.get("language").map_or("English", String::as_str);
            let params = params.language(language).map_err(|_| Error::OptionValue {
                option: "language".into(),
                expected: "a language with stemming rules, such as English",
                got: language.to_string(),
            })?;
            return Ok(Box::new(params));
        }
    };
    Ok(Box::new(ScalarIndexParams::for_builtin(builtin)))
}

async fn create_over_vectors(dataset: &mut Dataset, new: &NewIndex, name: &str, on_progress: OnProgress<'_>) -> Result<()> {
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
    if new.replace && !dataset.load_indices_by_name(name).await.map_err(Error::lance)?.is_empty() {
        dataset.drop_index(name).await.map_err(Error::lance)?;
    }
    dataset.commit_existing_index_segments(name, &new.column, pieces).await.map_err(Error::lance)?;
    let effort = Effort { nprobes: Effort::default().nprobes.min(partitions), ..Effort::default() };
    set_effort(dataset, name, effort).await
}

/// Centroids `[partitions, dim]`; fewer where there are not as many vectors, one of zeros where there is none.
fn train(column: &VectorColumn, partitions: usize, seed: u64, unit: bool, told: &dyn Fn(u64)) -> Result<Vec<f32>> {
    let stop = AtomicBool::new(false);
    let rows = draw(column, &column.live(), partitions, seed)?;
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
    Ok(kmeans(column, &column.live(), options, None, &mut told, &stop)?.centroids)
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
) -> Result<lance::table::format::IndexMetadata> {
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
    let (sends, mut batches) = tokio::sync::mpsc::channel::<Result<(RecordBatch, u64)>>(4);
    let (column, fragments, centroids, of_batch) = (column.clone(), fragments.to_vec(), centroids.to_vec(), schema.clone());
    let work = tokio::task::spawn_blocking(move || {
        let (live, dim, unit) = (column.live(), column.dim(), distance == Distance::Cosine);
        let mut done = 0;
        for (id, rows) in column.fragments().filter(|(id, _)| fragments.contains(id)) {
            for from in (0..rows).step_by(CHUNK) {
                let rows: Vec<u64> = (from..rows.min(from + CHUNK)).map(|row| u64::from(id) << 32 | row as u64).collect();
                let batch = partitions_of(&column, &rows, &live, &centroids, dim, unit, distance, &of_batch);
                done += rows.len() as u64;
                if sends.blocking_send(batch.map(|batch| (batch, done))).is_err() {
                    return;
                }
            }
        }
    });
    let mut all = Vec::new();
    while let Some(batch) = batches.recv().await {
        let (batch, done) = batch?;
        all.push(Ok(batch));
        told(done);
    }
    work.await.map_err(joined)?;
    // 12 bytes a row of a piece.
    let batches = RecordBatchIterator::new(all, schema);
    InsertBuilder::new(file).with_params(&WriteParams::default()).execute_stream(batches).await.map_err(Error::lance)?;
    Ok(())
}

#[expect(clippy::too_many_arguments)]
fn partitions_of(
    column: &VectorColumn,
    rows: &[u64],
    live: &Rows,
    centroids: &[f32],
    dim: usize,
    unit: bool,
    distance: Distance,
    schema: &Arc<Schema>,
) -> Result<RecordBatch> {
    let vectors = read(column, rows, unit)?;
    let nearest = assign(&vectors, centroids, dim, distance == Distance::L2);
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

pub(crate) fn joined(e: tokio::task::JoinError) -> Error {
    match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Stopped,
    }
}

/// The indexes of `pool`, by name.
pub fn list_indexes(pool: &Pool) -> BoxFuture<'_, Result<Vec<IndexInfo>>> {
    async move {
        let dataset = pool.require(Table::Pool).await?;
        indexes_of(&dataset).await
    }
    .boxed()
}

/// The indexes of a table, by name.
pub fn indexes_of(dataset: &Dataset) -> BoxFuture<'_, Result<Vec<IndexInfo>>> {
    async move {
        let total: HashMap<u32, u64> = dataset.fragments().iter().map(|f| (f.id as u32, f.num_rows().unwrap_or(0) as u64)).collect();
        let mut indexes = Vec::new();
        for index in dataset.describe_indices(None).await.map_err(Error::lance)? {
            if index.name().starts_with("__") {
                continue;
            }
            let mut covered = 0;
            for (id, rows) in &total {
                if index.segments().iter().any(|piece| piece.fragment_bitmap.as_ref().is_some_and(|bits| bits.contains(*id))) {
                    covered += rows;
                }
            }
            let ids = index.field_ids();
            let column = ids.first().and_then(|id| dataset.schema().field_by_id(*id as i32)).map(|field| field.name.clone());
            let details: serde_json::Value = index.details().ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let kind = Kind::of_lance(index.index_type());
            indexes.push(IndexInfo {
                name: index.name().to_string(),
                column: column.unwrap_or_default(),
                kind,
                lance_kind: index.index_type().to_string(),
                distance: details["metric_type"].as_str().and_then(Distance::parse),
                rows: covered,
                lagging: total.values().sum::<u64>() - covered,
                pieces: index.segments().len(),
                bytes: index.total_size_bytes().unwrap_or(0),
                defaults: effort_of(dataset, index.name()),
            });
        }
        indexes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(indexes)
    }
    .boxed()
}

/// Keys of the table's configuration that hold what searches use by default.
fn keys(name: &str) -> [String; 2] {
    ["nprobes", "refine"].map(|what| format!("tarn.index.{name}.{what}"))
}

pub(crate) fn effort_of(dataset: &Dataset, name: &str) -> Effort {
    let [nprobes, refine] = keys(name).map(|key| dataset.config().get(&key).and_then(|text| text.parse().ok()));
    let default = Effort::default();
    Effort { nprobes: nprobes.unwrap_or(default.nprobes), refine: refine.unwrap_or(default.refine) }
}

async fn set_effort(dataset: &mut Dataset, name: &str, effort: Effort) -> Result<()> {
    let [nprobes, refine] = keys(name);
    let values = [(nprobes, effort.nprobes.to_string()), (refine, effort.refine.to_string())];
    dataset.update_config(values.iter().map(|(key, value)| (key.as_str(), value.as_str()))).await.map_err(Error::lance)?;
    Ok(())
}

/// Stores what searches of an index use by default.
pub fn set_defaults<'a>(pool: &'a Pool, name: &'a str, effort: Effort) -> BoxFuture<'a, Result<()>> {
    async move {
        let lock = Lock::take_swept(pool).await?;
        let index = named(pool, name).await?;
        let mut dataset = Dataset::clone(&*pool.require(Table::Pool).await?);
        set_effort(&mut dataset, &index.name, effort).await?;
        lock.done();
        Ok(())
    }
    .boxed()
}

/// The index of this name; an error where there is none.
pub(crate) async fn named(pool: &Pool, name: &str) -> Result<IndexInfo> {
    let indexes = list_indexes(pool).await?;
    let known = indexes.iter().map(|index| index.name.as_str()).collect::<Vec<_>>().join(", ");
    indexes.into_iter().find(|index| index.name == name).ok_or(Error::IndexMissing { name: name.to_string(), known })
}

/// Removes an index.
pub fn drop_index<'a>(pool: &'a Pool, name: &'a str) -> BoxFuture<'a, Result<()>> {
    async move {
        let lock = Lock::take_swept(pool).await?;
        named(pool, name).await?;
        let mut dataset = Dataset::clone(&*pool.require(Table::Pool).await?);
        dataset.drop_index(name).await.map_err(Error::lance)?;
        let keys = keys(name);
        let there: Vec<&str> = keys.iter().map(String::as_str).filter(|key| dataset.config().contains_key(*key)).collect();
        if !there.is_empty() {
            dataset.update_config(there.into_iter().map(|key| (key, None::<&str>))).await.map_err(Error::lance)?;
        }
        lock.done();
        Ok(())
    }
    .boxed()
}

/// Extends an index to the rows that came after it, and gives their number.
pub fn update_index<'a>(pool: &'a Pool, name: &'a str, on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<u64>> {
    async move {
        let lock = Lock::take_swept(pool).await?;
        let index = named(pool, name).await?;
        let mut dataset = Dataset::clone(&*pool.require(Table::Pool).await?);
        if index.lagging == 0 {
            lock.done();
            return Ok(0);
        }
        match (index.kind.filter(|kind| kind.is_vector()), index.distance) {
            // What the others share between their pieces is Lance's to hand on.
            (Some(kind), Some(distance)) if matches!(kind, Kind::IvfFlat | Kind::IvfRq) => {
                extend(&mut dataset, &index, kind, distance, on_progress).await?;
            }
            _ => {
                let options = OptimizeOptions::append().index_names(vec![name.to_string()]);
                dataset.optimize_indices(&options).await.map_err(Error::lance)?;
            }
        }
        lock.done();
        Ok(index.lagging)
    }
    .boxed()
}

/// One more piece, with the centroids of the first.
async fn extend(dataset: &mut Dataset, index: &IndexInfo, kind: Kind, distance: Distance, on_progress: OnProgress<'_>) -> Result<()> {
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
struct Watch {
    what: String,
    step: std::sync::Mutex<(String, u64, u64)>,
}

impl Watch {
    fn new(what: String) -> Watch {
        Watch { what, step: Default::default() }
    }

    async fn during<T>(&self, work: impl Future<Output = lance::Result<T>>, on_progress: OnProgress<'_>) -> lance::Result<T> {
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
