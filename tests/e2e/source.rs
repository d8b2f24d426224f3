//! Small sources on the spot: metadata, embeddings and shards of made-up samples.

use std::io::{Cursor, Write};
use std::path::Path;

use half::f16;
use tarn_tests::Row;

/// The uid of sample i: scattered, as hashes are.
pub(crate) fn uid(i: usize) -> String {
    format!("{:016x}{:016x}", (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), i)
}

pub(crate) fn row(i: usize) -> Row {
    Row { uid: uid(i), text: Some(format!("caption {i}")), width: 200 + i as i64, score: Some((i % 97) as f32 / 97.0) }
}

/// `PATH.parquet` with the samples of this range.
pub(crate) fn metadata(path: &Path, samples: std::ops::Range<usize>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    tarn_tests::write_metadata(path, &samples.map(row).collect::<Vec<_>>());
}

/// A unit vector that tells sample i.
pub(crate) fn vector(i: usize, dim: usize) -> Vec<f16> {
    let angle = i as f32 * 0.1;
    (0..dim).map(|k| f16::from_f32([angle.cos(), angle.sin(), 0.0, 0.0][k % 4] * if k < 4 { 1.0 } else { 0.0 })).collect()
}

/// An `.npz` with arrays of these names and dimensions.
pub(crate) fn embeddings(path: &Path, arrays: &[(&str, usize)], samples: std::ops::Range<usize>, deflate: bool) {
    let values = |dim| samples.clone().flat_map(move |i| vector(i, dim)).collect::<Vec<f16>>();
    write_npz(path, arrays.iter().map(|(name, dim)| (*name, *dim, values(*dim))), deflate);
}

pub(crate) fn write_npz<'a>(path: &Path, arrays: impl Iterator<Item = (&'a str, usize, Vec<f16>)>, deflate: bool) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let method = if deflate { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    for (name, dim, values) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        let mut header =
            format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({}, {dim}), }}", values.len().checked_div(dim).unwrap_or(0));
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
        zip.write_all(header.as_bytes()).unwrap();
        zip.write_all(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    }
    zip.finish().unwrap();
}

/// A picture that tells sample i, too noisy to be stored within the table's own files.
pub(crate) fn picture(i: usize) -> Vec<u8> {
    let noise = |x: u32, y: u32| (x * 31 + y * 17 + i as u32).wrapping_mul(2_654_435_761) >> 24;
    let pixel = |x: u32, y: u32| image::Rgb([noise(x, y) as u8, noise(y, x) as u8, noise(x + y, i as u32) as u8]);
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_fn(80, 60, pixel).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

/// The members of sample i: `KEY.jpg`, `KEY.json`, `KEY.txt`.
pub(crate) fn members(i: usize) -> Vec<(String, Vec<u8>)> {
    let key = format!("{i:09}");
    let json = format!(
        r#"{{"uid": "{}", "url": "https://example.org/{}", "caption": "caption {i}", "original_width": {}, "original_height": {}, "status": "success"}}"#,
        uid(i),
        uid(i),
        200 + i,
        200 + i
    );
    vec![
        (format!("{key}.jpg"), picture(i)),
        (format!("{key}.json"), json.into_bytes()),
        (format!("{key}.txt"), format!("caption {i}").into_bytes()),
    ]
}

pub(crate) fn tar(members: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        // Names that climb out are refused by the crate, so they are put in by hand.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

pub(crate) fn shard(path: &Path, samples: std::ops::Range<usize>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, tar(samples.flat_map(members))).unwrap();
}
