//! How often training drew each sample, as a table that SQL joins with the pool.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{ArrayRef, FixedSizeBinaryBuilder, Float32Builder, Int64Builder, RecordBatch};

use crate::{Error, Result, Samples, put_in_place};

/// Writes a parquet file of `uid` (16 bytes, as in the pool), `seen` (draws, of all of the sample's entries) and
/// `last_loss` (its part of the loss when it was last in a batch, null if it never was). Both slices go by position in
/// `samples`, those of a uid at its first; NaN is no loss.
pub fn write_seen(path: &Path, samples: &Samples, seen: &[u32], last_loss: &[f32]) -> Result<()> {
    let n = samples.len();
    let mut uids = FixedSizeBinaryBuilder::with_capacity(n, 16);
    let (mut counts, mut losses) = (Int64Builder::with_capacity(n), Float32Builder::with_capacity(n));
    let mut at = 0;
    while at < n {
        // Entries of one sample lie side by side.
        let uid = samples.uid(at);
        let end = (at..n).find(|&i| samples.uid(i) != uid).unwrap_or(n);
        uids.append_value(uid.0)?;
        counts.append_value(i64::from(seen[at]));
        losses.append_option(Some(last_loss[at]).filter(|loss| !loss.is_nan()));
        at = end;
    }
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("uid", Arc::new(uids.finish()), false),
        ("seen", Arc::new(counts.finish()), false),
        ("last_loss", Arc::new(losses.finish()), true),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns)?;
    let part = path.with_extension("parquet.part");
    let file = File::create(&part).map_err(Error::io(&part))?;
    let wrong = |source| Error::Parquet { path: part.clone(), source };
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(wrong)?;
    writer.write(&batch).map_err(wrong)?;
    writer.close().map_err(wrong)?;
    put_in_place(&part, path).map_err(Error::io(path))
}
