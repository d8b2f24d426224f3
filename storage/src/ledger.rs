//! `ledger`: every file that the pool holds, by digest.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, FixedSizeBinaryBuilder, Int64Array, RecordBatch, RecordBatchIterator, StringArray};
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use lance::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::writer::{self, Change};
use crate::{Error, Pool, Result, Table, Writer, schema};

pub(crate) type FileDigest = [u8; 32];

/// One ingested file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// From the root of the file system.
    pub path: String,
    /// `metadata`, `embeddings` or `shard`.
    pub kind: String,
    pub bytes: u64,
    /// Microseconds since 1970.
    pub modified: i64,
    pub digest: FileDigest,
    /// Rows of it in the pool: samples, samples with vectors, or images.
    pub rows: u64,
    /// How many rows `pool` has grown by.
    pub added: u64,
    pub rejected: u64,
    /// Of the table that it was written to.
    pub version: u64,
}

/// The tables that an ingest writes to, each at the version that it goes on from. They are opened before the ledger is
/// read: what others commit later makes the next commit fail.
#[derive(Default)]
pub(crate) struct Tables {
    pub samples: Option<Arc<Dataset>>,
    pub images: Option<Arc<Dataset>>,
}

impl Tables {
    pub async fn open(pool: &Pool) -> Result<Tables> {
        Ok(Tables { samples: pool.dataset(Table::Pool).await?, images: pool.dataset(Table::Images).await? })
    }
}

/// The property of a commit that holds its files' entries, so that a run that stops before it has written them to
/// the ledger loses nothing.
const PROPERTY: &str = "tarn.ledger";
/// The property of a commit of shards' samples, which goes before that of their images.
const ADDED: &str = "tarn.added";

/// All entries, in the order of their commits.
#[derive(Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    /// Of the table, when it was read or written last.
    version: u64,
    by_digest: HashMap<FileDigest, usize>,
    by_file: HashSet<(String, u64, i64)>,
    /// Rows of `pool` that a stopped run has made for shards whose images it did not commit.
    added: HashMap<FileDigest, u64>,
    /// What a stopped run has committed and not written down here.
    lost: Vec<Entry>,
}

impl Ledger {
    /// Reads the ledger, and completes it by what a stopped run has committed.
    pub async fn open(writer: &Writer, tables: &Tables) -> Result<Ledger> {
        let mut ledger = Ledger::look(writer.pool(), tables).await?;
        let lost = std::mem::take(&mut ledger.lost);
        ledger.append(writer, lost).await?;
        Ok(ledger)
    }

    /// Reads the ledger as it is. What it lacks of the commits up to these versions is `lost`.
    pub async fn look(pool: &Pool, tables: &Tables) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        if let Some(dataset) = pool.dataset(Table::Ledger).await? {
            ledger.read(&dataset).await?;
        }
        for (dataset, kinds) in [(&tables.samples, ["metadata", "embeddings"]), (&tables.images, ["shard", "shard"])] {
            let Some(dataset) = dataset else { continue };
            let last = ledger.entries.iter().filter(|e| kinds.contains(&e.kind.as_str())).map(|e| e.version).max().unwrap_or(0);
            for (version, properties) in properties_since(dataset, last).await? {
                let json = properties.get(PROPERTY).map_or("[]", String::as_str);
                for entry in serde_json::from_str::<Vec<Entry>>(json).unwrap_or_default() {
                    if !ledger.has(&entry.digest) {
                        ledger.lost.push(Entry { version, ..entry });
                    }
                }
                let json = properties.get(ADDED).map_or("[]", String::as_str);
                ledger.added.extend(serde_json::from_str::<Vec<(FileDigest, u64)>>(json).unwrap_or_default());
            }
        }
        Ok(ledger)
    }

    /// How many files `open` would complete the ledger by.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn has(&self, digest: &FileDigest) -> bool {
        self.by_digest.contains_key(digest)
    }

    /// Whether a file of this path, size and time of change is in it, which is not read again for its digest.
    pub fn has_file(&self, path: &str, bytes: u64, modified: i64) -> bool {
        self.by_file.contains(&(path.to_string(), bytes, modified))
    }

    /// Rows of `pool` that are there for a shard whose images are not.
    pub fn added_before(&self, digest: &FileDigest) -> u64 {
        self.added.get(digest).copied().unwrap_or(0)
    }

    /// What a commit of these files carries, and with it what earlier commits carry for files that are still to come.
    pub fn properties(&self, entries: &[Entry]) -> HashMap<String, String> {
        let mut added: Vec<(FileDigest, u64)> = self.added.iter().map(|(digest, n)| (*digest, *n)).collect();
        added.retain(|(digest, _)| !self.has(digest));
        added.sort_unstable();
        let entries = serde_json::to_string(entries).expect("plain data");
        added_properties(&added).into_iter().chain([(PROPERTY.to_string(), entries)]).collect()
    }

    fn insert(&mut self, entry: Entry) {
        self.by_digest.insert(entry.digest, self.entries.len());
        self.by_file.insert((entry.path.clone(), entry.bytes, entry.modified));
        self.entries.push(entry);
    }

    /// Writes down entries, but for those that another ingest has written down meanwhile.
    pub async fn append(&mut self, writer: &Writer, mut entries: Vec<Entry>) -> Result<()> {
        while !entries.is_empty() {
            let dataset = match writer.pool().dataset(Table::Ledger).await? {
                Some(dataset) => dataset,
                None => match writer.create(Table::Ledger, schema::ledger()).await {
                    Err(Error::Changed { .. }) => continue,
                    created => created?,
                },
            };
            if dataset.version().version != self.version {
                self.read(&dataset).await?;
                entries.retain(|entry| !self.has(&entry.digest));
            }
            let batches = RecordBatchIterator::new([Ok(write(&entries)?)], schema::ledger());
            let fragments = writer::write_fragments(&dataset, Box::new(batches), usize::MAX >> 1).await?;
            match writer.commit(&dataset, Change { fragments, ..Change::default() }, HashMap::new()).await {
                Err(Error::Changed { .. }) => continue,
                committed => self.version = committed?.version().version,
            }
            std::mem::take(&mut entries).into_iter().for_each(|entry| self.insert(entry));
        }
        Ok(())
    }

    async fn read(&mut self, dataset: &Dataset) -> Result<()> {
        let wrap = || Error::lance(dataset.uri());
        let mut scanner = dataset.scan();
        let mut stream = scanner.scan_in_order(true).try_into_stream().await.map_err(wrap())?;
        while let Some(batch) = stream.try_next().await.map_err(wrap())? {
            for entry in read(&batch) {
                if !self.has(&entry.digest) {
                    self.insert(entry);
                }
            }
        }
        self.version = dataset.version().version;
        Ok(())
    }
}

pub(crate) fn added_properties(added: &[(FileDigest, u64)]) -> HashMap<String, String> {
    HashMap::from([(ADDED.to_string(), serde_json::to_string(added).expect("plain data"))])
}

/// The properties of all commits from `version` on.
async fn properties_since(dataset: &Dataset, version: u64) -> Result<Vec<(u64, HashMap<String, String>)>> {
    let mut all = Vec::new();
    for version in version.max(1)..=dataset.version().version {
        let transaction = match dataset.read_transaction_by_version(version).await {
            Ok(transaction) => transaction,
            // What was cleaned away was in the ledger before.
            Err(lance::Error::NotFound { .. } | lance::Error::DatasetNotFound { .. }) => continue,
            Err(e) => return Err(Error::lance(dataset.uri())(e)),
        };
        if let Some(properties) = transaction.and_then(|t| t.transaction_properties) {
            all.push((version, HashMap::clone(&properties)));
        }
    }
    Ok(all)
}

fn write(entries: &[Entry]) -> Result<RecordBatch> {
    let int = |f: fn(&Entry) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(entries.iter().map(f))) };
    let mut digests = FixedSizeBinaryBuilder::new(32);
    entries.iter().try_for_each(|entry| digests.append_value(entry.digest))?;
    Ok(RecordBatch::try_new(
        schema::ledger(),
        vec![
            Arc::new(StringArray::from_iter_values(entries.iter().map(|e| &e.path))),
            Arc::new(StringArray::from_iter_values(entries.iter().map(|e| &e.kind))),
            int(|e| e.bytes as i64),
            int(|e| e.modified),
            Arc::new(digests.finish()),
            int(|e| e.rows as i64),
            int(|e| e.added as i64),
            int(|e| e.rejected as i64),
            int(|e| e.version as i64),
        ],
    )?)
}

fn read(batch: &RecordBatch) -> Vec<Entry> {
    let text = |name: &str, i| batch[name].as_string::<i32>().value(i).to_string();
    let int = |name: &str, i| batch[name].as_primitive::<Int64Type>().value(i);
    let entry = |i| {
        Some(Entry {
            path: text("path", i),
            kind: text("kind", i),
            bytes: int("bytes", i) as u64,
            modified: int("modified", i),
            digest: batch["sha256"].as_fixed_size_binary().value(i).try_into().ok()?,
            rows: int("rows", i) as u64,
            added: int("added", i) as u64,
            rejected: int("rejected", i) as u64,
            version: int("version", i) as u64,
        })
    };
    (0..batch.num_rows()).filter_map(entry).collect()
}

/// SHA-256 of a file's bytes, read in blocks.
pub(crate) fn digest_file(path: &Path) -> Result<FileDigest> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut digest = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(Error::io(path))? {
            0 => return Ok(digest.finalize().into()),
            n => digest.update(&block[..n]),
        }
    }
}
