//! How an ingest writes: data files first, then one commit that either finds the table as it was read or fails.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::{Field, Schema, SchemaRef};
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction, TransactionBuilder, UpdateMode};
use lance::dataset::{CommitBuilder, InsertBuilder, NewColumnTransform, WriteMode, WriteParams};
use lance::table::format::Fragment;

use crate::{Error, Pool, Result, Table};

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

/// What a commit changes. Rows that `dead` names, by fragment and offset, are deleted.
#[derive(Default)]
pub(crate) struct Change {
    pub fragments: Vec<Fragment>,
    pub dead: HashMap<u32, Vec<u32>>,
}

/// One version more, `properties` within it; or `Error::Changed` if anyone has written to the table since `dataset`.
/// An append of Lance's would go in beside another's, and a sample that both bring would be there twice: a merge does
/// not.
pub(crate) async fn commit(dataset: &Arc<Dataset>, change: Change, properties: HashMap<String, String>) -> Result<Arc<Dataset>> {
    let wrap = || Error::lance(dataset.uri());
    let operation = if change.dead.is_empty() {
        let mut fragments = dataset.manifest().fragments.as_ref().clone();
        fragments.extend(change.fragments);
        Operation::Merge { fragments, schema: dataset.schema().clone(), preserves_nullability: false }
    } else {
        let (mut updated_fragments, mut removed_fragment_ids) = (Vec::new(), Vec::new());
        let mut dead: Vec<_> = change.dead.into_iter().collect();
        dead.sort_unstable();
        for (id, offsets) in dead {
            let fragment = dataset.get_fragment(id as usize).expect("offsets are of this version's rows");
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
    execute(dataset, operation, properties).await
}

/// Commits an operation that was prepared against `dataset`.
pub(crate) async fn execute(dataset: &Arc<Dataset>, operation: Operation, properties: HashMap<String, String>) -> Result<Arc<Dataset>> {
    let transaction: Transaction =
        TransactionBuilder::new(dataset.version().version, operation).transaction_properties(Some(Arc::new(properties))).build();
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
