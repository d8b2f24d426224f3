//! Runs a `Nearest`: through an index where there is one, exactly where there is none.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Int32Type, SchemaRef, UInt64Type};
use async_trait::async_trait;
use datafusion::common::{DataFusionError, Result, exec_err, plan_err};
use datafusion::execution::context::{QueryPlanner, SessionState};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_expr::{Distribution, EquivalenceProperties};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use futures::{StreamExt, TryStreamExt};
use index::{Distance, Effort, Graph, IndexInfo, Neighbour, Searcher, Stop, Wanted};
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use storage::{Rows, VectorColumn};

use super::chain::{Chain, addresses, set_of};
use super::settings::Settings;
use super::{Nearest, QUERY};
use crate::scan::LanceTable;
use crate::tables::{Call, TablePlanner};

/// DataFusion's planner, which also plans `Nearest` and the calls of table functions.
#[derive(Debug, Clone)]
pub(crate) struct Planner(pub TablePlanner);

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(self.clone())]).create_physical_plan(plan, state).await
    }
}

#[async_trait]
impl ExtensionPlanner for Planner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical: &[&LogicalPlan],
        physical: &[Arc<dyn ExecutionPlan>],
        state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(call) = node.as_any().downcast_ref::<Call>() {
            return self.0.plan(call, planner, logical, state).await.map(Some);
        }
        let Some(node) = node.as_any().downcast_ref::<Nearest>() else { return Ok(None) };
        let settings = Settings::of(node, state)?;
        let chain = Chain::of(logical[1]);
        let named = chain.and_then(|chain| {
            let column = chain.name_of(logical[1], &node.column)?.to_string();
            let data_type = chain.table.dataset().schema().field(&column)?.data_type();
            if !matches!(&data_type, DataType::FixedSizeList(item, _) if matches!(item.data_type(), DataType::Float16 | DataType::Float32))
            {
                return None;
            }
            let columns = chain.columns.clone().into_iter().collect::<Option<Vec<String>>>()?;
            Some((chain, column, columns))
        });
        let (source, rows) = match named {
            Some((chain, column, columns)) => {
                let candidates = match chain.filtered {
                    true => Some(planner.create_physical_plan(&state.optimize(&addresses(logical[1])?)?, state).await?),
                    false => None,
                };
                let index = settings.choose(&chain.table, &column).await?;
                (Source::Table { table: chain.table, column, columns, index }, candidates)
            }
            None => {
                let Some(at) = logical[1].schema().maybe_index_of_column(&node.column) else {
                    return plan_err!("no column {}", node.column);
                };
                let by_graph = !settings.exact && settings.k.is_some() && settings.distance == Distance::Cosine;
                let graph = match set_of(logical[1]).filter(|_| by_graph) {
                    Some((name, ids)) => self.0.sets.graph(&name).await.map_err(external)?.map(|graph| OfSet { name, ids, graph }),
                    None => None,
                };
                (Source::Rows { at, graph }, Some(physical[1].clone()))
            }
        };
        let schema: SchemaRef = Arc::new(node.schema().as_arrow().clone());
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let of_queries = node.of_queries();
        let exec = NearestExec {
            queries: physical[0].clone(),
            rows,
            source,
            settings,
            single: node.single,
            with_nulls: node.with_nulls,
            of_queries,
            properties: Arc::new(properties),
        };
        Ok(Some(Arc::new(exec)))
    }
}

pub(crate) fn external(e: impl Into<crate::Error>) -> DataFusionError {
    DataFusionError::External(Box::new(e.into()))
}

/// What is searched.
#[derive(Debug, Clone)]
enum Source {
    Table {
        table: LanceTable,
        column: String,
        columns: Vec<String>,
        index: Option<IndexInfo>,
    },
    /// Rows of any plan, held in memory; the vectors are in column `at`.
    Rows {
        at: usize,
        graph: Option<OfSet>,
    },
}

/// The graph of a named vector set, whose ids are in a column of the rows.
#[derive(Debug, Clone)]
struct OfSet {
    name: String,
    ids: usize,
    graph: Arc<Graph>,
}

#[derive(Debug)]
struct NearestExec {
    queries: Arc<dyn ExecutionPlan>,
    /// The addresses of the rows that count, where some do not; or the rows that are held in memory.
    rows: Option<Arc<dyn ExecutionPlan>>,
    source: Source,
    settings: Settings,
    single: bool,
    with_nulls: bool,
    /// Columns of the left side that are given on.
    of_queries: usize,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for NearestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let Settings { k, within, distance, .. } = &self.settings;
        match &self.source {
            Source::Table { table, column, .. } => {
                let table = table.dataset().uri();
                let table = table.rsplit('/').next().unwrap_or(table);
                write!(f, "NearestExec: {table}.{column} by {}", distance.name())?;
            }
            Source::Rows { .. } => write!(f, "NearestExec: rows in memory by {}", distance.name())?,
        }
        k.iter().try_for_each(|k| write!(f, ", k={k}"))?;
        within.iter().try_for_each(|within| write!(f, ", within={within}"))?;
        match &self.source {
            Source::Table { index: Some(index), .. } => {
                let Effort { nprobes, refine } = self.settings.effort(index);
                write!(f, ", through index {} ({}), nprobes={nprobes}, refine={refine}", index.name, index.lance_kind)?;
                if index.lagging > 0 {
                    write!(f, ", {} rows after it exactly", index.lagging)?;
                }
            }
            Source::Rows { graph: Some(graph), .. } => write!(f, ", through the graph of {}", graph.name)?,
            _ => write!(f, ", exact")?,
        }
        match (&self.source, &self.rows) {
            (Source::Table { .. }, Some(_)) => write!(f, ", filtered before"),
            _ => Ok(()),
        }
    }
}

impl ExecutionPlan for NearestExec {
    fn name(&self) -> &str {
        "NearestExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        [Some(&self.queries), self.rows.as_ref()].into_iter().flatten().collect()
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition; self.children().len()]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let mut children = children.into_iter();
        let Some(queries) = children.next() else { return plan_err!("nearest has a left side") };
        let (source, rows) = (self.source.clone(), children.next());
        let (settings, properties) = (self.settings.clone(), self.properties.clone());
        let NearestExec { single, with_nulls, of_queries, .. } = *self;
        Ok(Arc::new(NearestExec { queries, rows, source, settings, single, with_nulls, of_queries, properties }))
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let queries = self.queries.execute(0, context.clone())?;
        let rows = self.rows.as_ref().map(|rows| rows.execute(0, context.clone())).transpose()?;
        let work = Work {
            source: self.source.clone(),
            settings: self.settings.clone(),
            single: self.single,
            with_nulls: self.with_nulls,
            of_queries: self.of_queries,
            schema: self.schema(),
            stop: Stop::default(),
        };
        let run = Run { queries: Some(queries), rows, target: None, work: Arc::new(work) };
        let batches = futures::stream::try_unfold(run, |mut run| async move {
            let batches = run.next().await?;
            Ok::<_, DataFusionError>(batches.map(|batches| (futures::stream::iter(batches), run)))
        })
        .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}

/// Queries that share a pass.
const QUERIES: usize = 1 << 14;
/// Pairs of a query and a row that are made at once, about.
const PAIRS: usize = 1 << 17;
/// Rows of a batch that comes out.
const BATCH_ROWS: usize = 4096;

/// What is searched, once it is open.
struct Target {
    column: Arc<VectorColumn>,
    searcher: Option<Arc<Searcher>>,
    /// The rows that count, where some do not.
    allowed: Option<Arc<Rows>>,
    /// The rows, where they lie in memory.
    held: Option<RecordBatch>,
}

struct Run {
    queries: Option<SendableRecordBatchStream>,
    rows: Option<SendableRecordBatchStream>,
    target: Option<Arc<Target>>,
    work: Arc<Work>,
}

/// What does not change from one pass to the next.
struct Work {
    source: Source,
    settings: Settings,
    single: bool,
    with_nulls: bool,
    of_queries: usize,
    schema: SchemaRef,
    stop: Stop,
}

/// Candidates that a search through a graph holds, at least.
const GRAPH_EFFORT: usize = 128;
/// Rows that an index is worth looking into for; fewer are all looked at.
const FEW_ROWS: u64 = 20_000;

impl Run {
    async fn open(&mut self) -> Result<Arc<Target>> {
        if let Some(target) = &self.target {
            return Ok(target.clone());
        }
        let work = self.work.clone();
        let target = match &work.source {
            Source::Table { table, column, index, .. } => {
                let allowed = match self.rows.take() {
                    Some(batches) => Some(Arc::new(allowed(batches).await?)),
                    None => None,
                };
                let many = allowed.as_ref().is_none_or(|rows| rows.named() > FEW_ROWS);
                let searcher = match index.as_ref().filter(|_| many) {
                    Some(index) => Some(table.searcher(index.clone()).await.map_err(external)?),
                    None => None,
                };
                Target { column: table.vectors(column).await.map_err(external)?, searcher, allowed, held: None }
            }
            Source::Rows { at, .. } => {
                let Some(batches) = self.rows.take() else { return exec_err!("nearest has rows to look among") };
                let schema = batches.schema();
                let batches: Vec<RecordBatch> = batches.try_collect().await?;
                let held = concat_batches(&schema, &batches)?;
                let array = index::as_fixed(held.column(*at)).map_err(external)?;
                let column = VectorColumn::of_array(schema.field(*at).name(), array).map_err(external)?;
                Target { column: Arc::new(column), searcher: None, allowed: None, held: Some(held) }
            }
        };
        let target = Arc::new(target);
        self.target = Some(target.clone());
        Ok(target)
    }

    /// The rows of the next queries; `None` when there are no more.
    async fn next(&mut self) -> Result<Option<Vec<Result<RecordBatch>>>> {
        let work = self.work.clone();
        let Some(stream) = &mut self.queries else { return Ok(None) };
        let schema = stream.schema();
        let (mut batches, mut n) = (Vec::new(), 0);
        let most = (PAIRS / work.settings.k.unwrap_or(PAIRS / 64).max(1)).clamp(64, QUERIES);
        while n < most {
            match stream.next().await.transpose()? {
                Some(batch) => {
                    n += batch.num_rows();
                    batches.push(batch);
                }
                None => {
                    self.queries = None;
                    break;
                }
            }
        }
        let queries = concat_batches(&schema, &batches)?;
        if work.single && queries.num_rows() > 1 {
            return exec_err!("nearest looks for one vector, got {}", queries.num_rows());
        }
        if queries.num_rows() == 0 {
            return Ok(None);
        }
        let target = self.open().await?;
        let of_query = queries.column(schema.index_of(QUERY)?);
        if work.single && of_query.logical_nulls().is_some_and(|nulls| nulls.is_null(0)) {
            return exec_err!("what is looked for is NULL");
        }
        let (values, which) = index::check_queries(of_query, target.column.dim(), work.settings.distance).map_err(external)?;
        if which.is_empty() {
            // Rows without a direction have no neighbours; a constant without one is a mistake.
            return if work.single { Err(external(index::Error::ZeroQuery)) } else { Ok(Some(Vec::new())) };
        }
        let found = work.search(&target, values).await?;
        let mut pairs: Vec<(u32, Neighbour)> = Vec::new();
        for (row, neighbours) in which.into_iter().zip(found) {
            pairs.extend(neighbours.into_iter().map(|neighbour| (row as u32, neighbour)));
        }
        let mut out = Vec::new();
        for pairs in pairs.chunks(BATCH_ROWS) {
            out.push(Ok(work.batch(&target, &queries, pairs).await?));
        }
        Ok(Some(out))
    }
}

impl Work {
    async fn search(&self, target: &Arc<Target>, queries: Vec<f32>) -> Result<Vec<Vec<Neighbour>>> {
        let within = self.settings.within.unwrap_or(f32::INFINITY);
        let k = self.settings.k.unwrap_or(usize::MAX);
        let stop = self.stop.clone();
        if let Some(searcher) = &target.searcher {
            let mut effort = self.settings.effort(searcher.info());
            if let Some(allowed) = &target.allowed {
                // The nearest of a tenth of the rows lie in ten times as many partitions.
                let share = allowed.named() as f64 / target.column.len().max(1) as f64;
                effort.nprobes = (effort.nprobes as f64 / share.max(1e-6)).ceil() as usize;
            }
            let queries = Arc::new(queries);
            let mut found = searcher.search(&queries, k, within, effort, target.allowed.as_ref(), &stop).await.map_err(external)?;
            self.fill(target, k, &mut found)?;
            return Ok(found);
        }
        if let (Source::Rows { graph: Some(graph), .. }, Some(held)) = (&self.source, &target.held) {
            return self.through_graph(graph, target, held, &queries, k, within);
        }
        let (target, distance) = (target.clone(), self.settings.distance);
        let work = tokio::task::spawn_blocking(move || {
            let wanted = Wanted { queries: &queries, distance, k, within };
            let live = target.allowed.as_deref().unwrap_or(target.column.live());
            let found = index::exact(&target.column, wanted, live, &stop);
            (target, found)
        });
        let (target, found) = work.await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))?;
        let mut found = found.map_err(external)?;
        self.fill(&target, k, &mut found)?;
        Ok(found)
    }

    /// What the graph of a set proposes, by its exact distances.
    fn through_graph(
        &self,
        of: &OfSet,
        target: &Target,
        held: &RecordBatch,
        queries: &[f32],
        k: usize,
        within: f32,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let ids = held.column(of.ids).as_primitive::<Int32Type>();
        let rows: HashMap<i32, u64> = ids.values().iter().copied().zip(0..).collect();
        let effort = self.settings.nprobes.max(GRAPH_EFFORT).max(k.saturating_mul(4).min(rows.len()));
        let candidates = |query: &[f32]| {
            let found = of.graph.search(query, k.min(rows.len()), effort).into_iter();
            found.filter_map(|id| Some(Neighbour { distance: 0.0, row: *rows.get(&(id as i32))? })).collect::<Vec<_>>()
        };
        let candidates = queries.chunks_exact(target.column.dim()).map(candidates).collect();
        let wanted = Wanted { queries, distance: self.settings.distance, k, within };
        let found = index::rerank(&target.column, wanted, candidates).map_err(external)?;
        // A graph may not reach all that there is.
        match within == f32::INFINITY && found.iter().any(|found| found.len() < k.min(rows.len())) {
            true => index::exact(&target.column, wanted, &Rows::all(), &self.stop).map_err(external),
            false => Ok(found),
        }
    }

    /// Rows without a vector, where an ORDER BY has to give as many rows as there are.
    fn fill(&self, target: &Arc<Target>, k: usize, found: &mut [Vec<Neighbour>]) -> Result<()> {
        let Some(found) = found.first_mut().filter(|found| self.with_nulls && found.len() < k) else { return Ok(()) };
        let column = &target.column;
        let rows = target.allowed.as_deref().unwrap_or(column.live());
        let more = tokio::task::block_in_place(|| index::without_vector(column, rows, k - found.len())).map_err(external)?;
        found.extend(more.into_iter().map(|row| Neighbour { distance: f32::NAN, row }));
        Ok(())
    }

    /// Pairs of a query and a row as they come out.
    async fn batch(&self, target: &Target, queries: &RecordBatch, pairs: &[(u32, Neighbour)]) -> Result<RecordBatch> {
        let lefts = UInt32Array::from_iter_values(pairs.iter().map(|(query, _)| *query));
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (i, field) in queries.schema().fields().iter().enumerate() {
            if columns.len() < self.of_queries && field.name() != QUERY {
                columns.push(take(queries.column(i), &lefts, None)?);
            }
        }
        let addresses: Vec<u64> = pairs.iter().map(|(_, neighbour)| neighbour.row).collect();
        match (&self.source, &target.held) {
            (_, Some(held)) => {
                let places = UInt64Array::from(addresses);
                for column in held.columns() {
                    columns.push(take(column, &places, None)?);
                }
            }
            (Source::Table { table, columns: names, .. }, None) => {
                columns.extend(rows_at(table.dataset(), names, &addresses).await?);
            }
            (Source::Rows { .. }, None) => {}
        }
        let distances = pairs.iter().map(|(_, neighbour)| (!neighbour.distance.is_nan()).then_some(neighbour.distance));
        columns.push(Arc::new(distances.collect::<Float32Array>()));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// Columns of rows by their addresses, in that order.
pub(crate) async fn rows_at(dataset: &Dataset, names: &[String], addresses: &[u64]) -> Result<Vec<ArrayRef>> {
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let projection = ProjectionRequest::from_columns(&wanted, dataset.schema());
    let rows = dataset.take_rows(&sorted, projection).await?;
    if rows.num_rows() != sorted.len() {
        return exec_err!("rows of {} are named that are not there", dataset.uri());
    }
    let places = addresses.iter().map(|address| sorted.partition_point(|other| other < address) as u32);
    let places = UInt32Array::from_iter_values(places);
    Ok(names.iter().map(|name| take(&rows[name.as_str()], &places, None)).collect::<Result<_, _>>()?)
}

/// The rows that a plan of addresses gives.
pub(crate) async fn allowed(mut batches: SendableRecordBatchStream) -> Result<Rows> {
    let mut rows = Rows::none();
    while let Some(batch) = batches.try_next().await? {
        batch.column(0).as_primitive::<UInt64Type>().values().iter().for_each(|address| rows.insert(*address));
    }
    Ok(rows)
}
