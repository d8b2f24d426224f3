use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::Schema;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::{NewColumnTransform, WriteMode, WriteParams};
use lance::session::Session;
use lance::{Dataset, dataset::InsertBuilder};

use crate::{Error, Result, Uid, computed};

/// A pool: a folder, or an object-store URI, of Lance datasets.
#[derive(Clone)]
pub struct Pool {
    root: String,
    session: Arc<Session>,
    /// The versions to read where they are not the newest; a table that is not named did not exist.
    versions: Option<Arc<HashMap<Table, u64>>>,
}

/// The datasets of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    Pool,
    Images,
    Ledger,
    Rejects,
    Runs,
    Evals,
    Vectors,
    EvalImages,
}

impl Table {
    pub const ALL: [Table; 8] =
        [Table::Pool, Table::Images, Table::Ledger, Table::Rejects, Table::Runs, Table::Evals, Table::Vectors, Table::EvalImages];

    /// Returns false for the tables to which anyone may write at any time, without the pool's lock: a file there that no
    /// version holds may be about to be committed.
    pub(crate) fn is_locked(self) -> bool {
        !matches!(self, Table::Runs | Table::Evals | Table::EvalImages)
    }

    /// Its name in SQL; the dataset is `NAME.lance`.
    pub fn name(self) -> &'static str {
        match self {
            Table::Pool => "pool",
            Table::Images => "images",
            Table::Ledger => "ledger",
            Table::Rejects => "rejects",
            Table::Runs => "runs",
            Table::Evals => "evals",
            Table::Vectors => "vectors",
            Table::EvalImages => "eval_images",
        }
    }
}

impl Pool {
    /// Opens a pool that exists.
    pub fn open<'a>(root: &'a str) -> BoxFuture<'a, Result<Pool>> {
        async move {
            let pool = Pool::at(root);
            if !pool.is_remote() && Path::new(root).is_file() {
                return Err(Error::PoolIsFile { path: root.to_string() });
            }
            // Where the first ingest refused everything, what it says of that is there to be looked at.
            if pool.dataset(Table::Pool).await?.is_none() && pool.dataset(Table::Rejects).await?.is_none() {
                let path = root.to_string();
                let exists = !is_uri(root) && Path::new(root).exists();
                return Err(if exists { Error::NotAPool { path } } else { Error::PoolMissing { path } });
            }
            Ok(pool)
        }
        .boxed()
    }

    /// A pool that the first ingest may yet have to make.
    pub fn at(root: &str) -> Pool {
        Pool { root: root.trim_end_matches('/').to_string(), session: Arc::new(Session::default()), versions: None }
    }

    /// The same pool, read at these versions.
    pub(crate) fn with_versions(self, versions: HashMap<Table, u64>) -> Pool {
        Pool { versions: Some(Arc::new(versions)), ..self }
    }

    /// The same pool, read at the versions that it has now.
    pub fn pinned(&self) -> BoxFuture<'_, Result<Pool>> {
        async move {
            let versions = self.table_versions().await?.into_iter().collect();
            Ok(self.clone().with_versions(versions))
        }
        .boxed()
    }

    /// Whether it is read at fixed versions, which do not change.
    pub fn is_at_version(&self) -> bool {
        self.versions.is_some()
    }

    pub(crate) fn session(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// Whether it lies in an object store.
    pub(crate) fn is_remote(&self) -> bool {
        is_uri(&self.root)
    }

    /// Makes the folder of a local pool.
    pub(crate) fn make_folder(&self) -> Result<()> {
        if self.is_remote() {
            return Ok(());
        }
        if Path::new(&self.root).is_file() {
            return Err(Error::PoolIsFile { path: self.root.clone() });
        }
        std::fs::create_dir_all(&self.root).map_err(Error::io(&self.root))
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    /// A table at its newest version, or at that of `at`; `None` before anything was written to it.
    pub fn dataset<'a>(&'a self, table: Table) -> BoxFuture<'a, Result<Option<Arc<Dataset>>>> {
        async move {
            let uri = self.uri(table);
            let mut builder = DatasetBuilder::from_uri(&uri).with_session(self.session.clone());
            if let Some(versions) = &self.versions {
                let Some(&version) = versions.get(&table) else { return Ok(None) };
                builder = builder.with_version(version);
            }
            match builder.load().await {
                Ok(dataset) => Ok(Some(Arc::new(dataset))),
                Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(Error::lance(uri)(e)),
            }
        }
        .boxed()
    }

    /// As `dataset`, where its absence is an error.
    pub fn require<'a>(&'a self, table: Table) -> BoxFuture<'a, Result<Arc<Dataset>>> {
        async move {
            let missing = || Error::TableMissing { path: self.root.clone(), table: table.name() };
            self.dataset(table).await?.ok_or_else(missing)
        }
        .boxed()
    }

    /// Appends everything that `batches` yields as one version, and returns its number.
    /// The table is made if this is its first.
    pub(crate) async fn append(&self, table: Table, batches: Box<dyn RecordBatchReader + Send>) -> Result<u64> {
        let uri = self.uri(table);
        let params = |mode| WriteParams { mode, session: Some(self.session.clone()), ..WriteParams::default() };
        let written = match self.dataset(table).await? {
            Some(dataset) => InsertBuilder::new(dataset).with_params(&params(WriteMode::Append)).execute_stream(batches).await,
            None => {
                self.make_folder()?;
                InsertBuilder::new(&uri).with_params(&params(WriteMode::Create)).execute_stream(batches).await
            }
        };
        Ok(written.map_err(Error::lance(uri))?.version().version)
    }

    /// Writes everything that `batches` yields in place of what the table holds, as one version.
    pub(crate) async fn replace(&self, table: Table, batches: Box<dyn RecordBatchReader + Send>) -> Result<()> {
        let uri = self.uri(table);
        let params = WriteParams { mode: WriteMode::Overwrite, session: Some(self.session.clone()), ..WriteParams::default() };
        InsertBuilder::new(&uri).with_params(&params).execute_stream(batches).await.map_err(Error::lance(uri))?;
        Ok(())
    }

    /// An error if `add_columns` would refuse a column of this schema, before the work is done.
    pub fn check_new_columns<'a>(&'a self, schema: &'a Schema, replace: bool) -> BoxFuture<'a, Result<()>> {
        async move {
            let dataset = self.require(Table::Pool).await?;
            match schema.fields().iter().find(|f| dataset.schema().field(f.name()).is_some() && !replace) {
                Some(field) => Err(Error::ColumnExists { column: field.name().clone() }),
                None => Ok(()),
            }
        }
        .boxed()
    }

    /// Adds columns to `pool` from batches that together have one row for each of its rows, in order.
    /// The other columns are not rewritten. Columns of the same name are an error, or dropped first where `replace`.
    pub fn add_columns<'a>(&'a self, batches: Box<dyn RecordBatchReader + Send>, replace: bool) -> BoxFuture<'a, Result<u64>> {
        self.write(move |writer| async move {
            let uri = self.uri(Table::Pool);
            let mut dataset = writer.table(Table::Pool).await?;
            let schema = batches.schema();
            self.check_new_columns(&schema, replace).await?;
            let present: Vec<&str> =
                schema.fields().iter().map(|f| f.name().as_str()).filter(|name| dataset.schema().field(name).is_some()).collect();
            if present.is_empty() {
                let added = dataset.add_columns(NewColumnTransform::Reader(batches), None, None).await;
                added.map_err(Error::lance(&uri))?;
                return Ok(dataset.version().version);
            }
            for column in &present {
                computed::must_be_unread(&dataset, column)?;
            }
            // The new columns are whole under other names before the old ones go.
            let new_name = |name: &str| format!("{name}{NEW}");
            let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_name(new_name(f.name()))).collect();
            let left: Vec<String> = fields.iter().map(|f| f.name().clone()).filter(|name| dataset.schema().field(name).is_some()).collect();
            if !left.is_empty() {
                let left: Vec<&str> = left.iter().map(String::as_str).collect();
                dataset.drop_columns(&left).await.map_err(Error::lance(&uri))?;
            }
            let renamed = Arc::new(Schema::new(fields));
            let to = renamed.clone();
            let batches = batches.map(move |batch| RecordBatch::try_new(to.clone(), batch?.columns().to_vec()));
            let batches = RecordBatchIterator::new(batches, renamed);
            let added = dataset.add_columns(NewColumnTransform::Reader(Box::new(batches)), None, None).await;
            added.map_err(Error::lance(&uri))?;
            // One commit takes the old ones out and gives the new ones their names.
            let renamed = |name: &str| schema.fields().iter().map(|f| f.name()).find(|to| name == new_name(to)).cloned();
            let dataset = writer.rename_over(&Arc::new(dataset), &present, renamed).await?;
            Ok(dataset.version().version)
        })
    }

    /// Every uid of a table, in row order: `each` is given the offset of the first row with each batch.
    pub(crate) async fn for_each_uid(&self, dataset: &Dataset, mut each: impl FnMut(u64, Uid)) -> Result<()> {
        let wrap = |e| Error::lance(dataset.uri())(e);
        let mut scanner = dataset.scan();
        scanner.project(&["uid"]).map_err(wrap)?.scan_in_order(true).io_buffer_size(16 << 20);
        let mut stream = scanner.try_into_stream().await.map_err(wrap)?;
        let mut row = 0;
        while let Some(batch) = stream.try_next().await.map_err(wrap)? {
            for uid in uids_of(batch.column(0).as_ref()) {
                each(row, uid);
                row += 1;
            }
        }
        Ok(())
    }

    /// The newest version of `pool`, and its number of rows.
    pub fn version(&self) -> BoxFuture<'_, Result<(u64, u64)>> {
        async move {
            let dataset = self.require(Table::Pool).await?;
            let rows = dataset.count_rows(None).await.map_err(Error::lance(self.uri(Table::Pool)))?;
            Ok((dataset.version().version, rows as u64))
        }
        .boxed()
    }

    pub fn uri(&self, table: Table) -> String {
        format!("{}/{}.lance", self.root, table.name())
    }
}

/// The uids of a `FixedSizeBinary(16)` column without nulls.
pub(crate) fn uids_of(column: &dyn Array) -> impl Iterator<Item = Uid> + '_ {
    let column = column.as_fixed_size_binary();
    (0..column.len()).map(|i| Uid(column.value(i).try_into().expect("uids are 16 bytes wide")))
}

/// Ends the name of a column that is being written in place of another.
const NEW: &str = "__new";

fn is_uri(root: &str) -> bool {
    root.contains("://")
}
