use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{filter_record_batch, prep_null_mask_filter};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt, TryStreamExt};
use index::{IndexInfo, Searcher};
use lance::Dataset;
use lance::dataset::scanner::MaterializationStyle;
use lance::datatypes::BlobHandling;
use lance::index::DatasetIndexExt;
use storage::VectorColumn;
use tokio::sync::Mutex;

use crate::computed::unqualified;

/// A Lance dataset at one version, as a table. Rows come in no particular order, as SQL allows.
#[derive(Debug, Clone)]
pub(crate) struct LanceTable {
    dataset: Arc<Dataset>,
    schema: SchemaRef,
    /// Columns with a scalar index: Lance prunes by it.
    indexed: Vec<String>,
    /// What searches have opened.
    vectors: Arc<Vectors>,
}

/// Columns of vectors and indexes over them, each opened once.
#[derive(Debug, Default)]
struct Vectors {
    columns: Mutex<HashMap<String, Arc<VectorColumn>>>,
    searchers: Mutex<HashMap<String, Arc<Searcher>>>,
}

/// The column that says where a row lies: its fragment in the upper half, its place there in the lower.
pub(crate) const ADDRESS: &str = "_rowaddr";

/// Bytes that a partition reads ahead, at most.
const READ_AHEAD_BYTES: u64 = 32 << 20;
/// Columns of rows wider than this are fetched only where the filter holds.
const WIDE_BYTES: usize = 256;
/// The bytes of a batch that are aimed at.
const BATCH_BYTES: usize = 2 << 20;

impl LanceTable {
    pub async fn new(dataset: Arc<Dataset>) -> Result<LanceTable> {
        let bytes = dataset.full_projection().with_blob_handling(BlobHandling::AllBinary);
        let schema = Arc::new(Schema::from(&bytes.to_bare_schema()));
        let indexes = dataset.load_indices().await?;
        let names = |id: &i32| dataset.schema().field_by_id(*id).map(|field| field.name.clone());
        let scalar = |id: &i32| dataset.schema().field_by_id(*id).is_some_and(|f| !f.data_type().is_nested());
        let indexed = indexes.iter().flat_map(|index| index.fields.iter().filter(|id| scalar(id)).filter_map(names)).collect();
        Ok(LanceTable { dataset, schema, indexed, vectors: Arc::default() })
    }

    /// The same with the column `_rowaddr`.
    pub fn with_addresses(&self) -> LanceTable {
        let mut fields = self.schema.fields().to_vec();
        if self.schema.index_of(ADDRESS).is_err() {
            fields.push(Arc::new(Field::new(ADDRESS, DataType::UInt64, false)));
        }
        LanceTable { schema: Arc::new(Schema::new(fields)), ..self.clone() }
    }

    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// A column of vectors.
    pub async fn vectors(&self, name: &str) -> crate::Result<Arc<VectorColumn>> {
        let mut open = self.vectors.columns.lock().await;
        if let Some(column) = open.get(name) {
            return Ok(column.clone());
        }
        let column = Arc::new(VectorColumn::open(self.dataset.clone(), name).await?);
        open.insert(name.to_string(), column.clone());
        Ok(column)
    }

    /// An index over a column of vectors.
    pub async fn searcher(&self, info: IndexInfo) -> crate::Result<Arc<Searcher>> {
        let column = self.vectors(&info.column).await?;
        let mut open = self.vectors.searchers.lock().await;
        if let Some(searcher) = open.get(&info.name) {
            return Ok(searcher.clone());
        }
        let name = info.name.clone();
        let searcher = Arc::new(Searcher::open(info, column).await?);
        open.insert(name, searcher.clone());
        Ok(searcher)
    }

    /// Whether it is this table of a pool.
    pub fn is(&self, table: storage::Table) -> bool {
        self.dataset.uri().ends_with(&format!("/{}.lance", table.name()))
    }
}

/// Whether a scan can decide this itself: comparisons of columns with constants and what joins them. Functions are left
/// to a filter above, which has all cores even where the scan has few fragments.
fn is_simple(expr: &Expr) -> bool {
    let mut simple = true;
    let walked = expr.apply(|node| {
        simple &= match node {
            Expr::BinaryExpr(e) => matches!(
                e.op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::And
                    | Operator::Or
                    | Operator::Plus
                    | Operator::Minus
                    | Operator::Multiply
            ),
            // Indexes order NaN in their own way.
            Expr::Literal(value, _) => !is_nan(value),
            Expr::Column(_) | Expr::Cast(_) | Expr::Not(_) | Expr::Between(_) | Expr::InList(_) => true,
            Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::IsTrue(_) | Expr::IsFalse(_) | Expr::IsNotTrue(_) | Expr::IsNotFalse(_) => true,
            _ => false,
        };
        Ok(if simple { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    simple && walked.is_ok()
}

fn is_nan(value: &ScalarValue) -> bool {
    match value {
        ScalarValue::Float64(Some(x)) => x.is_nan(),
        ScalarValue::Float32(Some(x)) => x.is_nan(),
        ScalarValue::Float16(Some(x)) => x.is_nan(),
        _ => false,
    }
}

/// Bytes that a value of this type takes, roughly.
fn width(data_type: &DataType) -> usize {
    match data_type {
        DataType::FixedSizeList(item, n) => *n as usize * width(item.data_type()),
        DataType::FixedSizeBinary(n) => *n as usize,
        DataType::Utf8 => 96,
        DataType::LargeBinary | DataType::Binary | DataType::LargeUtf8 => 32 << 10,
        DataType::List(item) | DataType::LargeList(item) => 4 * width(item.data_type()),
        DataType::Struct(fields) => fields.iter().map(|field| width(field.data_type())).sum(),
        other => other.primitive_width().unwrap_or(16),
    }
}

#[async_trait]
impl TableProvider for LanceTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |simple| if simple { TableProviderFilterPushDown::Exact } else { TableProviderFilterPushDown::Unsupported };
        Ok(filters.iter().map(|filter| support(is_simple(filter))).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projected = projection.unwrap_or(&all);
        let filter = conjunction(filters.to_vec());
        let mut read = projected.clone();
        for column in filters.iter().flat_map(Expr::column_refs) {
            let at = self.schema.index_of(&column.name)?;
            if !read.contains(&at) {
                read.push(at);
            }
        }
        if read.is_empty() {
            read.push(0); // a scan of no columns still counts rows
        }
        let read_schema = Arc::new(self.schema.project(&read)?);
        let of_filter = |name: &str| filters.iter().any(|f| f.column_refs().iter().any(|column| column.name == name));
        let late = |field: &&Arc<arrow::datatypes::Field>| width(field.data_type()) > WIDE_BYTES && !of_filter(field.name());
        let wide: Vec<String> = read_schema.fields().iter().filter(late).map(|field| field.name().clone()).collect();
        let by_lance = filter.is_some() && (!wide.is_empty() || self.indexed.iter().any(|name| of_filter(name)));
        let fragments = groups(&self.dataset, session.config().target_partitions());
        if fragments.is_empty() {
            return Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(projected)?))));
        }
        let predicate = match &filter {
            Some(filter) if !by_lance => {
                let unqualified = unqualified(filter.clone())?;
                Some(session.create_physical_expr(unqualified, &DFSchema::try_from(read_schema.clone())?)?)
            }
            _ => None,
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::new(self.schema.project(projected)?)),
            Partitioning::UnknownPartitioning(fragments.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let scan = LanceScanExec {
            uri: self.dataset.uri().to_string(),
            version: self.dataset.version().version,
            fragments,
            read: read_schema,
            projected: projected.len(),
            filter: filter.map(unqualified).transpose()?,
            wide,
            limit,
            predicate,
            properties: Arc::new(properties),
            dataset: self.dataset.clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        };
        Ok(Arc::new(scan))
    }
}

/// The fragments in at most `n` groups of neighbours with about as many rows each.
fn groups(dataset: &Dataset, n: usize) -> Vec<Vec<u64>> {
    let rows = |f: &lance::table::format::Fragment| f.num_rows().unwrap_or(1 << 20);
    let total: usize = dataset.fragments().iter().map(rows).sum();
    let mut groups: Vec<Vec<u64>> = vec![Vec::new(); n.max(1)];
    let mut before = 0;
    for fragment in dataset.fragments().iter() {
        let middle = before + rows(fragment) / 2;
        let group = (middle * groups.len() / total.max(1)).min(groups.len() - 1);
        groups[group].push(fragment.id);
        before += rows(fragment);
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// Reads columns of a Lance dataset, one partition a group of fragments. What it is made of can be written down: uri,
/// version, fragments, columns, filter, limit; the open dataset beside it is a handle to the first two.
#[derive(Debug)]
struct LanceScanExec {
    uri: String,
    version: u64,
    fragments: Vec<Vec<u64>>,
    /// The columns read; the first `projected` are given on, the others serve the filter.
    read: SchemaRef,
    projected: usize,
    filter: Option<Expr>,
    /// Columns that are fetched for the rows that the filter keeps.
    wide: Vec<String>,
    limit: Option<usize>,
    /// The filter, where this node evaluates it: beside narrow columns that is several times faster than Lance's own way
    /// of fetching rows late. Without, Lance does: it has the indexes, and wide columns are worth fetching late.
    predicate: Option<Arc<dyn PhysicalExpr>>,
    properties: Arc<PlanProperties>,
    dataset: Arc<Dataset>,
    metrics: ExecutionPlanMetricsSet,
}

impl LanceScanExec {
    fn scanner(&self, partition: usize) -> Result<lance::dataset::scanner::Scanner> {
        let wanted = &self.fragments[partition];
        let fragments = self.dataset.fragments().iter().filter(|f| wanted.contains(&f.id)).cloned().collect();
        let names: Vec<&str> = self.read.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != ADDRESS).collect();
        let row: usize = self.read.fields().iter().map(|field| width(field.data_type())).sum();
        let mut scanner = self.dataset.scan();
        scanner.project(&names)?.with_fragments(fragments).scan_in_order(false).blob_handling(BlobHandling::AllBinary);
        if names.len() < self.read.fields().len() {
            scanner.with_row_address();
        }
        scanner.batch_size((BATCH_BYTES / row).next_power_of_two().clamp(256, 1 << 15));
        scanner.io_buffer_size(READ_AHEAD_BYTES).materialization_readahead_bytes(READ_AHEAD_BYTES).batch_readahead(2);
        match &self.filter {
            Some(filter) if self.predicate.is_none() => {
                scanner.filter_expr(filter.clone());
                let late: Vec<&str> = self.wide.iter().map(String::as_str).collect();
                scanner.materialization_style(MaterializationStyle::all_early_except(&late, self.dataset.schema())?);
            }
            None => {
                scanner.limit(self.limit.map(|limit| limit as i64), None)?;
            }
            _ => {}
        }
        Ok(scanner)
    }
}

impl DisplayAs for LanceScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let table = self.uri.rsplit('/').next().unwrap_or(&self.uri);
        let names = |range: std::ops::Range<usize>| {
            self.read.fields()[range].iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
        };
        let fragments: usize = self.fragments.iter().map(Vec::len).sum();
        write!(f, "LanceScanExec: {table}@{}, fragments={fragments} in {}", self.version, self.fragments.len())?;
        write!(f, ", columns=[{}]", names(0..self.projected))?;
        if let Some(filter) = &self.filter {
            write!(f, ", filter={}{}", filter.human_display(), if self.predicate.is_none() { " by Lance" } else { "" })?;
        }
        if !self.wide.is_empty() && self.filter.is_some() {
            write!(f, ", late=[{}]", self.wide.join(", "))?;
        }
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for LanceScanExec {
    fn name(&self) -> &str {
        "LanceScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        let counts = |f: &&lance::table::format::Fragment| match partition {
            Some(partition) => self.fragments[partition].contains(&f.id),
            None => true,
        };
        let rows: Option<usize> = self.dataset.fragments().iter().filter(counts).map(|f| f.num_rows()).sum();
        statistics.num_rows = match (rows, &self.filter, self.limit) {
            (Some(rows), None, None) => Precision::Exact(rows),
            (Some(rows), ..) => Precision::Inexact(rows.min(self.limit.unwrap_or(rows))),
            _ => Precision::Absent,
        };
        Ok(Arc::new(statistics))
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let scanner = self.scanner(partition)?;
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let scanned = MetricBuilder::new(&self.metrics).counter("rows_scanned", partition);
        let (schema, projected, predicate) = (self.schema(), self.projected, self.predicate.clone());
        let mut left = self.limit.unwrap_or(usize::MAX);
        let read = self.read.clone();
        let batches = futures::stream::once(async move { scanner.try_into_stream().await.map_err(DataFusionError::from) })
            .try_flatten()
            .map(move |batch| {
                let batch = in_order(batch.map_err(DataFusionError::from)?, &read)?;
                let timer = baseline.elapsed_compute().timer();
                let kept = keep(&batch, &read, predicate.as_deref(), &scanned)?;
                let kept = project(&kept, &schema, projected)?;
                timer.done();
                let batch = kept.slice(0, kept.num_rows().min(left)).record_output(&baseline);
                left -= batch.num_rows();
                Ok::<_, DataFusionError>((batch, left == 0))
            })
            .try_filter(|(batch, last)| futures::future::ready(batch.num_rows() > 0 || *last));
        // The batch that reaches the limit is the last.
        let limited = futures::stream::try_unfold(Some(Box::pin(batches)), |state| async move {
            let Some(mut batches) = state else { return Ok::<_, DataFusionError>(None) };
            Ok(batches.try_next().await?.map(|(batch, last)| (batch, (!last).then_some(batches))))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), limited)))
    }
}

/// The columns in the order asked for: Lance gives addresses last.
fn in_order(batch: RecordBatch, read: &SchemaRef) -> Result<RecordBatch> {
    if read.index_of(ADDRESS).is_err() {
        return Ok(batch);
    }
    let places = read.fields().iter().map(|field| batch.schema().index_of(field.name())).collect::<Result<Vec<_>, _>>()?;
    Ok(batch.project(&places)?)
}

/// The rows for which the predicate is true.
fn keep(batch: &RecordBatch, read: &SchemaRef, predicate: Option<&dyn PhysicalExpr>, scanned: &Count) -> Result<RecordBatch> {
    scanned.add(batch.num_rows());
    let Some(predicate) = predicate else { return Ok(batch.clone()) };
    let batch = RecordBatch::try_new(read.clone(), batch.columns().to_vec())?;
    let holds = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
    let holds: &BooleanArray = holds.as_boolean();
    let holds = if holds.nulls().is_some() { &prep_null_mask_filter(holds) } else { holds };
    Ok(if holds.true_count() == batch.num_rows() { batch } else { filter_record_batch(&batch, holds)? })
}

fn project(batch: &RecordBatch, schema: &SchemaRef, n: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), batch.columns()[..n].to_vec(), &options)?)
}
