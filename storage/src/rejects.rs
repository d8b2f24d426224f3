//! `rejects`: what an ingest left out, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchIterator, StringArray};
use futures::TryStreamExt;
use lance::Dataset;

use crate::ledger::FileDigest;
use crate::uid::{hex_decode, hex_encode};
use crate::{Error, Pool, Result, Table, Writer, schema};

/// One thing that was left out: a file, a row or member of it, or one value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reject {
    pub path: String,
    /// From 0, in a metadata or embeddings file.
    pub row: Option<u64>,
    /// The key of a sample in a shard.
    pub member: Option<String>,
    pub column: Option<String>,
    pub reason: &'static str,
    pub detail: String,
    /// Whether the rest of the row or file is in the pool.
    pub kept: bool,
}

impl Reject {
    pub fn file(path: &str, reason: &'static str, detail: impl ToString) -> Reject {
        let detail = detail.to_string();
        // Errors name their file, which is there already.
        let detail = detail.strip_prefix(path).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&detail).to_string();
        Reject { path: path.to_string(), reason, detail, ..Reject::default() }
    }

    pub fn row(path: &str, row: u64, reason: &'static str, detail: impl ToString) -> Reject {
        Reject { row: Some(row), ..Reject::file(path, reason, detail) }
    }

    /// Where it is: the file, with the row or member in it.
    pub fn place(&self) -> String {
        let mut place = self.path.clone();
        if let Some(row) = self.row {
            place += &format!(", row {row}");
        }
        if let Some(member) = &self.member {
            place += &format!(", member {member}");
        }
        if let Some(column) = &self.column {
            place += &format!(", column {column}");
        }
        place
    }
}

/// Adds rejects, and returns the version of the table that has them; none where there are none.
pub(crate) async fn append(writer: &Writer, rejects: &[(Reject, Option<FileDigest>)]) -> Result<Option<u64>> {
    if rejects.is_empty() {
        return Ok(None);
    }
    let text = |f: fn(&Reject) -> Option<&str>| Arc::new(StringArray::from_iter(rejects.iter().map(|(r, _)| f(r))));
    let batch = RecordBatch::try_new(
        schema::rejects(),
        vec![
            text(|r| Some(&r.path)),
            Arc::new(Int64Array::from_iter(rejects.iter().map(|(r, _)| r.row.map(|row| row as i64)))),
            text(|r| r.member.as_deref()),
            text(|r| r.column.as_deref()),
            text(|r| Some(r.reason)),
            text(|r| Some(&r.detail)),
            Arc::new(BooleanArray::from_iter(rejects.iter().map(|(r, _)| Some(r.kept)))),
            Arc::new(StringArray::from_iter(rejects.iter().map(|(_, digest)| digest.as_ref().map(|d| hex_encode(d))))),
        ],
    )?;
    let batches = RecordBatchIterator::new([Ok(batch)], schema::rejects());
    writer.append(Table::Rejects, Box::new(batches)).await.map(Some)
}

/// Takes back what `append` has added.
pub(crate) async fn unsay(writer: &Writer, said: Option<u64>) -> Result<()> {
    let Some(version) = said else { return Ok(()) };
    let newest = writer.pool().require(Table::Rejects).await?;
    let with = newest.checkout_version(version).await.map_err(Error::lance(newest.uri()))?;
    writer.drop_fragments(&newest, with.manifest().max_fragment_id().into_iter().collect()).await
}

/// Forgets what earlier runs rejected in files that are about to be read again: those of `paths` in whose rows
/// `is_known` does not find the file's digest, as a run leaves them that was stopped before its commit.
pub(crate) async fn forget(writer: &Writer, paths: &BTreeSet<String>, is_known: impl Fn(&str) -> bool) -> Result<()> {
    let Some(dataset) = writer.pool().dataset(Table::Rejects).await? else { return Ok(()) };
    let wrap = || Error::lance(dataset.uri());
    let mut stale = BTreeSet::new();
    let mut stream = scan(&dataset, &["path", "sha256"]).await?;
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        let (path, digest) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        for (path, digest) in path.iter().flatten().zip(digest) {
            if paths.contains(path) && !digest.is_some_and(&is_known) {
                stale.insert((path.to_string(), digest.map(str::to_string)));
            }
        }
    }
    let mut dataset = Dataset::clone(&dataset);
    let stale: Vec<_> = stale.into_iter().collect();
    for some in stale.chunks(1000) {
        let quoted = |text: &String| format!("'{}'", text.replace('\'', "''"));
        let paths = some.iter().map(|(path, _)| quoted(path)).collect::<Vec<_>>().join(", ");
        let digests = some.iter().filter_map(|(_, digest)| digest.as_ref()).map(quoted).collect::<Vec<_>>().join(", ");
        let digests = if digests.is_empty() { "''".to_string() } else { digests };
        let predicate = format!("path IN ({paths}) AND (sha256 IS NULL OR sha256 IN ({digests}))");
        dataset.delete(&predicate).await.map_err(Error::lance(dataset.uri()))?;
    }
    Ok(())
}

/// What was left out of a file beside values: how many rows or members, and the reason of one of them.
pub(crate) type LeftOut = BTreeMap<FileDigest, (u64, String)>;

/// Returns what was left out of each file, by its digest; files of which nothing was are not among them.
pub(crate) async fn left_out(pool: &Pool) -> Result<LeftOut> {
    let mut found = LeftOut::new();
    let Some(dataset) = pool.dataset(Table::Rejects).await? else { return Ok(found) };
    let mut stream = scan(&dataset, &["reason", "kept", "sha256"]).await?;
    while let Some(batch) = stream.try_next().await.map_err(Error::lance(dataset.uri()))? {
        let (reasons, kept, digests) =
            (batch.column(0).as_string::<i32>(), batch.column(1).as_boolean(), batch.column(2).as_string::<i32>());
        for row in (0..batch.num_rows()).filter(|&row| !kept.value(row) && digests.is_valid(row)) {
            let mut digest = [0; 32];
            if hex_decode(digests.value(row), &mut digest) {
                found.entry(digest).or_insert_with(|| (0, reasons.value(row).to_string())).0 += 1;
            }
        }
    }
    Ok(found)
}

async fn scan(dataset: &Dataset, columns: &[&str]) -> Result<lance::dataset::scanner::DatasetRecordBatchStream> {
    let wrap = || Error::lance(dataset.uri());
    let mut scanner = dataset.scan();
    scanner.project(columns).map_err(wrap())?;
    scanner.try_into_stream().await.map_err(wrap())
}
