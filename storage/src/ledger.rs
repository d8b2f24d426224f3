use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, FixedSizeBinaryArray, Int64Array, RecordBatch, RecordBatchIterator, StringArray};
use futures::TryStreamExt;
use sha2::{Digest, Sha256};

use crate::{Error, Pool, Result, Table, schema};

pub(crate) type FileDigest = [u8; 32];

/// One ingested file.
pub(crate) struct Entry {
    pub path: String,
    pub kind: &'static str,
    pub bytes: u64,
    pub digest: FileDigest,
    pub rows: u64,
    pub skipped: u64,
    pub version: u64,
}

/// The digests of all files that are in the pool already.
pub(crate) async fn digests(pool: &Pool) -> Result<HashSet<FileDigest>> {
    let Some(ledger) = pool.dataset(Table::Ledger).await? else {
        return Ok(HashSet::new());
    };
    let wrap = |e| Error::lance(pool.uri(Table::Ledger))(e);
    let mut scanner = ledger.scan();
    let batches = scanner.project(&["sha256"]).map_err(wrap)?.try_into_stream().await.map_err(wrap)?;
    let batches: Vec<RecordBatch> = batches.try_collect().await.map_err(wrap)?;
    let digest = |bytes: &[u8]| bytes.try_into().expect("digests are 32 bytes wide");
    Ok(batches.iter().flat_map(|b| b.column(0).as_fixed_size_binary().iter().flatten().map(digest)).collect())
}

pub(crate) async fn append(pool: &Pool, entries: &[Entry]) -> Result<()> {
    let int = |f: fn(&Entry) -> u64| Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| f(e) as i64)));
    let batch = RecordBatch::try_new(
        schema::ledger(),
        vec![
            Arc::new(StringArray::from_iter_values(entries.iter().map(|e| &e.path))),
            Arc::new(StringArray::from_iter_values(entries.iter().map(|e| e.kind))),
            int(|e| e.bytes),
            Arc::new(FixedSizeBinaryArray::try_from_iter(entries.iter().map(|e| e.digest))?),
            int(|e| e.rows),
            int(|e| e.skipped),
            int(|e| e.version),
        ],
    )?;
    let batches = RecordBatchIterator::new([Ok(batch)], schema::ledger());
    pool.append(Table::Ledger, Box::new(batches)).await?;
    Ok(())
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
