use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use std::sync::{Arc, RwLock};

use std::time::Instant;

use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, ParamValues};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::Analyzer;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::{ExplainStatement, Statement as DfStatement};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use storage::{Computed, Pool, Progress, Receipt, Subset, Table, Written};

use crate::computed::{Stored, UseComputed, analyzed};
use crate::filter::Bound;
use crate::functions::{Embed, Sets, TwoPasses};
use crate::in_lists::InLists;
use crate::nearest::{NearestPlanner, OrderByDistance, Planner, SearchOptions};
use crate::negative_zero::NoNegativeZero;
use crate::own_buffers::OwnBuffers;
use crate::resources::Resources;
use crate::rows::{Rows, watch};
use crate::statements::{self, Statement, add_column, copy_subset, create_vectors, deep};
use crate::tables::{TableFunctions, TablePlanner};
use crate::uid_text::UidText;
use crate::uses::Uses;
use crate::{Error, Result, catalog, functions};

/// Named parameters of a query, `$name` in its text: always bound, never pasted.
pub type Params = [(String, ScalarValue)];

/// A computed column that lagged, and the rows computed or what stands against it.
pub type Extended = (String, Result<u64>);

/// How a session runs its queries.
#[derive(Clone)]
pub struct Options {
    /// Bytes that queries hold at most, roughly; beyond that they spill to the system's temporary folder.
    pub memory: usize,
    /// The folder of optional files; by default `TARN_RESOURCES`, or the user's data folder.
    pub resources: Option<PathBuf>,
    /// What `embed_text` and `embed_image` ask.
    pub embed: Option<Arc<dyn Embed>>,
    /// Hears how far statements have come that take long before they give rows.
    pub on_progress: Arc<dyn Fn(Progress) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory: 4 << 30, resources: None, embed: None, on_progress: Arc::new(|_| {}) }
    }
}

/// SQL over one pool.
pub struct Session {
    context: SessionContext,
    /// Where changes go, and the same at the versions that queries read.
    pool: Pool,
    reads: Arc<RwLock<Pool>>,
    memory: usize,
    resources: Arc<Resources>,
    sets: Arc<Sets>,
    computed: Arc<UseComputed>,
    /// The computed columns, as of the versions read.
    columns: RwLock<Vec<Computed>>,
    on_progress: Arc<dyn Fn(Progress) + Send + Sync>,
}

impl Session {
    /// Opens a pool at its newest version.
    pub fn open<'a>(root: &'a str) -> BoxFuture<'a, Result<Session>> {
        async move { Session::over(Pool::open(root).await?, Options::default()).await }.boxed()
    }

    /// Over a pool that is open, at the version that it is read at.
    pub fn over<'a>(pool: Pool, options: Options) -> BoxFuture<'a, Result<Session>> {
        async move {
            let wrap = |e| Error::query(e, &[]);
            let config = SessionConfig::new()
                .with_option_extension(SearchOptions::default())
                .with_information_schema(true)
                // The highest first means the highest: as in DuckDB, NULL is last either way.
                .set_str("datafusion.sql_parser.default_null_ordering", "nulls_last")
                // It drops groups whose minimum or maximum is NULL (tests/sql/answers.slt).
                .set_bool("datafusion.optimizer.enable_topk_aggregation", false)
                // Minima and maxima of a file of which a row group has no statistics are those of the others
                // (tests/e2e/awkward.rs).
                .set_bool("datafusion.execution.collect_statistics", false)
                .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
                .set_bool("datafusion.execution.parquet.schema_force_view_types", false);
            let computed = Arc::new(UseComputed::default());
            let sets = Arc::new(Sets::of(pool.clone()));
            let reads = Arc::new(RwLock::new(pool.clone()));
            let planner = Planner(TablePlanner { reads: reads.clone(), sets: sets.clone() });
            let mut rules: Vec<_> = vec![Arc::new(UidText) as _];
            rules.extend(Analyzer::new().rules);
            rules.push(Arc::new(InLists));
            rules.push(Arc::new(TwoPasses));
            rules.push(computed.clone());
            rules.push(Arc::new(OrderByDistance));
            let memory = TrackConsumersPool::new(FairSpillPool::new(options.memory), std::num::NonZeroUsize::new(3).expect("not zero"));
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(memory)).build_arc().map_err(wrap)?;
            let state = SessionStateBuilder::new()
                .with_default_features()
                .with_config(config)
                .with_runtime_env(runtime)
                .with_query_planner(Arc::new(planner))
                .with_analyzer_rules(rules)
                .with_optimizer_rule(Arc::new(NoNegativeZero))
                .with_physical_optimizer_rule(Arc::new(OwnBuffers))
                .build();
            let context = catalog::with_files(SessionContext::new_with_state(state));
            {
                let state = context.state_ref();
                let mut state = state.write();
                use datafusion::execution::FunctionRegistry;
                state.register_expr_planner(Arc::new(UidText)).map_err(wrap)?;
                state.register_relation_planner(Arc::new(NearestPlanner)).map_err(wrap)?;
                state.register_relation_planner(Arc::new(TableFunctions)).map_err(wrap)?;
            }
            let resources = Arc::new(Resources::new(options.resources));
            functions::register(&context, &resources, &sets, options.embed.as_ref());
            let session = Session {
                context,
                reads,
                pool,
                memory: options.memory,
                resources,
                sets,
                computed,
                columns: RwLock::default(),
                on_progress: options.on_progress,
            };
            session.refresh().await?;
            Ok(session)
        }
        .boxed()
    }

    /// Reads the tables at their newest versions (or those that the pool was opened at), and what columns are computed.
    async fn refresh(&self) -> Result<()> {
        let reads = match self.pool.is_at_version() {
            true => self.pool.clone(),
            false => self.pool.pinned().await?,
        };
        *self.reads.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = reads.clone();
        catalog::register(&self.context, &reads).await?;
        self.sets.clear();
        let mut stored = Vec::new();
        self.set_stored(Vec::new()); // or the expressions would be replaced by themselves
        let columns = reads.computed().await?;
        *self.columns.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = columns.clone();
        for column in columns.into_iter().filter(|column| column.lagging == 0) {
            let scan = self.context.table(Table::Pool.name()).await.map_err(|e| self.error(e))?.into_unoptimized_plan();
            let state = self.context.state();
            let expr = deep::expression(&state, &column.expression, scan.schema()).and_then(|expr| analyzed(&state, &scan, expr));
            // An expression that this program no longer knows helps nobody, and hurts nobody.
            let Computed { column, resources, .. } = column;
            let same_files = resources.is_empty().then_some(true);
            stored.extend(expr.ok().map(|expr| Stored { column, expr, resources, same_files }));
        }
        self.set_stored(stored);
        Ok(())
    }

    fn reads(&self) -> Pool {
        self.reads.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn columns(&self) -> Vec<Computed> {
        self.columns.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn set_stored(&self, stored: Vec<Stored>) {
        *self.computed.stored.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = stored;
    }

    /// Leaves expressions as they are, whatever columns hold them.
    #[cfg(test)]
    pub(crate) fn forget_computed(&self) {
        self.set_stored(Vec::new());
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    pub(crate) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Runs one statement; batches stream out as they are made, and dropping the stream cancels the query.
    /// Statements without rows of their own give none, or what they did.
    pub fn sql<'a>(&'a self, text: &'a str, params: &'a Params) -> BoxFuture<'a, Result<Rows>> {
        async move {
            match statements::parse(&self.context.state(), text)? {
                Statement::Plain(statement) => self.rows(self.frame(*statement, params, true).await?).await.map(|(rows, _)| rows),
                Statement::AddColumn { column, expression } => {
                    self.must_be_newest()?;
                    let rows = self.add_column(&column, &expression).await?;
                    Ok(Rows::told(&[("column", &column), ("rows", &rows)]))
                }
                Statement::DropColumn { column } => {
                    self.must_be_newest()?;
                    self.pool.drop_column(&column).await?;
                    self.refresh().await?;
                    Ok(Rows::told(&[("dropped", &column)]))
                }
                Statement::CreateIndex { new, if_not_exists } => {
                    self.must_be_newest()?;
                    match index::create_index(&self.pool, &new, &*self.on_progress).await {
                        Err(index::Error::IndexExists { name }) if if_not_exists => Ok(Rows::told(&[("there", &name)])),
                        made => {
                            let name = made?;
                            self.refresh().await?;
                            Ok(Rows::told(&[("index", &name)]))
                        }
                    }
                }
                Statement::DropIndex { name, if_exists } => {
                    self.must_be_newest()?;
                    match index::drop_index(&self.pool, &name).await {
                        Err(index::Error::IndexMissing { .. }) if if_exists => Ok(Rows::told(&[("missing", &name)])),
                        dropped => {
                            dropped?;
                            self.refresh().await?;
                            Ok(Rows::told(&[("dropped", &name)]))
                        }
                    }
                }
                Statement::CreateVectors { name, query } => {
                    self.must_be_newest()?;
                    let n = self.create_vectors(&name, &query, params).await?;
                    Ok(Rows::told(&[("set", &name), ("vectors", &n)]))
                }
                Statement::DropVectors { name, if_exists } => {
                    self.must_be_newest()?;
                    match self.pool.drop_vectors(&name).await {
                        Err(storage::Error::VectorsMissing { .. }) if if_exists => Ok(Rows::told(&[("missing", &name)])),
                        dropped => {
                            dropped?;
                            self.sets.forget(&name);
                            self.refresh().await?;
                            Ok(Rows::told(&[("dropped", &name)]))
                        }
                    }
                }
                Statement::CopySubset { query, sql, path } => {
                    let parameters = params.iter().map(|(name, value)| (name.clone(), json(value))).collect();
                    let made = Made { filter: "sql", sql: &sql, parameters, start: Instant::now() };
                    let receipt = self.copy_subset(*query, params, made, &path).await?;
                    Ok(Rows::told(&[("file", &path.display().to_string()), ("uids", &receipt.subset_size)]))
                }
            }
        }
        .boxed()
    }

    fn must_be_newest(&self) -> Result<()> {
        if self.pool.is_at_version() { Err(Error::OldVersion) } else { Ok(()) }
    }

    /// Computes a column, or what is missing of it. Gives the number of rows computed.
    async fn add_column(&self, column: &str, expression: &str) -> Result<u64> {
        // The expression itself is wanted, not a column that holds it.
        self.set_stored(Vec::new());
        let plan = add_column::plan(self, column, expression).await;
        self.refresh().await?;
        let plan = plan?;
        let rows = self.pool.compute_column(&plan.computed, plan.data_type, plan.compute, &*self.on_progress).await?;
        self.refresh().await?;
        Ok(rows)
    }

    /// Stores the vectors of a query of one column, or of a column `id` and one more, as a named set; gives their number.
    async fn create_vectors(&self, name: &str, query: &str, params: &Params) -> Result<u64> {
        let Statement::Plain(statement) = statements::parse(&self.context.state(), query)? else { return Err(Error::NotAQuery) };
        let (rows, _) = self.rows(self.frame(*statement, params, true).await?).await?;
        let schema = rows.schema();
        let batches: Vec<arrow::array::RecordBatch> = rows.try_collect().await.map_err(|e| self.error(e))?;
        let batch = arrow::compute::concat_batches(&schema, &batches).map_err(|e| self.error(e.into()))?;
        let (dim, values) = create_vectors::vectors_of(&batch)?;
        let n = values.len() / dim;
        self.pool.add_vectors(name, dim, values).await?;
        self.refresh().await?;
        Ok(n as u64)
    }

    /// Extends all computed columns to rows that came after them.
    pub fn extend_columns(&self) -> BoxFuture<'_, Result<Vec<Extended>>> {
        async move {
            let mut extended = Vec::new();
            for Computed { column, expression, .. } in self.pool.computed().await?.into_iter().filter(|column| column.lagging > 0) {
                let rows = self.add_column(&column, &expression).await;
                extended.push((column, rows));
            }
            Ok(extended)
        }
        .boxed()
    }

    /// The plan of a filter, without running it.
    pub fn explain<'a>(&'a self, filter: &'a Bound) -> BoxFuture<'a, Result<Rows>> {
        async move {
            let Statement::Plain(statement) = statements::parse(&self.context.state(), filter.sql())? else { return Err(Error::NotAQuery) };
            let explain = ExplainStatement { analyze: false, verbose: false, format: None, statement };
            let frame = self.frame(DfStatement::Explain(explain), filter.params(), false).await?;
            Ok(self.rows(frame).await?.0)
        }
        .boxed()
    }

    /// A plan with its parameters bound, and what it names read; statements that define something have done so.
    /// With `all_used`, a parameter that the text does not name is an error.
    pub(crate) async fn frame(&self, statement: DfStatement, params: &Params, all_used: bool) -> Result<DataFrame> {
        let errors = |e| self.error(e);
        let mut plan = self.context.state().statement_to_plan(statement).await.map_err(errors)?;
        let named = plan.get_parameter_names().map_err(errors)?;
        if let Some((unknown, _)) = params.iter().find(|(name, _)| all_used && !named.contains(&format!("${name}"))) {
            let mut known: Vec<&str> = named.iter().map(|name| name.trim_start_matches('$')).collect();
            known.sort_unstable();
            return Err(Error::UnknownParameter { filter: "sql".into(), name: unknown.clone(), known: known.join(", ") });
        }
        if !params.is_empty() {
            let values: HashMap<String, ScalarValue> = params.iter().cloned().collect();
            plan = plan.with_param_values(ParamValues::from(values)).map_err(errors)?;
        }
        self.load_sets(&plan).await?;
        let runs = !matches!(plan, LogicalPlan::Explain(_));
        if runs && self.uses(&plan)?.hashes && !self.pool.is_at_version() && self.pool.fill_hashes(&*self.on_progress).await? > 0 {
            self.refresh().await?;
        }
        self.check_stored(&plan)?;
        self.context.execute_logical_plan(plan).await.map_err(errors)
    }

    pub(crate) async fn rows(&self, frame: DataFrame) -> Result<(Rows, Uses)> {
        let errors = |e| self.error(e);
        let (state, plan) = frame.into_parts();
        let plan = state.optimize(&plan).map_err(errors)?;
        let uses = self.uses(&plan)?;
        for (function, list) in &uses.functions {
            // Read before the work starts, so that a missing one is told of at once.
            match function.as_str() {
                "lang_fasttext" => self.resources.language().map(drop)?,
                _ => {
                    self.resources.wordnet()?;
                    list.as_deref().map(|list| self.resources.synsets(list)).transpose()?;
                }
            }
        }
        for column in self.columns().into_iter().filter(|column| column.lagging > 0) {
            if uses.computed.contains(&column.column) {
                let Computed { column, expression, lagging: rows, .. } = column;
                return Err(storage::Error::ColumnLags { column, expression, rows }.into());
            }
        }
        let physical = state.query_planner().create_physical_plan(&plan, &state).await.map_err(errors)?;
        let stream = execute_stream(physical.clone(), Arc::new(TaskContext::from(&state))).map_err(errors)?;
        Ok((Rows::of(&physical, stream), uses))
    }

    pub(crate) fn uses(&self, plan: &LogicalPlan) -> Result<Uses> {
        Uses::of(plan).map_err(|e| self.error(e))
    }

    /// Reads the vector sets that a plan names.
    pub(crate) async fn load_sets(&self, plan: &LogicalPlan) -> Result<()> {
        for set in self.uses(plan)?.sets {
            self.sets.load(&set).await?;
        }
        Ok(())
    }

    /// Settles for the stored columns that this plan may use whether their optional files are still the same.
    fn check_stored(&self, plan: &LogicalPlan) -> Result<()> {
        let unknown = |stored: &Stored| stored.same_files.is_none();
        if !self.computed.stored.read().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().any(unknown) {
            return Ok(());
        }
        let uses = self.uses(plan)?;
        if uses.functions.is_empty() {
            return Ok(());
        }
        let of_now = self.digests(&uses)?;
        let mut stored = self.computed.stored.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for column in stored.iter_mut().filter(|stored| unknown(stored)) {
            if column.resources.keys().all(|name| of_now.contains_key(name)) {
                column.same_files = Some(column.resources.iter().all(|(name, digest)| of_now.get(name) == Some(digest)));
            }
        }
        Ok(())
    }

    /// Digests of the optional files that a query used.
    pub(crate) fn digests(&self, uses: &Uses) -> Result<BTreeMap<String, String>> {
        let mut digests = BTreeMap::new();
        for (function, list) in &uses.functions {
            digests.extend(self.resources.digests(function, list.as_deref())?);
        }
        Ok(digests)
    }

    /// The subset that a filter selects, and where it came from.
    pub fn subset<'a>(&'a self, filter: &'a Bound) -> BoxFuture<'a, Result<(Subset, Receipt)>> {
        async move {
            let made = Made::by(filter);
            let (rows, uses) = self.selection(filter).await?;
            let subset = copy_subset::collect(rows, |e| self.error(e)).await?;
            let receipt = self.receipt(made, subset.summary(), &uses).await?;
            Ok((subset, receipt))
        }
        .boxed()
    }

    /// Writes the subset that a filter selects to `path`, sorted, with its receipt beside it; the subset may be larger
    /// than memory.
    pub fn write_subset<'a>(&'a self, filter: &'a Bound, path: &'a Path) -> BoxFuture<'a, Result<Receipt>> {
        async move {
            let made = Made::by(filter);
            let (rows, uses) = self.selection(filter).await?;
            self.write(rows, uses, made, path).await
        }
        .boxed()
    }

    /// Rows of a filter: its uids, and weights where it has them.
    pub(crate) async fn selection(&self, filter: &Bound) -> Result<(Rows, Uses)> {
        let Statement::Plain(statement) = statements::parse(&self.context.state(), filter.sql())? else { return Err(Error::NotAQuery) };
        let frame = self.frame(*statement, filter.params(), !filter.is_declared()).await?;
        copy_subset::check_columns(frame.schema())?;
        self.rows(copy_subset::wanted(frame).map_err(|e| self.error(e))?).await
    }

    async fn copy_subset(&self, query: DfStatement, params: &Params, made: Made<'_>, path: &Path) -> Result<Receipt> {
        copy_subset::check_folder(path)?;
        let frame = self.frame(query, params, true).await?;
        copy_subset::check_columns(frame.schema())?;
        let (rows, uses) = self.rows(copy_subset::wanted(frame).map_err(|e| self.error(e))?).await?;
        self.write(rows, uses, made, path).await
    }

    async fn write(&self, rows: Rows, uses: Uses, made: Made<'_>, path: &Path) -> Result<Receipt> {
        let written = watch(rows.scans(), &*self.on_progress, copy_subset::write(rows, path, self.memory / 2, |e| self.error(e))).await?;
        let receipt = self.receipt(made, written, &uses).await?;
        receipt.write(&Receipt::path_beside(path))?;
        Ok(receipt)
    }

    async fn receipt(&self, made: Made<'_>, written: Written, uses: &Uses) -> Result<Receipt> {
        let mut resources = self.digests(uses)?;
        for column in self.columns().into_iter().filter(|column| uses.computed.contains(&column.column)) {
            resources.extend(column.resources);
        }
        Ok(Receipt {
            sql: made.sql.to_string(),
            parameters: made.parameters,
            resources,
            wall_seconds: made.start.elapsed().as_secs_f64(),
            ..Receipt::of(made.filter, &self.reads(), written).await?
        })
    }

    /// Names of all functions, for completion and "did you mean".
    pub fn function_names(&self) -> Vec<String> {
        let state = self.context.state();
        let mut names: Vec<String> = state.scalar_functions().keys().cloned().collect();
        names.extend(state.aggregate_functions().keys().cloned());
        names.extend(state.window_functions().keys().cloned());
        names.sort();
        names
    }

    /// Tables of the pool, each with its columns and their types.
    pub async fn tables(&self) -> Vec<(String, Vec<(String, DataType)>)> {
        let mut tables = Vec::new();
        for table in Table::ALL {
            if let Ok(frame) = self.context.table(table.name()).await {
                let columns = frame.schema().fields().iter().map(|f| (f.name().clone(), f.data_type().clone()));
                tables.push((table.name().to_string(), columns.collect()));
            }
        }
        tables
    }

    /// An error of DataFusion in the words of this crate.
    pub fn error(&self, error: DataFusionError) -> Error {
        Error::query(error, &self.function_names())
    }
}

/// How a subset came to be, but for what it holds.
struct Made<'a> {
    filter: &'a str,
    sql: &'a str,
    parameters: BTreeMap<String, serde_json::Value>,
    start: Instant,
}

impl<'a> Made<'a> {
    fn by(filter: &'a Bound) -> Made<'a> {
        let parameters = filter.params().iter().map(|(name, value)| (name.clone(), json(value))).collect();
        Made { filter: filter.name(), sql: filter.sql(), parameters, start: Instant::now() }
    }
}

fn json(value: &ScalarValue) -> serde_json::Value {
    match value {
        ScalarValue::Int64(Some(x)) => (*x).into(),
        ScalarValue::Float64(Some(x)) => (*x).into(),
        ScalarValue::Boolean(Some(x)) => (*x).into(),
        value if value.is_null() => serde_json::Value::Null,
        value => value.to_string().into(),
    }
}
