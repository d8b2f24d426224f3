mod sort;
mod writer;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use writer::{SubsetWriter, Written};

use crate::uid::hex_encode;
use crate::{Error, Result, Uid};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The high and the low half of a uid.
const DTYPE: &str = "[('f0', '<u8'), ('f1', '<u8')]";
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

    /// Its size and digest, as for a receipt.
    pub fn summary(&self) -> Written {
        Written { len: self.len() as u64, sha256: self.digest() }
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
        let mut writer = SubsetWriter::new(path, self.weights.is_some(), usize::MAX);
        let bytes: Vec<u8> = self.uids.iter().flat_map(|uid| uid.0).collect();
        writer.push(&bytes, self.weights.as_deref().unwrap_or(&[]))?;
        writer.finish().map(drop)
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
            if npy.shape().len() != 1 {
                return Err(wrong(format!("shape {:?}", npy.shape())));
            }
            if dtype != DTYPE && dtype != "[('f0', '<u8'), ('f1', '<u8'), ]" {
                return Err(wrong(format!("dtype {dtype}")));
            }
            let records = npy.into_vec::<Record>().map_err(|e| wrong(e.to_string()))?;
            records.into_iter().map(|r| Uid::from_halves(r.f0, r.f1)).collect()
        } else if !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
            return Err(wrong("text".into()));
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

/// The header of a one-dimensional array, as `numpy.save` writes it: version 1.0, padded with spaces so that the data
/// starts at a multiple of 64.
fn npy_header(descr: &str, len: u64) -> Vec<u8> {
    let mut text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ({len},), }}");
    // numpy leaves room for the length to grow to 21 digits in place.
    text.push_str(&" ".repeat(21 - len.to_string().len()));
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    [&MAGIC[..], &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// An entry of a subset while it is sorted: a uid, or a uid and the bits of its weight. Weights are not negative, so
/// that the order of their bits is theirs.
trait Entry: Copy + Default + Send {
    /// Bytes that tell entries apart.
    const BYTES: u32;
    fn of(uid: u128, weight: u32) -> Self;
    fn uid(&self) -> u128;
    fn weight(&self) -> u32;

    /// The byte at this place of the uid, then of the weight, the highest first.
    #[inline(always)]
    fn byte(&self, depth: u32) -> u8 {
        if depth < 16 { (self.uid() >> (120 - 8 * depth)) as u8 } else { (self.weight() >> (24 - 8 * (depth - 16))) as u8 }
    }

    #[inline(always)]
    fn is_less(&self, other: &Self) -> bool {
        self.uid() < other.uid() || (self.uid() == other.uid() && self.weight() < other.weight())
    }
}

impl Entry for u128 {
    const BYTES: u32 = 16;

    #[inline(always)]
    fn of(uid: u128, _: u32) -> u128 {
        uid
    }

    #[inline(always)]
    fn uid(&self) -> u128 {
        *self
    }

    #[inline(always)]
    fn weight(&self) -> u32 {
        0
    }
}

impl Entry for (u128, u32) {
    const BYTES: u32 = 20;

    #[inline(always)]
    fn of(uid: u128, weight: u32) -> (u128, u32) {
        (uid, weight)
    }

    #[inline(always)]
    fn uid(&self) -> u128 {
        self.0
    }

    #[inline(always)]
    fn weight(&self) -> u32 {
        self.1
    }
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
        std::fs::write(&path, [npy_header("'<f4'", 1), 1f32.to_le_bytes().to_vec()].concat()).unwrap();
        assert!(Subset::read(&path).unwrap_err().to_string().contains("dtype '<f4'"));
        std::fs::write(&path, b"hello").unwrap();
        assert!(Subset::read(&path).unwrap_err().to_string().contains("not a subset: text"));
        std::fs::write(&path, b"hell\xff").unwrap();
        assert!(Subset::read(&path).unwrap_err().to_string().contains("5 bytes without a numpy header"));
    }
}
