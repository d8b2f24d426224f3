use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};

use super::Summary;
use crate::pool::uids_of;
use crate::uid::hex_encode;
use crate::{Error, OnProgress, Pool, Progress, Result, Subset, Table};

/// What a downloader (img2dataset) asks for, of the columns that the pool has.
pub const DOWNLOADER_COLUMNS: [&str; 5] = ["uid", "url", "text", "face_bboxes", "sha256"];

/// Rows a file.
const FILE_ROWS: usize = 1 << 20;

/// Writes `columns` of the subset's samples, in the pool's order, as `00000.parquet` and so on; a sample as often as it
/// occurs in the subset. Uids and digests are hexadecimal text, as in CommonPool's metadata.
pub fn parquet<'a>(
    pool: &'a Pool,
    subset: &'a Subset,
    columns: &'a [String],
    folder: &'a Path,
    overwrite: bool,
    on_progress: OnProgress<'a>,
) -> BoxFuture<'a, Result<Summary>> {
    async move {
        let table = pool.require(Table::Pool).await?;
        let known = || table.schema().fields.iter().map(|f| f.name.as_str());
        if let Some(column) = columns.iter().find(|c| !known().any(|name| name == c.as_str())) {
            let known = known().collect::<Vec<_>>().join(", ");
            return Err(Error::NoColumn { path: pool.root().to_string(), column: column.clone(), known });
        }
        super::prepare(folder, overwrite)?;
        let (uids, counts) = super::counted(subset);
        let wrap = || Error::lance(table.uri());
        let mut scanner = table.scan();
        let with_uid: Vec<&str> = std::iter::once("uid").chain(columns.iter().map(String::as_str).filter(|c| *c != "uid")).collect();
        scanner.project(&with_uid).map_err(wrap())?.scan_in_order(true);
        let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
        let mut files = Files { folder, writer: None, rows: 0, summary: Summary::default() };
        let mut found = 0;
        while let Some(batch) = stream.try_next().await.map_err(wrap())? {
            let mut rows = Vec::new();
            for (row, uid) in uids_of(batch["uid"].as_ref()).enumerate() {
                if let Ok(at) = uids.binary_search(&uid) {
                    rows.extend(std::iter::repeat_n(row as u32, counts[at] as usize));
                }
            }
            if rows.is_empty() {
                continue;
            }
            let batch = take_record_batch(&batch, &UInt32Array::from(rows))?;
            let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.iter().map(|name| as_text(name, &batch[name.as_str()])).unzip();
            found += batch.num_rows() as u64;
            files.write(&RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)?;
            on_progress(Progress { what: String::new(), done: found, total: subset.len() as u64, unit: "samples" });
        }
        files.close()?;
        super::finish(folder)?;
        Ok(Summary { samples: found, not_in_pool: subset.len() as u64 - found, ..files.summary })
    }
    .boxed()
}

/// Binary columns as text.
fn as_text(name: &str, column: &ArrayRef) -> (Field, ArrayRef) {
    let column: ArrayRef = match column.data_type() {
        DataType::FixedSizeBinary(_) => {
            Arc::new(StringArray::from_iter(column.as_fixed_size_binary().iter().map(|bytes| bytes.map(hex_encode))))
        }
        _ => column.clone(),
    };
    (Field::new(name, column.data_type().clone(), true), column)
}

struct Files<'a> {
    folder: &'a Path,
    writer: Option<ArrowWriter<File>>,
    rows: usize,
    summary: Summary,
}

impl Files<'_> {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut at = 0;
        while at < batch.num_rows() {
            let path = self.folder.join(format!("{:05}.parquet", self.summary.files));
            let wrap = |source| Error::Parquet { path: path.clone(), source };
            if self.writer.is_none() {
                let file = File::create(&path).map_err(Error::io(&path))?;
                let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
                self.writer = Some(ArrowWriter::try_new(file, batch.schema(), Some(properties)).map_err(wrap)?);
            }
            let n = (batch.num_rows() - at).min(FILE_ROWS - self.rows);
            let writer = self.writer.as_mut().expect("opened above");
            writer.write(&batch.slice(at, n)).map_err(wrap)?;
            at += n;
            self.rows += n;
            if self.rows == FILE_ROWS {
                self.close()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(mut writer) = self.writer.take() {
            let path = self.folder.join(format!("{:05}.parquet", self.summary.files));
            writer.finish().map_err(|source| Error::Parquet { path, source })?;
            self.summary.bytes += writer.bytes_written() as u64;
            self.summary.files += 1;
            self.rows = 0;
        }
        Ok(())
    }
}
