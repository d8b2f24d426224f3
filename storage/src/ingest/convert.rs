//! A source's columns in the pool's types. A value that does not fit is null, and a reject.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryBuilder, Float32Array, Float64Array};
use arrow::compute::{CastOptions, cast, cast_with_options, nullif};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type};

use crate::uid::hex_decode;
use crate::{Error, Result, Uid};

/// Why a value is null: its row in the batch, a reason, and what it was.
pub(super) type Lost = (usize, &'static str, String);

/// Whether `column` can be had as `to`.
pub(super) fn can_convert(from: &DataType, to: &Field) -> bool {
    from == to.data_type() || to.name() == "sha256" || to.name() == "uid" || arrow::compute::can_cast_types(from, to.data_type())
}

pub(super) fn column(column: &ArrayRef, to: &Field, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    let converted =
        if column.data_type() == to.data_type() {
            column.clone()
        } else if to.name() == "sha256" {
            sha256(column, lost)?
        } else {
            let options = CastOptions { safe: true, ..CastOptions::default() };
            let cast = cast_with_options(column, to.data_type(), &options)?;
            if cast.null_count() > column.null_count() {
                let text = cast_with_options(column, &DataType::Utf8, &options)?;
                let text = text.as_string::<i32>();
                lost.extend((0..cast.len()).filter(|&i| cast.is_null(i) && column.is_valid(i)).map(|i| {
                    (i, "does not fit the column's type", if text.is_valid(i) { text.value(i).to_string() } else { String::new() })
                }));
            }
            cast
        };
    match converted.data_type() {
        DataType::Float32 => finite(&converted, converted.as_primitive::<Float32Type>().values().iter().map(|v| f64::from(*v)), lost),
        DataType::Float64 => finite(&converted, converted.as_primitive::<Float64Type>().values().iter().copied(), lost),
        _ => Ok(converted),
    }
}

/// NaN and infinities as nulls, and -0 as 0, which some comparisons tell apart and some do not.
fn finite(column: &ArrayRef, values: impl Iterator<Item = f64> + Clone, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    let sound = |v: f64| v.is_finite() && (v != 0.0 || v.is_sign_positive());
    if values.clone().all(sound) {
        return Ok(column.clone());
    }
    let bad: BooleanArray = values.clone().enumerate().map(|(i, v)| Some(column.is_valid(i) && !v.is_finite())).collect();
    lost.extend(values.enumerate().filter(|(i, _)| bad.value(*i)).map(|(i, v)| (i, "not a finite number", v.to_string())));
    // The values under the nulls as well, lest statistics see them.
    let clean = nullif(column, &bad)?;
    Ok(match clean.data_type() {
        DataType::Float32 => Arc::new(Float32Array::from_iter(clean.as_primitive::<Float32Type>().iter().map(|v| v.map(|v| v + 0.0)))),
        _ => Arc::new(Float64Array::from_iter(clean.as_primitive::<Float64Type>().iter().map(|v| v.map(|v| v + 0.0)))),
    })
}

fn sha256(column: &ArrayRef, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    let text = cast(column, &DataType::Utf8)?;
    let text = text.as_string::<i32>();
    let mut digests = FixedSizeBinaryBuilder::with_capacity(column.len(), 32);
    let mut bytes = [0; 32];
    for (i, digest) in text.iter().enumerate() {
        match digest {
            Some(digest) if hex_decode(digest, &mut bytes) => digests.append_value(bytes)?,
            None | Some("") => digests.append_null(),
            Some(digest) => {
                digests.append_null();
                lost.push((i, "not a SHA-256", digest.to_string()));
            }
        }
    }
    Ok(Arc::new(digests.finish()))
}

/// The uid of each row, or why it has none. Made of `url` and `text` where there is no column `uid`.
pub(super) fn uids(batch: &arrow::array::RecordBatch) -> Result<Vec<Result<Uid, Lost>>> {
    let text = |name: &str| -> Result<ArrayRef> { Ok(cast(&batch[name], &DataType::Utf8)?) };
    let Some(column) = batch.column_by_name("uid") else {
        let (url, caption) = (text("url")?, text("text")?);
        let (url, caption) = (url.as_string::<i32>(), caption.as_string::<i32>());
        let uid = |i: usize| match (url.is_valid(i), caption.is_valid(i)) {
            (false, false) => Err((i, "no uid, url or text", String::new())),
            _ => Ok(Uid::of_pair(url.value(i), caption.value(i))),
        };
        return Ok((0..batch.num_rows()).map(uid).collect());
    };
    if let DataType::FixedSizeBinary(16) = column.data_type() {
        let column = column.as_fixed_size_binary();
        let uid = |i: usize| match column.is_valid(i) {
            true => Ok(Uid(column.value(i).try_into().expect("16 bytes wide"))),
            false => Err((i, "not a uid", "null".to_string())),
        };
        return Ok((0..batch.num_rows()).map(uid).collect());
    }
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let column = cast_with_options(column, &DataType::Utf8, &options).map_err(Error::from)?;
    let column = column.as_string::<i32>();
    let uid = |i: usize| match column.is_valid(i) {
        true => column.value(i).parse().map_err(|_| (i, "not a uid", column.value(i).to_string())),
        false => Err((i, "not a uid", "null".to_string())),
    };
    Ok((0..batch.num_rows()).map(uid).collect())
}
