use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow::datatypes::Field;
use flate2::read::DeflateDecoder;

use crate::{Error, Result, schema};

/// The name, dimension and number of rows of each array of an `.npz`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub name: String,
    pub rows: u64,
    pub dim: i32,
}

impl Array {
    pub fn field(&self) -> Field {
        Field::new(&self.name, schema::embedding_type(self.dim), true)
    }
}

/// Returns the arrays of an `.npz` that a pool can take, and an error for each other. Those are float16 of shape
/// `[rows, dim]`, the same rows in all: as many as CommonPool's arrays have, or else the first.
pub(super) fn arrays(path: &Path) -> Result<(Vec<Array>, Vec<Error>)> {
    let (npz, left_out) = Npz::open_all(path)?;
    Ok((npz.arrays.into_iter().map(|array| array.about).collect(), left_out))
}

/// An `.npz`, stored or deflated, read in rows from front to back; the file is never held whole.
pub(super) struct Npz {
    path: PathBuf,
    arrays: Vec<Reading>,
    rows_left: u64,
}

struct Reading {
    about: Array,
    data: Summed,
    /// What the archive says of the array's bytes.
    crc: u32,
}

impl Npz {
    /// Opens the file to read these arrays, in this order.
    pub fn open(path: &Path, arrays: &[Array]) -> Result<Npz> {
        let (mut npz, _) = Npz::open_all(path)?;
        let mut found = Vec::with_capacity(arrays.len());
        for array in arrays {
            let at = npz.arrays.iter().position(|reading| reading.about == *array);
            found.push(npz.arrays.remove(at.ok_or_else(|| Error::SourceChanged { path: path.to_path_buf() })?));
        }
        Ok(Npz { arrays: found, ..npz })
    }

    fn open_all(path: &Path) -> Result<(Npz, Vec<Error>)> {
        let archive = |source| Error::Npz { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(Error::io(path))?;
        let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(archive)?;
        let mut arrays: Vec<Reading> = Vec::with_capacity(zip.len());
        let mut left_out = Vec::new();
        for i in 0..zip.len() {
            let entry = zip.by_index(i).map_err(archive)?;
            let Some(name) = entry.name().map_err(archive)?.strip_suffix(".npy").map(str::to_string) else { continue };
            let start = entry.data_start().unwrap_or_default();
            let (size, method, crc) = (entry.compressed_size(), entry.compression(), entry.crc32());
            let mut file = File::open(path).map_err(Error::io(path))?;
            file.seek(SeekFrom::Start(start)).map_err(Error::io(path))?;
            let raw = BufReader::with_capacity(1 << 18, file.take(size));
            let inner: Box<dyn Read + Send> = match method {
                zip::CompressionMethod::Stored => Box::new(raw),
                _ => Box::new(DeflateDecoder::new(raw)),
            };
            let mut data = Summed { inner, crc: flate2::Crc::new() };
            let wrong = |expected: String, got: String| Error::Array { path: path.to_path_buf(), array: name.clone(), expected, got };
            let header = match npyz::NpyHeader::from_reader(&mut data) {
                Ok(header) => header,
                Err(e) => {
                    left_out.push(wrong("a .npy header".into(), e.to_string()));
                    continue;
                }
            };
            let (dtype, shape) = (header.dtype().descr(), header.shape().to_vec());
            let fixed = schema::EMBEDDINGS.iter().find(|(array, _)| *array == name).map(|(_, dim)| *dim);
            match shape[..] {
                [rows, dim]
                    if dtype == "'<f2'"
                        && header.order() == npyz::Order::C
                        && schema::can_be_column(&name)
                        && !arrays.iter().any(|array| array.about.name == name)
                        && fixed.is_none_or(|fixed| dim == fixed as u64)
                        && (1..=1 << 20).contains(&dim) =>
                {
                    arrays.push(Reading { about: Array { name, rows, dim: dim as i32 }, data, crc });
                }
                _ => {
                    let dim = fixed.map_or("dim".to_string(), |dim| dim.to_string());
                    let order = if header.order() == npyz::Order::C { "" } else { " in Fortran order" };
                    left_out.push(wrong(format!("'<f2' [rows, {dim}]"), format!("{dtype} {shape:?}{order}")));
                }
            }
        }
        let is_commonpools = |array: &&Reading| schema::EMBEDDINGS.iter().any(|(name, _)| *name == array.about.name);
        let Some(first) = arrays.iter().find(is_commonpools).or(arrays.first()) else {
            let (expected, got) = ("arrays '<f2' [rows, dim]".to_string(), "none".to_string());
            let none = Error::Array { path: path.to_path_buf(), array: "*.npy".to_string(), expected, got };
            return Err(left_out.into_iter().next().unwrap_or(none));
        };
        let rows_left = first.about.rows;
        let others = arrays.extract_if(.., |array| array.about.rows != rows_left).map(|Reading { about, .. }| Error::Array {
            path: path.to_path_buf(),
            expected: format!("'<f2' [{rows_left}, dim]"),
            got: format!("'<f2' [{}, {}]", about.rows, about.dim),
            array: about.name,
        });
        left_out.extend(others);
        Ok((Npz { path: path.to_path_buf(), arrays, rows_left }, left_out))
    }

    /// Passes over the next `rows` rows.
    pub fn skip(&mut self, rows: u64) -> Result<()> {
        for array in &mut self.arrays {
            let bytes = rows * array.about.dim as u64 * 2;
            let skipped = std::io::copy(&mut (&mut array.data).take(bytes), &mut std::io::sink()).map_err(Error::io(&self.path))?;
            if skipped < bytes {
                return Err(Error::io(&self.path)(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        self.pass(rows)
    }

    /// Reads the next `rows` rows of array i into `outs[i]`, each of `rows * dim * 2` bytes, where there is one.
    pub fn read(&mut self, rows: u64, outs: &mut [&mut [u8]]) -> Result<()> {
        for (array, out) in self.arrays.iter_mut().zip(outs) {
            array.data.read_exact(out).map_err(Error::io(&self.path))?;
        }
        self.pass(rows)
    }

    fn pass(&mut self, rows: u64) -> Result<()> {
        self.rows_left -= rows;
        let bad = self.arrays.iter().find(|array| self.rows_left == 0 && array.data.crc.sum() != array.crc);
        bad.map_or(Ok(()), |array| {
            let (expected, got) = (format!("checksum {:08x}", array.crc), format!("{:08x}", array.data.crc.sum()));
            Err(Error::Array { path: self.path.clone(), array: array.about.name.clone(), expected, got })
        })
    }

    pub fn rows_left(&self) -> u64 {
        self.rows_left
    }
}

/// Reads through, and sums up what was read.
struct Summed {
    inner: Box<dyn Read + Send>,
    crc: flate2::Crc,
}

impl Read for Summed {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.crc.update(&out[..n]);
        Ok(n)
    }
}
