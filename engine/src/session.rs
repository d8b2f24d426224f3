use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::DataFrame;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::{ExplainStatement, Statement as DfStatement};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use storage::{Computed, Pool, Progress, Receipt, Subset, Written};
use tokio::sync::Mutex;

use crate::filter::Bound;
use crate::functions::Embed;
use crate::resources::Resources;
use crate::rows::{Rows, watch};
use crate::snapshot::{Shared, Snapshot};
use crate::statements::{self, Statement, add_column, copy_subset, create_vectors};
use crate::uses::Uses;
use crate::{Error, Result};

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

/// SQL over one pool. Queries may run beside each other, and beside statements that change the pool: each reads one
/// snapshot of it from its plan to its last row, and its receipt names that one.
pub struct Session {
    /// Where changes go.
    pool: Pool,
    shared: Shared,
    current: ArcSwap<Snapshot>,
    /// Held while the snapshot is replaced, or something is defined in it.
    changing: Mutex<()>,
    memory: usize,
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
            let memory = TrackConsumersPool::new(FairSpillPool::new(options.memory), std::num::NonZeroUsize::new(3).expect("not zero"));
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(memory)).build_arc().map_err(|e| Error::query(e, &[]))?;
            let resources = Arc::new(Resources::new(options.resources));
            let shared = Shared { runtime, resources, embed: options.embed, own: Arc::default() };
            let current = ArcSwap::from_pointee(Snapshot::read(&shared, newest(&pool).await?, None).await?);
            let (memory, on_progress) = (options.memory, options.on_progress);
            Ok(Session { pool, shared, current, changing: Mutex::default(), memory, on_progress })
        }
        .boxed()
    }

    /// Reads the tables at their newest versions from now on (or at those that the pool was opened at).
    pub fn refresh(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            let _changing = self.changing.lock().await;
            let before = self.snapshot();
            let next = Snapshot::read(&self.shared, newest(&self.pool).await?, Some(&before)).await?;
            self.current.store(Arc::new(next));
            Ok(())
        }
        .boxed()
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Leaves expressions as they are, whatever columns hold them.
    #[cfg(test)]
    pub(crate) async fn forget_computed(&self) {
        let before = self.snapshot();
        let plain = Snapshot::plain(&self.shared, before.pool().clone(), Some(&before)).await.expect("it was read before");
        self.current.store(Arc::new(plain));
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn resources(&self) -> &Resources {
        &self.shared.resources
    }

    /// Runs one statement; batches stream out as they are made, and dropping the stream cancels the query.
    /// Statements without rows of their own give none, or what they did.
    pub fn sql<'a>(&'a self, text: &'a str, params: &'a Params) -> BoxFuture<'a, Result<Rows>> {
        async move {
            match statements::parse(&self.snapshot().state(), text)? {
                Statement::Plain(statement) => {
                    let (snapshot, frame) = self.frame(*statement, params, true).await?;
                    snapshot.rows(frame).await.map(|(rows, _)| rows)
                }
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
        let plain = Snapshot::plain(&self.shared, newest(&self.pool).await?, Some(&self.snapshot())).await?;
        let plan = add_column::plan(&plain, column, expression).await?;
        let rows = self.pool.compute_column(&plan.computed, plan.data_type, plan.compute, &*self.on_progress).await?;
        self.refresh().await?;
        Ok(rows)
    }

    /// Stores the vectors of a query of one column, or of a column `id` and one more, as a named set; gives their number.
    async fn create_vectors(&self, name: &str, query: &str, params: &Params) -> Result<u64> {
        let Statement::Plain(statement) = statements::parse(&self.snapshot().state(), query)? else { return Err(Error::NotAQuery) };
        let (snapshot, frame) = self.frame(*statement, params, true).await?;
        let (rows, _) = snapshot.rows(frame).await?;
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
            let statement = self.query(filter.sql())?;
            let explain = ExplainStatement { analyze: false, verbose: false, format: None, statement: Box::new(statement) };
            let (snapshot, frame) = self.frame(DfStatement::Explain(explain), filter.params(), false).await?;
            Ok(snapshot.rows(frame).await?.0)
        }
        .boxed()
    }

    /// Parses a text that must be a query.
    pub(crate) fn query(&self, sql: &str) -> Result<DfStatement> {
        match statements::parse(&self.snapshot().state(), sql)? {
            Statement::Plain(statement) => Ok(*statement),
            _ => Err(Error::NotAQuery),
        }
    }

    /// Plans a statement, and returns it with the snapshot that it reads; statements that define something have done so.
    /// With `all_used`, a parameter that the text does not name is an error.
    pub(crate) async fn frame(&self, statement: DfStatement, params: &Params, all_used: bool) -> Result<(Arc<Snapshot>, DataFrame)> {
        let mut snapshot = self.snapshot();
        let mut plan = snapshot.plan(statement.clone(), params, all_used).await?;
        let hashes = !matches!(plan, LogicalPlan::Explain(_)) && snapshot.uses(&plan)?.hashes;
        if hashes && !self.pool.is_at_version() && self.pool.fill_hashes(&*self.on_progress).await? > 0 {
            self.refresh().await?;
            snapshot = self.snapshot();
            plan = snapshot.plan(statement, params, all_used).await?;
        }
        let _changing = match plan {
            // What it defines must not be lost to a snapshot that is being made.
            LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => {
                let changing = self.changing.lock().await;
                snapshot = self.snapshot();
                Some(changing)
            }
            _ => None,
        };
        let frame = snapshot.frame(plan).await?;
        Ok((snapshot, frame))
    }

    /// The subset that a filter selects, and where it came from.
    pub fn subset<'a>(&'a self, filter: &'a Bound) -> BoxFuture<'a, Result<(Subset, Receipt)>> {
        async move {
            let made = Made::by(filter);
            let selection = self.selection(filter).await?;
            let subset = copy_subset::collect(selection.rows, |e| self.error(e)).await?;
            let receipt = made.receipt(&selection.snapshot, subset.summary(), &selection.uses).await?;
            Ok((subset, receipt))
        }
        .boxed()
    }

    /// Writes the subset that a filter selects to `path`, sorted, with its receipt beside it; the subset may be larger
    /// than memory.
    pub fn write_subset<'a>(&'a self, filter: &'a Bound, path: &'a Path) -> BoxFuture<'a, Result<Receipt>> {
        async move {
            let made = Made::by(filter);
            self.write(self.selection(filter).await?, made, path).await
        }
        .boxed()
    }

    async fn selection(&self, filter: &Bound) -> Result<Selection> {
        let (snapshot, frame) = self.frame(self.query(filter.sql())?, filter.params(), !filter.is_declared()).await?;
        Selection::start(snapshot, frame).await
    }

    async fn copy_subset(&self, query: DfStatement, params: &Params, made: Made<'_>, path: &Path) -> Result<Receipt> {
        copy_subset::check_folder(path)?;
        let (snapshot, frame) = self.frame(query, params, true).await?;
        self.write(Selection::start(snapshot, frame).await?, made, path).await
    }

    async fn write(&self, selection: Selection, made: Made<'_>, path: &Path) -> Result<Receipt> {
        let Selection { snapshot, rows, uses } = selection;
        let written = watch(rows.scans(), &*self.on_progress, copy_subset::write(rows, path, self.memory / 2, |e| self.error(e))).await?;
        let receipt = made.receipt(&snapshot, written, &uses).await?;
        receipt.write(&Receipt::path_beside(path))?;
        Ok(receipt)
    }

    /// Names of all functions, for completion and "did you mean".
    pub fn function_names(&self) -> Vec<String> {
        self.snapshot().function_names()
    }

    /// Tables of the pool, each with its columns and their types.
    pub async fn tables(&self) -> Vec<(String, Vec<(String, DataType)>)> {
        self.snapshot().tables().await
    }

    /// An error of DataFusion in the words of this crate.
    pub fn error(&self, error: DataFusionError) -> Error {
        self.snapshot().error(error)
    }
}

/// The pool at its newest versions, or at those that it was opened at.
async fn newest(pool: &Pool) -> Result<Pool> {
    Ok(if pool.is_at_version() { pool.clone() } else { pool.pinned().await? })
}

/// Rows of a filter, its uids and weights where it has them, and what they are of.
struct Selection {
    snapshot: Arc<Snapshot>,
    rows: Rows,
    uses: Uses,
}

impl Selection {
    async fn start(snapshot: Arc<Snapshot>, frame: DataFrame) -> Result<Selection> {
        copy_subset::check_columns(frame.schema())?;
        let (rows, uses) = snapshot.rows(copy_subset::wanted(frame).map_err(|e| snapshot.error(e))?).await?;
        Ok(Selection { snapshot, rows, uses })
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

    async fn receipt(self, snapshot: &Snapshot, written: Written, uses: &Uses) -> Result<Receipt> {
        Ok(Receipt {
            sql: self.sql.to_string(),
            parameters: self.parameters,
            wall_seconds: self.start.elapsed().as_secs_f64(),
            ..snapshot.receipt(self.filter, written, uses).await?
        })
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
