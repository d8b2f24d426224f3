//! Columns that are computed from others once, and kept: which fragments have them, and filling those that do not.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use lance::Dataset;
use lance::table::format::Fragment;

use crate::writer::Change;
use crate::{Error, OnProgress, Pool, Progress, Result, Table};

/// The field's metadata that hold the expression, and the digests of the optional files that it was computed with.
const EXPRESSION: &str = "tarn.expression";
const RESOURCES: &str = "tarn.resources";
/// The names of the columns that the expression reads.
const INPUTS: &str = "tarn.inputs";

/// A computed column of `pool`, as it stands at the version read.
#[derive(Debug, Clone, PartialEq)]
pub struct Computed {
    pub column: String,
    pub expression: String,
    /// Digests of optional files by name.
    pub resources: BTreeMap<String, String>,
    /// The columns that the expression reads; none of them is computed itself.
    pub inputs: Vec<String>,
    /// Rows that came after it was computed, or that a stopped computation has not reached.
    pub lagging: u64,
}

/// What a column is computed with: a batch of its inputs in, as many values out.
pub type Compute = Arc<dyn Fn(RecordBatch) -> Result<ArrayRef, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// A fragment's commit waits for others at most this long, and not at all where there are few.
const COMMIT_EVERY: Duration = Duration::from_secs(10);
const FEW_FRAGMENTS: usize = 64;
const BATCH_ROWS: usize = 8192;

pub(crate) fn is_computed_field(field: &Field) -> bool {
    field.metadata().contains_key(EXPRESSION)
}

/// Whether a dataset has a computed column of this name.
pub fn is_computed(dataset: &Dataset, column: &str) -> bool {
    dataset.schema().field(column).is_some_and(|field| is_computed_field(&Field::from(field)))
}

/// A dataset's schema without computed columns: what an ingest writes.
pub(crate) fn stored_schema(dataset: &Dataset) -> SchemaRef {
    let schema = Schema::from(dataset.schema());
    Arc::new(Schema::new(schema.fields().iter().filter(|field| !is_computed_field(field)).cloned().collect::<Vec<_>>()))
}

impl Computed {
    /// What a field says of itself, without how far it lags.
    pub fn of_field(field: &Field) -> Option<Computed> {
        let expression = field.metadata().get(EXPRESSION)?.clone();
        let resources = field.metadata().get(RESOURCES).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let inputs = field.metadata().get(INPUTS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Some(Computed { column: field.name().clone(), expression, resources, inputs, lagging: 0 })
    }

    fn field(&self, data_type: DataType) -> Field {
        let resources = serde_json::to_string(&self.resources).expect("texts are plain data");
        let inputs = serde_json::to_string(&self.inputs).expect("texts are plain data");
        let metadata = [(EXPRESSION, self.expression.clone()), (RESOURCES, resources), (INPUTS, inputs)];
        let metadata: HashMap<String, String> = metadata.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        Field::new(&self.column, data_type, true).with_metadata(metadata)
    }
}

/// The ids of a column and of what lies within it.
fn ids_of(dataset: &Dataset, column: &str) -> Vec<i32> {
    let mut ids = Vec::new();
    let mut left: Vec<_> = dataset.schema().field(column).into_iter().collect();
    while let Some(field) = left.pop() {
        ids.push(field.id);
        left.extend(&field.children);
    }
    ids
}

/// The ids of the computed columns that read one of these fields: their values hold no longer where it is replaced.
pub(crate) fn reading(dataset: &Dataset, replaced: &[i32]) -> Vec<i32> {
    let reads = |column: &&Computed| column.inputs.iter().any(|input| ids_of(dataset, input).iter().any(|id| replaced.contains(id)));
    of_dataset(dataset).iter().filter(reads).flat_map(|column| ids_of(dataset, &column.column)).collect()
}

/// An error if a computed column reads this one.
pub(crate) fn must_be_unread(dataset: &Dataset, column: &str) -> Result<()> {
    let readers = of_dataset(dataset).into_iter().filter(|computed| computed.inputs.iter().any(|input| input == column));
    let readers: Vec<String> = readers.map(|computed| computed.column).collect();
    match readers.is_empty() {
        true => Ok(()),
        false => Err(Error::ColumnRead { column: column.to_string(), readers: readers.join(", ") }),
    }
}

/// The fragments without a file for this column.
fn without(dataset: &Dataset, column: &str) -> Vec<Fragment> {
    let ids = ids_of(dataset, column);
    if ids.is_empty() {
        return Vec::new();
    }
    let has = |fragment: &&Fragment| !fragment.files.iter().any(|file| file.fields.iter().any(|id| ids.contains(id)));
    dataset.fragments().iter().filter(has).cloned().collect()
}

/// The computed columns of a dataset.
pub(crate) fn of_dataset(dataset: &Dataset) -> Vec<Computed> {
    let schema = Schema::from(dataset.schema());
    let computed = schema.fields().iter().filter_map(|field| Computed::of_field(field));
    let with_lag = computed.map(|computed| {
        let lagging = without(dataset, &computed.column).iter().map(|f| f.num_rows().unwrap_or(0) as u64).sum();
        Computed { lagging, ..computed }
    });
    with_lag.collect()
}

impl Pool {
    /// The computed columns of `pool`.
    pub fn computed(&self) -> BoxFuture<'_, Result<Vec<Computed>>> {
        async move { Ok(self.dataset(Table::Pool).await?.map(|dataset| of_dataset(&dataset)).unwrap_or_default()) }.boxed()
    }

    /// Adds a computed column, or goes on with one of the same expression, and fills it wherever it is missing; commits
    /// every few seconds, so that a stopped run goes on from there. Gives the number of rows computed.
    pub fn compute_column<'a>(
        &'a self,
        column: &'a Computed,
        data_type: DataType,
        compute: Compute,
        on_progress: OnProgress<'a>,
    ) -> BoxFuture<'a, Result<u64>> {
        self.write(move |writer| async move {
            let mut dataset = self.require(Table::Pool).await?;
            let field = column.field(data_type);
            let is_new = dataset.schema().field(&column.column).is_none();
            match dataset.schema().field(&column.column) {
                Some(there) if Field::from(there).metadata().get(EXPRESSION) != Some(&column.expression) => {
                    return Err(Error::ColumnExists { column: column.column.clone() });
                }
                Some(there) if Computed::of_field(&Field::from(there)).is_some_and(|c| c.resources != column.resources) => {
                    return Err(Error::OtherResources { column: column.column.clone() });
                }
                Some(_) => {}
                None if !crate::schema::can_be_column(&column.column) => {
                    return Err(Error::ColumnName { path: self.root().into(), column: column.column.clone() });
                }
                None => dataset = writer.add_null_columns(&dataset, vec![field]).await?,
            }
            let missing = without(&dataset, &column.column);
            let total: u64 = missing.iter().map(|f| f.num_rows().unwrap_or(0) as u64).sum();
            let (mut done, mut change, mut last) = (0, Change::default(), Instant::now());
            for (i, fragment) in missing.iter().enumerate() {
                let report = |rows: u64| {
                    on_progress(Progress { what: column.column.clone(), done: (done + rows).min(total), total, unit: "rows" });
                };
                match fill(&dataset, fragment, &column.column, &column.inputs, &compute, &report).await {
                    Ok(group) => change.columns.push(group),
                    // Nothing of a column that cannot be computed is left.
                    Err(e) if is_new && done == 0 => {
                        let mut without = Dataset::clone(&dataset);
                        without.drop_columns(&[&column.column]).await.map_err(Error::lance(dataset.uri()))?;
                        return Err(e);
                    }
                    Err(e) => return Err(e),
                }
                done += fragment.num_rows().unwrap_or(0) as u64;
                if last.elapsed() >= COMMIT_EVERY || missing.len() <= FEW_FRAGMENTS || i + 1 == missing.len() {
                    dataset = writer.commit(&dataset, std::mem::take(&mut change), HashMap::new()).await?;
                    last = Instant::now();
                }
            }
            Ok(done)
        })
    }

    /// Drops a computed column of `pool`, without touching the others' files.
    pub fn drop_column<'a>(&'a self, column: &'a str) -> BoxFuture<'a, Result<()>> {
        self.write(move |writer| async move {
            let mut dataset = writer.table(Table::Pool).await?;
            if dataset.schema().field(column).is_none() {
                return Err(Error::no_column(&dataset, column));
            }
            if !of_dataset(&dataset).iter().any(|computed| computed.column == column) {
                return Err(Error::ColumnIngested { column: column.into() });
            }
            dataset.drop_columns(&[column]).await.map_err(Error::lance(dataset.uri()))?;
            Ok(())
        })
    }
}

/// Writes the column's file of one fragment, which no version holds yet.
async fn fill(
    dataset: &Arc<Dataset>,
    fragment: &Fragment,
    column: &str,
    inputs: &[String],
    compute: &Compute,
    report: &(dyn Fn(u64) + Send + Sync),
) -> Result<lance::dataset::transaction::DataReplacementGroup> {
    let wrap = || Error::lance(dataset.uri());
    let schema = dataset.schema().project(&[column]).map_err(wrap())?;
    let arrow_schema = Arc::new(Schema::from(&schema));
    let mut scanner = dataset.scan();
    // The file is aligned with the fragment's rows, deleted ones with them.
    scanner.project(inputs).map_err(wrap())?.with_fragments(vec![fragment.clone()]).scan_in_order(true);
    scanner.include_deleted_rows().with_row_id().batch_size(BATCH_ROWS);
    let batches = scanner.try_into_stream().await.map_err(wrap())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = 0;
    let columns = batches
        .map(|batch| {
            let (compute, arrow_schema) = (compute.clone(), arrow_schema.clone());
            async move {
                let batch = batch?;
                let values = tokio::task::spawn_blocking(move || compute(batch)).await;
                let values = values.map_err(|e| lance::Error::io(e.to_string()))?.map_err(lance::Error::wrapped)?;
                Ok::<_, lance::Error>(RecordBatch::try_new(arrow_schema, vec![values])?)
            }
        })
        .buffered(cores)
        .inspect_ok(|batch| {
            rows += batch.num_rows() as u64;
            report(rows);
        });
    let of_id = dataset.get_fragment(fragment.id as usize).ok_or_else(|| Error::Changed { path: dataset.uri().into() })?;
    of_id.write_columns(columns, &schema).await.map_err(wrap())
}
