//! How an ingest writes: data files first, then one commit that either finds the table as it was read or fails.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::{Field, Schema, SchemaRef};
use lance::Dataset;
use lance::dataset::transaction::{DataReplacementGroup, Operation, Transaction, TransactionBuilder, UpdateMode};
use lance::dataset::{CommitBuilder, InsertBuilder, NewColumnTransform, WriteMode, WriteParams};
use lance::table::format::{DataFile, Fragment};

use crate::{Error, Pool, Result, Table, computed};

/// Makes a table that does not exist, empty; `Error::Changed` if it does by now.
pub(crate) async fn create(pool: &Pool, table: Table, schema: SchemaRef) -> Result<Arc<Dataset>> {
    pool.make_folder()?;
    let params = WriteParams { mode: WriteMode::Create, session: Some(pool.session()), ..WriteParams::default() };
    let empty = RecordBatchIterator::new([Ok(RecordBatch::new_empty(schema.clone()))], schema);
    let uri = pool.uri(table);
    match InsertBuilder::new(&uri).with_params(&params).execute_stream(empty).await {
        Ok(dataset) => Ok(Arc::new(dataset)),
        Err(lance::Error::DatasetAlreadyExists { .. }) => Err(Error::Changed { path: uri }),
        Err(e) => Err(Error::lance(uri)(e)),
    }
}

/// The table with columns that it lacks, null in every row, without touching its files.
pub(crate) async fn add_null_columns(dataset: &Arc<Dataset>, fields: Vec<Field>) -> Result<Arc<Dataset>> {
    if fields.is_empty() {
        return Ok(dataset.clone());
    }
    let mut wider = Dataset::clone(dataset);
    let transform = NewColumnTransform::AllNulls(Arc::new(Schema::new(fields)));
    wider.add_columns(transform, None, None).await.map_err(conflict(dataset))?;
    Ok(Arc::new(wider))
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

/// One version more, `properties` within it; or `Error::Changed` if anyone has written to the table since `dataset`.
/// An append of Lance's would go in beside another's, and a sample that both bring would be there twice: a merge does
/// not. Only where rows are deleted it is an update, which another's of other fragments may go beside; local pools have
/// a lock, and in object stores the newest version is looked up before.
pub(crate) async fn commit(dataset: &Arc<Dataset>, change: Change, properties: HashMap<String, String>) -> Result<Arc<Dataset>> {
    let wrap = || Error::lance(dataset.uri());
    let operation = if change.dead.is_empty() {
        let mut fragments = dataset.manifest().fragments.as_ref().clone();
        for DataReplacementGroup(id, file) in change.columns {
            let fragment = fragments.iter_mut().find(|fragment| fragment.id == id);
            let stale = computed::reading(dataset, &file.fields);
            replace_columns(fragment.ok_or_else(|| Error::Changed { path: dataset.uri().to_string() })?, file, &stale);
        }
        fragments.extend(change.fragments);
        Operation::Merge { fragments, schema: dataset.schema().clone(), preserves_nullability: false }
    } else {
        let (mut updated_fragments, mut removed_fragment_ids) = (Vec::new(), Vec::new());
        let mut dead: Vec<_> = change.dead.into_iter().collect();
        dead.sort_unstable();
        for (id, offsets) in dead {
            let changed = || Error::Changed { path: dataset.uri().to_string() };
            let fragment = dataset.get_fragment(id as usize).ok_or_else(changed)?;
            match fragment.extend_deletions(offsets).await.map_err(wrap())? {
                Some(fragment) => updated_fragments.push(fragment.metadata().clone()),
                None => removed_fragment_ids.push(u64::from(id)),
            }
        }
        Operation::Update {
            removed_fragment_ids,
            updated_fragments,
            new_fragments: change.fragments,
            fields_modified: vec![],
            compacted_sstables: vec![],
            fields_for_preserving_frag_bitmap: vec![],
            update_mode: Some(UpdateMode::RewriteRows),
            inserted_rows_filter: None,
            updated_fragment_offsets: None,
        }
    };
    let transaction: Transaction =
        TransactionBuilder::new(dataset.version().version, operation).transaction_properties(Some(Arc::new(properties))).build();
    let committed = CommitBuilder::new(dataset.clone()).with_skip_auto_cleanup(true).execute(transaction).await;
    committed.map(Arc::new).map_err(conflict(dataset))
}

/// Drops columns and renames those that `renamed` gives another name, as one version that touches no file.
pub(crate) async fn rename_over(
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
    let operation = Operation::Project { schema, preserves_nullability: true };
    let transaction: Transaction = TransactionBuilder::new(dataset.version().version, operation).build();
    let committed = CommitBuilder::new(dataset.clone()).with_skip_auto_cleanup(true).execute(transaction).await;
    committed.map(Arc::new).map_err(conflict(dataset))
}

fn conflict(dataset: &Dataset) -> impl FnOnce(lance::Error) -> Error {
    let path = dataset.uri().to_string();
    move |e| match e {
        lance::Error::CommitConflict { .. }
        | lance::Error::RetryableCommitConflict { .. }
        | lance::Error::TooMuchWriteContention { .. }
        | lance::Error::IncompatibleTransaction { .. } => Error::Changed { path },
        e => Error::lance(path)(e),
    }
}
