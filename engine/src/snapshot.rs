use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::{DataFusionError, ParamValues};
use datafusion::execution::context::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::optimizer::Analyzer;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use storage::{Computed, Pool, Receipt, Table, Written};

use crate::computed::{Stored, UseComputed, analyzed};
use crate::functions::{Embed, Sets, TwoPasses};
use crate::in_lists::InLists;
use crate::nearest::{NearestPlanner, OrderByDistance, Planner, SearchOptions};
use crate::negative_zero::NoNegativeZero;
use crate::own_buffers::OwnBuffers;
use crate::resources::Resources;
use crate::rows::Rows;
use crate::session::Params;
use crate::statements::deep;
use crate::tables::{TableFunctions, TablePlanner};
use crate::uid_text::UidText;
use crate::uses::Uses;
use crate::{Error, Result, catalog, functions};

/// What the snapshots of a session share.
pub(crate) struct Shared {
    pub runtime: Arc<RuntimeEnv>,
    pub resources: Arc<Resources>,
    pub embed: Option<Arc<dyn Embed>>,
    /// Tables and views that statements have made; they live as long as the session.
    pub own: Arc<MemorySchemaProvider>,
}

/// What a query reads: the tables of a pool at one version each, with their indexes, vector sets and computed columns. It
/// never changes; a query, its rows and its receipt are of the same one.
pub(crate) struct Snapshot {
    context: SessionContext,
    pool: Pool,
    sets: Arc<Sets>,
    computed: Arc<UseComputed>,
    columns: Vec<Computed>,
    resources: Arc<Resources>,
}

fn config() -> SessionConfig {
    SessionConfig::new()
        .with_option_extension(SearchOptions::default())
        .with_information_schema(true)
        // Each snapshot brings its own.
        .with_create_default_catalog_and_schema(false)
        // The highest first means the highest: as in DuckDB, NULL is last either way.
        .set_str("datafusion.sql_parser.default_null_ordering", "nulls_last")
        // It drops groups whose minimum or maximum is NULL (tests/sql/answers.slt).
        .set_bool("datafusion.optimizer.enable_topk_aggregation", false)
        // Minima and maxima of a file of which a row group has no statistics are those of the others
        // (tests/e2e/awkward.rs).
        .set_bool("datafusion.execution.collect_statistics", false)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
}

impl Snapshot {
    /// Reads a pool that is open at fixed versions. Settings are those of the snapshot before.
    pub async fn read(shared: &Shared, pool: Pool, before: Option<&Snapshot>) -> Result<Snapshot> {
        let mut snapshot = Snapshot::plain(shared, pool, before).await?;
        snapshot.use_computed().await?;
        Ok(snapshot)
    }

    /// Reads a pool, and leaves expressions as they are, whatever columns hold them.
    pub async fn plain(shared: &Shared, pool: Pool, before: Option<&Snapshot>) -> Result<Snapshot> {
        let wrap = |e| Error::query(e, &[]);
        let computed = Arc::new(UseComputed::default());
        let sets = Arc::new(Sets::of(pool.clone()));
        let mut rules: Vec<_> = vec![Arc::new(UidText) as _];
        rules.extend(Analyzer::new().rules);
        rules.push(Arc::new(InLists));
        rules.push(Arc::new(TwoPasses));
        rules.push(computed.clone());
        rules.push(Arc::new(OrderByDistance));
        let (catalogs, files) = catalog::catalogs(&pool, shared.own.clone()).await?;
        let mut state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(before.map_or_else(config, |before| before.context.copied_config()))
            .with_runtime_env(shared.runtime.clone())
            .with_catalog_list(catalogs)
            .with_query_planner(Arc::new(Planner(TablePlanner { pool: pool.clone(), sets: sets.clone() })))
            .with_analyzer_rules(rules)
            .with_optimizer_rule(Arc::new(NoNegativeZero))
            .with_physical_optimizer_rule(Arc::new(OwnBuffers))
            .build();
        {
            use datafusion::execution::FunctionRegistry;
            state.register_expr_planner(Arc::new(UidText)).map_err(wrap)?;
            state.register_relation_planner(Arc::new(NearestPlanner)).map_err(wrap)?;
            state.register_relation_planner(Arc::new(TableFunctions)).map_err(wrap)?;
        }
        let context = SessionContext::new_with_state(state);
        files.read_by(&context);
        functions::register(&context, &shared.resources, &sets, shared.embed.as_ref());
        let columns = pool.computed().await?;
        Ok(Snapshot { context, pool, sets, computed, columns, resources: shared.resources.clone() })
    }

    /// Has whole computed columns stand for their expressions.
    async fn use_computed(&mut self) -> Result<()> {
        let mut stored = Vec::new();
        for column in self.columns.iter().filter(|column| column.lagging == 0).cloned() {
            let scan = self.table(Table::Pool.name()).await?.into_unoptimized_plan();
            let state = self.state();
            let expr = deep::expression(&state, &column.expression, scan.schema()).and_then(|expr| analyzed(&state, &scan, expr));
            // An expression that this program no longer knows helps nobody, and hurts nobody.
            stored.extend(expr.ok().map(|expr| Stored::new(column.column, expr, column.resources)));
        }
        self.computed.set(stored);
        Ok(())
    }

    /// Returns the pool at the versions that it is read at.
    #[cfg(test)]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn root(&self) -> &str {
        self.pool.root()
    }

    pub fn state(&self) -> SessionState {
        self.context.state()
    }

    pub async fn table(&self, name: &str) -> Result<DataFrame> {
        self.context.table(name).await.map_err(|e| self.error(e))
    }

    /// Returns a statement's plan with its parameters bound. With `all_used`, a parameter that the text does not name is an
    /// error.
    pub async fn plan(&self, statement: Statement, params: &Params, all_used: bool) -> Result<LogicalPlan> {
        let errors = |e| self.error(e);
        let plan = self.state().statement_to_plan(statement).await.map_err(errors)?;
        let named = plan.get_parameter_names().map_err(errors)?;
        if let Some((unknown, _)) = params.iter().find(|(name, _)| all_used && !named.contains(&format!("${name}"))) {
            let mut known: Vec<&str> = named.iter().map(|name| name.trim_start_matches('$')).collect();
            known.sort_unstable();
            return Err(Error::UnknownParameter { filter: "sql".into(), name: unknown.clone(), known: known.join(", ") });
        }
        if params.is_empty() {
            return Ok(plan);
        }
        let values: HashMap<String, ScalarValue> = params.iter().cloned().collect();
        plan.with_param_values(ParamValues::from(values)).map_err(errors)
    }

    /// Reads what a plan names, and returns it ready to run; one that defines something has done so.
    pub async fn frame(&self, plan: LogicalPlan) -> Result<DataFrame> {
        self.load_sets(&plan).await?;
        self.check_stored(&plan)?;
        self.context.execute_logical_plan(plan).await.map_err(|e| self.error(e))
    }

    /// Starts a query; with its rows comes what it uses.
    pub async fn rows(&self, frame: DataFrame) -> Result<(Rows, Uses)> {
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
        if let Some(lags) = self.columns.iter().find(|column| column.lagging > 0 && uses.computed.contains(&column.column)) {
            let Computed { column, expression, lagging: rows, .. } = lags.clone();
            return Err(storage::Error::ColumnLags { column, expression, rows }.into());
        }
        let physical = state.query_planner().create_physical_plan(&plan, &state).await.map_err(errors)?;
        let stream = execute_stream(physical.clone(), Arc::new(TaskContext::from(&state))).map_err(errors)?;
        Ok((Rows::of(&physical, stream), uses))
    }

    pub fn uses(&self, plan: &LogicalPlan) -> Result<Uses> {
        Uses::of(plan).map_err(|e| self.error(e))
    }

    /// Reads the vector sets that a plan names.
    pub async fn load_sets(&self, plan: &LogicalPlan) -> Result<()> {
        for set in self.uses(plan)?.sets {
            self.sets.load(&set).await?;
        }
        Ok(())
    }

    /// Settles for the stored columns that this plan may use whether their optional files are still the same.
    fn check_stored(&self, plan: &LogicalPlan) -> Result<()> {
        if self.computed.stored().iter().all(|stored| stored.same_files().is_some()) {
            return Ok(());
        }
        let uses = self.uses(plan)?;
        if !uses.functions.is_empty() {
            let of_now = self.digests(&uses)?;
            self.computed.stored().iter().for_each(|stored| stored.compare(&of_now));
        }
        Ok(())
    }

    /// Returns digests of the optional files that a query uses, by name.
    pub fn digests(&self, uses: &Uses) -> Result<BTreeMap<String, String>> {
        let mut digests = BTreeMap::new();
        for (function, list) in &uses.functions {
            digests.extend(self.resources.digests(function, list.as_deref())?);
        }
        Ok(digests)
    }

    /// Returns where a subset came from, as far as the snapshot knows it.
    pub async fn receipt(&self, filter: &str, written: Written, uses: &Uses) -> Result<Receipt> {
        let mut resources = self.digests(uses)?;
        for column in self.columns.iter().filter(|column| uses.computed.contains(&column.column)) {
            resources.extend(column.resources.clone());
        }
        Ok(Receipt { resources, ..Receipt::of(filter, &self.pool, written).await? })
    }

    pub fn function_names(&self) -> Vec<String> {
        let state = self.state();
        let mut names: Vec<String> = state.scalar_functions().keys().cloned().collect();
        names.extend(state.aggregate_functions().keys().cloned());
        names.extend(state.window_functions().keys().cloned());
        names.sort();
        names
    }

    /// Returns the pool's tables, each with its columns and their types.
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

    /// Returns an error of DataFusion in the words of this crate.
    pub fn error(&self, error: DataFusionError) -> Error {
        Error::query(error, &self.function_names())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use storage::Receipt;
    use storage::ingest::{self, ingest};

    use crate::{Error, Filter, Options, Session};

    /// A filter's uids, its receipt and what its columns say are of one version, whatever is committed meanwhile.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_query_and_its_receipt_are_of_one_version() {
        const FILES: usize = 12;
        let folder = tempfile::tempdir().expect("a folder");
        let write = |file: usize| {
            let path = folder.path().join(format!("{file}.csv"));
            let rows = (0..50 + file).map(|i| format!("{:032x},some words\n", file * 1000 + i)).collect::<String>();
            std::fs::write(&path, format!("uid,text\n{rows}")).expect("written");
            [path.display().to_string()]
        };
        // As many rows as the files up to one have.
        let rows = |files: usize| (0..files).map(|file| 50 + file as u64).sum::<u64>();
        let pool = storage::Pool::at(&folder.path().join("pool").display().to_string());
        let add = async |file| ingest(&pool, &write(file), &ingest::Options::default(), &|_| {}).await.expect("ingested");
        add(0).await;
        let session = Arc::new(Session::over(pool.clone(), Options::default()).await.expect("open"));
        let done = Arc::new(AtomicBool::new(false));
        let asked = |sql: &'static str| {
            let (session, done) = (session.clone(), done.clone());
            tokio::spawn(async move {
                let mut receipts: Vec<Receipt> = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    // An error of planning waits for nothing, and would leave the others no turn.
                    tokio::task::yield_now().await;
                    let filter = Filter::parse("asked", sql).expect("a filter").bind(&[]).expect("no parameters");
                    match session.subset(&filter).await {
                        Ok((subset, receipt)) => {
                            assert_eq!((subset.len() as u64, receipt.subset_size), (receipt.pool_rows, receipt.pool_rows));
                            receipts.push(receipt);
                        }
                        // The column is not always there.
                        Err(Error::Query { .. }) if sql.contains("words") => {}
                        Err(Error::Storage(storage::Error::ColumnLags { .. })) if sql.contains("words") => {}
                        Err(e) => panic!("{sql}: {e}"),
                    }
                }
                receipts
            })
        };
        let readers = [asked("SELECT uid FROM pool"), asked("SELECT uid FROM pool WHERE words = 2"), asked("SELECT uid FROM pool")];
        for file in 1..FILES {
            add(file).await;
            session.refresh().await.expect("read");
            session.sql("ALTER TABLE pool ADD COLUMN words AS (word_count(text))", &[]).await.expect("added");
            // Something to be kept over changes.
            session.sql("CREATE OR REPLACE VIEW mine AS SELECT 1", &[]).await.expect("made");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            session.sql("ALTER TABLE pool DROP COLUMN words", &[]).await.expect("dropped");
        }
        session.sql("SELECT * FROM mine", &[]).await.expect("still there");
        assert!(session.sql("DROP TABLE pool", &[]).await.is_err());
        done.store(true, Ordering::Relaxed);
        let mut seen = std::collections::BTreeMap::new();
        for reader in readers {
            for receipt in reader.await.expect("no panic") {
                assert_eq!(receipt.versions["pool"], receipt.pool_version);
                assert_eq!(*seen.entry(receipt.pool_version).or_insert(receipt.pool_rows), receipt.pool_rows);
            }
        }
        for (version, of_receipts) in &seen {
            let then = pool.clone().at_version(&version.to_string()).await.expect("a version");
            assert_eq!(then.version().await.expect("read"), (*version, *of_receipts));
            assert!((1..=FILES).any(|files| rows(files) == *of_receipts));
        }
        assert!(seen.len() > FILES, "versions {seen:?}");
    }
}
