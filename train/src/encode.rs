//! The features of loose files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{AsArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Float32Type, Schema};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use storage::{OnProgress, Progress};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::checkpoint::{f32_bytes, write_whole};
use crate::encoder::Encoder;
use crate::parts::{Parts, hex};
use crate::{Error, Result};

/// Files or texts that are encoded, and kept, at a time.
const PART: usize = 512;

/// What to encode, in this order.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub images: Vec<PathBuf>,
    pub texts: Vec<String>,
}

impl Files {
    /// The pictures in a folder and those below it, by name; and the lines of a file.
    pub fn find(images: Option<&Path>, texts: Option<&Path>) -> Result<Files> {
        let mut files = Files::default();
        if let Some(folder) = images {
            pictures(folder, &mut files.images)?;
            files.images.sort();
        }
        if let Some(path) = texts {
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            files.texts = text.lines().map(str::to_string).collect();
        }
        Ok(files)
    }
}

fn pictures(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let path = entry.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        // Links to folders are not followed: they may lead back here.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pictures(&path, found)?;
        } else if ["jpg", "jpeg", "png", "webp", "gif"].contains(&extension.as_str()) {
            found.push(path);
        }
    }
    Ok(())
}

/// Writes `out` as `.npz`: `image_features` and `text_features`, float32 `[n, embed_dim]`, as the model gives them or
/// divided by their norms; and `image_files`, the paths. A picture that cannot be read is a row of NaN, given back with
/// the reason. Stopped, it goes on where it was when it is called again.
pub fn encode(
    encoder: &mut Encoder,
    files: &Files,
    normalize: bool,
    out: &Path,
    stop: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Vec<(PathBuf, String)>> {
    let dim = encoder.config().embed_dim;
    let mut folder = out.as_os_str().to_owned();
    folder.push(".parts");
    let parts = Parts::open(Path::new(&folder), &digest(encoder, files, normalize)?)?;
    let total = (files.images.len() + files.texts.len()) as u64;
    let (mut number, mut done) = (0, 0);
    let mut next = |n: usize, features: &mut dyn FnMut() -> Result<Vec<f32>>| -> Result<Vec<f32>> {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped { done, total });
        }
        on_progress(Progress { what: String::new(), done, total, unit: "files" });
        let kept = parts.read(number).map(|batch| batch.column(0).as_primitive::<Float32Type>().values().to_vec());
        let values = match kept.filter(|values| values.len() == n * dim) {
            Some(values) => values,
            None => {
                let values = features()?;
                let schema = Arc::new(Schema::new(vec![Field::new("features", DataType::Float32, false)]));
                let batch = RecordBatch::try_new(schema, vec![Arc::new(Float32Array::from(values.clone()))]);
                parts.write(number, &batch.map_err(storage::Error::from)?)?;
                values
            }
        };
        (number, done) = (number + 1, done + n as u64);
        Ok(values)
    };
    let (mut images, mut unreadable) = (Vec::with_capacity(files.images.len() * dim), Vec::new());
    for paths in files.images.chunks(PART) {
        let rows = next(paths.len(), &mut || encode_images(encoder, paths, normalize))?;
        let broken = paths.iter().zip(rows.chunks_exact(dim)).filter(|(_, row)| row[0].is_nan());
        // Looked at again for the reason, which the pieces do not keep.
        unreadable.extend(broken.map(|(path, _)| (path.clone(), read(&encoder.preprocessor(), path).err().unwrap_or_default())));
        images.extend(rows);
    }
    let mut texts = Vec::with_capacity(files.texts.len() * dim);
    for lines in files.texts.chunks(PART) {
        texts.extend(next(lines.len(), &mut || Ok(scaled(encoder.encode_texts(lines)?, dim, normalize)))?);
    }
    write_whole(out, |file| write_npz(file, files, dim, &images, &texts))?;
    parts.remove()?;
    Ok(unreadable)
}

fn encode_images(encoder: &mut Encoder, paths: &[PathBuf], normalize: bool) -> Result<Vec<f32>> {
    let dim = encoder.config().embed_dim;
    let preprocess = encoder.preprocessor();
    let pixels: Vec<Option<Vec<u8>>> = paths.par_iter().map(|path| read(&preprocess, path).ok()).collect();
    let readable: Vec<bool> = pixels.iter().map(Option::is_some).collect();
    let features = encoder.encode_images(&pixels.into_iter().flatten().collect::<Vec<_>>())?;
    let mut features = features.chunks_exact(dim);
    let rows = readable.into_iter().flat_map(|readable| {
        let row = if readable { features.next() } else { None };
        row.map_or(vec![f32::NAN; dim], <[f32]>::to_vec)
    });
    Ok(scaled(rows.collect(), dim, normalize))
}

fn read(preprocess: &impl Fn(&[u8]) -> Result<Vec<u8>>, path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    preprocess(&bytes).map_err(|e| e.to_string())
}

fn scaled(mut features: Vec<f32>, dim: usize, normalize: bool) -> Vec<f32> {
    if normalize {
        crate::normalize_rows(&mut features, dim);
    }
    features
}

fn digest(encoder: &Encoder, files: &Files, normalize: bool) -> Result<String> {
    let mut digest = Sha256::new();
    digest.update(encoder.digest()?);
    digest.update([u8::from(normalize)]);
    for path in &files.images {
        let about = path.metadata().ok();
        let changed = about.as_ref().and_then(|about| about.modified().ok());
        digest.update(format!("{}\0{:?}\0{changed:?}\0", path.display(), about.map(|about| about.len())));
    }
    files.texts.iter().for_each(|text| digest.update(format!("{text}\n")));
    Ok(hex(&digest.finalize()))
}

fn write_npz(file: &mut BufWriter<File>, files: &Files, dim: usize, images: &[f32], texts: &[f32]) -> std::io::Result<()> {
    let mut zip = ZipWriter::new(file);
    let names: Vec<String> = files.images.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let longest = names.iter().map(String::len).max().unwrap_or(1).max(1);
    let names = names.iter().flat_map(|name| name.bytes().chain(std::iter::repeat(0)).take(longest)).collect::<Vec<u8>>();
    if !images.is_empty() {
        write_npy(&mut zip, "image_features", "<f4", &format!("{}, {dim}", files.images.len()), f32_bytes(images))?;
        write_npy(&mut zip, "image_files", &format!("|S{longest}"), &format!("{},", files.images.len()), &names)?;
    }
    if !texts.is_empty() {
        write_npy(&mut zip, "text_features", "<f4", &format!("{}, {dim}", files.texts.len()), f32_bytes(texts))?;
    }
    zip.finish()?;
    Ok(())
}

/// One array, stored. Source: numpy's `format.py`, version 1.0.
fn write_npy(zip: &mut ZipWriter<&mut BufWriter<File>>, name: &str, kind: &str, shape: &str, bytes: &[u8]) -> std::io::Result<()> {
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true);
    zip.start_file(format!("{name}.npy"), options)?;
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version, length and header together are a multiple of 64 bytes, the last one a line's end.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    zip.write_all(b"\x93NUMPY\x01\x00")?;
    zip.write_all(&(header.len() as u16).to_le_bytes())?;
    zip.write_all(header.as_bytes())?;
    zip.write_all(bytes)
}
