use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use serde_json::json;

use super::Summary;
use crate::uid::hex_encode;
use crate::{Error, OnProgress, Pool, Progress, Result, Subset, Table, Uid, images, put_in_place};

/// Samples a shard, as DataComp's resharder has them.
pub const SHARD_SAMPLES: usize = 10_000;
/// Samples read at a time.
const BATCH: usize = 1024;

/// An image of the subset: where it and its metadata lie, and how often it is written.
#[derive(Clone, Copy)]
struct Row {
    image: u64,
    sample: u64,
    uid: Uid,
    count: u32,
}

/// Writes the subset's images as shards of 10,000, in the order of the images in the pool. Names, members and
/// `meta.json` are those of DataComp's `resharder.py`, whose output its trainer reads: `UID-0.jpg`, `UID-0.json`,
/// `UID-0.txt`, and `UID-1` and so on where the subset has a sample more than once.
/// With `blur`, images with face boxes are decoded, blurred and encoded again as JPEG.
pub fn webdataset<'a>(
    pool: &'a Pool,
    subset: &'a Subset,
    folder: &'a Path,
    blur: bool,
    overwrite: bool,
    on_progress: OnProgress<'a>,
) -> BoxFuture<'a, Result<Summary>> {
    async move {
        let samples = pool.require(Table::Pool).await?;
        let images = pool.require(Table::Images).await?;
        super::prepare(folder, overwrite)?;
        let (rows, mut summary) = locate(pool, &samples, &images, subset).await?;

        let shards = split(&rows);
        let total = rows.iter().map(|row| u64::from(row.count)).sum();
        let writing = shards.into_iter().enumerate().map(|(number, entries)| {
            let task = write_shard(images.clone(), samples.clone(), folder.to_path_buf(), number, entries, blur);
            async move { tokio::spawn(task).await.map_err(|_| Error::ReaderPanicked { path: folder.to_path_buf() })? }
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut writing = futures::stream::iter(writing).buffered(cores);
        let mut sizes = serde_json::Map::new();
        while let Some(shard) = writing.next().await {
            let shard: Summary = shard?;
            sizes.insert(format!("{:08}.tar", summary.files), shard.samples.into());
            summary.files += 1;
            summary.samples += shard.samples;
            summary.bytes += shard.bytes;
            summary.blurred += shard.blurred;
            summary.not_blurred += shard.not_blurred;
            on_progress(Progress { what: String::new(), done: summary.samples, total, unit: "samples" });
        }
        subset.write(&folder.join("sample_ids.npy"))?;
        write_json(&folder.join("sizes.json"), &sizes.into())?;
        let meta = json!({
            "input_dir": pool.root(),
            "output_dir": folder.display().to_string(),
            "shard_size": SHARD_SAMPLES.to_string(),
            "output_shard_format": "{:08d}.tar",
            "output_shard_stats_format": "{:08d}_stats.json",
            "apply_blur": if blur { "True" } else { "False" },
            "processed_count": rows.len(),
            "output_count": summary.samples,
            "blur_count": summary.blurred,
            "output_shard_count": summary.files,
        });
        write_json(&folder.join("meta.json"), &meta)?;
        super::finish(folder)?;
        Ok(summary)
    }
    .boxed()
}

/// The rows of the subset's images, in their order.
async fn locate(pool: &Pool, samples: &Dataset, images: &Dataset, subset: &Subset) -> Result<(Vec<Row>, Summary)> {
    const NONE: u64 = u64::MAX;
    let (uids, counts) = super::counted(subset);
    let mut sample_rows = vec![NONE; uids.len()];
    pool.for_each_uid(samples, |row, uid| {
        if let Ok(at) = uids.binary_search(&uid) {
            sample_rows[at] = row;
        }
    })
    .await?;
    let mut rows = Vec::new();
    pool.for_each_uid(images, |image, uid| {
        if let Ok(at) = uids.binary_search(&uid)
            && sample_rows[at] != NONE
        {
            rows.push(Row { image, sample: sample_rows[at], uid, count: counts[at] });
        }
    })
    .await?;
    let mut summary = Summary::default();
    let written: u64 = rows.iter().map(|row| u64::from(row.count)).sum();
    summary.not_in_pool = sample_rows.iter().zip(&counts).filter(|(row, _)| **row == NONE).map(|(_, n)| u64::from(*n)).sum();
    summary.no_image = subset.len() as u64 - summary.not_in_pool - written;
    Ok((rows, summary))
}

/// A row with the copies of it that go into one shard.
type Entry = (Row, std::ops::Range<u32>);

fn split(rows: &[Row]) -> Vec<Vec<Entry>> {
    let (mut shards, mut shard, mut held): (Vec<Vec<Entry>>, Vec<Entry>, usize) = (Vec::new(), Vec::new(), 0);
    for &row in rows {
        let mut copy = 0;
        while copy < row.count {
            let n = (row.count - copy).min((SHARD_SAMPLES - held) as u32);
            shard.push((row, copy..copy + n));
            copy += n;
            held += n as usize;
            if held == SHARD_SAMPLES {
                shards.push(std::mem::take(&mut shard));
                held = 0;
            }
        }
    }
    if !shard.is_empty() {
        shards.push(shard);
    }
    shards
}

/// Writes a shard under a temporary name first.
async fn write_shard(
    images: Arc<Dataset>,
    samples: Arc<Dataset>,
    folder: std::path::PathBuf,
    number: usize,
    entries: Vec<Entry>,
    blur: bool,
) -> Result<Summary> {
    let path = folder.join(format!("{number:08}.tar"));
    let partial = folder.join(format!("{number:08}.tar.partial"));
    let file = BufWriter::with_capacity(16 << 10, File::create(&partial).map_err(Error::io(&partial))?);
    let mut archive = tar::Builder::new(file);
    let mut summary = Summary::default();
    for chunk in entries.chunks(BATCH) {
        let (blobs, about) = read(&images, &samples, chunk).await?;
        for (i, (row, copies)) in chunk.iter().enumerate() {
            let Some(mut bytes) = blobs[i].clone() else { continue };
            let mut about = about.sample(i, row.uid);
            let boxes = about.boxes();
            if blur && !boxes.is_empty() && !about.is_blurred() {
                let decoded = tokio::task::block_in_place(|| images::blur_faces(&bytes, &boxes));
                match decoded {
                    Some(blurred) => {
                        bytes = blurred.into();
                        about.format = "jpeg".to_string();
                        about.status = Some(images::BLURRED.to_string());
                        summary.blurred += 1;
                    }
                    None => summary.not_blurred += 1,
                }
            }
            let (json, text) = (about.json(), about.text.clone().unwrap_or_default());
            let extension = if about.format == "jpeg" { "jpg" } else { about.format.as_str() };
            for copy in copies.clone() {
                let key = format!("{}-{copy}", row.uid);
                let mut members = [(extension, bytes.as_ref()), ("json", json.as_bytes()), ("txt", text.as_bytes())];
                members.sort_by_key(|(extension, _)| *extension);
                for (extension, bytes) in members {
                    append(&mut archive, &format!("{key}.{extension}"), bytes).map_err(Error::io(&partial))?;
                }
                summary.samples += 1;
            }
        }
    }
    archive.into_inner().and_then(|mut file| file.flush()).map_err(Error::io(&partial))?;
    put_in_place(&partial, &path).map_err(Error::io(&path))?;
    summary.bytes = path.metadata().map_err(Error::io(&path))?.len();
    write_json(&folder.join(format!("{number:08}_stats.json")), &json!({ "successes": summary.samples }))?;
    Ok(summary)
}

fn append(archive: &mut tar::Builder<BufWriter<File>>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(bytes.len() as u64);
    header.set_mode(0o444);
    header.set_username("bigdata")?;
    header.set_groupname("bigdata")?;
    header.set_cksum();
    archive.append(&header, bytes)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    std::fs::write(path, value.to_string()).map_err(Error::io(path))
}

/// Image bytes and metadata of some entries, in their order.
async fn read(images: &Arc<Dataset>, samples: &Dataset, entries: &[Entry]) -> Result<(Vec<Option<bytes::Bytes>>, About)> {
    let wrap = |dataset: &Dataset| Error::lance(dataset.uri().to_string());
    // Ascending, as the entries are; a row that two shards share is in each once.
    let rows: Vec<u64> = entries.iter().map(|(row, _)| row.image).collect();
    let blobs = images.read_blobs("image").map_err(wrap(images))?.with_row_indices(rows.clone()).preserve_order(true);
    let blobs = blobs.execute().await.map_err(wrap(images))?;
    let projection = ProjectionRequest::from_columns(["width", "height", "format", "status"], images.schema());
    let of_images = images.take(&rows, projection).await.map_err(wrap(images))?;

    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_unstable_by_key(|&i| entries[i].0.sample);
    let rows: Vec<u64> = order.iter().map(|&i| entries[i].0.sample).collect();
    let wanted = ["url", "text", "original_width", "original_height", "sha256", "face_bboxes"];
    let names: Vec<&str> = wanted.into_iter().filter(|name| samples.schema().field(name).is_some()).collect();
    let of_samples = match names.is_empty() {
        true => RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())),
        false => samples.take(&rows, ProjectionRequest::from_columns(names, samples.schema())).await.map_err(wrap(samples))?,
    };
    let mut at = vec![0; entries.len()];
    order.iter().enumerate().for_each(|(k, &i)| at[i] = k);
    Ok((blobs.into_iter().map(|blob| blob.data).collect(), About { of_images, of_samples, at }))
}

/// Metadata of a batch.
struct About {
    of_images: RecordBatch,
    of_samples: RecordBatch,
    /// The row of `of_samples` of each entry.
    at: Vec<usize>,
}

/// What a sample's JSON and text say.
struct Sample {
    uid: Uid,
    url: Option<String>,
    text: Option<String>,
    status: Option<String>,
    format: String,
    width: Option<i32>,
    height: Option<i32>,
    original_width: Option<i32>,
    original_height: Option<i32>,
    sha256: Option<String>,
    face_bboxes: Option<Vec<[f32; 4]>>,
}

impl About {
    fn sample(&self, i: usize, uid: Uid) -> Sample {
        let k = self.at[i];
        let text = |batch: &RecordBatch, name: &str, i: usize| {
            let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
            column.is_valid(i).then(|| column.value(i).to_string())
        };
        let int = |batch: &RecordBatch, name: &str, i: usize| {
            let column = batch.column_by_name(name)?.as_primitive_opt::<Int32Type>()?;
            column.is_valid(i).then(|| column.value(i))
        };
        let sha256 = || {
            let column = self.of_samples.column_by_name("sha256")?.as_fixed_size_binary_opt()?;
            column.is_valid(k).then(|| hex_encode(column.value(k)))
        };
        Sample {
            uid,
            url: text(&self.of_samples, "url", k),
            text: text(&self.of_samples, "text", k),
            status: text(&self.of_images, "status", i),
            format: text(&self.of_images, "format", i).unwrap_or_default(),
            width: int(&self.of_images, "width", i),
            height: int(&self.of_images, "height", i),
            original_width: int(&self.of_samples, "original_width", k),
            original_height: int(&self.of_samples, "original_height", k),
            sha256: sha256(),
            face_bboxes: images::face_boxes(&self.of_samples, k),
        }
    }
}

impl Sample {
    fn boxes(&self) -> Vec<[f32; 4]> {
        self.face_bboxes.clone().unwrap_or_default()
    }

    fn is_blurred(&self) -> bool {
        self.status.as_deref() == Some(images::BLURRED)
    }

    /// As img2dataset writes it, and whether the faces are blurred.
    fn json(&self) -> String {
        let value = json!({
            "uid": self.uid.to_string(),
            "face_bboxes": self.face_bboxes,
            "caption": self.text,
            "url": self.url,
            "key": self.uid.to_string(),
            "status": self.status.as_deref().filter(|_| !self.is_blurred()).unwrap_or("success"),
            "blurred": self.is_blurred(),
            "error_message": null,
            "width": self.width,
            "height": self.height,
            "original_width": self.original_width,
            "original_height": self.original_height,
            "sha256": self.sha256,
        });
        value.to_string()
    }
}
