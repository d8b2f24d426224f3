//! A query's uids as a subset file: what `tarn filter` and `COPY ... TO 'name.npy'` do.

use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::Expr;
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;
use storage::{Subset, SubsetWriter, Uid, Written};

use crate::rows::Rows;
use crate::{Error, Result};

/// The columns that a filter gives.
pub(crate) fn check_columns(schema: &DFSchema) -> Result<()> {
    let Ok(uid) = schema.field_with_unqualified_name("uid") else {
        let columns = schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::NoUidColumn { columns });
    };
    if uid.data_type() != &DataType::FixedSizeBinary(16) {
        return Err(Error::ColumnType { column: "uid", expected: "a uid", got: uid.data_type().to_string() });
    }
    match schema.field_with_unqualified_name("weight") {
        Ok(weight) if !weight.data_type().is_numeric() => {
            Err(Error::ColumnType { column: "weight", expected: "a number", got: weight.data_type().to_string() })
        }
        _ => Ok(()),
    }
}

/// The query's columns `uid` and `weight` alone: others are not read for nothing.
pub(crate) fn wanted(frame: DataFrame) -> datafusion::common::Result<DataFrame> {
    let column = |name| {
        let (qualifier, field) = frame.schema().qualified_field_with_unqualified_name(name).ok()?;
        Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
    };
    let columns: Vec<Expr> = ["uid", "weight"].into_iter().filter_map(column).collect();
    frame.select(columns)
}

/// The folder of a file that is to be written must be there.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) => Err(Error::Io { path: folder.to_path_buf(), source: std::io::ErrorKind::NotFound.into() }),
        None => Ok(()),
    }
}

/// Drains the rows into a sorted file; `memory` bytes are held at most.
pub(crate) async fn write(
    mut rows: Rows,
    path: &Path,
    memory: usize,
    errors: impl Fn(datafusion::error::DataFusionError) -> Error,
) -> Result<Written> {
    let weighted = rows.schema().field_with_name("weight").is_ok();
    let mut writer = SubsetWriter::new(path, weighted, memory);
    let mut row = 0;
    while let Some(batch) = rows.try_next().await.map_err(&errors)? {
        let (uids, weights) = (uids(&batch, row)?, weights(&batch, row)?);
        writer.push(uids, &weights)?;
        row += batch.num_rows() as u64;
    }
    if writer.is_empty() {
        return Err(storage::Error::SubsetEmpty.into());
    }
    drop(rows); // what the query holds is free before the sort
    let written = tokio::task::spawn_blocking(move || writer.finish()).await;
    written.map_err(|e| Error::Query { message: format!("sorting failed: {e}"), hint: None })?.map_err(Error::Storage)
}

/// The rows as a subset in memory.
pub(crate) async fn collect(mut rows: Rows, errors: impl Fn(datafusion::error::DataFusionError) -> Error) -> Result<Subset> {
    let weighted = rows.schema().field_with_name("weight").is_ok();
    let (mut all, mut of_all, mut row) = (Vec::new(), Vec::new(), 0);
    while let Some(batch) = rows.try_next().await.map_err(&errors)? {
        all.extend(uids(&batch, row)?.as_chunks::<16>().0.iter().map(|uid| Uid(*uid)));
        of_all.extend(weights(&batch, row)?);
        row += batch.num_rows() as u64;
    }
    Ok(Subset::new(all, weighted.then_some(of_all)))
}

/// The bytes of a batch's uids, one after another.
fn uids(batch: &RecordBatch, row: u64) -> Result<&[u8]> {
    let column = batch["uid"].as_fixed_size_binary();
    if let Some(i) = (0..column.len()).filter(|_| column.null_count() > 0).find(|i| column.is_null(*i)) {
        return Err(Error::NullInSubset { column: "uid", row: row + i as u64 });
    }
    Ok(column.value_data())
}

fn weights(batch: &RecordBatch, row: u64) -> Result<Vec<f32>> {
    let Some(column) = batch.column_by_name("weight") else { return Ok(Vec::new()) };
    let column = cast(column, &DataType::Float32).map_err(|e| Error::Query { message: e.to_string(), hint: None })?;
    let checked = column.as_primitive::<Float32Type>().iter().enumerate().map(|(i, weight)| match weight {
        None => Err(Error::NullInSubset { column: "weight", row: row + i as u64 }),
        Some(weight) if !weight.is_finite() || weight < 0.0 => Err(Error::Weight { row: row + i as u64, weight }),
        Some(weight) => Ok(weight),
    });
    checked.collect()
}
