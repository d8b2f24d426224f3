//! A parquet file's header with its strings declared as bytes, so that one that is not UTF-8 does not cost the file.

use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::errors::Result;
use parquet::file::metadata::{FileMetaData, ParquetMetaData};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

pub(super) fn metadata(typed: &ParquetMetaData) -> Result<ParquetMetaData> {
    let file = typed.file_metadata();
    let schema = Arc::new(SchemaDescriptor::new(untyped(&file.schema_descr().root_schema_ptr())?));
    // Without the Arrow schema that a writer leaves, which says that they are text.
    let file = FileMetaData::new(file.version(), file.num_rows(), file.created_by().map(str::to_string), None, schema, None);
    Ok(ParquetMetaData::new(file, typed.row_groups().to_vec()))
}

fn untyped(of: &TypePtr) -> Result<TypePtr> {
    let info = of.get_basic_info();
    let id = info.has_id().then(|| info.id());
    if of.is_primitive() {
        let is_text = info.converted_type() == ConvertedType::UTF8 || info.logical_type_ref() == Some(&LogicalType::String);
        if !is_text {
            return Ok(of.clone());
        }
        let bytes = Type::primitive_type_builder(of.name(), Physical::BYTE_ARRAY).with_repetition(info.repetition()).with_id(id);
        return Ok(Arc::new(bytes.build()?));
    }
    let fields = of.get_fields().iter().map(untyped).collect::<Result<Vec<_>>>()?;
    let mut group = Type::group_type_builder(of.name()).with_fields(fields).with_id(id);
    if info.has_repetition() {
        group = group.with_repetition(info.repetition());
    }
    let group = group.with_converted_type(info.converted_type()).with_logical_type(info.logical_type_ref().cloned());
    Ok(Arc::new(group.build()?))
}
