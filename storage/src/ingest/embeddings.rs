use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float16Array};
use arrow::buffer::{Buffer, MutableBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use flate2::read::DeflateDecoder;
use half::f16;

use crate::{Error, Result, schema};

/// One array of an `.npz`, read in rows from front to back; the file is never held whole.
pub(super) struct NpzArray {
    path: PathBuf,
    pub name: String,
    pub dim: i32,
    rows_left: u64,
    data: Summed,
    /// What the archive says of the array's bytes.
    crc: u32,
}

/// Opens every array of an `.npz`, stored or deflated. Each must be float16 of shape `[rows, dim]`.
pub(super) fn open(path: &Path, rows: u64) -> Result<Vec<NpzArray>> {
    let archive = |source| Error::Npz { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(Error::io(path))?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(archive)?;
    let mut arrays = Vec::with_capacity(zip.len());
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
        let dim = match shape[..] {
            [r, dim] if dtype == "'<f2'" && header.order() == npyz::Order::C && r == rows && (1..=1 << 20).contains(&dim) => dim as i32,
            _ => return Err(wrong(format!("'<f2' [{rows}, dim]"), format!("{dtype} {shape:?}"))),
        };
        arrays.push(NpzArray { path: path.to_path_buf(), name, dim, rows_left: rows, data, crc });
    }
    Ok(arrays)
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

impl NpzArray {
    pub fn field(&self) -> Field {
        Field::new(&self.name, schema::embedding_type(self.dim), true)
    }

    /// The next `rows` rows as `[rows, dim]`.
    pub fn read(&mut self, rows: usize) -> Result<ArrayRef> {
        let mut bytes = MutableBuffer::from_len_zeroed(rows * self.dim as usize * 2);
        self.data.read_exact(bytes.as_slice_mut()).map_err(Error::io(&self.path))?;
        self.rows_left = self.rows_left.saturating_sub(rows as u64);
        if self.rows_left == 0 && self.data.crc.sum() != self.crc {
            let (expected, got) = (format!("checksum {:08x}", self.crc), format!("{:08x}", self.data.crc.sum()));
            return Err(Error::Array { path: self.path.clone(), array: self.name.clone(), expected, got });
        }
        let values = ScalarBuffer::<f16>::from(Buffer::from(bytes));
        let item = Arc::new(Field::new("item", DataType::Float16, true));
        Ok(Arc::new(FixedSizeListArray::try_new(item, self.dim, Arc::new(Float16Array::new(values, None)), None)?))
    }
}
