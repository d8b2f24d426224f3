//! Metadata files, parquet or CSV, as record batches.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, RecordBatch, RecordBatchReader, StringBuilder};
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::records::{Record, Records};
use super::untyped;
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
    let mut header = if is_csv(path) {
        let bytes = path.metadata().map_err(Error::io(path))?.len();
        Header { schema: csv_schema(path)?, rows: bytes / 100 }
    } else {
        let builder = parquet(path)?;
        Header { schema: builder.schema().clone(), rows: builder.metadata().file_metadata().num_rows() as u64 }
    };
    header.schema = canonical(&header.schema);
    let has = |name: &str| header.schema.field_with_name(name).is_ok();
    if !(has("uid") || has("url") && has("text")) {
        let found = header.schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::ColumnMissing { path: path.to_path_buf(), column: "uid", found });
    }
    Ok(header)
}

/// Returns the columns under CommonPool's names, where a file writes them in another case or calls `text` caption.
fn canonical(schema: &Schema) -> SchemaRef {
    let mut fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone()).collect();
    for name in schema::METADATA_COLUMNS {
        let at = |name: &str| fields.iter().position(|f| f.name().eq_ignore_ascii_case(name));
        let other = if name == "text" { at("text").or_else(|| at("caption")) } else { at(name) };
        if let Some(other) = other.filter(|_| !fields.iter().any(|f| f.name() == name)) {
            fields[other].set_name(name);
        }
    }
    Arc::new(Schema::new(fields))
}

/// Reads the rows in their order; of those columns only, where `columns` names any.
pub(super) fn open(path: &Path, columns: Option<&[&str]>) -> Result<Box<dyn RecordBatchReader + Send>> {
    let inner = guard(path, || open_unguarded(path, columns))?;
    Ok(Box::new(Guarded { path: path.to_path_buf(), schema: inner.schema(), inner: Some(inner) }))
}

fn open_unguarded(path: &Path, columns: Option<&[&str]>) -> Result<Box<dyn RecordBatchReader + Send>> {
    if is_csv(path) { Ok(Box::new(Csv::open(path)?)) } else { Ok(Box::new(Parquet::open(path, columns)?)) }
}

fn parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|source| Error::Parquet { path: path.to_path_buf(), source })
}

/// A parquet file's rows. From the first string on that is not UTF-8, strings come as bytes.
struct Parquet {
    path: PathBuf,
    /// The numbers of the columns that are read; none for all.
    columns: Option<Vec<usize>>,
    schema: SchemaRef,
    inner: ParquetRecordBatchReader,
    rows: usize,
    is_untyped: bool,
}

impl Parquet {
    fn open(path: &Path, columns: Option<&[&str]>) -> Result<Parquet> {
        let builder = parquet(path)?;
        let all = canonical(builder.schema());
        let columns: Option<Vec<usize>> = columns.map(|names| names.iter().filter_map(|name| all.index_of(name).ok()).collect());
        let schema = match &columns {
            Some(columns) => {
                let mut columns = columns.clone();
                columns.sort_unstable();
                Arc::new(all.project(&columns)?)
            }
            None => all,
        };
        let inner = Parquet::build(path, builder, columns.as_deref(), 0)?;
        Ok(Parquet { path: path.to_path_buf(), columns, schema, inner, rows: 0, is_untyped: false })
    }

    fn build(
        path: &Path,
        builder: ParquetRecordBatchReaderBuilder<File>,
        columns: Option<&[usize]>,
        offset: usize,
    ) -> Result<ParquetRecordBatchReader> {
        let mut builder = builder.with_batch_size(BATCH_ROWS);
        if offset > 0 {
            builder = builder.with_offset(offset);
        }
        if let Some(columns) = columns {
            let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
            builder = builder.with_projection(mask);
        }
        builder.build().map_err(|source| Error::Parquet { path: path.to_path_buf(), source })
    }

    /// Goes on at the next row with strings as bytes.
    fn reopen(&self) -> Result<ParquetRecordBatchReader> {
        let wrap = |source| Error::Parquet { path: self.path.clone(), source };
        let typed = parquet(&self.path)?;
        let metadata = Arc::new(untyped::metadata(typed.metadata()).map_err(wrap)?);
        let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new()).map_err(wrap)?;
        let file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        Parquet::build(&self.path, builder, self.columns.as_deref(), self.rows)
    }
}

impl Iterator for Parquet {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.inner.next()? {
            Err(e) if !self.is_untyped && e.to_string().contains("non UTF-8") => {
                self.is_untyped = true;
                match self.reopen() {
                    Ok(inner) => self.inner = inner,
                    Err(e) => return Some(Err(ArrowError::ExternalError(Box::new(e)))),
                }
                return self.next();
            }
            Err(e) => return Some(Err(e)),
            Ok(batch) => batch,
        };
        self.rows += batch.num_rows();
        let of_batch = batch.schema();
        let fields = of_batch.fields().iter().zip(self.schema.fields()).map(|(f, named)| f.as_ref().clone().with_name(named.name()));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Some(RecordBatch::try_new(schema, batch.columns().to_vec()))
    }
}

impl RecordBatchReader for Parquet {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"))
}

/// Returns CommonPool's columns as text, to be converted later, others as what their first 1,000 values look like.
fn csv_schema(path: &Path) -> Result<SchemaRef> {
    let mut first = Vec::new();
    for record in Records::open(path)?.take(1001) {
        if let Record::Whole(record) = record.map_err(Error::io(path))? {
            first.extend_from_slice(String::from_utf8_lossy(&record).as_bytes());
        }
    }
    let (found, _) = Format::default().with_header(true).with_truncated_rows(true).infer_schema(first.as_slice(), Some(1000))?;
    let named = canonical(&found);
    let field = |f: &Arc<Field>| match schema::pool_field(f.name()) {
        Some(_) => Field::new(f.name(), DataType::Utf8, true),
        None => f.as_ref().clone().with_nullable(true),
    };
    Ok(Arc::new(Schema::new(named.fields().iter().map(field).collect::<Vec<_>>())))
}

/// The columns of a CSV file's batches that say what is wrong with a record, null for good ones, and the reasons.
pub(super) const BAD_RECORDS: [(&str, &str); 2] =
    [("\0open", "a quote is not closed"), ("\0width", "another number of fields than the header")];

/// A CSV file's rows as bytes. A record that is not closed, or has another number of fields than the header, is all null.
struct Csv {
    path: PathBuf,
    records: Records,
    schema: SchemaRef,
}

impl Csv {
    fn open(path: &Path) -> Result<Csv> {
        let schema = csv_schema(path)?;
        let mut fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_data_type(DataType::Binary)).collect();
        fields.extend(BAD_RECORDS.map(|(name, _)| Field::new(name, DataType::Utf8, true)));
        let mut records = Records::open(path)?;
        records.next().transpose().map_err(Error::io(path))?; // the header
        Ok(Csv { path: path.to_path_buf(), records, schema: Arc::new(Schema::new(fields)) })
    }
}

impl Iterator for Csv {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let width = self.schema.fields().len() - BAD_RECORDS.len();
        let (mut text, mut open) = (Vec::new(), std::collections::VecDeque::new());
        for _ in 0..BATCH_ROWS {
            match self.records.next() {
                None => break,
                Some(Ok(Record::Whole(record))) => text.extend_from_slice(&record),
                Some(Ok(Record::Open(first))) => {
                    open.push_back(first);
                    text.extend_from_slice(b"\0\n");
                }
                Some(Err(e)) => return Some(Err(ArrowError::ExternalError(Box::new(Error::io(&self.path)(e))))),
            }
        }
        let mut columns: Vec<BinaryBuilder> = (0..width).map(|_| BinaryBuilder::new()).collect();
        let (mut unclosed, mut uneven, mut rows) = (StringBuilder::new(), StringBuilder::new(), 0);
        for record in csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_slice()).into_byte_records() {
            let record = match record {
                Ok(record) => record,
                Err(e) => return Some(Err(ArrowError::CsvError(e.to_string()))),
            };
            let is_open = record.len() == 1 && &record[0] == b"\0" && !open.is_empty();
            let whole = !is_open && record.len() == width;
            for (i, column) in columns.iter_mut().enumerate() {
                column.append_option(record.get(i).filter(|value| whole && !value.is_empty()));
            }
            unclosed.append_option(if is_open { open.pop_front() } else { None });
            uneven.append_option((!is_open && !whole).then(|| format!("expected {width}, got {}", record.len())));
            rows += 1;
        }
        let mut columns: Vec<ArrayRef> = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef).collect();
        columns.extend([Arc::new(unclosed.finish()) as ArrayRef, Arc::new(uneven.finish())]);
        (rows > 0).then(|| RecordBatch::try_new(self.schema.clone(), columns))
    }
}

impl RecordBatchReader for Csv {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
