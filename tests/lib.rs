//! What the test binaries share: small sources in CommonPool's layout, written on the spot.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};
use proptest::prelude::*;

/// The folder of real data, where `TARN_TEST_DATA` names one.
pub fn test_data() -> Option<PathBuf> {
    std::env::var_os("TARN_TEST_DATA").map(PathBuf::from).filter(|path| path.is_dir())
}

/// A row of a metadata file.
#[derive(Debug, Clone)]
pub struct Row {
    pub uid: String,
    pub text: Option<String>,
    pub width: i64,
    pub score: Option<f32>,
}

/// Eight rows with uids `000...1` to `000...8`, captions with awkward white space, and scores 0.1 to 0.8.
pub fn rows() -> Vec<Row> {
    let texts = ["a cat", "two  dogs\trun", "", "ein\u{a0}Hund", "x", "a b c d", "one\ntwo", "last one"];
    let row = |(i, text): (usize, &&str)| Row {
        uid: format!("{:032x}", i + 1),
        text: (i != 4).then(|| text.to_string()),
        width: 100 + i as i64,
        score: (i != 7).then_some((i + 1) as f32 / 10.0),
    };
    texts.iter().enumerate().map(row).collect()
}

/// Writes arrays `[n, dim]` as float16 into the `.npz` of a metadata file.
pub fn write_embeddings(path: &Path, arrays: &[(&str, usize, Vec<f32>)]) {
    let mut archive = zip::ZipWriter::new(File::create(path).expect("a writable folder"));
    for (name, dim, values) in arrays {
        let shape = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({}, {dim}), }}", values.len() / dim);
        let padded = format!("{shape:<117}\n");
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).expect("a writable file");
        let head = [b"\x93NUMPY\x01\x00", &118u16.to_le_bytes()[..], padded.as_bytes()].concat();
        let data = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes());
        archive.write_all(&head.into_iter().chain(data).collect::<Vec<u8>>()).expect("a writable file");
    }
    archive.finish().expect("a writable file");
}

/// Writes rows as one of CommonPool's metadata files.
pub fn write_metadata(path: &Path, rows: &[Row]) {
    let text = |f: fn(&Row) -> Option<String>| -> ArrayRef { Arc::new(StringArray::from_iter(rows.iter().map(f))) };
    let widths: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.width)));
    let scores: ArrayRef = Arc::new(Float32Array::from_iter(rows.iter().map(|r| r.score)));
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("uid", text(|r| Some(r.uid.clone())), true),
        ("url", text(|r| Some(format!("https://example.org/{}", r.uid))), true),
        ("text", text(|r| r.text.clone()), true),
        ("original_width", widths.clone(), true),
        ("original_height", widths, true),
        ("clip_l14_similarity_score", scores.clone(), true),
        ("clip_b32_similarity_score", scores, true),
    ])
    .expect("columns of one length");
    write_parquet(path, &batch);
}

/// Returns text that says that it is UTF-8 and is not, as writers that do not check leave it.
pub fn unchecked_text(values: &[&[u8]]) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(values.iter().map(|value| value.len()));
    // SAFETY: nothing reads it as a string; it goes to a parquet file as bytes.
    Arc::new(unsafe { StringArray::new_unchecked(offsets, values.concat().into(), None) })
}

pub fn write_parquet(path: &Path, batch: &RecordBatch) {
    std::fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a writable folder");
    let file = File::create(path).expect("a writable folder");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a plain schema");
    writer.write(batch).expect("a writable file");
    writer.close().expect("a writable file");
}

/// Takes the statistics of a row group's columns away, as files have it whose writer leaves out those of long values.
pub fn remove_statistics(path: &Path, row_group: usize) {
    let bytes = std::fs::read(path).expect("written before");
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&File::open(path).expect("written before")).expect("a parquet file");
    let mut builder = metadata.into_builder();
    let mut groups = builder.take_row_groups();
    let group = groups.remove(row_group);
    let columns = group.columns().iter().map(|column| column.clone().into_builder().clear_statistics().build().expect("as before"));
    let columns = columns.collect();
    groups.insert(row_group, group.into_builder().set_column_metadata(columns).build().expect("as before"));
    let metadata = builder.set_row_groups(groups).build();
    // The footer's length stands before the last four bytes.
    let end = bytes.len() - 8 - u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().expect("four bytes")) as usize;
    let mut out = bytes[..end].to_vec();
    ParquetMetaDataWriter::new(&mut out, &metadata).finish().expect("a footer");
    std::fs::write(path, out).expect("a writable file");
}

/// Draws files like this one, as broken disks, stopped downloads and hostile hands leave them: bytes changed, put in, taken
/// out or repeated, numbers made as large as they can be, ends cut off; and now and then any bytes at all.
pub fn damaged(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..8u8);
    let change = prop::collection::vec(change, 0..6).prop_map(move |changes| {
        let mut bytes = whole.clone();
        for (at, to, byte, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let (at, to) = (at.index(bytes.len()), to.index(bytes.len()));
            let (start, end) = (at.min(to), at.max(to).min(at.min(to) + 64));
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 => drop(bytes.drain(start..end)),
                3 => bytes.extend_from_within(start..end),
                4 => bytes[start..end].fill([0, 0xff, 0x7f, byte][byte as usize % 4]),
                5 => bytes[at] = bytes[at].wrapping_add(1),
                _ => bytes[at] = byte,
            }
        }
        bytes
    });
    prop_oneof![9 => change, 1 => prop::collection::vec(any::<u8>(), 0..600)]
}
