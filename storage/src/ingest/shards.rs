use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, FixedSizeListBuilder, Float32Builder, Int32Builder, ListBuilder, RecordBatch, RecordBatchIterator,
    RecordBatchReader, StringBuilder, new_null_array,
};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use lance::BlobArrayBuilder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::sources::Source;
use super::{Shared, lock};
use crate::uid::hex_decode;
use crate::{Error, Pool, Result, Table, Uid, images, schema};

/// Images are handed to the writer in batches of at most so many, and so many bytes.
const BATCH_IMAGES: usize = 256;
const BATCH_BYTES: usize = 32 << 20;

/// The JSON beside an image, as img2dataset writes it.
#[derive(Debug, Default, Deserialize)]
struct Info {
    uid: Option<String>,
    url: Option<String>,
    caption: Option<String>,
    original_width: Option<i32>,
    original_height: Option<i32>,
    sha256: Option<String>,
    status: Option<String>,
    face_bboxes: Option<Vec<[f32; 4]>>,
}

/// The members of a shard that share a key, with the uid that they lead to.
struct Member {
    uid: Uid,
    key: String,
    image: Vec<u8>,
    info: Info,
}

/// Appends a shard's images as one version of `images`, whose number it returns, and the samples that no metadata
/// file has brought as one version of `pool`.
pub(super) async fn ingest(pool: &Pool, source: &Source, shared: &Shared) -> Result<u64> {
    let pool_schema = lock(shared).schema.clone();
    let file = File::open(&source.path).map_err(Error::io(&source.path))?;
    let shard =
        Shard { path: source.path.clone(), archive: tar::Archive::new(BufReader::with_capacity(1 << 20, file)), shared: shared.clone() };
    let (sender, receiver) = std::sync::mpsc::sync_channel(2);
    let reader = std::thread::spawn(move || shard.read(&sender));
    let batches = RecordBatchIterator::new(receiver, schema::images());
    let version = pool.append(Table::Images, Box::new(batches) as Box<dyn RecordBatchReader + Send>).await;
    let new_samples = reader.join().map_err(|_| Error::ReaderPanicked { path: source.path.clone() })?;
    let version = version?;
    if !new_samples.is_empty() {
        let batch = pool_rows(&new_samples, pool_schema.clone())?;
        pool.append(Table::Pool, Box::new(RecordBatchIterator::new([Ok(batch)], pool_schema))).await?;
        lock(shared).summary.rows += new_samples.len() as u64;
    }
    Ok(version)
}

struct Shard {
    path: PathBuf,
    archive: tar::Archive<BufReader<File>>,
    shared: Shared,
}

type Batches = std::sync::mpsc::SyncSender<Result<RecordBatch, ArrowError>>;

impl Shard {
    /// Sends the shard's images in batches, and returns the samples that are new to the pool, without their bytes.
    fn read(mut self, batches: &Batches) -> Vec<Member> {
        let (mut members, mut bytes, mut new_samples) = (Vec::new(), 0, Vec::new());
        let mut send = |members: &mut Vec<Member>| {
            let batch = image_batch(members, &self.path.display().to_string());
            lock(&self.shared).summary.images += batch.as_ref().map_or(0, |batch| batch.num_rows() as u64);
            // Samples without a row in the pool get one; their bytes are not needed for it.
            for mut member in members.drain(..) {
                if lock(&self.shared).pool_uids.insert(member.uid) {
                    member.image = Vec::new();
                    new_samples.push(member);
                }
            }
            batches.send(batch.map_err(|e| ArrowError::ExternalError(Box::new(e)))).is_ok()
        };
        let mut on_sample = |parts: Parts, key: String| {
            if let Some(member) = accept(parts, key, &self.path, &self.shared) {
                bytes += member.image.len();
                members.push(member);
            }
            if members.len() >= BATCH_IMAGES || bytes >= BATCH_BYTES {
                bytes = 0;
                return send(&mut members);
            }
            true
        };
        if let Err(e) = each_sample(&mut self.archive, &mut on_sample) {
            let place = format!("{}: {e}", self.path.display());
            lock(&self.shared).summary.skip(super::SHARD_BREAKS_OFF, || place);
        }
        if !members.is_empty() {
            send(&mut members);
        }
        new_samples
    }
}

/// A sample's members by extension: `jpg`, `txt`, `json`.
type Parts = HashMap<String, Vec<u8>>;

/// Calls `on_sample` with each run of members that share a key, as webdataset groups them: the key is the path up
/// to the first dot of the file name. Stops early when it returns false.
fn each_sample(archive: &mut tar::Archive<BufReader<File>>, on_sample: &mut impl FnMut(Parts, String) -> bool) -> std::io::Result<()> {
    let (mut key, mut parts) = (String::new(), Parts::new());
    let mut result = Ok(());
    for entry in archive.entries()? {
        let next = entry.and_then(|mut entry| {
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut bytes = Vec::with_capacity(entry.size().min(64 << 20) as usize);
            let is_file = entry.header().entry_type().is_file();
            entry.read_to_end(&mut bytes)?;
            Ok((path, is_file, bytes))
        });
        let (path, is_file, bytes) = match next {
            Ok(next) => next,
            Err(e) => {
                result = Err(e);
                break;
            }
        };
        let name_at = path.rfind('/').map_or(0, |i| i + 1);
        let Some(dot) = path[name_at..].find('.').filter(|_| is_file) else { continue };
        let (this_key, extension) = (&path[..name_at + dot], path[name_at + dot + 1..].to_lowercase());
        if this_key != key {
            let previous = std::mem::replace(&mut key, this_key.to_string());
            let previous_parts = std::mem::take(&mut parts);
            if !previous_parts.is_empty() && !on_sample(previous_parts, previous) {
                return Ok(());
            }
        }
        parts.insert(extension, bytes);
    }
    if !parts.is_empty() {
        on_sample(parts, key);
    }
    result
}

/// The sample, if it is whole and new to `images`; otherwise counted with its reason.
fn accept(mut parts: Parts, key: String, path: &std::path::Path, shared: &Shared) -> Option<Member> {
    let skip = |reason: &'static str| {
        lock(shared).summary.skip(reason, || format!("{}, member {key}", path.display()));
        None
    };
    let image = ["jpg", "jpeg", "png", "webp", "gif"].iter().find_map(|extension| parts.remove(*extension));
    let info = match parts.get("json").map(|json| serde_json::from_slice::<Info>(json)) {
        Some(Ok(info)) => info,
        Some(Err(_)) => return skip("unreadable json"),
        None => Info::default(),
    };
    let Some(image) = image else { return skip("no image beside the json") };
    let caption = parts.remove("txt").map(|text| String::from_utf8_lossy(&text).into_owned()).or(info.caption.clone());
    let uid = match &info.uid {
        Some(text) => match text.parse() {
            Ok(uid) => uid,
            Err(_) => return skip("not a uid"),
        },
        None => match (&info.url, &caption) {
            (None, None) => return skip("no uid, url or caption"),
            (url, caption) => Uid::of_pair(url.as_deref().unwrap_or(""), caption.as_deref().unwrap_or("")),
        },
    };
    if images::inspect(&image).is_none() {
        return skip("not an image");
    }
    let (new_image, new_row) = {
        let mut state = lock(shared);
        (state.image_uids.insert(uid), !state.pool_uids.contains(&uid))
    };
    if !new_image && !new_row {
        return skip("image is in the pool already");
    }
    // An image without a row is what a run leaves that was stopped between its two commits.
    let image = if new_image { image } else { Vec::new() };
    Some(Member { uid, key, image, info: Info { caption, ..info } })
}

fn image_batch(members: &[Member], source: &str) -> Result<RecordBatch> {
    let members: Vec<&Member> = members.iter().filter(|member| !member.image.is_empty()).collect();
    let n = members.len();
    let mut uids = FixedSizeBinaryBuilder::with_capacity(n, 16);
    let mut bytes = BlobArrayBuilder::new(n);
    let (mut widths, mut heights) = (Int32Builder::with_capacity(n), Int32Builder::with_capacity(n));
    let (mut formats, mut sources, mut statuses) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let mut digests = FixedSizeBinaryBuilder::with_capacity(n, 32);
    for member in members {
        let (format, width, height) = images::inspect(&member.image).expect("accepted as an image");
        uids.append_value(member.uid.0)?;
        bytes.push_bytes(&member.image).map_err(Error::lance(source))?;
        widths.append_value(width as i32);
        heights.append_value(height as i32);
        formats.append_value(format);
        digests.append_value(Sha256::digest(&member.image))?;
        sources.append_value(format!("{source}/{}", member.key));
        statuses.append_option(member.info.status.as_deref());
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

/// Rows of `pool` from what the shard's JSON says; columns that it does not have are null.
fn pool_rows(members: &[Member], schema: SchemaRef) -> Result<RecordBatch> {
    let strings = |f: fn(&Member) -> Option<&str>| -> ArrayRef { Arc::new(arrow::array::StringArray::from_iter(members.iter().map(f))) };
    let ints = |f: fn(&Member) -> Option<i32>| -> ArrayRef { Arc::new(arrow::array::Int32Array::from_iter(members.iter().map(f))) };
    let columns = schema.fields().iter().map(|field| {
        Ok::<ArrayRef, Error>(match field.name().as_str() {
            "uid" => {
                let mut uids = FixedSizeBinaryBuilder::with_capacity(members.len(), 16);
                members.iter().try_for_each(|m| uids.append_value(m.uid.0))?;
                Arc::new(uids.finish())
            }
            "url" => strings(|m| m.info.url.as_deref()),
            "text" => strings(|m| m.info.caption.as_deref()),
            "original_width" => ints(|m| m.info.original_width),
            "original_height" => ints(|m| m.info.original_height),
            "face_bboxes" => face_bboxes(members),
            "sha256" => {
                let mut digests = FixedSizeBinaryBuilder::with_capacity(members.len(), 32);
                let mut bytes = [0; 32];
                for member in members {
                    match &member.info.sha256 {
                        Some(text) if hex_decode(text, &mut bytes) => digests.append_value(bytes)?,
                        _ => digests.append_null(),
                    }
                }
                Arc::new(digests.finish())
            }
            _ => new_null_array(field.data_type(), members.len()),
        })
    });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>>>()?)?)
}

fn face_bboxes(members: &[Member]) -> ArrayRef {
    let mut lists = ListBuilder::new(FixedSizeListBuilder::new(Float32Builder::new(), 4));
    for member in members {
        for bbox in member.info.face_bboxes.iter().flatten() {
            lists.values().values().append_slice(bbox);
            lists.values().append(true);
        }
        lists.append(member.info.face_bboxes.is_some());
    }
    Arc::new(lists.finish())
}
