use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::uid::hex_encode;
use crate::{Error, Result, Uid};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
const EXPECTED: &str = "a .npy array of dtype [('f0', '<u8'), ('f1', '<u8')]";

/// A list of uids, sorted, duplicates allowed: what a filter selects and a run trains on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Subset {
    uids: Vec<Uid>,
    weights: Option<Vec<f32>>,
}

impl Subset {
    /// Sorts `uids`; `weights` says how often to draw each, same order, and is sorted along.
    pub fn new(mut uids: Vec<Uid>, weights: Option<Vec<f32>>) -> Subset {
        let Some(weights) = weights else {
            uids.sort_unstable();
            return Subset { uids, weights: None };
        };
        assert_eq!(uids.len(), weights.len(), "one weight per uid");
        let mut pairs: Vec<(Uid, f32)> = uids.into_iter().zip(weights).collect();
        pairs.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let (uids, weights) = pairs.into_iter().unzip();
        Subset { uids, weights: Some(weights) }
    }

    pub fn len(&self) -> usize {
        self.uids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.uids.is_empty()
    }

    /// In ascending order.
    pub fn uids(&self) -> &[Uid] {
        &self.uids
    }

    /// In the order of the uids; absent means 1 for each.
    pub fn weights(&self) -> Option<&[f32]> {
        self.weights.as_deref()
    }

    /// SHA-256 over the uids' bytes in order, as hexadecimal digits.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for uid in &self.uids {
            digest.update(uid.0);
        }
        hex_encode(&digest.finalize())
    }

    /// Writes `path` byte for byte as `numpy.save` does, and `NAME.weights.npy` beside it where there are weights.
    pub fn write(&self, path: &Path) -> Result<()> {
        // Weights of an earlier subset must not be taken for this one's, even if this stops half-way.
        let weights_path = weights_path(path);
        match std::fs::remove_file(&weights_path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(weights_path)(e)),
            _ => {}
        }
        let halves = self.uids.iter().flat_map(|uid| {
            let (high, low) = uid.halves();
            [high, low]
        });
        let record = "[('f0', '<u8'), ('f1', '<u8')]";
        write_npy(path, record, self.uids.len(), halves.map(u64::to_le_bytes))?;
        match &self.weights {
            Some(weights) => write_npy(&weights_path, "'<f4'", weights.len(), weights.iter().map(|w| w.to_le_bytes())),
            None => Ok(()),
        }
    }

    /// Reads a `.npy` subset, or DataComp's memory-mapped raw form (the same records without a header),
    /// and its weights where they lie beside it.
    pub fn read(path: &Path) -> Result<Subset> {
        let mut bytes = Vec::new();
        File::open(path).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(Error::io(path))?;
        let wrong = |got: String| Error::SubsetFormat { path: path.to_path_buf(), expected: EXPECTED, got };
        let uids: Vec<Uid> = if bytes.starts_with(MAGIC) {
            let npy = npyz::NpyFile::new(&bytes[..]).map_err(|e| wrong(e.to_string()))?;
            let dtype = npy.dtype().descr();
            if dtype != "[('f0', '<u8'), ('f1', '<u8')]" && dtype != "[('f0', '<u8'), ('f1', '<u8'), ]" {
                return Err(wrong(format!("dtype {dtype}")));
            }
            let records = npy.into_vec::<Record>().map_err(|e| wrong(e.to_string()))?;
            records.into_iter().map(|r| Uid::from_halves(r.f0, r.f1)).collect()
        } else if bytes.len() % 16 == 0 && !bytes.is_empty() {
            let half = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
            bytes.chunks_exact(16).map(|r| Uid::from_halves(half(&r[..8]), half(&r[8..]))).collect()
        } else {
            return Err(wrong(format!("{} bytes without a numpy header", bytes.len())));
        };
        let weights_path = weights_path(path);
        if !weights_path.exists() {
            return Ok(Subset::new(uids, None));
        }
        let file = File::open(&weights_path).map_err(Error::io(&weights_path))?;
        let weights: Vec<f32> =
            npyz::NpyFile::new(std::io::BufReader::new(file)).and_then(|n| n.into_vec()).map_err(Error::io(&weights_path))?;
        if weights.len() != uids.len() {
            return Err(Error::Array {
                path: weights_path,
                array: "weights".into(),
                expected: format!("{} values", uids.len()),
                got: format!("{} values", weights.len()),
            });
        }
        if let Some((entry, &weight)) = weights.iter().enumerate().find(|(_, w)| !w.is_finite() || **w < 0.0) {
            return Err(Error::Weight { path: weights_path, entry, weight });
        }
        Ok(Subset::new(uids, Some(weights)))
    }
}

#[derive(npyz::Deserialize)]
struct Record {
    f0: u64,
    f1: u64,
}

/// `NAME.weights.npy` beside `NAME.npy`.
fn weights_path(path: &Path) -> PathBuf {
    path.with_extension("weights.npy")
}

/// A one-dimensional array of `len` items, as `numpy.save` writes it: version 1.0, the header padded with
/// spaces so that the data starts at a multiple of 64.
fn write_npy<const N: usize>(path: &Path, descr: &str, len: usize, items: impl Iterator<Item = [u8; N]>) -> Result<()> {
    let mut header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ({len},), }}");
    // numpy leaves room for the length to grow to 21 digits in place.
    header.push_str(&" ".repeat(21 - len.to_string().len()));
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(MAGIC)?;
        out.write_all(&[1, 0])?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for item in items {
            out.write_all(&item)?;
        }
        out.flush()
    };
    write().map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u64) -> Uid {
        Uid::from_halves(n, !n)
    }

    #[test]
    fn round_trip_keeps_duplicates_order_and_weights() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let subset = Subset::new(vec![uid(3), uid(1), uid(3)], Some(vec![0.5, 2.0, 0.25]));
        subset.write(&path).unwrap();
        assert_eq!(Subset::read(&path).unwrap(), subset);
        assert_eq!(subset.uids(), [uid(1), uid(3), uid(3)]);
        assert_eq!(subset.weights().unwrap(), [2.0, 0.25, 0.5]);
        let plain = Subset::new(vec![uid(3)], None);
        plain.write(&path).unwrap();
        assert_eq!(Subset::read(&path).unwrap(), plain, "weights of the earlier subset are gone");
    }

    #[test]
    fn raw_form_and_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        Subset::new(vec![uid(7)], None).write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 128 + 16);
        let raw = dir.path().join("raw");
        std::fs::write(&raw, &bytes[128..]).unwrap();
        assert_eq!(Subset::read(&raw).unwrap().uids(), [uid(7)]);
    }

    #[test]
    fn refuses_other_arrays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        write_npy(&path, "'<f4'", 1, [1f32.to_le_bytes()].into_iter()).unwrap();
        assert!(Subset::read(&path).unwrap_err().to_string().contains("dtype '<f4'"));
        std::fs::write(&path, b"hello").unwrap();
        assert!(Subset::read(&path).unwrap_err().to_string().contains("5 bytes without a numpy header"));
    }
}
