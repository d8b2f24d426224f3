//! `CREATE VECTORS name AS query`: the vectors of a query's rows as a named set.

use arrow::array::{Array, RecordBatch, UInt32Array};

use crate::{Error, Result};

/// The vectors of a query's rows, in the order of its column `id` where it has one: which are then 0, 1, 2, ...
pub(crate) fn vectors_of(batch: &RecordBatch) -> Result<(usize, Vec<f32>)> {
    let wrong = |message: String| Error::Query { message, hint: Some("CREATE VECTORS name AS SELECT l14_img FROM pool WHERE ...".into()) };
    let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    let others: Vec<&String> = names.iter().filter(|name| *name != "id").collect();
    let [column] = others[..] else {
        return Err(wrong(format!("a vector set takes one column of vectors, and a column id or none, got {}", names.join(", "))));
    };
    let order = match batch.column_by_name("id") {
        Some(ids) => arrow::compute::sort_to_indices(ids, None, None).map_err(|e| wrong(e.to_string()))?,
        None => UInt32Array::from_iter_values(0..batch.num_rows() as u32),
    };
    let column = arrow::compute::take(&batch[column.as_str()], &order, None).map_err(|e| wrong(e.to_string()))?;
    if column.is_empty() {
        return Err(wrong("the query gives no vectors".into()));
    }
    if column.null_count() > 0 {
        return Err(wrong("a vector of the query is NULL".into()));
    }
    let list = index::as_fixed(&column)?;
    let dim = list.value_length() as usize;
    let (values, _) = index::check_queries(&list, dim, index::Distance::Dot)?;
    Ok((dim, values))
}
