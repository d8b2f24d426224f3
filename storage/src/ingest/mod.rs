//! Sources into a pool: metadata parquet with embeddings beside it, and webdataset shards.

mod embeddings;
mod metadata;
mod shards;
mod sources;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::datatypes::{Schema, SchemaRef};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::ledger::{self, Entry};
use crate::{OnProgress, Pool, Progress, Result, Table, Uid};
use sources::{Kind, Source};

/// What an ingest did. `skipped` counts by reason what was left out, `examples` names the first of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub files: u64,
    /// Files whose content the ledger has already.
    pub known_files: u64,
    /// Samples added to `pool`, and how many of them came with embeddings.
    pub rows: u64,
    pub embeddings: u64,
    pub images: u64,
    pub skipped: BTreeMap<&'static str, u64>,
    pub examples: BTreeMap<&'static str, String>,
    pub pool_rows: u64,
    pub pool_images: u64,
}

const METADATA_BREAKS_OFF: &str = "metadata file breaks off";
const EMBEDDINGS_BREAK_OFF: &str = "embeddings file breaks off, its rows are in without embeddings";
const SHARD_BREAKS_OFF: &str = "shard breaks off";

impl Summary {
    fn skip(&mut self, reason: &'static str, place: impl FnOnce() -> String) {
        *self.skipped.entry(reason).or_default() += 1;
        self.examples.entry(reason).or_insert_with(place);
    }

    fn broken_off(&self) -> u64 {
        [METADATA_BREAKS_OFF, EMBEDDINGS_BREAK_OFF, SHARD_BREAKS_OFF].iter().filter_map(|reason| self.skipped.get(reason)).sum()
    }

    fn skipped_in_all(&self) -> u64 {
        self.skipped.values().sum()
    }
}

/// What the readers share: the uids that are in the pool, and the counts.
struct State {
    pool_uids: HashSet<Uid>,
    image_uids: HashSet<Uid>,
    /// Columns of `pool` after this ingest; what a source lacks is null.
    schema: SchemaRef,
    summary: Summary,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Brings `sources` (files, folders, glob patterns) into the pool, metadata before shards, and skips every
/// file whose digest the ledger has. A bad row or file is counted and left out; nothing else is lost.
pub fn ingest<'a>(pool: &'a Pool, sources: &'a [String], on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<Summary>> {
    async move {
        let sources = sources::find(sources)?;
        let known = ledger::digests(pool).await?;
        let state = State {
            pool_uids: pool.uid_set(Table::Pool).await?,
            image_uids: pool.uid_set(Table::Images).await?,
            schema: SchemaRef::new(Schema::empty()),
            summary: Summary { files: sources.len() as u64, ..Summary::default() },
        };
        let shared = Arc::new(Mutex::new(state));
        let total: u64 = sources.iter().map(|s| s.bytes).sum();
        let mut done = 0;
        let mut fresh: Vec<(Source, ledger::FileDigest)> = Vec::new();
        let mut seen = known;
        for source in sources {
            on_progress(Progress { what: format!("digest of {}", name(&source.path)), done, total, unit: "bytes" });
            let digest = digest(&source.path).await?;
            if seen.insert(digest) {
                fresh.push((source, digest));
            } else {
                if let Some(npz) = &source.embeddings
                    && !seen.contains(&self::digest(npz).await?)
                {
                    let place = || npz.display().to_string();
                    lock(&shared).summary.skip("embeddings that came after their metadata are not joined", place);
                }
                lock(&shared).summary.known_files += 1;
                done += source.bytes;
            }
        }
        metadata::plan_schema(pool, &mut fresh, &shared).await?;

        for (source, digest) in fresh {
            on_progress(Progress { what: name(&source.path), done, total, unit: "bytes" });
            let before = lock(&shared).summary.clone();
            let (kind, version) = match source.kind {
                Kind::Metadata => ("metadata", metadata::ingest(pool, &source, &shared).await?),
                Kind::Shard => ("shard", shards::ingest(pool, &source, &shared).await?),
            };
            done += source.bytes;
            let after = lock(&shared).summary.clone();
            // A file that broke off is read again next time: its rows that are in already are passed over then.
            if after.broken_off() > before.broken_off() {
                continue;
            }
            let rows = after.rows + after.images - before.rows - before.images;
            let skipped = after.skipped_in_all() - before.skipped_in_all();
            let path = source.path.display().to_string();
            let mut entries = vec![Entry { path, kind, bytes: source.bytes, digest, rows, skipped, version }];
            if let Some(npz) = &source.embeddings
                && after.embeddings > before.embeddings
            {
                let path = npz.display().to_string();
                let bytes = std::fs::metadata(npz).map_or(0, |m| m.len());
                let digest = self::digest(npz).await?;
                entries.push(Entry { path, kind: "embeddings", bytes, digest, rows, skipped: 0, version });
            }
            ledger::append(pool, &entries).await?;
        }
        on_progress(Progress { what: String::new(), done: total, total, unit: "bytes" });
        let state = lock(&shared);
        Ok(Summary { pool_rows: state.pool_uids.len() as u64, pool_images: state.image_uids.len() as u64, ..state.summary.clone() })
    }
    .boxed()
}

/// A file's digest, computed beside the runtime so that Ctrl-C is heard.
async fn digest(path: &Path) -> Result<ledger::FileDigest> {
    let path = path.to_path_buf();
    let file = path.clone();
    let digest = tokio::task::spawn_blocking(move || ledger::digest_file(&file)).await;
    digest.map_err(|_| crate::Error::ReaderPanicked { path })?
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
