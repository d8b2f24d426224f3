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

/// What an `.npz` holds. Each array must be float16 of shape `[rows, dim]`, the same rows in all.
pub(super) fn arrays(path: &Path) -> Result<Vec<Array>> {
    Ok(Npz::open(path)?.arrays.into_iter().map(|array| array.about).collect())
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
    pub fn open(path: &Path) -> Result<Npz> {
        let archive = |source| Error::Npz { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(Error::io(path))?;
        let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(archive)?;
        let mut arrays: Vec<Reading> = Vec::with_capacity(zip.len());
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
            let header = npyz::NpyHeader::from_reader(&mut data).map_err(|e| wrong("a .npy header".into(), e.to_string()))?;
            let (dtype, shape) = (header.dtype().descr(), header.shape().to_vec());
            let rows = arrays.first().map(|first| first.about.rows);
            let fixed = schema::EMBEDDINGS.iter().find(|(array, _)| *array == name).map(|(_, dim)| *dim);
            let (rows, dim) = match shape[..] {
                [r, dim]
                    if dtype == "'<f2'"
                        && header.order() == npyz::Order::C
                        && rows.is_none_or(|rows| r == rows)
                        && schema::can_be_column(&name)
                        && fixed.is_none_or(|fixed| dim == fixed as u64)
                        && (1..=1 << 20).contains(&dim) =>
                {
                    (r, dim as i32)
                }
                _ => {
                    let rows = rows.map_or("rows".to_string(), |rows| rows.to_string());
                    let dim = fixed.map_or("dim".to_string(), |dim| dim.to_string());
                    let order = if header.order() == npyz::Order::C { "" } else { " in Fortran order" };
                    return Err(wrong(format!("'<f2' [{rows}, {dim}]"), format!("{dtype} {shape:?}{order}")));
                }
            };
            arrays.push(Reading { about: Array { name, rows, dim }, data, crc });
        }
        let rows_left = match arrays.first() {
            Some(array) => array.about.rows,
            None => {
                let (expected, got) = ("arrays '<f2' [rows, dim]".to_string(), "none".to_string());
                return Err(Error::Array { path: path.to_path_buf(), array: "*.npy".to_string(), expected, got });
            }
        };
        Ok(Npz { path: path.to_path_buf(), arrays, rows_left })
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
