use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, FixedSizeListBuilder, Float32Builder, Int32Array, Int32Builder, ListBuilder, RecordBatch,
    RecordBatchIterator, RecordBatchReader, StringArray, StringBuilder, new_null_array,
};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::StreamExt;
use lance::table::format::Fragment;
use lance::{BlobArrayBuilder, Dataset};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::census::{Place, Uids};
use super::shard::{self, Info, Sample};
use super::sources::{Kind, Source};
use super::{Run, entry};
use crate::computed::stored_schema;
use crate::ledger::{Entry, FileDigest, added_properties};
use crate::rejects::Reject;
use crate::writer::{self, Change};
use crate::{Error, Result, Table, Uid, images, schema};

/// Images are handed to the writer in batches of at most so many, and so many bytes.
const BATCH_IMAGES: usize = 256;
const BATCH_BYTES: usize = 32 << 20;

const DUPLICATE: &str = "duplicate image";

/// Brings in all shards, in groups of about `Options::group_bytes`: their images, and the samples that no metadata
/// has brought.
pub(super) async fn ingest(run: &mut Run<'_>) -> Result<()> {
    let sources = run.of_kind(Kind::Shard);
    if sources.is_empty() {
        return Ok(());
    }
    let mut images = match run.tables.images.clone() {
        Some(images) => images,
        None => run.writer.create(Table::Images, schema::images()).await?,
    };
    let mut pool = open_pool(run).await?;
    let mut groups: VecDeque<Vec<Source>> = VecDeque::new();
    let mut held = u64::MAX;
    for source in sources {
        if held.saturating_add(source.bytes) > run.options.group_bytes {
            groups.push_back(Vec::new());
            held = 0;
        }
        held += source.bytes;
        groups.back_mut().expect("pushed above").push(source);
    }

    let mut flying: VecDeque<Flying> = VecDeque::new();
    loop {
        while flying.len() < run.options.writers()
            && let Some(sources) = groups.pop_front()
        {
            let group = Arc::new(plan_group(run, &images, &pool, sources, &flying).await?);
            let task = tokio::spawn(write(images.clone(), pool.clone(), group.clone(), run.done.clone()));
            flying.push_back(Flying { group, task });
        }
        let Some(Flying { group, task }) = flying.pop_front() else { return Ok(()) };
        let what = group.shards.first().map(|s| s.source.name()).unwrap_or_default();
        let written = run.wait(&what, task).await?;
        let mut files = Vec::new();
        for shard in &group.shards {
            let rows = shard.takes.iter().filter(|take| **take).count() as u64;
            let added = shard.new_samples.len() as u64;
            let entry = Entry { rows, added: added + run.ledger.added_before(&shard.digest), ..entry(&shard.source, shard.digest) };
            let rejects = shard.rejects.clone();
            files.push((Entry { rejected: rejects.len() as u64, ..entry }, rejects));
        }
        if !written.samples.is_empty() {
            let added: Vec<(FileDigest, u64)> = files.iter().map(|(entry, _)| (entry.digest, entry.added)).collect();
            let change = Change { fragments: written.samples, ..Change::default() };
            pool = run.writer.commit(&pool, change, added_properties(&added)).await?;
        }
        let shards = &group.shards;
        let images_in = shards.iter().flat_map(|shard| &shard.takes).filter(|take| **take).count() as u64;
        images = run.commit(&images, Change { fragments: written.images, ..Change::default() }, files, Vec::new()).await?;
        run.summary.images += images_in;
        run.summary.rows += shards.iter().map(|shard| shard.new_samples.len() as u64).sum::<u64>();
    }
}

/// `pool`, with the columns that shards fill; made if this is the first ingest.
async fn open_pool(run: &Run<'_>) -> Result<Arc<Dataset>> {
    let fields: Vec<_> = schema::SHARD_COLUMNS.iter().filter_map(|name| schema::pool_field(name)).collect();
    match &run.tables.samples {
        None => run.writer.create(Table::Pool, Arc::new(Schema::new(fields))).await,
        Some(dataset) => {
            let missing = fields.into_iter().filter(|f| dataset.schema().field(f.name()).is_none()).collect();
            run.writer.add_null_columns(dataset, missing).await
        }
    }
}

struct Flying {
    group: Arc<Group>,
    task: JoinHandle<Result<Written>>,
}

struct Group {
    shards: Vec<Shard>,
    uids: Uids,
    /// The faces in its images are blurred already.
    blurred: bool,
}

struct Shard {
    source: Source,
    digest: FileDigest,
    /// For each sample of it in order, whether its image goes in.
    takes: Vec<bool>,
    /// Samples that get a row in `pool`.
    new_samples: Vec<(Uid, Info)>,
    rejects: Vec<Reject>,
}

/// A shard's digest, its samples by uid and key, and what is wrong with it.
type Contents = (FileDigest, Vec<(Uid, String, Info)>, Vec<Reject>);

const NO_JSON: &str = "no json, which others in its shard have";

/// A shard's samples without their images, for the first of two readings: the second finds it in the page cache.
fn look_through(source: &Source) -> Result<Contents> {
    let (mut samples, mut rejects) = (Vec::new(), Vec::new());
    let digest = shard::read(&source.path, |sample| {
        match sample {
            Ok(sample) => {
                rejects.extend(sample.lost);
                samples.push((sample.uid, sample.key, sample.info));
            }
            Err(reject) => rejects.push(reject),
        }
        true
    })?;
    if samples.is_empty() && rejects.is_empty() {
        rejects.push(Reject::file(&source.name(), "no samples", ""));
    }
    Ok((digest, samples, rejects))
}

/// Decides which images go in: those whose uid neither the pool, nor a group before it, nor a sample before it has.
async fn plan_group(run: &mut Run<'_>, images: &Dataset, pool: &Dataset, sources: Vec<Source>, flying: &VecDeque<Flying>) -> Result<Group> {
    let reading = sources.into_iter().map(|source| async move {
        let task = tokio::task::spawn_blocking({
            let source = source.clone();
            move || look_through(&source)
        });
        (source, task.await)
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let read: Vec<_> = futures::stream::iter(reading.collect::<Vec<_>>()).buffered(cores).collect().await;
    let (mut shards, mut keys, mut all) = (Vec::<Shard>::new(), Vec::new(), Vec::<(Uid, Place)>::new());
    for (source, shard) in read {
        let (digest, samples, rejects) = match shard.map_err(|_| Error::ReaderPanicked { path: source.path.clone() })? {
            Ok(shard) => shard,
            Err(e) => {
                run.reject_file(&source, None, Reject::file(&source.name(), "not readable", e)).await?;
                continue;
            }
        };
        if run.is_known(&digest) {
            run.known(&source);
            continue;
        }
        let number = shards.len() as u32;
        let mut shard = Shard { source, digest, takes: vec![true; samples.len()], new_samples: vec![], rejects };
        let any_json = samples.iter().any(|(.., info)| info.has_json);
        for (i, (uid, key, info)) in samples.iter().enumerate() {
            if any_json && !info.has_json {
                shard.takes[i] = false;
                shard.rejects.push(Reject { member: Some(key.clone()), ..Reject::file(&shard.source.name(), NO_JSON, "") });
            } else {
                all.push((*uid, (number, i as u32)));
            }
        }
        shards.push(shard);
        keys.push(samples.into_iter().map(|(_, key, info)| (key, Some(info))).collect::<Vec<_>>());
    }
    let (uids, mut again) = Uids::new(all);
    // A sample that is in `images` is a duplicate; one that is not in `pool` gets a row there.
    let mut new: HashMap<Place, Uid> = uids.iter().map(|(uid, place)| (place, uid)).collect();
    uids.find(pool, |_, place, _| {
        new.remove(&place);
    })
    .await?;
    uids.find(images, |uid, place, _| again.push((uid, place))).await?;
    for (uid, place) in uids.iter().filter(|(uid, _)| flying.iter().any(|f| f.group.uids.get(*uid).is_some())) {
        again.push((uid, place));
        new.remove(&place);
    }
    for (uid, (shard, i)) in again {
        let key = &keys[shard as usize][i as usize].0;
        let shard = &mut shards[shard as usize];
        shard.takes[i as usize] = false;
        shard.rejects.push(Reject { member: Some(key.clone()), ..Reject::file(&shard.source.name(), DUPLICATE, uid) });
    }
    for (number, (shard, keys)) in shards.iter_mut().zip(&mut keys).enumerate() {
        for (i, (_, info)) in keys.iter_mut().enumerate() {
            if let Some(uid) = new.get(&(number as u32, i as u32)) {
                shard.new_samples.push((*uid, info.take().unwrap_or_default()));
            }
        }
    }
    Ok(Group { shards, uids, blurred: run.options.blurred })
}

struct Written {
    images: Vec<Fragment>,
    samples: Vec<Fragment>,
}

async fn write(images: Arc<Dataset>, pool: Arc<Dataset>, group: Arc<Group>, done: Arc<AtomicU64>) -> Result<Written> {
    let pool_schema = stored_schema(&pool);
    let new_samples: Vec<&(Uid, Info)> = group.shards.iter().flat_map(|shard| &shard.new_samples).collect();
    let mut written = Written { images: vec![], samples: vec![] };
    if !new_samples.is_empty() {
        let batch = pool_rows(&new_samples, &pool_schema)?;
        let batches = Box::new(RecordBatchIterator::new([Ok(batch)], pool_schema));
        written.samples = writer::write_fragments(&pool, batches, usize::MAX >> 1).await?;
    }
    if group.shards.iter().any(|shard| shard.takes.contains(&true)) {
        let (sender, receiver) = std::sync::mpsc::sync_channel(2);
        let reader = tokio::task::spawn_blocking(move || read_group(&group, &sender, &done));
        let batches: Box<dyn RecordBatchReader + Send> = Box::new(RecordBatchIterator::new(receiver, schema::images()));
        let fragments = writer::write_fragments(&images, batches, usize::MAX >> 1).await;
        reader.await.map_err(|_| Error::ReaderPanicked { path: images.uri().into() })??;
        written.images = fragments?;
    }
    Ok(written)
}

type Batches = SyncSender<Result<RecordBatch, ArrowError>>;

/// The second reading: images on their way into the table.
fn read_group(group: &Group, batches: &Batches, done: &AtomicU64) -> Result<()> {
    for file in &group.shards {
        let name = file.source.name();
        let (mut held, mut bytes, mut at) = (Vec::new(), 0, 0);
        let send = |held: &mut Vec<Sample>| {
            let batch = image_batch(held, &name, group.blurred).map_err(|e| ArrowError::ExternalError(Box::new(e)));
            held.clear();
            batches.send(batch).is_ok()
        };
        let digest = shard::read(&file.source.path, |sample| {
            let Ok(sample) = sample else { return true };
            at += 1;
            if file.takes.get(at - 1) == Some(&true) {
                bytes += sample.image.len();
                held.push(sample);
            }
            if held.len() >= BATCH_IMAGES || bytes >= BATCH_BYTES {
                bytes = 0;
                return send(&mut held);
            }
            true
        })?;
        if !held.is_empty() {
            send(&mut held);
        }
        if digest != file.digest || at != file.takes.len() {
            let changed = Error::SourceChanged { path: file.source.path.clone() };
            let _ = batches.send(Err(ArrowError::ExternalError(changed.to_string().into())));
            return Err(changed);
        }
        done.fetch_add(file.source.bytes, Ordering::Relaxed);
    }
    Ok(())
}

fn image_batch(samples: &[Sample], source: &str, blurred: bool) -> Result<RecordBatch> {
    let n = samples.len();
    let mut uids = FixedSizeBinaryBuilder::with_capacity(n, 16);
    let mut bytes = BlobArrayBuilder::new(n);
    let (mut widths, mut heights) = (Int32Builder::with_capacity(n), Int32Builder::with_capacity(n));
    let (mut formats, mut sources, mut statuses) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let mut digests = FixedSizeBinaryBuilder::with_capacity(n, 32);
    for sample in samples {
        let (format, width, height) = images::inspect(&sample.image).expect("accepted as an image");
        uids.append_value(sample.uid.0)?;
        bytes.push_bytes(&sample.image).map_err(Error::lance(source))?;
        widths.append_value(width as i32);
        heights.append_value(height as i32);
        formats.append_value(format);
        digests.append_value(Sha256::digest(&sample.image))?;
        sources.append_value(format!("{source}/{}", sample.key));
        let status = if blurred { Some(images::BLURRED) } else { sample.info.status.as_deref() };
        statuses.append_option(status);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(uids.finish()),
        bytes.finish().map_err(Error::lance(source))?,
        Arc::new(widths.finish()),
        Arc::new(heights.finish()),
        Arc::new(formats.finish()),
        Arc::new(digests.finish()),
        Arc::new(sources.finish()),
        Arc::new(statuses.finish()),
    ];
    Ok(RecordBatch::try_new(schema::images(), columns)?)
}

/// Rows of `pool` from what the shards' JSON says; columns that it does not have are null.
fn pool_rows(samples: &[&(Uid, Info)], schema: &SchemaRef) -> Result<RecordBatch> {
    let strings = |f: fn(&Info) -> Option<&str>| -> ArrayRef { Arc::new(StringArray::from_iter(samples.iter().map(|(_, i)| f(i)))) };
    let ints = |f: fn(&Info) -> Option<i32>| -> ArrayRef { Arc::new(Int32Array::from_iter(samples.iter().map(|(_, i)| f(i)))) };
    let columns = schema.fields().iter().map(|field| {
        Ok::<ArrayRef, Error>(match field.name().as_str() {
            "uid" => {
                let mut uids = FixedSizeBinaryBuilder::with_capacity(samples.len(), 16);
                samples.iter().try_for_each(|(uid, _)| uids.append_value(uid.0))?;
                Arc::new(uids.finish())
            }
            "url" => strings(|i| i.url.as_deref()),
            "text" => strings(|i| i.caption.as_deref()),
            "original_width" => ints(|i| i.original_width),
            "original_height" => ints(|i| i.original_height),
            "face_bboxes" => face_bboxes(samples),
            "sha256" => {
                let mut digests = FixedSizeBinaryBuilder::with_capacity(samples.len(), 32);
                for (_, info) in samples {
                    match &info.sha256 {
                        Some(bytes) => digests.append_value(bytes)?,
                        None => digests.append_null(),
                    }
                }
                Arc::new(digests.finish())
            }
            _ => new_null_array(field.data_type(), samples.len()),
        })
    });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>>>()?)?)
}

fn face_bboxes(samples: &[&(Uid, Info)]) -> ArrayRef {
    let mut lists = ListBuilder::new(FixedSizeListBuilder::new(Float32Builder::new(), 4));
    for (_, info) in samples {
        for bbox in info.face_bboxes.iter().flatten() {
            lists.values().values().append_slice(bbox);
            lists.values().append(true);
        }
        lists.append(info.face_bboxes.is_some());
    }
    Arc::new(lists.finish())
}
