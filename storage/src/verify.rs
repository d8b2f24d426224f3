//! Integrity of a pool.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float16Type, Schema};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use half::slice::HalfFloatSliceExt;
use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use lance::index::DatasetIndexExt;
use lance_index::optimize::OptimizeOptions;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::plain;
use crate::ledger::{Ledger, Tables};
use crate::lock::Lock;
use crate::pool::uids_of;
use crate::{Error, OnProgress, Pool, Progress, Result, Table, Uid, Writer, images, rejects, schema};

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Read every image and compare its digest.
    pub deep: bool,
    /// Mend what can be mended without loss: files that no version holds are removed, indexes brought up to date.
    pub repair: bool,
    /// Bytes to hold at most, roughly; 0 for 1 GiB.
    pub memory: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub check: &'static str,
    pub state: State,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Good,
    /// To know, not to mend.
    Note,
    Wrong,
    Repaired,
}

/// An embedding is a direction: its length is 1 up to float16's rounding.
const NORM_TOLERANCE: f32 = 0.01;

/// Files that are named, of which not all rows came in.
const FILES: usize = 20;

/// Rows of images read at a time.
const BLOBS: usize = 256;

/// Looks at everything; an error only where something cannot be read.
pub fn verify<'a>(pool: &'a Pool, options: &'a Options, on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<Vec<Finding>>> {
    async move {
        let table = pool.require(Table::Pool).await?;
        // Not swept before: what is left is told of. Files of an ingest that is under way belong to no version yet; without the lock they may be such.
        let lock = match Lock::take(pool) {
            Ok(lock) => Some(lock),
            Err(e) if options.repair => return Err(e),
            Err(_) => None,
        };
        let alone = lock.as_ref().is_some_and(Lock::is_held);
        // Others may write while this only looks.
        let writer = match lock {
            Some(lock) if options.repair => Some(Writer::of(pool, lock)),
            Some(lock) if !lock.unclean => {
                lock.done();
                None
            }
            _ => None,
        };
        let images = pool.dataset(Table::Images).await?;
        let mut found = Vec::new();
        let mut failed = false;
        let mut go_on = |check: &'static str, result: Result<()>, found: &mut Vec<Finding>| {
            if let Err(e) = result {
                failed = true;
                push(found, check, State::Wrong, e.to_string());
            }
        };
        let result = counts(pool, &table, images.as_deref(), writer.as_ref(), &mut found).await;
        go_on("counts", result, &mut found);
        let result = uids(&table, images.as_deref(), options, &mut found).await;
        go_on("uids", result, &mut found);
        let result = norms(&table, on_progress, &mut found).await;
        go_on("embeddings", result, &mut found);
        if let (Some(images), true) = (&images, options.deep) {
            let result = digests(images, on_progress, &mut found).await;
            go_on("digests", result, &mut found);
            let result = originals(&table, images, options, &mut found).await;
            go_on("digests", result, &mut found);
        }
        let mut open = Vec::new();
        for of in Table::ALL {
            match pool.dataset(of).await {
                Ok(dataset) => open.extend(dataset.map(|dataset| (of, dataset))),
                Err(e) => go_on("tables", Err(e), &mut found),
            }
        }
        for (of, dataset) in &open {
            let result = orphans(dataset, *of, options, alone, &mut found).await;
            go_on("orphans", result, &mut found);
            let result = indexes(dataset, *of, options, &mut found).await;
            go_on("indexes", result, &mut found);
        }
        if failed || options.deep {
            for (of, dataset) in &open {
                failed |= !files_are_readable(dataset, *of, &mut found).await;
            }
        }
        if failed {
            // What is not sound is not swept away by the next writer.
            return Ok(found);
        }
        if let Some(writer) = writer {
            writer.done();
        }
        Ok(found)
    }
    .boxed()
}

/// Reads every column of every fragment, and names the files of those that cannot be read; true if there are none.
async fn files_are_readable(dataset: &Arc<Dataset>, table: Table, found: &mut Vec<Finding>) -> bool {
    let before = found.len();
    for fragment in dataset.fragments().iter() {
        let (dataset, of) = (dataset.clone(), fragment.clone());
        // A decoder may panic at what it does not expect.
        let read = tokio::spawn(async move {
            let mut scanner = dataset.scan();
            let mut batches = scanner.with_fragments(vec![of]).batch_size(1024).try_into_stream().await?;
            while batches.try_next().await?.is_some() {}
            Ok::<_, lance::Error>(())
        });
        let reason = match read.await {
            Ok(Ok(())) => continue,
            Ok(Err(e)) => plain(&e),
            Err(_) => "reading it failed within the program".to_string(),
        };
        let files = fragment.files.iter().map(|file| format!("{}.lance/data/{}", table.name(), file.path)).collect::<Vec<_>>().join(", ");
        push(found, "files", State::Wrong, format!("{files}: the rows of this fragment cannot be read: {reason}"));
    }
    found.len() == before
}

fn push(found: &mut Vec<Finding>, check: &'static str, state: State, text: String) {
    found.push(Finding { check, state, text });
}

/// Whether the tables have the rows that the ledger says, and of which files not all rows came in.
async fn counts(pool: &Pool, table: &Dataset, images: Option<&Dataset>, writer: Option<&Writer>, found: &mut Vec<Finding>) -> Result<()> {
    // Opening it to write completes it by what a stopped ingest has committed.
    let tables = Tables::open(pool).await?;
    let ledger = match writer {
        Some(writer) => Ledger::open(writer, &tables).await?,
        None => Ledger::look(pool, &tables).await?,
    };
    let lost = ledger.lost();
    if lost > 0 {
        push(found, "ledger", State::Wrong, format!("{lost} files of a stopped ingest are in the pool and not in the ledger"));
    }
    let sum = |kinds: &[&str], f: fn(&crate::ledger::Entry) -> u64| -> u64 {
        ledger.entries().iter().filter(|e| kinds.contains(&e.kind.as_str())).map(f).sum()
    };
    let wrap = |dataset: &Dataset| Error::lance(dataset.uri().to_string());
    let rows = table.count_rows(None).await.map_err(wrap(table))? as u64;
    let mut compare = |name: &str, rows: u64, expected: u64| {
        let state = if rows == expected { State::Good } else { State::Wrong };
        push(found, "counts", state, format!("{name} has {rows} rows, the ledger says {expected}"));
    };
    compare("pool", rows, sum(&["metadata", "shard"], |e| e.added));
    if let Some(images) = images {
        let rows = images.count_rows(None).await.map_err(wrap(images))? as u64;
        compare("images", rows, sum(&["shard"], |e| e.rows));
    }
    let left_out = rejects::left_out(pool).await?;
    let lacking: Vec<_> = ledger.entries().iter().filter_map(|e| Some((&e.path, left_out.get(&e.digest)?))).collect();
    for (path, (count, reason)) in lacking.iter().take(FILES) {
        push(found, "files", State::Note, format!("{path} came in without {count} rows or members: {reason}"));
    }
    let more = lacking.len().saturating_sub(FILES);
    if more > 0 {
        push(
            found,
            "files",
            State::Note,
            format!("{more} more files came in without some of their rows: see the tables ledger and rejects"),
        );
    }
    let whole = ledger.entries().len() - lacking.len();
    push(found, "files", State::Good, format!("{whole} of {} files in the ledger came in whole", ledger.entries().len()));
    Ok(())
}

/// Uids that are there twice, images without a sample, samples without an image. In passes over shares of all uids, as
/// many as memory asks for.
async fn uids(table: &Dataset, images: Option<&Dataset>, options: &Options, found: &mut Vec<Finding>) -> Result<()> {
    let mut rows = table.count_rows(None).await.map_err(Error::lance(table.uri()))?;
    if let Some(images) = images {
        rows += images.count_rows(None).await.map_err(Error::lance(images.uri()))?;
    }
    let memory = if options.memory == 0 { 1 << 30 } else { options.memory };
    let passes = (rows as u64 * 16).div_ceil((memory / 2).max(1)).max(1);
    let (mut twice, mut twice_images, mut no_sample, mut no_image) = (Seen::default(), Seen::default(), Seen::default(), Seen::default());
    for pass in 0..passes {
        let of_pool = sorted_share(table, pass, passes).await?;
        let of_images = match images {
            Some(images) => sorted_share(images, pass, passes).await?,
            None => Vec::new(),
        };
        of_pool.windows(2).filter(|w| w[0] == w[1]).for_each(|w| twice.add(w[0]));
        of_images.windows(2).filter(|w| w[0] == w[1]).for_each(|w| twice_images.add(w[0]));
        of_images.iter().filter(|uid| of_pool.binary_search(uid).is_err()).for_each(|uid| no_sample.add(*uid));
        of_pool.iter().filter(|uid| of_images.binary_search(uid).is_err()).for_each(|uid| no_image.add(*uid));
    }
    let mut say = |check, seen: Seen, bad: State, what: &str| {
        let state = if seen.count == 0 { State::Good } else { bad };
        push(found, check, state, format!("{} {what}{}", seen.count, seen.first()));
    };
    say("uids", twice, State::Wrong, "uids are in pool more than once");
    if images.is_some() {
        say("uids", twice_images, State::Wrong, "uids are in images more than once");
        say("uids", no_sample, State::Wrong, "images have no row in pool");
        say("uids", no_image, State::Note, "samples have no image");
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    count: u64,
    first: Option<Uid>,
}

impl Seen {
    fn add(&mut self, uid: Uid) {
        self.count += 1;
        self.first = Some(self.first.map_or(uid, |first| first.min(uid)));
    }

    fn first(&self) -> String {
        self.first.map_or(String::new(), |uid| format!(", first {uid}"))
    }
}

async fn sorted_share(dataset: &Dataset, pass: u64, passes: u64) -> Result<Vec<Uid>> {
    let wrap = || Error::lance(dataset.uri());
    let mut scanner = dataset.scan();
    scanner.project(&["uid"]).map_err(wrap())?.scan_in_order(false).io_buffer_size(16 << 20);
    let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
    let mut uids = Vec::new();
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        uids.extend(uids_of(batch.column(0).as_ref()).filter(|uid| passes == 1 || uid.halves().1 % passes == pass));
    }
    uids.par_sort_unstable();
    Ok(uids)
}

/// Embeddings whose length is not 1.
async fn norms(table: &Dataset, on_progress: OnProgress<'_>, found: &mut Vec<Finding>) -> Result<()> {
    let schema = Schema::from(table.schema());
    let is_embedding = |t: &DataType| matches!(t, DataType::FixedSizeList(item, _) if item.data_type() == &DataType::Float16);
    let names: Vec<&str> = schema.fields().iter().filter(|f| is_embedding(f.data_type())).map(|f| f.name().as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let wrap = || Error::lance(table.uri());
    let total = table.count_rows(None).await.map_err(wrap())? as u64;
    let mut scanner = table.scan();
    let columns: Vec<&str> = std::iter::once("uid").chain(names.iter().copied()).collect();
    scanner.project(&columns).map_err(wrap())?.batch_size(4096).batch_readahead(4).fragment_readahead(1).io_buffer_size(256 << 20);
    let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
    let mut wrong: BTreeMap<&str, (u64, Seen)> = names.iter().map(|name| (*name, Default::default())).collect();
    let mut done = 0;
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        let uids: Vec<Uid> = uids_of(batch.column(0).as_ref()).collect();
        for (name, (rows, seen)) in &mut wrong {
            let list = batch[*name].as_fixed_size_list();
            let (dim, first) = (list.value_length() as usize, list.value_offset(0) as usize);
            let values = &list.values().as_primitive::<Float16Type>().values()[first..first + list.len() * dim];
            *rows += (list.len() - list.null_count()) as u64;
            let bad: Vec<usize> = values
                .par_chunks(dim * 256)
                .enumerate()
                .flat_map_iter(|(chunk, values)| {
                    let mut row = vec![0.0; dim];
                    let bad = values.chunks_exact(dim).enumerate().filter_map(|(i, vector)| {
                        vector.convert_to_f32_slice(&mut row);
                        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                        ((norm - 1.0).abs() > NORM_TOLERANCE || !norm.is_finite()).then_some(chunk * 256 + i)
                    });
                    bad.collect::<Vec<_>>()
                })
                .collect();
            bad.into_iter().filter(|&i| list.is_valid(i)).for_each(|i| seen.add(uids[i]));
        }
        done += batch.num_rows() as u64;
        on_progress(Progress { what: "embeddings".to_string(), done, total, unit: "rows" });
    }
    for (name, (rows, seen)) in wrong {
        // What others have brought may be of any length.
        let known = schema::EMBEDDINGS.iter().any(|(known, _)| *known == name) || is_of_embed(table, name);
        let state = match seen.count {
            0 => State::Good,
            _ if known => State::Wrong,
            _ => State::Note,
        };
        push(found, "embeddings", state, format!("{} of {rows} vectors of {name} have a length other than 1{}", seen.count, seen.first()));
    }
    Ok(())
}

/// Returns true for one of the columns that a model's embedding leaves: `NAME_img` and `NAME_txt` beside `NAME_score`.
fn is_of_embed(table: &Dataset, column: &str) -> bool {
    let name = column.strip_suffix("_img").or_else(|| column.strip_suffix("_txt"));
    name.is_some_and(|name| table.schema().field(&format!("{name}_score")).is_some())
}

/// Images whose bytes are not those that were ingested.
async fn digests(images: &Dataset, on_progress: OnProgress<'_>, found: &mut Vec<Finding>) -> Result<()> {
    let wrap = || Error::lance(images.uri());
    let total = images.count_rows(None).await.map_err(wrap())? as u64;
    let mut scanner = images.scan();
    scanner.project(&["uid", "sha256"]).map_err(wrap())?.batch_size(BLOBS).scan_in_order(true);
    let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
    let (mut bad, mut done) = (Seen::default(), 0);
    let images_ref = Arc::new(images.clone());
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        let rows: Vec<u64> = (done..done + batch.num_rows() as u64).collect();
        let read = images_ref.read_blobs("image").map_err(wrap())?.with_row_indices(rows).preserve_order(true).execute().await;
        let blobs = read.map_err(wrap())?;
        let expected = batch.column(1).as_fixed_size_binary();
        let uids: Vec<Uid> = uids_of(batch.column(0).as_ref()).collect();
        let wrong: Vec<usize> = (0..blobs.len())
            .into_par_iter()
            .filter(|&i| {
                let bytes = blobs[i].data.as_deref().unwrap_or_default();
                let same = expected.is_null(i) || Sha256::digest(bytes).as_slice() == expected.value(i);
                !same || images::inspect(bytes).is_none()
            })
            .collect();
        wrong.into_iter().for_each(|i| bad.add(uids[i]));
        done += batch.num_rows() as u64;
        on_progress(Progress { what: "images".to_string(), done, total, unit: "images" });
    }
    let state = if bad.count == 0 { State::Good } else { State::Wrong };
    push(found, "digests", state, format!("{} of {total} images are not the bytes that were ingested{}", bad.count, bad.first()));
    Ok(())
}

/// Images whose digest is not the one that their sample's metadata names: that of the picture on the web, which a
/// downloader that resized or blurred it did not keep.
async fn originals(table: &Dataset, images: &Dataset, options: &Options, found: &mut Vec<Finding>) -> Result<()> {
    if table.schema().field("sha256").is_none() {
        return Ok(());
    }
    let rows = images.count_rows(None).await.map_err(Error::lance(images.uri()))? as u64;
    let memory = if options.memory == 0 { 1 << 30 } else { options.memory };
    let passes = (rows * 24).div_ceil((memory / 2).max(1)).max(1);
    let mut others = Seen::default();
    for pass in 0..passes {
        let of_images = digest_share(images, pass, passes, None).await?;
        for (uid, digest) in digest_share(table, pass, passes, Some(&of_images)).await? {
            let at = of_images.binary_search_by_key(&uid, |(uid, _)| *uid);
            if at.is_ok_and(|at| of_images[at].1 != digest) {
                others.add(uid);
            }
        }
    }
    let state = if others.count == 0 { State::Good } else { State::Note };
    push(found, "digests", state, format!("{} images are not the pictures that pool.sha256 names{}", others.count, others.first()));
    Ok(())
}

/// Uids, ascending, with the first eight bytes of their digest where they have one; of those in `only` where it is given.
async fn digest_share(dataset: &Dataset, pass: u64, passes: u64, only: Option<&[(Uid, u64)]>) -> Result<Vec<(Uid, u64)>> {
    let wrap = || Error::lance(dataset.uri());
    let mut scanner = dataset.scan();
    scanner.project(&["uid", "sha256"]).map_err(wrap())?.scan_in_order(false);
    let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
    let mut all = Vec::new();
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        let digests = batch.column(1).as_fixed_size_binary();
        for (i, uid) in uids_of(batch.column(0).as_ref()).enumerate() {
            let wanted = only.is_none_or(|only| only.binary_search_by_key(&uid, |(uid, _)| *uid).is_ok());
            if digests.is_valid(i) && uid.halves().1 % passes == pass && wanted {
                all.push((uid, u64::from_be_bytes(digests.value(i)[..8].try_into().expect("32 bytes"))));
            }
        }
    }
    all.par_sort_unstable();
    Ok(all)
}

/// Files that no version holds, as an ingest leaves them that was stopped between writing and committing.
/// Where others may be writing, only files older than a week count.
async fn orphans(dataset: &Dataset, table: Table, options: &Options, alone: bool, found: &mut Vec<Finding>) -> Result<()> {
    let alone = alone && table.is_locked();
    let policy = CleanupPolicy { before_version: Some(0), delete_unverified: alone, ..CleanupPolicy::default() };
    let cleanup = dataset.cleanup(policy);
    let explained = cleanup.explain().await.map_err(Error::lance(dataset.uri()))?;
    let files = explained.candidate_files.len();
    if files == 0 {
        return Ok(());
    }
    let text = format!("{} holds {files} files of {} bytes that no version needs", table.name(), explained.stats.bytes_removed);
    if options.repair {
        cleanup.execute().await.map_err(Error::lance(dataset.uri()))?;
        push(found, "orphans", State::Repaired, text);
    } else {
        push(found, "orphans", State::Wrong, text);
    }
    Ok(())
}

/// Removes what a stopped writer wrote and did not commit. Only for who holds the lock of a local pool.
pub(crate) async fn sweep(pool: &Pool) -> Result<()> {
    let newest = Pool::at(pool.root());
    for table in Table::ALL {
        let Some(dataset) = newest.dataset(table).await? else {
            let folder = newest.uri(table);
            // It was stopped before the first version: what lies there belongs to none.
            let is_there = std::fs::exists(&folder).map_err(Error::io(&folder))?;
            if is_there && !has_version(Path::new(&folder))? {
                std::fs::remove_dir_all(&folder).map_err(Error::io(folder))?;
            }
            continue;
        };
        let policy = CleanupPolicy { before_version: Some(0), delete_unverified: table.is_locked(), ..CleanupPolicy::default() };
        dataset.cleanup(policy).execute().await.map_err(Error::lance(dataset.uri()))?;
    }
    Ok(())
}

/// Whether a dataset's folder holds a manifest, sound or not.
fn has_version(folder: &Path) -> Result<bool> {
    let versions = folder.join("_versions");
    let files = match std::fs::read_dir(&versions) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        files => files.map_err(Error::io(&versions))?,
    };
    for file in files {
        if file.map_err(Error::io(&versions))?.file_name().to_string_lossy().ends_with(".manifest") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Indexes that do not cover all rows.
async fn indexes(dataset: &Dataset, table: Table, options: &Options, found: &mut Vec<Finding>) -> Result<()> {
    let wrap = || Error::lance(dataset.uri());
    let indices = dataset.load_indices().await.map_err(wrap())?;
    let mut names: Vec<&str> = indices.iter().map(|i| i.name.as_str()).filter(|name| !name.starts_with("__")).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let covered = |id: u32| indices.iter().any(|i| i.name == name && i.fragment_bitmap.as_ref().is_some_and(|b| b.contains(id)));
        let left: u64 = dataset.fragments().iter().filter(|f| !covered(f.id as u32)).map(|f| f.num_rows().unwrap_or_default() as u64).sum();
        let text = format!("index {name} of {} lacks {left} rows", table.name());
        if left == 0 {
            push(found, "indexes", State::Good, text);
        } else if options.repair {
            Dataset::clone(dataset).optimize_indices(&OptimizeOptions::append()).await.map_err(wrap())?;
            push(found, "indexes", State::Repaired, text);
        } else {
            // Rows without are scanned in full: slower, not wrong.
            push(found, "indexes", State::Note, text);
        }
    }
    Ok(())
}
