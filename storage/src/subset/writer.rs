//! Writing a subset of any size: sorted in memory, and through sorted runs in temporary files beyond that.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::sort::sort;
use super::{Entry, npy_header, weights_path};
use crate::uid::hex_encode;
use crate::{Error, Result, put_in_place};

/// Takes uids in any order and leaves `NAME.npy`, sorted, and `NAME.weights.npy` beside it where entries have weights.
/// Until `finish` the files of those names stay as they were.
pub struct SubsetWriter {
    path: PathBuf,
    entries: Entries,
}

enum Entries {
    Plain(Sorter<u128>),
    Weighted(Sorter<(u128, u32)>),
}

/// What was written: how many uids, and SHA-256 over their bytes in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub len: u64,
    pub sha256: String,
}

impl SubsetWriter {
    /// `memory` bytes are held at most, besides buffers of the runs that do not fit.
    pub fn new(path: &Path, weighted: bool, memory: usize) -> SubsetWriter {
        let entries = if weighted { Entries::Weighted(Sorter::new(memory)) } else { Entries::Plain(Sorter::new(memory)) };
        SubsetWriter { path: path.to_path_buf(), entries }
    }

    /// Adds uids given as their bytes one after another, and their weights: none, or one a uid.
    pub fn push(&mut self, uids: &[u8], weights: &[f32]) -> Result<()> {
        let (uids, path) = (uids.as_chunks::<16>().0, &self.path);
        let pushed = match &mut self.entries {
            Entries::Plain(sorter) => sorter.extend(uids.len(), |i| u128::from_be_bytes(uids[i])),
            Entries::Weighted(sorter) => sorter.extend(uids.len(), |i| (u128::from_be_bytes(uids[i]), (weights[i] + 0.0).to_bits())),
        };
        pushed.map_err(Error::io(path))
    }

    pub fn is_empty(&self) -> bool {
        match &self.entries {
            Entries::Plain(sorter) => sorter.len == 0,
            Entries::Weighted(sorter) => sorter.len == 0,
        }
    }

    /// Sorts, writes, and puts the files in place.
    pub fn finish(self) -> Result<Written> {
        let weights_path = weights_path(&self.path);
        let weighted = matches!(self.entries, Entries::Weighted(_));
        let (part, weights_part) = (part(&self.path), part(&weights_path));
        let write = || {
            let weights = weighted.then(|| File::create(&weights_part)).transpose()?;
            match self.entries {
                Entries::Plain(sorter) => sorter.write(File::create(&part)?, weights),
                Entries::Weighted(sorter) => sorter.write(File::create(&part)?, weights),
            }
        };
        let written = write().map_err(Error::io(&part)).inspect_err(|_| {
            let _ = std::fs::remove_file(&part); // what is left of it helps nobody
            let _ = std::fs::remove_file(&weights_part);
        })?;
        // Weights of an earlier subset must not be taken for this one's, even if this stops half-way.
        match std::fs::remove_file(&weights_path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(weights_path)(e)),
            _ => {}
        }
        put_in_place(&part, &self.path).map_err(Error::io(&self.path))?;
        if weighted {
            put_in_place(&weights_part, &weights_path).map_err(Error::io(&weights_path))?;
        }
        Ok(written)
    }
}

fn part(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    path.with_file_name(name)
}

/// Bytes that each run is read in.
const RUN_BUFFER: usize = 1 << 18;

/// Entries that are written at once, while their digest is taken.
const BLOCK: usize = 1 << 17;

struct Sorter<E: Entry> {
    /// By the uid's first byte.
    buckets: Vec<Vec<E>>,
    held: usize,
    /// Entries that are held at most.
    limit: usize,
    runs: Vec<File>,
    len: u64,
}

impl<E: Entry + 'static> Sorter<E> {
    fn new(memory: usize) -> Sorter<E> {
        // Vectors grow by doubling.
        Sorter { buckets: vec![Vec::new(); 256], held: 0, limit: (memory / 2 / size_of::<E>()).max(1024), runs: Vec::new(), len: 0 }
    }

    #[inline(always)]
    fn extend(&mut self, n: usize, entry: impl Fn(usize) -> E) -> std::io::Result<()> {
        self.len += n as u64;
        let mut i = 0;
        while i < n {
            let end = n.min(i + self.limit - self.held);
            self.held += end - i;
            while i < end {
                let entry = entry(i);
                self.buckets[entry.byte(0) as usize].push(entry);
                i += 1;
            }
            if self.held == self.limit {
                self.spill()?;
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.buckets.par_iter_mut().for_each_init(Vec::new, |spare, bucket| sort(bucket, spare));
    }

    fn spill(&mut self) -> std::io::Result<()> {
        self.sort();
        let mut out = BufWriter::with_capacity(RUN_BUFFER, tempfile::tempfile()?);
        for entry in self.buckets.iter_mut().flat_map(|bucket| bucket.drain(..)) {
            out.write_all(&entry.uid().to_le_bytes())?;
            out.write_all(&entry.weight().to_le_bytes())?;
        }
        let mut file = out.into_inner().map_err(|e| e.into_error())?;
        file.rewind()?;
        self.runs.push(file);
        self.held = 0;
        Ok(())
    }

    fn write(mut self, file: File, weights: Option<File>) -> std::io::Result<Written> {
        let mut out = Output::new(file, weights, self.len)?;
        self.sort();
        let mut block: Vec<E> = Vec::with_capacity(BLOCK);
        if self.runs.is_empty() {
            for bucket in &self.buckets {
                if block.len() + bucket.len() > BLOCK {
                    out.write(&block)?;
                    block.clear();
                }
                block.extend_from_slice(bucket);
            }
            out.write(&block)?;
            return out.finish(self.len);
        }
        let mut runs: Vec<Run<E>> = self.runs.drain(..).map(Run::of_file).collect();
        runs.push(Run::OfMemory(Box::new(self.buckets.into_iter().flatten())));
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (i, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next()?.map(|entry| Reverse((entry.uid(), entry.weight(), i))));
        }
        while let Some(Reverse((uid, weight, i))) = heads.pop() {
            heads.extend(runs[i].next()?.map(|entry| Reverse((entry.uid(), entry.weight(), i))));
            block.push(E::of(uid, weight));
            if block.len() == BLOCK {
                out.write(&block)?;
                block.clear();
            }
        }
        out.write(&block)?;
        out.finish(self.len)
    }
}

/// Sorted entries.
enum Run<E> {
    OfFile(BufReader<File>),
    OfMemory(Box<dyn Iterator<Item = E>>),
}

impl<E: Entry + 'static> Run<E> {
    fn of_file(file: File) -> Run<E> {
        Run::OfFile(BufReader::with_capacity(RUN_BUFFER, file))
    }

    fn next(&mut self) -> std::io::Result<Option<E>> {
        let reader = match self {
            Run::OfMemory(entries) => return Ok(entries.next()),
            Run::OfFile(reader) => reader,
        };
        let (mut uid, mut weight) = ([0; 16], [0; 4]);
        match reader.read_exact(&mut uid) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        reader.read_exact(&mut weight)?;
        Ok(Some(E::of(u128::from_le_bytes(uid), u32::from_le_bytes(weight))))
    }
}

struct Output {
    uids: File,
    weights: Option<File>,
    sha256: Sha256,
    records: Vec<u8>,
    bytes: Vec<u8>,
}

impl Output {
    fn new(mut uids: File, mut weights: Option<File>, len: u64) -> std::io::Result<Output> {
        uids.write_all(&npy_header(super::DTYPE, len))?;
        if let Some(weights) = &mut weights {
            weights.write_all(&npy_header("'<f4'", len))?;
        }
        Ok(Output { uids, weights, sha256: Sha256::new(), records: Vec::new(), bytes: Vec::new() })
    }

    fn write<E: Entry>(&mut self, entries: &[E]) -> std::io::Result<()> {
        let Output { uids, weights, sha256, records, bytes } = self;
        let n = entries.len();
        records.resize(n * 16, 0);
        bytes.resize(n * 16, 0);
        let mut i = 0;
        while i < n {
            let uid = entries[i].uid();
            let halves = uid.rotate_left(64);
            records[i * 16..i * 16 + 16].copy_from_slice(&halves.to_le_bytes());
            bytes[i * 16..i * 16 + 16].copy_from_slice(&uid.to_be_bytes());
            i += 1;
        }
        let (written, ()) = rayon::join(|| uids.write_all(records), || sha256.update(bytes));
        if let Some(weights) = weights {
            let values: Vec<u8> = entries.iter().flat_map(|entry| entry.weight().to_le_bytes()).collect();
            weights.write_all(&values)?;
        }
        written
    }

    fn finish(self, len: u64) -> std::io::Result<Written> {
        Ok(Written { len, sha256: hex_encode(&self.sha256.finalize()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Subset, Uid};

    /// Uids with long common beginnings and repeats among random ones.
    fn uids(n: u64) -> Vec<Uid> {
        let mut x = 1u64;
        let mut random = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        (0..n).map(|i| if i % 3 == 0 { Uid::from_halves(7, i % 50) } else { Uid::from_halves(random(), random()) }).collect()
    }

    #[test]
    fn sorted_in_memory_and_through_runs_as_by_the_standard_library() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.npy");
        let all = uids(200_000);
        let mut expected = all.clone();
        expected.sort();
        let mut digests = Vec::new();
        for memory in [usize::MAX, 1 << 20] {
            let mut writer = SubsetWriter::new(&path, false, memory);
            all.chunks(777)
                .try_for_each(|chunk| writer.push(&chunk.iter().flat_map(|uid| uid.0).collect::<Vec<u8>>(), &[]))
                .expect("pushed");
            let written = writer.finish().expect("written");
            let subset = Subset::read(&path).expect("readable");
            assert_eq!(subset.uids(), expected);
            assert_eq!((written.len, written.sha256.clone()), (200_000, subset.digest()));
            digests.push(written.sha256);
        }
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn weights_stay_with_their_uids() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.npy");
        let all = uids(5000);
        let weights: Vec<f32> = (0..5000).map(|i| (i % 9) as f32).collect();
        for memory in [usize::MAX, 1 << 16] {
            let mut writer = SubsetWriter::new(&path, true, memory);
            writer.push(&all.iter().flat_map(|uid| uid.0).collect::<Vec<u8>>(), &weights).expect("pushed");
            writer.finish().expect("written");
            assert_eq!(Subset::read(&path).expect("readable"), Subset::new(all.clone(), Some(weights.clone())));
        }
    }
}
