//! The schemas of a pool's tables.

use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// The arrays of a metadata file's `.npz`, and their dimensions.
pub const EMBEDDINGS: [(&str, i32); 4] = [("b32_img", 512), ("b32_txt", 512), ("l14_img", 768), ("l14_txt", 768)];

/// The columns of CommonPool's metadata files.
pub(crate) const METADATA_COLUMNS: [&str; 9] = [
    "uid",
    "url",
    "text",
    "original_width",
    "original_height",
    "clip_b32_similarity_score",
    "clip_l14_similarity_score",
    "face_bboxes",
    "sha256",
];

/// `FixedSizeList<Float16, dim>`, the type of every embedding column.
pub fn embedding_type(dim: i32) -> DataType {
    DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float16, true)), dim)
}

/// `List<FixedSizeList<Float32, 4>>`: left, top, right, bottom as fractions of width and height.
pub fn face_bboxes_type() -> DataType {
    let bbox = DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), 4);
    DataType::List(Arc::new(Field::new("item", bbox, true)))
}

/// The column of `pool` with this name, if it is one that CommonPool defines.
/// Every column but `uid` may be null; a pool has the columns that its sources had.
pub fn pool_field(name: &str) -> Option<Field> {
    let data_type = match name {
        "uid" => return Some(Field::new("uid", DataType::FixedSizeBinary(16), false)),
        "url" | "text" => DataType::Utf8,
        "original_width" | "original_height" => DataType::Int32,
        "clip_b32_similarity_score" | "clip_l14_similarity_score" => DataType::Float32,
        "face_bboxes" => face_bboxes_type(),
        "sha256" => DataType::FixedSizeBinary(32),
        _ => embedding_type(EMBEDDINGS.iter().find(|(array, _)| *array == name)?.1),
    };
    let field = Field::new(name, data_type, true);
    Some(match compression(name) {
        Some(compression) => field.with_metadata([("lance-encoding:compression".to_string(), compression.to_string())].into()),
        None => field,
    })
}

/// How a column is compressed where Lance's choice (FSST) is not the best. A million captions of 63 characters decode
/// 1.4 times and are written 4 times as fast without, for 40 MB more beside 5 GB of embeddings; urls are written twice as
/// fast by LZ4, for a third more (zstd: the size of FSST, and scans 2.7 times slower).
fn compression(name: &str) -> Option<&'static str> {
    match name {
        "text" => Some("none"),
        "url" => Some("lz4"),
        _ => None,
    }
}

/// Whether Lance takes a column of this name: dots lead into structs, and some names are its own.
pub fn can_be_column(name: &str) -> bool {
    !name.is_empty() && !name.contains(['.', '`']) && !name.starts_with("_row") && !["_distance", "_score"].contains(&name)
}

/// A column that CommonPool does not define, as the pool keeps it.
pub(crate) fn extra_field(field: &Field) -> Field {
    let data_type = match field.data_type() {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        other => other.clone(),
    };
    Field::new(field.name(), data_type, true)
}

/// The columns that a shard's JSON fills for a sample that no metadata file has brought.
pub const SHARD_COLUMNS: [&str; 7] = ["uid", "url", "text", "original_width", "original_height", "face_bboxes", "sha256"];

/// `images`: one row per image that was obtained.
///
/// Images of 4 KiB to 4 MiB lie packed beside the data files, so that compacting or
/// adding a column never copies pixels.
pub fn images() -> SchemaRef {
    let options = lance::BlobFieldOptions::default()
        .with_inline_size_threshold(4 << 10)
        .with_dedicated_size_threshold(NonZeroUsize::new(4 << 20).expect("not zero"));
    Arc::new(Schema::new(vec![
        Field::new("uid", DataType::FixedSizeBinary(16), false),
        lance::blob_field_with_options("image", true, options),
        Field::new("width", DataType::Int32, true),
        Field::new("height", DataType::Int32, true),
        Field::new("format", DataType::Utf8, true),
        Field::new("sha256", DataType::FixedSizeBinary(32), true),
        Field::new("source", DataType::Utf8, true),
        Field::new("status", DataType::Utf8, true),
    ]))
}

/// `vectors`: one row per vector of a named set; those of a set have the same length.
pub fn vectors() -> SchemaRef {
    let vector = DataType::List(Arc::new(Field::new("item", DataType::Float32, true)));
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("id", DataType::Int32, false),
        Field::new("vector", vector, false),
    ]))
}

/// `ledger`: one row per ingested file; `version` is that of the table it was written to.
pub fn ledger() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("bytes", DataType::Int64, false),
        Field::new("modified", DataType::Int64, false),
        Field::new("sha256", DataType::FixedSizeBinary(32), false),
        Field::new("rows", DataType::Int64, false),
        Field::new("added", DataType::Int64, false),
        Field::new("rejected", DataType::Int64, false),
        Field::new("version", DataType::Int64, false),
    ]))
}

/// `rejects`: one row per file, row, member or value that was left out; `sha256` is the file's, in hexadecimal digits.
pub fn rejects() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("row", DataType::Int64, true),
        Field::new("member", DataType::Utf8, true),
        Field::new("column", DataType::Utf8, true),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
        Field::new("kept", DataType::Boolean, false),
        Field::new("sha256", DataType::Utf8, true),
    ]))
}
