use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, RecordBatch, RecordBatchReader, new_null_array,
};
use arrow::compute::{CastOptions, cast, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::embeddings::{self, NpzArray};
use super::sources::{Kind, Source};
use super::{Shared, lock};
use crate::ledger::FileDigest;
use crate::uid::hex_decode;
use crate::{Error, Pool, Result, Table, Uid, schema};

/// Rows decoded at a time: with CommonPool's four embeddings some 20 MB.
const BATCH_ROWS: usize = 4096;

/// A metadata file, opened, with the arrays beside it.
struct Opened {
    reader: ParquetRecordBatchReader,
    arrays: Vec<NpzArray>,
}

impl Opened {
    fn new(source: &Source) -> Result<(Opened, Option<Error>)> {
        let path = &source.path;
        let parquet = |source| Error::Parquet { path: path.clone(), source };
        let file = File::open(path).map_err(Error::io(path))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?;
        let rows = builder.metadata().file_metadata().num_rows() as u64;
        let schema = builder.schema().clone();
        let has = |name: &str| schema.field_with_name(name).is_ok();
        if !(has("uid") || has("url") && has("text")) {
            let found = schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::ColumnMissing { path: path.clone(), column: "uid", found });
        }
        let (arrays, wrong) = match source.embeddings.as_deref().map(|npz| embeddings::open(npz, rows)) {
            Some(Err(e)) => (vec![], Some(e)),
            Some(Ok(arrays)) => (arrays, None),
            None => (vec![], None),
        };
        let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(parquet)?;
        Ok((Opened { reader, arrays }, wrong))
    }

    /// The columns that this file brings, as the pool has them.
    fn fields(&self) -> Vec<Field> {
        let schema = self.reader.schema();
        let columns = schema
            .fields()
            .iter()
            .map(|f| schema::pool_field(f.name()).unwrap_or_else(|| Field::new(f.name(), f.data_type().clone(), true)));
        let uid = schema::pool_field("uid").filter(|_| schema.field_with_name("uid").is_err());
        uid.into_iter().chain(columns).chain(self.arrays.iter().map(NpzArray::field)).collect()
    }
}

/// Settles the pool's columns: those it has and those that the new files bring. Files that cannot be opened, or that
/// disagree with the pool about a column's type, are left out and counted.
pub(super) async fn plan_schema(pool: &Pool, fresh: &mut Vec<(Source, FileDigest)>, shared: &Shared) -> Result<()> {
    let existing = pool.dataset(Table::Pool).await?.map(|dataset| Schema::from(dataset.schema()));
    let mut fields: Vec<Field> = existing.iter().flat_map(|s| s.fields().iter().map(|f| f.as_ref().clone())).collect();
    let known = fields.len();
    if fields.is_empty() {
        fields.extend(schema::pool_field("uid"));
    }
    fresh.retain(|(source, _)| match source.kind {
        Kind::Shard => true,
        Kind::Metadata => match add_fields(&mut fields, source) {
            Ok(()) => true,
            Err(e) => {
                lock(shared).summary.skip("unreadable metadata file", || e.to_string());
                false
            }
        },
    });
    if existing.is_none() && fresh.iter().any(|(source, _)| source.kind == Kind::Shard) {
        let absent = |name: &&&str| !fields.iter().any(|f| f.name() == **name);
        let of_shards: Vec<Field> = schema::SHARD_COLUMNS.iter().filter(absent).filter_map(|n| schema::pool_field(n)).collect();
        fields.extend(of_shards);
    }
    if existing.is_some() && fields.len() > known {
        pool.add_null_columns(Schema::new(fields[known..].to_vec())).await?;
    }
    lock(shared).schema = Arc::new(Schema::new(fields));
    Ok(())
}

fn add_fields(fields: &mut Vec<Field>, source: &Source) -> Result<()> {
    let (opened, _) = Opened::new(source)?;
    let mut new = Vec::new();
    for field in opened.fields() {
        match fields.iter().find(|f| f.name() == field.name()) {
            Some(f) if f.data_type() == field.data_type() => {}
            Some(f) => {
                return Err(Error::ColumnType {
                    path: source.path.clone(),
                    column: field.name().clone(),
                    expected: f.data_type().to_string(),
                    got: field.data_type().to_string(),
                });
            }
            None => new.push(field),
        }
    }
    fields.extend(new);
    Ok(())
}

/// Appends a file's rows as one version of `pool`, whose number it returns.
pub(super) async fn ingest(pool: &Pool, source: &Source, shared: &Shared) -> Result<u64> {
    let (opened, wrong_embeddings) = Opened::new(source)?;
    if let Some(e) = wrong_embeddings {
        lock(shared).summary.skip("unreadable embeddings file", || e.to_string());
    }
    let schema = lock(shared).schema.clone();
    let rows = Rows { opened, schema, path: source.path.clone(), row: 0, shared: shared.clone() };
    pool.append(Table::Pool, Box::new(rows)).await
}

/// A metadata file's good rows in the pool's schema.
struct Rows {
    opened: Opened,
    schema: SchemaRef,
    path: PathBuf,
    /// Rows read so far, good or bad.
    row: usize,
    shared: Shared,
}

impl Rows {
    fn convert(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let n = batch.num_rows();
        let mut arrays: HashMap<String, ArrayRef> = HashMap::new();
        for array in &mut self.opened.arrays {
            match array.read(n) {
                Ok(values) => arrays.insert(array.name.clone(), values),
                Err(e) => {
                    lock(&self.shared).summary.skip(super::EMBEDDINGS_BREAK_OFF, || e.to_string());
                    arrays.clear();
                    break;
                }
            };
        }
        if arrays.is_empty() {
            self.opened.arrays.clear();
        }
        let has_embeddings = !arrays.is_empty();
        let (uids, keep) = self.uids(batch)?;
        let columns = self.schema.fields().iter().map(|field| {
            let column = if field.name() == "uid" {
                Arc::new(uids.clone()) as ArrayRef
            } else if let Some(array) = arrays.remove(field.name()) {
                array
            } else if let Some(column) = batch.column_by_name(field.name()) {
                convert_column(column, field, &self.path)?
            } else {
                new_null_array(field.data_type(), n)
            };
            Ok(column)
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let batch = filter_record_batch(&RecordBatch::try_new(self.schema.clone(), columns)?, &keep)?;
        let summary = &mut lock(&self.shared).summary;
        summary.rows += batch.num_rows() as u64;
        summary.embeddings += if has_embeddings { batch.num_rows() as u64 } else { 0 };
        self.row += n;
        Ok(batch)
    }

    /// The rows' uids, and which rows to keep: those with a proper uid that the pool does not have.
    fn uids(&self, batch: &RecordBatch) -> Result<(FixedSizeBinaryArray, BooleanArray)> {
        let text = |name| Ok::<_, Error>(cast(batch.column_by_name(name).expect("checked when opened"), &DataType::Utf8)?);
        let made = batch.column_by_name("uid").is_none();
        let (uid_text, url, caption) =
            if made { (None, Some(text("url")?), Some(text("text")?)) } else { (Some(batch["uid"].clone()), None, None) };
        let binary = uid_text.as_ref().and_then(|c| c.as_fixed_size_binary_opt().cloned());
        let uid_text = match (&binary, &uid_text) {
            (None, Some(column)) => Some(cast(column, &DataType::Utf8)?),
            _ => None,
        };
        let uid_of = |i: usize| -> Option<Uid> {
            if let Some(binary) = &binary {
                return binary.is_valid(i).then(|| binary.value(i).try_into().ok().map(Uid))?;
            }
            if let Some(column) = &uid_text {
                let column = column.as_string::<i32>();
                return column.is_valid(i).then(|| column.value(i).parse().ok())?;
            }
            let value = |c: &Option<ArrayRef>| c.as_ref().map(|c| c.as_string::<i32>().value(i).to_string()).unwrap_or_default();
            Some(Uid::of_pair(&value(&url), &value(&caption)))
        };
        let mut state = lock(&self.shared);
        let mut uids = FixedSizeBinaryBuilder::with_capacity(batch.num_rows(), 16);
        let mut keep = Vec::with_capacity(batch.num_rows());
        for i in 0..batch.num_rows() {
            let uid = uid_of(i);
            let place = || format!("{}, row {}", self.path.display(), self.row + i);
            let fresh = match uid {
                None => {
                    state.summary.skip("not a uid", place);
                    false
                }
                Some(uid) if !state.pool_uids.insert(uid) => {
                    state.summary.skip("uid is in the pool already", place);
                    false
                }
                Some(_) => true,
            };
            keep.push(fresh);
            uids.append_value(uid.unwrap_or_default().0)?;
        }
        Ok((uids.finish(), BooleanArray::from(keep)))
    }
}

/// A source's column in the pool's type; values that do not fit are null.
fn convert_column(column: &ArrayRef, field: &Field, path: &Path) -> Result<ArrayRef> {
    if column.data_type() == field.data_type() {
        return Ok(column.clone());
    }
    if field.name() == "sha256" {
        let text = cast(column, &DataType::Utf8)?;
        let mut digests = FixedSizeBinaryBuilder::with_capacity(column.len(), 32);
        let mut bytes = [0; 32];
        for digest in text.as_string::<i32>() {
            match digest {
                Some(digest) if hex_decode(digest, &mut bytes) => digests.append_value(bytes)?,
                _ => digests.append_null(),
            }
        }
        return Ok(Arc::new(digests.finish()));
    }
    let options = CastOptions { safe: true, ..CastOptions::default() };
    cast_with_options(column, field.data_type(), &options).map_err(|_| Error::ColumnType {
        path: path.to_path_buf(),
        column: field.name().clone(),
        expected: field.data_type().to_string(),
        got: column.data_type().to_string(),
    })
}

impl Iterator for Rows {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let error = match self.opened.reader.next()? {
            Ok(batch) => match self.convert(&batch) {
                Ok(batch) => return Some(Ok(batch)),
                Err(e) => e.to_string(),
            },
            Err(e) => format!("{}: {e}", self.path.display()),
        };
        // What was read before stays; the rest of a broken file cannot be had.
        lock(&self.shared).summary.skip(super::METADATA_BREAKS_OFF, || error);
        None
    }
}

impl RecordBatchReader for Rows {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
