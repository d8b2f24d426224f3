//! Versions of a pool: every commit is one, tags name them, and old ones can be read until they are cleaned away.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::index::DatasetIndexExt;
use lance_index::optimize::OptimizeOptions;

use crate::ledger::{Ledger, Tables};
use crate::{Computed, Error, Pool, Receipt, Result, Table, Writer};

/// The versions of `pool` that can be read, and its tags.
#[derive(Debug, Clone, PartialEq)]
pub struct Versions {
    pub oldest: u64,
    pub newest: u64,
    /// Name and version of `pool`, by name.
    pub tags: Vec<(String, u64)>,
}

impl Pool {
    /// The pool as it was: `at` is a tag, a version of `pool`, or a receipt's file. At a version, every other table is
    /// as it stood when the next version of `pool` was committed.
    pub fn at_version<'a>(self, at: &'a str) -> BoxFuture<'a, Result<Pool>> {
        async move {
            let versions = if Path::new(at).extension().is_some_and(|e| e == "json") {
                let receipt = Receipt::read(Path::new(at))?;
                self.check_receipt(Path::new(at), &receipt).await?;
                Table::ALL.iter().filter_map(|t| Some((*t, *receipt.versions.get(t.name())?))).collect()
            } else if let Ok(version) = at.parse() {
                self.at_number(version).await?
            } else {
                self.at_tag(at).await?
            };
            if !versions.contains_key(&Table::Pool) {
                return Err(self.no_version(at).await);
            }
            Ok(self.with_versions(versions))
        }
        .boxed()
    }

    async fn check_receipt(&self, path: &Path, receipt: &Receipt) -> Result<()> {
        let version = receipt.pool_version;
        let Ok(dataset) = self.require(Table::Pool).await?.checkout_version(version).await else {
            return Err(self.no_version(&version.to_string()).await);
        };
        let got = dataset.count_rows(None).await.map_err(Error::lance(dataset.uri()))? as u64;
        if got != receipt.pool_rows {
            let (pool, expected) = (self.root().to_string(), receipt.pool_rows);
            return Err(Error::ReceiptOfAnother { path: path.to_path_buf(), pool, version, expected, got });
        }
        Ok(())
    }

    async fn at_number(&self, version: u64) -> Result<HashMap<Table, u64>> {
        let all = versions(&*self.require(Table::Pool).await?).await?;
        if !all.iter().any(|(v, _)| *v == version) {
            return Err(self.no_version(&version.to_string()).await);
        }
        let until = all.iter().find(|(v, _)| *v > version).map_or(i64::MAX, |(_, time)| *time);
        let mut found = HashMap::from([(Table::Pool, version)]);
        for table in Table::ALL.into_iter().filter(|t| *t != Table::Pool) {
            if let Some(dataset) = self.dataset(table).await? {
                let before = versions(&dataset).await?.into_iter().rev().find(|(_, time)| *time < until);
                found.extend(before.map(|(version, _)| (table, version)));
            }
        }
        Ok(found)
    }

    async fn at_tag(&self, tag: &str) -> Result<HashMap<Table, u64>> {
        let mut found = HashMap::new();
        for table in Table::ALL {
            if let Some(dataset) = self.dataset(table).await?
                && let Ok(version) = dataset.tags().get_version(tag).await
            {
                found.insert(table, version);
            }
        }
        Ok(found)
    }

    async fn no_version(&self, at: &str) -> Error {
        let known = match self.versions().await {
            Ok(v) => {
                let tags: Vec<&str> = v.tags.iter().map(|(name, _)| name.as_str()).collect();
                let tags = if tags.is_empty() { String::new() } else { format!(", tags {}", tags.join(", ")) };
                format!("versions {} to {}{tags}", v.oldest, v.newest)
            }
            Err(_) => String::new(),
        };
        Error::NoVersion { path: self.root().to_string(), at: at.to_string(), known }
    }

    /// The version of every table that is read.
    pub fn table_versions(&self) -> BoxFuture<'_, Result<Vec<(Table, u64)>>> {
        async move {
            let mut found = Vec::new();
            for table in Table::ALL {
                if let Some(dataset) = self.dataset(table).await? {
                    found.push((table, dataset.version().version));
                }
            }
            Ok(found)
        }
        .boxed()
    }

    /// The versions and tags that can be read.
    pub fn versions(&self) -> BoxFuture<'_, Result<Versions>> {
        async move {
            let dataset = self.require(Table::Pool).await?;
            let all = versions(&dataset).await?;
            let tags = dataset.tags().list().await.map_err(Error::lance(dataset.uri()))?;
            let mut tags: Vec<(String, u64)> = tags.into_iter().map(|(name, tag)| (name, tag.version)).collect();
            tags.sort_unstable();
            let newest = dataset.version().version;
            Ok(Versions { oldest: all.first().map_or(newest, |(v, _)| *v), newest, tags })
        }
        .boxed()
    }

    /// Names the present version of every table, and gives that of `pool`. A tag that exists is moved where `force`.
    pub fn tag<'a>(&'a self, name: &'a str, force: bool) -> BoxFuture<'a, Result<u64>> {
        self.write(move |_| async move {
            let plain =
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !name.starts_with('.') && !name.contains("..");
            if name.is_empty() || !plain || name.parse::<u64>().is_ok() || name.ends_with(".json") || name.ends_with(".lock") {
                return Err(Error::TagName { name: name.to_string() });
            }
            let pool = self.require(Table::Pool).await?;
            if pool.tags().get_version(name).await.is_ok() && !force {
                return Err(Error::TagExists { name: name.to_string() });
            }
            for table in Table::ALL {
                let Some(dataset) = self.dataset(table).await? else { continue };
                let (tags, version) = (dataset.tags(), dataset.version().version);
                let done = match tags.get_version(name).await {
                    Ok(_) => tags.update(name, version).await,
                    Err(_) => tags.create(name, version).await,
                };
                done.map_err(Error::lance(dataset.uri()))?;
            }
            Ok(pool.version().version)
        })
    }

    /// Takes a tag off every table.
    pub fn untag<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.write(move |_| async move {
            if self.at_tag(name).await?.is_empty() {
                return Err(self.no_version(name).await);
            }
            for table in Table::ALL {
                if let Some(dataset) = self.dataset(table).await?
                    && dataset.tags().get_version(name).await.is_ok()
                {
                    dataset.tags().delete(name).await.map_err(Error::lance(dataset.uri()))?;
                }
            }
            Ok(())
        })
    }

    /// Joins small fragments to such of about a million rows and drops deleted rows for good, as a new version of each
    /// table that gains by it. Gives fragments before and after.
    pub fn compact(&self) -> BoxFuture<'_, Result<Vec<(Table, usize, usize)>>> {
        async move {
            // A fragment that is merged with others could not be told from one that has its hashes.
            if self.dataset(Table::Images).await?.is_some_and(|images| images.schema().field(crate::hashes::HASH).is_some()) {
                self.fill_hashes(&|_| {}).await?;
            }
            self.write(|writer| self.compact_tables(writer)).await
        }
        .boxed()
    }

    async fn compact_tables(&self, writer: Writer) -> Result<Vec<(Table, usize, usize)>> {
        // What a stopped ingest has committed is in the versions' transactions until then.
        Ledger::open(&writer, &Tables::open(self).await?).await?;
        // Joined with others, a fragment without a computed column could not be told from one that has it.
        if let Some(lagging) = self.computed().await?.into_iter().find(|column| column.lagging > 0) {
            let Computed { column, expression, lagging: rows, .. } = lagging;
            return Err(Error::ColumnLags { column, expression, rows });
        }
        let mut all = Vec::new();
        for table in Table::ALL {
            let Some(dataset) = self.dataset(table).await? else { continue };
            let mut dataset = Dataset::clone(&dataset);
            let before = dataset.count_fragments();
            let options = CompactionOptions { target_rows_per_fragment: 1 << 20, ..CompactionOptions::default() };
            compact_files(&mut dataset, options, None).await.map_err(Error::lance(self.uri(table)))?;
            if dataset.load_indices().await.map_err(Error::lance(self.uri(table)))?.iter().any(|index| !index.name.starts_with("__")) {
                dataset.optimize_indices(&OptimizeOptions::append()).await.map_err(Error::lance(self.uri(table)))?;
            }
            all.push((table, before, dataset.count_fragments()));
        }
        Ok(all)
    }

    /// Removes versions older than `age`, but for the newest and those with a tag. Gives versions and bytes removed.
    pub fn clean(&self, age: Duration) -> BoxFuture<'_, Result<(u64, u64)>> {
        self.write(move |writer| async move {
            // What a stopped ingest has committed is in the versions' transactions until then.
            Ledger::open(&writer, &Tables::open(self).await?).await?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let before = now.saturating_sub(age).as_micros() as i64;
            let (mut removed, mut bytes) = (0, 0);
            for table in Table::ALL {
                let Some(dataset) = self.dataset(table).await? else { continue };
                let keep = versions(&dataset).await?.into_iter().find(|(_, time)| *time >= before);
                let policy = CleanupPolicy {
                    before_version: Some(keep.map_or(dataset.version().version, |(version, _)| version)),
                    error_if_tagged_old_versions: false,
                    ..CleanupPolicy::default()
                };
                let stats = dataset.cleanup(policy).execute().await.map_err(Error::lance(dataset.uri()))?;
                removed += stats.old_versions;
                bytes += stats.bytes_removed;
            }
            Ok((removed, bytes))
        })
    }
}

/// Versions and the microseconds since 1970 when each was committed, oldest first.
async fn versions(dataset: &Dataset) -> Result<Vec<(u64, i64)>> {
    let all = dataset.versions().await.map_err(Error::lance(dataset.uri()))?;
    Ok(all.iter().map(|v| (v.version, v.timestamp.timestamp_micros())).collect())
}
