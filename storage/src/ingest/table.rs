//! Metadata files, parquet or CSV, as record batches.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchReader, StringBuilder};
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{Error, Result, schema};

/// Rows decoded at a time.
pub(super) const BATCH_ROWS: usize = 8192;

/// What a file's header says.
pub(super) struct Header {
    pub schema: SchemaRef,
    /// Exact for parquet, a guess by size for CSV.
    pub rows: u64,
}

/// What `read` gives; an error where it panics, as readers of files do on some that are damaged.
fn guard<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    result.unwrap_or_else(|_| Err(Error::ReaderPanicked { path: path.to_path_buf() }))
}

/// Reads batches, and ends with an error where that panics.
struct Guarded {
    path: PathBuf,
    /// None after a panic.
    inner: Option<Box<dyn RecordBatchReader + Send>>,
    schema: SchemaRef,
}

impl Iterator for Guarded {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut inner = self.inner.take()?;
        match guard(&self.path, || Ok((inner.next(), inner))) {
            Ok((batch, inner)) => {
                self.inner = Some(inner);
                batch
            }
            Err(e) => Some(Err(ArrowError::ExternalError(Box::new(e)))),
        }
    }
}

impl RecordBatchReader for Guarded {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

/// Reads the header, and checks that the rows have a uid or what one is made of.
pub(super) fn header(path: &Path) -> Result<Header> {
    guard(path, || read_header(path))
}

fn read_header(path: &Path) -> Result<Header> {
    let header = if is_csv(path) {
        let bytes = path.metadata().map_err(Error::io(path))?.len();
        Header { schema: csv_schema(path)?, rows: bytes / 100 }
    } else {
        let builder = parquet(path)?;
        Header { schema: builder.schema().clone(), rows: builder.metadata().file_metadata().num_rows() as u64 }
    };
    let has = |name: &str| header.schema.field_with_name(name).is_ok();
    if !(has("uid") || has("url") && has("text")) {
        let found = header.schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::ColumnMissing { path: path.to_path_buf(), column: "uid", found });
    }
    Ok(header)
}

/// Reads the rows in their order; of those columns only, where `columns` names any.
pub(super) fn open(path: &Path, columns: Option<&[&str]>) -> Result<Box<dyn RecordBatchReader + Send>> {
    let inner = guard(path, || open_unguarded(path, columns))?;
    Ok(Box::new(Guarded { path: path.to_path_buf(), schema: inner.schema(), inner: Some(inner) }))
}

fn open_unguarded(path: &Path, columns: Option<&[&str]>) -> Result<Box<dyn RecordBatchReader + Send>> {
    if is_csv(path) {
        return Ok(Box::new(Csv::open(path)?));
    }
    let mut builder = parquet(path)?.with_batch_size(BATCH_ROWS);
    if let Some(columns) = columns {
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        builder = builder.with_projection(mask);
    }
    Ok(Box::new(builder.build().map_err(|source| Error::Parquet { path: path.to_path_buf(), source })?))
}

fn parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|source| Error::Parquet { path: path.to_path_buf(), source })
}

fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"))
}

/// CommonPool's columns are read as text and converted later, others as what their first 1,000 values look like.
fn csv_schema(path: &Path) -> Result<SchemaRef> {
    let file = File::open(path).map_err(Error::io(path))?;
    let (found, _) = Format::default().with_header(true).with_truncated_rows(true).infer_schema(file, Some(1000))?;
    let field = |f: &Arc<Field>| match schema::pool_field(f.name()) {
        Some(_) => Field::new(f.name(), DataType::Utf8, true),
        None => f.as_ref().clone().with_nullable(true),
    };
    Ok(Arc::new(Schema::new(found.fields().iter().map(field).collect::<Vec<_>>())))
}

/// A CSV file's rows as text. A row with another number of fields than the header is all null, which rejects it.
struct Csv {
    records: csv::ByteRecordsIntoIter<File>,
    schema: SchemaRef,
}

impl Csv {
    fn open(path: &Path) -> Result<Csv> {
        let schema = csv_schema(path)?;
        let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_data_type(DataType::Utf8)).collect();
        let file = File::open(path).map_err(Error::io(path))?;
        let records = csv::ReaderBuilder::new().flexible(true).from_reader(file).into_byte_records();
        Ok(Csv { records, schema: Arc::new(Schema::new(fields)) })
    }
}

impl Iterator for Csv {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let width = self.schema.fields().len();
        let mut columns: Vec<StringBuilder> = (0..width).map(|_| StringBuilder::new()).collect();
        let mut rows = 0;
        while rows < BATCH_ROWS {
            let record = match self.records.next() {
                None => break,
                Some(Ok(record)) => record,
                Some(Err(e)) => return Some(Err(ArrowError::CsvError(e.to_string()))),
            };
            let whole = record.len() == width;
            for (i, column) in columns.iter_mut().enumerate() {
                match record.get(i).filter(|value| whole && !value.is_empty()) {
                    Some(value) => column.append_value(String::from_utf8_lossy(value)),
                    None => column.append_null(),
                }
            }
            rows += 1;
        }
        let columns = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef).collect();
        (rows > 0).then(|| RecordBatch::try_new(self.schema.clone(), columns))
    }
}

impl RecordBatchReader for Csv {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
