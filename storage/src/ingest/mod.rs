//! Sources into a pool: metadata first, then the embeddings that belong to it, then shards.
//!
//! Files are taken in groups. A group is looked through for digests and uids (`census`), what is new of it is
//! written as fragments that no version holds, and one commit adds them together with the group's ledger entries.
//! A run that is stopped anywhere leaves whole groups or nothing of them, and the next goes on from there.

mod census;
mod convert;
mod embeddings;
#[cfg(test)]
mod fuzz;
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
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use tokio::task::JoinHandle;

use crate::ledger::{Entry, FileDigest, Ledger, Tables};
use crate::rejects::{self, Reject};
use crate::uid::hex_decode;
use crate::writer::Change;
use crate::{Error, OnProgress, Pool, Progress, Result, Table, Writer, schema};
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
    /// Files of folders that are taken for none, counted by reason, with the first of each.
    pub passed_over: BTreeMap<&'static str, (u64, String)>,
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
        let found = sources::find(sources)?;
        pool.write(move |writer| attempts(writer, found, options, on_progress)).await
    }
    .boxed()
}

/// How often a run goes on from what others have committed meanwhile, and the pause before at most.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_secs(5);

/// Returns true where another attempt may come to its end: another writer was faster, or the store did not answer. A commit
/// of which no answer came may be there, and what it holds is known then, or come later, and find its version taken.
fn can_go_on(e: &Error) -> bool {
    match e {
        Error::Changed { .. } => true,
        Error::Lance { source, .. } => matches!(**source, lance::Error::IO { .. }),
        _ => false,
    }
}

/// Brings everything in, from the start again whenever another writer was faster.
async fn attempts(writer: Writer, found: sources::Found, options: &Options, on_progress: OnProgress<'_>) -> Result<Summary> {
    let sources::Found { sources, rejects: unreadable, passed_over, .. } = found;
    let sources: Vec<Source> = sources.into_iter().collect();
    let mut run = Run {
        pool: writer.pool(),
        writer: writer.clone(),
        options,
        on_progress,
        summary: Summary { files: sources.len() as u64, passed_over, ..Summary::default() },
        total: sources.iter().map(|s| s.bytes).sum(),
        done: Arc::new(AtomicU64::new(0)),
        handled: HashSet::new(),
        seen: HashSet::new(),
        refused: Vec::new(),
        fresh: Vec::new(),
        ledger: Ledger::default(),
        tables: Tables::default(),
    };
    run.count(&unreadable)?;
    run.refused.extend(unreadable.into_iter().map(|reject| (reject, None)));
    let mut attempt = 0;
    loop {
        let left = sources.iter().filter(|source| !run.handled.contains(&source.path)).cloned().collect();
        match run.attempt(left).await {
            Err(e) if !writer.is_alone() && can_go_on(&e) && attempt < ATTEMPTS => {
                attempt += if matches!(e, Error::Changed { .. }) { 1 } else { ATTEMPTS / 5 };
                // Processes that met once should not meet again: each waits for another time.
                let share = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt) as f64 / u64::MAX as f64;
                tokio::time::sleep(PAUSE.min(Duration::from_millis(50) * 2u32.pow(attempt.min(10))).mul_f64(share)).await;
            }
            done => break done?,
        }
    }
    run.report("");
    let mut summary = run.summary;
    for (table, count) in [(Table::Pool, &mut summary.pool_rows), (Table::Images, &mut summary.pool_images)] {
        if let Some(dataset) = writer.pool().dataset(table).await? {
            *count = dataset.count_rows(None).await.map_err(Error::lance(dataset.uri()))? as u64;
        }
    }
    Ok(summary)
}

/// An ingest under way.
struct Run<'a> {
    pool: &'a Pool,
    writer: Writer,
    options: &'a Options,
    on_progress: OnProgress<'a>,
    ledger: Ledger,
    tables: Tables,
    /// Files that are not in the ledger by path, size and time; their digests may be.
    fresh: Vec<Source>,
    /// Files that are done with.
    handled: HashSet<PathBuf>,
    /// Digests of the files of this run.
    seen: HashSet<FileDigest>,
    /// Rejected files that the table does not name yet.
    refused: Vec<(Reject, Option<FileDigest>)>,
    summary: Summary,
    total: u64,
    done: Arc<AtomicU64>,
}

impl Run<'_> {
    /// Goes through these sources, from what the pool has now.
    async fn attempt(&mut self, sources: Vec<Source>) -> Result<()> {
        self.tables = Tables::open(self.pool).await?;
        self.ledger = Ledger::open(&self.writer, &self.tables).await?;
        self.must_have_tables()?;
        self.seen.clear();
        self.fresh.clear();
        if self.pool.dataset(Table::Rejects).await?.is_none() {
            self.writer.create(Table::Rejects, schema::rejects()).await?;
        }
        for source in sources {
            if self.ledger.has_file(&source.name(), source.bytes, source.modified) {
                self.known(&source);
            } else {
                self.fresh.push(source);
            }
        }
        let refused = self.refused.iter().map(|(reject, _)| reject.path.clone());
        let paths: BTreeSet<String> = self.fresh.iter().map(Source::name).chain(refused).collect();
        let is_known = |hex: &str| {
            let mut digest = [0; 32];
            hex_decode(hex, &mut digest) && self.ledger.has(&digest)
        };
        rejects::forget(&self.writer, &paths, is_known).await?;
        metadata::ingest(self).await?;
        embeddings::ingest(self).await?;
        shards::ingest(self).await?;
        self.write_refused().await
    }

    /// An error where the ledger has files whose table is gone: they would be passed over for ever.
    fn must_have_tables(&self) -> Result<()> {
        for (there, table, kind) in
            [(self.tables.samples.is_some(), Table::Pool, Kind::Metadata), (self.tables.images.is_some(), Table::Images, Kind::Shard)]
        {
            let files = self.ledger.entries().iter().filter(|entry| entry.kind == kind.name()).count();
            if !there && files > 0 {
                return Err(Error::TableLost { path: self.pool.root().into(), table: table.name(), files });
            }
        }
        Ok(())
    }

    fn of_kind(&mut self, kind: Kind) -> Vec<Source> {
        self.fresh.extract_if(.., |source| source.kind == kind).collect()
    }

    fn known(&mut self, source: &Source) {
        self.summary.known_files += 1;
        self.handled.insert(source.path.clone());
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
        self.handled.insert(source.path.clone());
        self.done.fetch_add(source.bytes, Ordering::Relaxed);
        self.refused.push((reject, digest));
        if self.refused.len() < 1000 { Ok(()) } else { self.write_refused().await }
    }

    async fn write_refused(&mut self) -> Result<()> {
        rejects::append(&self.writer, &std::mem::take(&mut self.refused)).await.map(drop)
    }

    /// Commits what a group of files brings, with its rejects and its ledger entries; `more` are rejects of files that are
    /// not done by it.
    async fn commit(
        &mut self,
        dataset: &Arc<Dataset>,
        change: Change,
        files: Vec<(Entry, Vec<Reject>)>,
        more: Vec<(Reject, Option<FileDigest>)>,
    ) -> Result<Arc<Dataset>> {
        // An error if anyone has written to the table, before anything is said of what this run is about to write.
        let newest = dataset.latest_version_id().await.map_err(Error::lance(dataset.uri()))?;
        if newest != dataset.version().version {
            return Err(Error::Changed { path: dataset.uri().to_string() });
        }
        let (mut entries, mut all) = (Vec::new(), more);
        for (entry, rejects) in files {
            all.extend(rejects.into_iter().map(|reject| (reject, Some(entry.digest))));
            entries.push(entry);
        }
        if self.options.strict {
            self.count(&all.iter().map(|(reject, _)| reject.clone()).collect::<Vec<_>>())?;
        }
        // The rejects are forgotten again if their files do not come to be in the ledger.
        let said = rejects::append(&self.writer, &all).await?;
        let dataset = match self.writer.commit(dataset, change, self.ledger.properties(&entries)).await {
            Err(e @ Error::Changed { .. }) => {
                rejects::unsay(&self.writer, said).await?;
                return Err(e);
            }
            committed => committed?,
        };
        entries.iter_mut().for_each(|entry| entry.version = dataset.version().version);
        self.handled.extend(entries.iter().map(|entry| entry.path.clone().into()));
        self.count(&all.into_iter().map(|(reject, _)| reject).collect::<Vec<_>>())?;
        self.ledger.append(&self.writer, entries).await?;
        Ok(dataset)
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
