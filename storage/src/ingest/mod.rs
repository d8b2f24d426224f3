//! Sources into a pool: metadata first, then the embeddings that belong to it, then shards.
//!
//! Files are taken in groups. A group is looked through for digests and uids (`census`), what is new of it is
//! written as fragments that no version holds, and one commit adds them together with the group's ledger entries.
//! A run that is stopped anywhere leaves whole groups or nothing of them, and the next goes on from there.

mod census;
mod convert;
mod embeddings;
mod json;
mod metadata;
mod npz;
mod records;
mod shard;
mod shards;
mod sources;
mod table;
mod untyped;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use tokio::task::JoinHandle;

use crate::commit::{self, Change};
use crate::ledger::{Entry, FileDigest, Ledger, Tables};
use crate::lock::Lock;
use crate::rejects::{self, Reject};
use crate::uid::hex_decode;
use crate::{Error, OnProgress, Pool, Progress, Result, Table, schema};
use sources::{Kind, Source};

/// How to ingest.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes to hold at most, roughly.
    pub memory: u64,
    /// Stop at the first reject.
    pub strict: bool,
    /// Rows of `pool` a fragment.
    pub fragment_rows: usize,
    /// The faces in shards are blurred already, as DataComp's downloader leaves them.
    pub blurred: bool,
    /// Bytes of shards a commit, and images a fragment.
    pub group_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory: 2 << 30, strict: false, blurred: false, fragment_rows: 1 << 19, group_bytes: 1 << 30 }
    }
}

impl Options {
    /// Groups written at the same time: each takes some 300 MB.
    fn writers(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        ((self.memory / (600 << 20)) as usize).clamp(1, cores)
    }
}

/// What an ingest did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub files: u64,
    /// Files that the ledger has already.
    pub known_files: u64,
    /// Files of which nothing goes in.
    pub refused_files: u64,
    /// Samples added to `pool`, samples that shards had brought and metadata completed, and samples that got vectors.
    pub rows: u64,
    pub completed: u64,
    pub embeddings: u64,
    pub images: u64,
    /// What was left out, counted by reason, with the first of each.
    pub rejects: BTreeMap<&'static str, u64>,
    pub examples: BTreeMap<&'static str, String>,
    pub pool_rows: u64,
    pub pool_images: u64,
}

/// Brings `sources` (files, folders, glob patterns) into the pool, and skips every file that the ledger has. A bad
/// value, row or file is listed in the table `rejects` and costs nothing else.
pub fn ingest<'a>(
    pool: &'a Pool,
    sources: &'a [String],
    options: &'a Options,
    on_progress: OnProgress<'a>,
) -> BoxFuture<'a, Result<Summary>> {
    async move {
        let (sources, unreadable) = sources::find(sources)?;
        let lock = Lock::take_swept(pool).await?;
        let tables = Tables::open(pool).await?;
        let ledger = Ledger::open(pool, &tables).await?;
        if pool.dataset(Table::Rejects).await?.is_none() {
            commit::create(pool, Table::Rejects, schema::rejects()).await?;
        }
        let mut run = Run {
            pool,
            options,
            on_progress,
            summary: Summary { files: sources.len() as u64, ..Summary::default() },
            total: sources.iter().map(|s| s.bytes).sum(),
            done: Arc::new(AtomicU64::new(0)),
            seen: HashSet::new(),
            refused: Vec::new(),
            fresh: Vec::new(),
            ledger,
            tables,
        };
        for source in sources {
            if run.ledger.has_file(&source.name(), source.bytes, source.modified) {
                run.known(&source);
            } else {
                run.fresh.push(source);
            }
        }
        let unreadable_paths = unreadable.iter().map(|reject| reject.path.clone());
        let paths: BTreeSet<String> = run.fresh.iter().map(Source::name).chain(unreadable_paths).collect();
        let is_known = |hex: &str| {
            let mut digest = [0; 32];
            hex_decode(hex, &mut digest) && run.ledger.has(&digest)
        };
        rejects::forget(pool, &paths, is_known).await?;

        run.count(&unreadable)?;
        run.refused.extend(unreadable.into_iter().map(|reject| (reject, None)));
        metadata::ingest(&mut run).await?;
        embeddings::ingest(&mut run).await?;
        shards::ingest(&mut run).await?;
        run.write_refused().await?;

        run.report("");
        let mut summary = run.summary;
        for (table, count) in [(Table::Pool, &mut summary.pool_rows), (Table::Images, &mut summary.pool_images)] {
            if let Some(dataset) = pool.dataset(table).await? {
                *count = dataset.count_rows(None).await.map_err(Error::lance(pool.uri(table)))? as u64;
            }
        }
        lock.done();
        Ok(summary)
    }
    .boxed()
}

/// An ingest under way.
struct Run<'a> {
    pool: &'a Pool,
    options: &'a Options,
    on_progress: OnProgress<'a>,
    ledger: Ledger,
    tables: Tables,
    /// Files that are not in the ledger by path, size and time; their digests may be.
    fresh: Vec<Source>,
    /// Digests of the files of this run.
    seen: HashSet<FileDigest>,
    /// Rejected files that the table does not name yet.
    refused: Vec<(Reject, Option<FileDigest>)>,
    summary: Summary,
    total: u64,
    done: Arc<AtomicU64>,
}

impl Run<'_> {
    fn of_kind(&mut self, kind: Kind) -> Vec<Source> {
        self.fresh.extract_if(.., |source| source.kind == kind).collect()
    }

    fn known(&mut self, source: &Source) {
        self.summary.known_files += 1;
        self.done.fetch_add(source.bytes, Ordering::Relaxed);
    }

    /// Whether a file of this content is in the pool, or was met in this run.
    fn is_known(&mut self, digest: &FileDigest) -> bool {
        self.ledger.has(digest) || !self.seen.insert(*digest)
    }

    fn report(&self, what: &str) {
        let done = self.done.load(Ordering::Relaxed).min(self.total);
        (self.on_progress)(Progress { what: what.to_string(), done, total: self.total, unit: "bytes" });
    }

    /// Waits for a task, and reports progress meanwhile.
    async fn wait<T>(&self, what: &str, mut task: JoinHandle<Result<T>>) -> Result<T> {
        loop {
            tokio::select! {
                result = &mut task => return result.map_err(|_| Error::ReaderPanicked { path: what.into() })?,
                () = tokio::time::sleep(Duration::from_millis(200)) => self.report(what),
            }
        }
    }

    /// Counts rejects; the first is an error where the ingest is strict.
    fn count(&mut self, rejects: &[Reject]) -> Result<()> {
        for reject in rejects {
            if self.options.strict {
                return Err(Error::Strict { reason: reject.reason, place: reject.place(), detail: reject.detail.clone() });
            }
            *self.summary.rejects.entry(reject.reason).or_default() += 1;
            self.summary.examples.entry(reject.reason).or_insert_with(|| match reject.detail.as_str() {
                "" => reject.place(),
                detail => format!("{}: {detail}", reject.place()),
            });
        }
        Ok(())
    }

    /// A file of which nothing goes in; it is tried again by the next ingest that names it.
    async fn reject_file(&mut self, source: &Source, digest: Option<FileDigest>, reject: Reject) -> Result<()> {
        self.count(std::slice::from_ref(&reject))?;
        self.summary.refused_files += 1;
        self.done.fetch_add(source.bytes, Ordering::Relaxed);
        self.refused.push((reject, digest));
        if self.refused.len() < 1000 { Ok(()) } else { self.write_refused().await }
    }

    async fn write_refused(&mut self) -> Result<()> {
        rejects::append(self.pool, &std::mem::take(&mut self.refused)).await
    }

    /// Commits what a group of files brings, with its rejects and its ledger entries.
    async fn commit(&mut self, dataset: &Arc<Dataset>, change: Change, files: Vec<(Entry, Vec<Reject>)>) -> Result<Arc<Dataset>> {
        let mut entries = self.record(dataset, files).await?;
        let dataset = commit::commit(dataset, change, self.ledger.properties(&entries)).await?;
        entries.iter_mut().for_each(|entry| entry.version = dataset.version().version);
        self.ledger.append(self.pool, entries).await?;
        Ok(dataset)
    }

    /// An error if anyone has written to the table since: before anything is said of what this run is about to write.
    async fn check_newest(&self, dataset: &Dataset) -> Result<()> {
        let newest = dataset.latest_version_id().await.map_err(Error::lance(dataset.uri()))?;
        match newest == dataset.version().version {
            true => Ok(()),
            false => Err(Error::Changed { path: dataset.uri().to_string() }),
        }
    }

    /// Writes the rejects, which are forgotten again if their files do not come to be in the ledger.
    async fn record(&mut self, dataset: &Dataset, files: Vec<(Entry, Vec<Reject>)>) -> Result<Vec<Entry>> {
        self.check_newest(dataset).await?;
        let (mut entries, mut all) = (Vec::new(), Vec::new());
        for (mut entry, rejects) in files {
            self.count(&rejects)?;
            entry.rejected = rejects.len() as u64;
            all.extend(rejects.into_iter().map(|reject| (reject, Some(entry.digest))));
            entries.push(entry);
        }
        rejects::append(self.pool, &all).await?;
        Ok(entries)
    }
}

fn entry(source: &Source, digest: FileDigest) -> Entry {
    Entry {
        path: source.name(),
        kind: source.kind.name().to_string(),
        bytes: source.bytes,
        modified: source.modified,
        digest,
        rows: 0,
        added: 0,
        rejected: 0,
        version: 0,
    }
}
