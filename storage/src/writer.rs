//! Writing to a pool: one writer at a time, what a killed one has left swept away first, and each step one commit that
//! either finds the table as it was read or fails.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::{Field, Schema, SchemaRef};
use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::dataset::transaction::{DataReplacementGroup, Operation, Transaction, TransactionBuilder, UpdateMode};
use lance::dataset::{CommitBuilder, InsertBuilder, NewColumnTransform, WriteMode, WriteParams};
use lance::index::DatasetIndexExt;
use lance::table::format::key_existence::{KeyExistenceFilterBuilder, KeyValue};
use lance::table::format::{DataFile, Fragment, IndexMetadata};

use crate::exclusion::check_exclusion;
use crate::lock::Lock;
use crate::{Error, Pool, Result, Table, computed, verify};

/// The right to write to a pool, for as long as it lives. All commits to tables go through one, but for those to `runs`,
/// `evals` and `eval_images`, to which anyone may write at any time.
#[derive(Clone)]
pub struct Writer {
    pool: Pool,
    lock: Arc<Lock>,
}

impl Pool {
    /// Runs `change` as the only writer of a local pool; in an object store each of its commits checks that nobody else has
    /// written, which it must know how to check. What a killed writer has left is removed before, and what this one leaves where it ends by an error is
    /// removed by the next.
    ///
    /// # Errors
    /// `Held` where another process writes, `NoExclusion` where a store keeps writers not apart, and what `change` gives.
    pub fn write<'a, T, E, F>(&'a self, change: impl FnOnce(Writer) -> F + Send + 'a) -> BoxFuture<'a, Result<T, E>>
    where
        T: Send + 'a,
        E: From<Error> + Send + 'a,
        F: Future<Output = Result<T, E>> + Send + 'a,
    {
        async move {
            let writer = Writer::of(self, Lock::take(self)?);
            if self.is_remote() {
                check_exclusion(self.root()).await?;
            }
            if writer.lock.unclean {
                verify::sweep(self).await?;
            }
            let done = change(writer.clone()).await?;
            writer.done();
            Ok(done)
        }
        .boxed()
    }
}

impl Writer {
    pub(crate) fn of(pool: &Pool, lock: Lock) -> Writer {
        Writer { pool: pool.clone(), lock: Arc::new(lock) }
    }

    /// Says that all is as it should be: the next writer has nothing to sweep away.
    pub(crate) fn done(self) {
        self.lock.done();
    }

    /// Returns the pool that it writes to.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns true if nobody else can write; always false in object stores and on file systems without locks.
    pub fn is_alone(&self) -> bool {
        self.lock.is_held()
    }

    /// Returns a table at its newest version, to be changed; an error where it is not there.
    pub fn table(&self, table: Table) -> BoxFuture<'_, Result<Dataset>> {
        async move { Ok(Dataset::clone(&*self.pool.require(table).await?)) }.boxed()
    }

    /// Makes a table that does not exist, empty; `Error::Changed` if it does by now.
    pub(crate) async fn create(&self, table: Table, schema: SchemaRef) -> Result<Arc<Dataset>> {
        self.pool.make_folder()?;
        let params = WriteParams { mode: WriteMode::Create, session: Some(self.pool.session()), ..WriteParams::default() };
        let empty = RecordBatchIterator::new([Ok(RecordBatch::new_empty(schema.clone()))], schema);
        let uri = self.pool.uri(table);
        match InsertBuilder::new(&uri).with_params(&params).execute_stream(empty).await {
            Ok(dataset) => Ok(Arc::new(dataset)),
            Err(lance::Error::DatasetAlreadyExists { .. }) => Err(Error::Changed { path: uri }),
            Err(e) => Err(conflict(&uri)(e)),
        }
    }

    /// Appends everything that `batches` yields as one version. The table is made if this is its first.
    pub(crate) async fn append(&self, table: Table, batches: Box<dyn RecordBatchReader + Send>) -> Result<u64> {
        self.pool.append(table, batches).await
    }

    /// Returns the table with columns that it lacks, null in every row, without touching its files.
    pub(crate) async fn add_null_columns(&self, dataset: &Arc<Dataset>, fields: Vec<Field>) -> Result<Arc<Dataset>> {
        if fields.is_empty() {
            return Ok(dataset.clone());
        }
        let mut wider = Dataset::clone(dataset);
        let transform = NewColumnTransform::AllNulls(Arc::new(Schema::new(fields)));
        wider.add_columns(transform, None, None).await.map_err(conflict(dataset.uri()))?;
        Ok(Arc::new(wider))
    }

    /// Makes one version more, `properties` within it; `Error::Changed` if anyone has written to the table since `dataset`.
    /// An append of Lance's would go in beside another's, and a sample that both bring would be there twice: a merge does
    /// not, nor an update that says that it inserts keys.
    pub(crate) async fn commit(&self, dataset: &Arc<Dataset>, change: Change, properties: HashMap<String, String>) -> Result<Arc<Dataset>> {
        let changed = || Error::Changed { path: dataset.uri().to_string() };
        if !change.dead.is_empty() {
            let operation = update(dataset, change).await?;
            return commit(dataset, operation, properties).await;
        }
        let mut fragments = dataset.manifest().fragments.as_ref().clone();
        for DataReplacementGroup(id, file) in change.columns {
            let fragment = fragments.iter_mut().find(|fragment| fragment.id == id);
            let stale = computed::reading(dataset, &file.fields);
            replace_columns(fragment.ok_or_else(changed)?, file, &stale);
        }
        fragments.extend(change.fragments);
        let operation = Operation::Merge { fragments, schema: dataset.schema().clone(), preserves_nullability: false };
        commit(dataset, operation, properties).await
    }

    /// Removes whole fragments, those of these ids that are still there.
    pub(crate) async fn drop_fragments(&self, dataset: &Arc<Dataset>, ids: Vec<u64>) -> Result<()> {
        let deleted_fragment_ids: Vec<u64> = ids.into_iter().filter(|id| dataset.get_fragment(*id as usize).is_some()).collect();
        if deleted_fragment_ids.is_empty() {
            return Ok(());
        }
        let operation = Operation::Delete { updated_fragments: vec![], deleted_fragment_ids, predicate: String::new() };
        commit(dataset, operation, HashMap::new()).await.map(drop)
    }

    /// Drops columns and renames those that `renamed` gives another name, as one version that touches no file.
    pub(crate) async fn rename_over(
        &self,
        dataset: &Arc<Dataset>,
        dropped: &[&str],
        renamed: impl Fn(&str) -> Option<String>,
    ) -> Result<Arc<Dataset>> {
        let mut schema = dataset.schema().clone();
        schema.fields.retain(|field| !dropped.contains(&field.name.as_str()));
        for field in &mut schema.fields {
            if let Some(name) = renamed(&field.name) {
                field.name = name;
            }
        }
        commit(dataset, Operation::Project { schema, preserves_nullability: true }, HashMap::new()).await
    }

    /// Puts pieces of an index in the place of all that there are of its name, over whichever column, as one version.
    pub fn replace_index<'a>(&'a self, dataset: &'a Dataset, name: &'a str, pieces: Vec<IndexMetadata>) -> BoxFuture<'a, Result<()>> {
        async move {
            let there = dataset.load_indices().await.map_err(Error::lance(dataset.uri()))?;
            let removed_indices = there.iter().filter(|index| index.name == name).cloned().collect();
            let operation = Operation::CreateIndex { new_indices: pieces, removed_indices };
            commit(&Arc::new(dataset.clone()), operation, HashMap::new()).await.map(drop)
        }
        .boxed()
    }
}

async fn commit(dataset: &Arc<Dataset>, operation: Operation, properties: HashMap<String, String>) -> Result<Arc<Dataset>> {
    let transaction: Transaction =
        TransactionBuilder::new(dataset.version().version, operation).transaction_properties(Some(Arc::new(properties))).build();
    let committed = CommitBuilder::new(dataset.clone()).with_skip_auto_cleanup(true).execute(transaction).await;
    committed.map(Arc::new).map_err(conflict(dataset.uri()))
}

/// Returns the operation of a change that deletes rows. Two such go beside each other if their fragments differ, so each
/// says that it inserts the same key.
async fn update(dataset: &Dataset, change: Change) -> Result<Operation> {
    let mut keys = KeyExistenceFilterBuilder::new(Vec::new());
    keys.insert(KeyValue::UInt64(0)).map_err(Error::lance(dataset.uri()))?;
    let (mut updated_fragments, mut removed_fragment_ids) = (Vec::new(), Vec::new());
    let mut dead: Vec<_> = change.dead.into_iter().collect();
    dead.sort_unstable();
    for (id, offsets) in dead {
        let fragment = dataset.get_fragment(id as usize).ok_or_else(|| Error::Changed { path: dataset.uri().to_string() })?;
        match fragment.extend_deletions(offsets).await.map_err(Error::lance(dataset.uri()))? {
            Some(fragment) => updated_fragments.push(fragment.metadata().clone()),
            None => removed_fragment_ids.push(u64::from(id)),
        }
    }
    Ok(Operation::Update {
        removed_fragment_ids,
        updated_fragments,
        new_fragments: change.fragments,
        fields_modified: vec![],
        compacted_sstables: vec![],
        fields_for_preserving_frag_bitmap: vec![],
        update_mode: Some(UpdateMode::RewriteRows),
        inserted_rows_filter: Some(keys.build()),
        updated_fragment_offsets: None,
    })
}

/// Writes the batches as new fragments of at most `fragment_rows`, which no version of the table holds yet.
pub(crate) async fn write_fragments(
    dataset: &Arc<Dataset>,
    batches: Box<dyn RecordBatchReader + Send>,
    fragment_rows: usize,
) -> Result<Vec<Fragment>> {
    let params = WriteParams {
        mode: WriteMode::Append,
        max_rows_per_file: fragment_rows,
        session: Some(dataset.session()),
        ..WriteParams::default()
    };
    let written = InsertBuilder::new(dataset.clone()).with_params(&params).execute_uncommitted_stream(batches).await;
    match written.map_err(Error::lance(dataset.uri()))?.operation {
        Operation::Append { fragments } => Ok(fragments),
        other => unreachable!("an append was asked for, not {other}"),
    }
}

/// What a commit changes: new fragments, rows that are deleted, by fragment and offset, and new files for columns of a
/// fragment.
#[derive(Default)]
pub(crate) struct Change {
    pub fragments: Vec<Fragment>,
    pub dead: HashMap<u32, Vec<u32>>,
    pub columns: Vec<DataReplacementGroup>,
}

/// The field id that marks a column of a data file as no longer read there.
const TOMBSTONE: i32 = -2;

/// The fragment with a file's columns in place of those that it had, and without those that are stale by it.
fn replace_columns(fragment: &mut Fragment, new: DataFile, stale: &[i32]) {
    for file in &mut fragment.files {
        let goes = |id: &i32| new.fields.contains(id) || stale.contains(id);
        let left: Vec<i32> = file.fields.iter().map(|id| if goes(id) { TOMBSTONE } else { *id }).collect();
        file.fields = left.into();
    }
    fragment.files.retain(|file| file.fields.iter().any(|id| *id != TOMBSTONE));
    fragment.files.push(new);
}

/// Tells what another writer has come before from other errors.
fn conflict(uri: &str) -> impl FnOnce(lance::Error) -> Error {
    let path = uri.to_string();
    move |e| match e {
        lance::Error::CommitConflict { .. }
        | lance::Error::RetryableCommitConflict { .. }
        | lance::Error::TooMuchWriteContention { .. }
        | lance::Error::IncompatibleTransaction { .. } => Error::Changed { path },
        e => Error::lance(path)(e),
    }
}
