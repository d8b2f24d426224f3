//! Runs the calls of table functions.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, Float32Array, Int32Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, UInt64Type};
use datafusion::common::{Column, DataFusionError, Result, exec_err, plan_err};
use datafusion::execution::context::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::{Distribution, EquivalenceProperties};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use datafusion::physical_planner::PhysicalPlanner;
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use index::{ClipLoss, Keep, Stop, VectorSet};
use lance::dataset::ProjectionRequest;
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap};
use lance_index::scalar::FullTextSearchQuery;
use lance_index::scalar::inverted::query::{FtsQuery, MatchQuery, Operator, PhraseQuery};
use storage::{Pool, Rows};
use tokio::sync::mpsc::Sender;

use super::Call;
use crate::functions::Sets;
use crate::nearest::chain::{Chain, addresses};
use crate::nearest::exec::{allowed, external, rows_at};
use crate::nearest::settings::{value_of, whole};
use crate::scan::LanceTable;

/// Plans calls: what they need of the session.
#[derive(Clone)]
pub(crate) struct TablePlanner {
    pub pool: Pool,
    pub sets: Arc<Sets>,
}

impl fmt::Debug for TablePlanner {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("TablePlanner")
    }
}

impl TablePlanner {
    pub async fn plan(
        &self,
        call: &Call,
        planner: &dyn PhysicalPlanner,
        logical: &[&LogicalPlan],
        state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let name = call.function.name;
        let mut values = Vec::new();
        for (option, expr) in &call.values {
            values.push((option.clone(), value_of(option, expr, state)?));
        }
        let values = Values { function: name, values };
        let source = match logical.first() {
            Some(rows) => {
                let Some(chain) = Chain::of(rows) else {
                    return plan_err!("{name} takes rows of the pool: a table, or a query that leaves some out");
                };
                let of = |column: &Column| match chain.name_of(rows, column) {
                    Some(name) => Ok(name.to_string()),
                    None => plan_err!("{column} is no column of the pool"),
                };
                let columns = call.columns.iter().map(of).collect::<Result<Vec<_>>>()?;
                let Some(given) = chain.columns.iter().cloned().collect::<Option<Vec<String>>>() else {
                    return plan_err!("{name} takes columns of the pool as they are, not what is computed of them");
                };
                let candidates = match chain.filtered {
                    true => Some(planner.create_physical_plan(&state.optimize(&addresses(rows)?)?, state).await?),
                    false => None,
                };
                Some(Source { table: chain.table, columns, given, candidates })
            }
            None => None,
        };
        let work = self.work(call, &values, source.as_ref()).await?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new(call.arrow_schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(CallExec { text: format!("{call:?}"), source, work, properties: Arc::new(properties) }))
    }

    async fn work(&self, call: &Call, values: &Values, source: Option<&Source>) -> Result<Work> {
        Ok(match call.function.name {
            "full_text" => {
                if let Some(source) = source {
                    check_indexed(source).await?;
                }
                let how = values.one_of("match", &["any", "all", "phrase"])?;
                Work::FullText { words: values.text("words")?.unwrap_or_default(), how, k: values.count("k")? }
            }
            "neg_clip_loss" => Work::NegClipLoss(ClipLoss {
                batch: values.at_least(2, "batch_size")?.unwrap_or(32768),
                rounds: values.at_least(1, "rounds")?.unwrap_or(10),
                temperature: match values.real("temperature")?.unwrap_or(0.01) {
                    temperature if temperature > 0.0 => temperature,
                    other => return plan_err!("'temperature' of neg_clip_loss must be above 0, got {other}"),
                },
                seed: values.count("seed")?.unwrap_or(0) as u64,
            }),
            "semantic_duplicates" => {
                let Some(name) = values.text("set")? else { return plan_err!("semantic_duplicates takes the name of a vector set") };
                let keep = values.text("keep")?.unwrap_or_else(|| "hard".into());
                if let Some(source) = source.filter(|_| keep != "hard" && keep != "easy") {
                    check_score(source.table.dataset(), &keep)?;
                }
                let threshold = values.real("threshold")?.unwrap_or(0.95);
                Work::Semantic { set: self.sets.load(&name).await.map_err(external)?, threshold, keep }
            }
            "near_eval_images" => {
                let pool = self.pool.clone();
                let threshold = values.count("threshold")?.unwrap_or(4);
                if threshold > 64 {
                    return plan_err!("'threshold' of near_eval_images is of 64 bits, got {threshold}");
                }
                Work::NearEvalImages { pool, threshold: threshold as u32 }
            }
            _ => {
                let pool = self.pool.clone();
                let keep = values.text("keep")?;
                let dataset = pool.require(storage::Table::Pool).await.map_err(external)?;
                keep.iter().try_for_each(|keep| check_score(&dataset, keep))?;
                Work::Near { pool, threshold: values.count("threshold")?.unwrap_or(4) as u32, keep }
            }
        })
    }
}

/// Words are told apart and made alike by the index's rules: without an index there are none.
async fn check_indexed(source: &Source) -> Result<()> {
    let column = source.columns.first().map(String::as_str).unwrap_or_default();
    let indexes = index::indexes_of(source.table.dataset()).await.map_err(external)?;
    if indexes.iter().any(|index| index.column == column && index.kind == Some(index::Kind::FullText)) {
        return Ok(());
    }
    let message = format!("column '{column}' has no full-text index");
    let hint =
        Some(format!("make one: CREATE INDEX ON pool ({column}) USING fts WITH (stem = true, stop_words = true, positions = false)"));
    Err(external(crate::Error::Query { message, hint }))
}

fn check_score(dataset: &lance::Dataset, column: &str) -> Result<()> {
    match dataset.schema().field(column) {
        Some(field) if field.data_type().is_numeric() => Ok(()),
        Some(field) => plan_err!("'keep' names column {column} of {}, expected numbers", field.data_type()),
        None => Err(external(storage::Error::no_column(dataset, column))),
    }
}

/// The values of a call, by name.
struct Values {
    function: &'static str,
    values: Vec<(String, ScalarValue)>,
}

impl Values {
    fn get(&self, name: &str) -> Option<&ScalarValue> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.try_as_str() {
                Some(Some(text)) => Ok(Some(text.to_string())),
                _ => plan_err!("'{name}' of {} must be text, got {value}", self.function),
            },
        }
    }

    fn one_of(&self, name: &str, choices: &[&'static str]) -> Result<&'static str> {
        let Some(text) = self.text(name)? else { return Ok(choices[0]) };
        match choices.iter().find(|choice| **choice == text) {
            Some(choice) => Ok(choice),
            None => plan_err!("'{name}' of {} must be one of {}, got '{text}'", self.function, choices.join(", ")),
        }
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match whole(value) {
            Some(n) => Ok(Some(n)),
            None => plan_err!("'{name}' of {} must be a whole number of at least 0, got {value}", self.function),
        }
    }

    /// As `count`, of at least so many.
    fn at_least(&self, least: usize, name: &str) -> Result<Option<usize>> {
        match self.count(name)? {
            Some(n) if n < least => plan_err!("'{name}' of {} must be at least {least}, got {n}", self.function),
            n => Ok(n),
        }
    }

    fn real(&self, name: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.cast_to(&DataType::Float32) {
            Ok(ScalarValue::Float32(Some(x))) if x.is_finite() => Ok(Some(x)),
            _ => plan_err!("'{name}' of {} must be a number, got {value}", self.function),
        }
    }
}

/// The rows that a call is over.
#[derive(Debug, Clone)]
struct Source {
    table: LanceTable,
    /// Its own arguments, as columns of the table.
    columns: Vec<String>,
    /// Columns that are given on.
    given: Vec<String>,
    candidates: Option<Arc<dyn ExecutionPlan>>,
}

#[derive(Clone)]
enum Work {
    FullText { words: String, how: &'static str, k: Option<usize> },
    NegClipLoss(ClipLoss),
    Semantic { set: Arc<VectorSet>, threshold: f32, keep: String },
    Near { pool: Pool, threshold: u32, keep: Option<String> },
    NearEvalImages { pool: Pool, threshold: u32 },
}

struct CallExec {
    text: String,
    source: Option<Source>,
    work: Work,
    properties: Arc<PlanProperties>,
}

impl fmt::Debug for CallExec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl DisplayAs for CallExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "CallExec: {}", self.text)
    }
}

impl ExecutionPlan for CallExec {
    fn name(&self) -> &str {
        "CallExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.source.iter().filter_map(|source| source.candidates.as_ref()).collect()
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition; self.children().len()]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let source = self.source.clone().map(|source| Source { candidates: children.pop(), ..source });
        let (text, work, properties) = (self.text.clone(), self.work.clone(), self.properties.clone());
        Ok(Arc::new(CallExec { text, source, work, properties }))
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let candidates = match self.source.as_ref().and_then(|source| source.candidates.as_ref()) {
            Some(plan) => Some(plan.execute(0, context)?),
            None => None,
        };
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema(), 2);
        let out = Out { schema: self.schema(), batches: builder.tx(), source: self.source.clone() };
        let (work, stop) = (self.work.clone(), Stop::default());
        builder.spawn(async move {
            let rows = match candidates {
                Some(candidates) => Some(Arc::new(allowed(candidates).await?)),
                None => None,
            };
            run(work, rows, out, stop).await
        });
        Ok(builder.build())
    }
}

const BATCH_ROWS: usize = 8192;

/// Where the rows of a call go.
struct Out {
    schema: arrow::datatypes::SchemaRef,
    batches: Sender<Result<RecordBatch>>,
    source: Option<Source>,
}

impl Out {
    /// Rows of the pool by their addresses, with what the function adds to each.
    async fn rows(&self, addresses: &[u64], added: &[ArrayRef]) -> Result<()> {
        for from in (0..addresses.len()).step_by(BATCH_ROWS) {
            let n = BATCH_ROWS.min(addresses.len() - from);
            let mut columns = match &self.source {
                Some(source) => rows_at(source.table.dataset(), &source.given, &addresses[from..from + n]).await?,
                None => Vec::new(),
            };
            columns.extend(added.iter().map(|column| column.slice(from, n)));
            let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
            if self.batches.send(Ok(batch)).await.is_err() {
                return Ok(()); // nobody listens any more
            }
        }
        Ok(())
    }

    fn source(&self) -> Result<&Source> {
        match &self.source {
            Some(source) => Ok(source),
            None => exec_err!("the function has rows"),
        }
    }
}

async fn run(work: Work, rows: Option<Arc<Rows>>, out: Out, stop: Stop) -> Result<()> {
    match work {
        Work::FullText { words, how, k } => full_text(&words, how, k, rows, &out).await,
        Work::NegClipLoss(options) => {
            let source = out.source()?;
            let [image, text] = &source.columns[..] else { return exec_err!("neg_clip_loss has two columns") };
            let images = source.table.vectors(image).await.map_err(external)?;
            let texts = source.table.vectors(text).await.map_err(external)?;
            let stopped = stop.clone();
            let work = tokio::task::spawn_blocking(move || {
                let live = rows.as_deref().unwrap_or(images.live());
                index::neg_clip_loss(&images, &texts, live, options, &stopped)
            });
            let (addresses, scores) = work.await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))?.map_err(external)?;
            out.rows(&addresses, &[Arc::new(Float32Array::from(scores))]).await
        }
        Work::Semantic { set, threshold, keep } => semantic(set, threshold, keep, rows, &out, stop).await,
        Work::Near { pool, threshold, keep } => {
            let scores = keep.as_deref();
            let found = index::near_duplicates(&pool, threshold, scores).await.map_err(external)?;
            let uids = |of: &dyn Fn(&index::NearDuplicate) -> storage::Uid| -> Result<ArrayRef> {
                Ok(Arc::new(FixedSizeBinaryArray::try_from_iter(found.iter().map(|d| of(d).0))?))
            };
            if found.is_empty() {
                return Ok(());
            }
            let distances: ArrayRef = Arc::new(Int32Array::from_iter_values(found.iter().map(|d| d.distance as i32)));
            let addresses = vec![0; found.len()];
            out.rows(&addresses, &[uids(&|d| d.uid)?, uids(&|d| d.like)?, distances]).await
        }
        Work::NearEvalImages { pool, threshold } => {
            let found = index::near_eval_images(&pool, threshold).await.map_err(external)?;
            if found.is_empty() {
                return Ok(());
            }
            let uids: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter(found.iter().map(|image| image.uid.0))?);
            let tasks: ArrayRef = Arc::new(StringArray::from_iter_values(found.iter().map(|image| &image.task)));
            let samples: ArrayRef = Arc::new(StringArray::from_iter_values(found.iter().map(|image| &image.sample)));
            let distances: ArrayRef = Arc::new(Int32Array::from_iter_values(found.iter().map(|image| image.distance as i32)));
            out.rows(&vec![0; found.len()], &[uids, tasks, samples, distances]).await
        }
    }
}

async fn semantic(set: Arc<VectorSet>, threshold: f32, keep: String, rows: Option<Arc<Rows>>, out: &Out, stop: Stop) -> Result<()> {
    let source = out.source()?;
    let [column] = &source.columns[..] else { return exec_err!("semantic_duplicates has one column") };
    let column = source.table.vectors(column).await.map_err(external)?;
    let (dataset, runtime) = (source.table.dataset().clone(), tokio::runtime::Handle::current());
    let (sends, mut found) = tokio::sync::mpsc::channel(4);
    let stopped = stop.clone();
    let work = tokio::task::spawn_blocking(move || {
        let live = rows.as_deref().unwrap_or(column.live());
        let scores = |rows: &[u64]| scores_of(&dataset, &keep, rows, &runtime);
        let keep = match keep.as_str() {
            "hard" => Keep::Hard,
            "easy" => Keep::Easy,
            _ => Keep::Score(&scores),
        };
        let mut each = |duplicates| sends.blocking_send(duplicates).map_err(|_| index::Error::Stopped);
        index::duplicates(&column, live, &set, threshold, &keep, &mut each, &stopped)
    });
    while let Some(duplicates) = found.recv().await {
        let duplicates: Vec<index::Duplicate> = duplicates;
        let like: Vec<u64> = duplicates.iter().map(|d| d.like).collect();
        let like = rows_at(source.table.dataset(), &["uid".to_string()], &like).await?.swap_remove(0);
        let similarity: ArrayRef = Arc::new(Float32Array::from_iter_values(duplicates.iter().map(|d| d.similarity)));
        let addresses: Vec<u64> = duplicates.iter().map(|d| d.row).collect();
        out.rows(&addresses, &[like, similarity]).await?;
    }
    work.await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))?.map_err(external)
}

/// Values of a column of numbers for rows by their addresses; NaN where NULL.
fn scores_of(dataset: &Arc<lance::Dataset>, column: &str, rows: &[u64], runtime: &tokio::runtime::Handle) -> index::Result<Vec<f32>> {
    let failed = |e: lance::Error| index::Error::Lance { source: Box::new(e) };
    let projection = ProjectionRequest::from_columns([column], dataset.schema());
    let batch = runtime.block_on(dataset.take_rows(rows, projection)).map_err(failed)?;
    let values = cast(batch.column(0), &DataType::Float32).map_err(|e| failed(e.into()))?;
    Ok(values.as_primitive::<Float32Type>().iter().map(|x| x.unwrap_or(f32::NAN)).collect())
}

async fn full_text(words: &str, how: &str, k: Option<usize>, rows: Option<Arc<Rows>>, out: &Out) -> Result<()> {
    let source = out.source()?;
    let [column] = &source.columns[..] else { return exec_err!("full_text has one column") };
    let dataset = source.table.dataset();
    let query = match how {
        "phrase" => FtsQuery::Phrase(PhraseQuery::new(words.to_string())),
        how => {
            let operator = if how == "all" { Operator::And } else { Operator::Or };
            FtsQuery::Match(MatchQuery::new(words.to_string()).with_operator(operator))
        }
    };
    let query = FullTextSearchQuery::new_query(query).with_column(column.clone())?;
    let mut scanner = dataset.scan();
    scanner.project(&["_score"])?.with_row_id().full_text_search(query)?;
    if let Some(rows) = rows {
        let ids = rows.addresses();
        if ids.is_empty() {
            return Ok(());
        }
        scanner.prefilter(true).with_row_id_prefilter(RowAddrMask::from_allowed(RowAddrTreeMap::from_sorted_runs([&ids[..]])));
    }
    scanner.limit(k.map(|k| k as i64), None)?;
    let mut batches = scanner.try_into_stream().await.map_err(|e| match how {
        "phrase" if e.to_string().contains("position") => {
            let message = format!("the full-text index of column '{column}' holds no positions, which phrases need");
            let hint = format!("make it again: CREATE OR REPLACE INDEX {column}_fts ON pool ({column}) USING fts WITH (positions = true)");
            external(crate::Error::Query { message, hint: Some(hint) })
        }
        _ => e.into(),
    })?;
    while let Some(batch) = batches.try_next().await? {
        let addresses = batch["_rowid"].as_primitive::<UInt64Type>().values().to_vec();
        let scores = cast(&batch["_score"], &DataType::Float32)?;
        debug_assert_eq!(scores.null_count(), 0);
        out.rows(&addresses, &[scores]).await?;
    }
    Ok(())
}
