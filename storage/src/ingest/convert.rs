//! A source's columns in the pool's types. A value that does not fit is null, and a reject.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryBuilder, Float32Array, Float64Array, RecordBatch, StringArray,
    StringBuilder, new_null_array,
};
use arrow::compute::{CastOptions, cast, cast_with_options, nullif};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type};

use super::table::BAD_RECORDS;
use crate::uid::hex_decode;
use crate::{Result, Uid};

/// Why a value is lost or replaced: its row in the batch, a reason, and what it was.
pub(super) type Lost = (usize, &'static str, String);

const NOT_UTF8: &str = "not UTF-8, replaced by U+FFFD";
/// Characters of a lost value that are kept in its reject.
const DETAIL: usize = 200;

/// Returns true if `column` can be had as `to`.
pub(super) fn can_convert(from: &DataType, to: &Field) -> bool {
    let nested_as_text = from.is_nested() && to.data_type() == &DataType::Utf8;
    match from {
        DataType::Null => true,
        _ if from == to.data_type() => true,
        _ if nested_as_text => element(from).is_some_and(is_text),
        _ if to.name() == "sha256" || to.name() == "uid" => !from.is_nested(),
        _ => arrow::compute::can_cast_types(from, to.data_type()),
    }
}

fn element(list: &DataType) -> Option<&DataType> {
    match list {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

pub(super) fn column(column: &ArrayRef, to: &Field, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    if column.data_type() == &DataType::Null {
        return Ok(new_null_array(to.data_type(), column.len()));
    }
    if to.name() == "sha256" {
        return sha256(column, lost);
    }
    let column = match column.data_type() {
        from if from == to.data_type() => column.clone(),
        from if is_bytes(from) && !is_bytes(to.data_type()) => text(column, lost)?,
        from if element(from).is_some() && to.data_type() == &DataType::Utf8 => first(column, lost)?,
        _ => column.clone(),
    };
    let converted = if column.data_type() == to.data_type() {
        column
    } else {
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let cast = cast_with_options(&column, to.data_type(), &options)?;
        // Dictionaries have their nulls among the values.
        if cast.logical_null_count() > column.logical_null_count() {
            let text = cast_with_options(&column, &DataType::Utf8, &options)?;
            let (text, nulls) = (text.as_string::<i32>(), column.logical_nulls());
            let was_there = |i: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(i));
            lost.extend((0..cast.len()).filter(|&i| cast.is_null(i) && was_there(i)).map(|i| {
                let value = if text.is_valid(i) { text.value(i).chars().take(DETAIL).collect() } else { String::new() };
                (i, "does not fit the column's type", value)
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

/// Returns bytes as text, with U+FFFD for what is not UTF-8.
fn text(column: &ArrayRef, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    let bytes = bytes(column)?;
    let mut texts = StringBuilder::with_capacity(bytes.len(), bytes.value_data().len());
    for (i, value) in bytes.iter().enumerate() {
        let Some(value) = value else {
            texts.append_null();
            continue;
        };
        let text = String::from_utf8_lossy(value);
        if matches!(text, std::borrow::Cow::Owned(_)) {
            lost.push((i, NOT_UTF8, text.chars().take(DETAIL).collect()));
        }
        texts.append_value(text);
    }
    Ok(Arc::new(texts.finish()))
}

fn bytes(column: &ArrayRef) -> Result<BinaryArray> {
    Ok(cast(column, &DataType::Binary)?.as_binary::<i32>().clone())
}

/// Returns the first text of each list.
fn first(column: &ArrayRef, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    let lists = cast(column, &DataType::LargeList(Arc::new(Field::new("item", DataType::Utf8, true))))?;
    let lists = lists.as_list::<i64>();
    let firsts = lists.iter().enumerate().map(|(i, list)| {
        let list = list?;
        if list.len() > 1 {
            lost.push((i, "a list, of which the first is taken", format!("{} elements", list.len())));
        }
        let texts = list.as_string::<i32>();
        (!texts.is_empty() && texts.is_valid(0)).then(|| texts.value(0).to_string())
    });
    Ok(Arc::new(firsts.collect::<StringArray>()))
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

/// Returns digests that are written as 64 hexadecimal digits or as their 32 bytes.
fn sha256(column: &ArrayRef, lost: &mut Vec<Lost>) -> Result<ArrayRef> {
    let values = if is_bytes(column.data_type()) { bytes(column)? } else { bytes(&cast(column, &DataType::Utf8)?)? };
    let mut digests = FixedSizeBinaryBuilder::with_capacity(column.len(), 32);
    let mut digest = [0; 32];
    for (i, value) in values.iter().enumerate() {
        match value {
            None | Some(b"") => digests.append_null(),
            Some(bytes) if bytes.len() == 32 => digests.append_value(bytes)?,
            Some(digits) if std::str::from_utf8(digits).is_ok_and(|digits| hex_decode(digits, &mut digest)) => {
                digests.append_value(digest)?
            }
            Some(other) => {
                digests.append_null();
                lost.push((i, "not a SHA-256", String::from_utf8_lossy(other).chars().take(DETAIL).collect()));
            }
        }
    }
    Ok(Arc::new(digests.finish()))
}

/// Returns the uid of each row, or why it has none. Made of `url` and `text` where there is no column `uid`; a column of
/// bytes holds its 16 bytes or its digits.
pub(super) fn uids(batch: &RecordBatch) -> Result<Vec<Result<Uid, Lost>>> {
    let bad = BAD_RECORDS.map(|(name, reason)| (batch.column_by_name(name).map(|column| column.as_string::<i32>()), reason));
    let checked = |i: usize, uid: Result<Uid, Lost>| {
        let found = bad.iter().find_map(|(column, reason)| column.filter(|column| column.is_valid(i)).map(|column| (column, reason)));
        found.map_or(uid, |(column, reason)| Err((i, *reason, column.value(i).to_string())))
    };
    let rows = 0..batch.num_rows();
    let Some(column) = batch.column_by_name("uid") else {
        // Lossy here, and again where the values are stored.
        let text =
            |name: &str| -> Result<ArrayRef> { self::column(&batch[name], &Field::new(name, DataType::Utf8, true), &mut Vec::new()) };
        let (url, caption) = (text("url")?, text("text")?);
        let (url, caption) = (url.as_string::<i32>(), caption.as_string::<i32>());
        let uid = |i: usize| match (url.is_valid(i), caption.is_valid(i)) {
            (false, false) => Err((i, "no uid, url or text", String::new())),
            _ => Ok(Uid::of_pair(if url.is_valid(i) { url.value(i) } else { "" }, if caption.is_valid(i) { caption.value(i) } else { "" })),
        };
        return Ok(rows.map(|i| checked(i, uid(i))).collect());
    };
    let none = |i: usize, what: &str| Err((i, "not a uid", what.to_string()));
    if is_bytes(column.data_type()) {
        let column = bytes(column)?;
        let uid = |i: usize| match column.is_valid(i).then(|| column.value(i)) {
            None => none(i, "null"),
            Some(bytes) => match <[u8; 16]>::try_from(bytes) {
                Ok(uid) => Ok(Uid(uid)),
                Err(_) => {
                    let digits = String::from_utf8_lossy(bytes);
                    digits.parse().or_else(|_| none(i, &digits))
                }
            },
        };
        return Ok(rows.map(|i| checked(i, uid(i))).collect());
    }
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let column = cast_with_options(column, &DataType::Utf8, &options)?;
    let column = column.as_string::<i32>();
    let uid = |i: usize| match column.is_valid(i) {
        true => column.value(i).parse().or_else(|_| none(i, column.value(i))),
        false => none(i, "null"),
    };
    Ok(rows.map(|i| checked(i, uid(i))).collect())
}
