//! The samples of a set, read as a stream from webdataset shards, parquet and Arrow files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type};
use arrow::ipc::reader::{FileReader, StreamReader};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::set::EvalSet;
use crate::task::Kind;
use crate::{Error, Result};

/// An image and what is said of it.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// Names it in messages.
    pub key: String,
    /// Encoded; none where the sample has none.
    pub image: Option<Vec<u8>>,
    pub label: Option<i64>,
    pub captions: Vec<String>,
    /// Its `.npy`.
    pub fields: Vec<i64>,
}

/// A cue with the candidates that go with it, or do not.
#[derive(Debug)]
pub(crate) struct Instance {
    pub key: String,
    pub cue: String,
    pub candidates: Vec<Option<Vec<u8>>>,
    pub associated: Vec<bool>,
}

/// The columns of an association table.
pub(crate) const ASSOCIATION: [&str; 4] = ["candidates", "candidate_images", "cue", "associations"];

/// webdataset's, in the order in which it looks for them.
const IMAGES: [&str; 4] = ["webp", "png", "jpg", "jpeg"];
/// Rows of a table held at a time.
const ROWS: usize = 64;

/// Hands over every sample in its order with the bytes read so far, until `emit` says stop by giving false.
pub(crate) fn samples(set: &EvalSet, emit: &mut dyn FnMut(Sample, u64) -> bool) -> Result<()> {
    let (mut before, mut row) = (0, 0);
    for path in &set.files {
        let size = path.metadata().map_err(Error::io(path))?.len();
        let goes_on = match is_table(path) {
            true => table_samples(path, set.task.kind, &mut row, &mut |sample, share| emit(sample, before + (share * size as f64) as u64))?,
            false => shard_samples(path, &mut |sample, read| emit(sample, before + read))?,
        };
        if !goes_on {
            return Ok(());
        }
        before += size;
    }
    Ok(())
}

/// The same for the instances of an association table.
pub(crate) fn instances(set: &EvalSet, emit: &mut dyn FnMut(Instance, u64) -> bool) -> Result<()> {
    let (mut before, mut row) = (0, 0);
    for path in &set.files {
        let size = path.metadata().map_err(Error::io(path))?.len();
        let wrong = |e: arrow::error::ArrowError| Error::Table { path: path.clone(), reason: e.to_string() };
        let goes_on = batches(path, &ASSOCIATION, &mut |batch, share| {
            let texts = |name: &str| cast(column(path, &batch, name)?, &list_of_text()).map_err(wrong);
            let (candidates, associations) = (texts("candidates")?, texts("associations")?);
            let cues = cast(column(path, &batch, "cue")?, &DataType::Utf8).map_err(wrong)?;
            let images = column(path, &batch, "candidate_images")?.as_list_opt::<i32>();
            let images =
                images.ok_or_else(|| Error::Table { path: path.clone(), reason: "candidate_images is no list of images".into() })?;
            for i in 0..batch.num_rows() {
                let (names, answers) = (strings(candidates.as_list(), i), strings(associations.as_list(), i));
                let candidates = encoded(path, &images.value(i))?;
                if names.len() != candidates.len() || names.is_empty() {
                    let reason = format!("row {row} has {} candidates and {} images", names.len(), candidates.len());
                    return Err(Error::Table { path: path.clone(), reason });
                }
                let associated = names.iter().map(|name| answers.contains(name)).collect();
                let cue = cues.as_string::<i32>().value(i).to_string();
                if !emit(Instance { key: format!("row {row}"), cue, candidates, associated }, before + (share * size as f64) as u64) {
                    return Ok(false);
                }
                row += 1;
            }
            Ok(true)
        })?;
        if !goes_on {
            return Ok(());
        }
        before += size;
    }
    Ok(())
}

/// Python's `str.splitlines`.
pub(crate) fn split_lines(text: &str) -> Vec<String> {
    let ends = |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let text = text.replace("\r\n", "\n");
    let mut lines: Vec<String> = text.split(ends).map(str::to_string).collect();
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

pub(crate) fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "parquet" || extension == "arrow")
}

/// The names of a table's columns.
pub(crate) fn columns(path: &Path) -> Result<Vec<String>> {
    let schema = match path.extension().is_some_and(|extension| extension == "parquet") {
        true => parquet_of(path)?.schema().clone(),
        false => arrow_of(path)?.0,
    };
    Ok(schema.fields().iter().map(|field| field.name().clone()).collect())
}

/// Samples of a webdataset shard: members that lie together and have the same name up to the first dot. A member that
/// comes again begins another sample, which must have the same members in the same order.
fn shard_samples(path: &Path, emit: &mut dyn FnMut(Sample, u64) -> bool) -> Result<bool> {
    let broken = |reason: String| Error::Shard { path: path.to_path_buf(), reason };
    let io = |e: std::io::Error| broken(e.to_string());
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut end = [1u8; 512];
    let ends_well = file.seek(SeekFrom::End(-512)).and_then(|_| file.read_exact(&mut end)).is_ok() && end.iter().all(|byte| *byte == 0);
    if !ends_well {
        return Err(broken("it breaks off: a tar ends in a block of zeros".into()));
    }
    file.rewind().map_err(Error::io(path))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, file));
    // Archives that were put one behind the other are read to the end of the file.
    archive.set_ignore_zeros(true);
    let (mut key, mut parts) = (String::new(), Vec::<(String, Vec<u8>)>::new());
    // The extensions of this key's first sample, once a second has begun.
    let mut order: Option<Vec<String>> = None;
    let whole = |key: &str, parts: Vec<(String, Vec<u8>)>, order: &Option<Vec<String>>| {
        let same = order.as_ref().is_none_or(|order| order.iter().eq(parts.iter().map(|(extension, _)| extension)));
        let reason = "its members come twice, in another order".to_string();
        let wrong = || Error::Sample { path: path.into(), key: key.into(), reason };
        if same { sample(path, key, parts.into_iter().collect()) } else { Err(wrong()) }
    };
    let mut read = 0;
    for entry in archive.entries().map_err(io)? {
        let mut entry = entry.map_err(io)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(io)?.to_string_lossy().into_owned();
        let file_at = name.rfind('/').map_or(0, |slash| slash + 1);
        let Some(dot) = name[file_at..].find('.') else { continue };
        let (stem, extension) = (&name[..file_at + dot], name[file_at + dot + 1..].to_lowercase());
        let again = stem == key && parts.iter().any(|(e, _)| *e == extension);
        if stem != key || again {
            let previous = std::mem::take(&mut parts);
            let of_first = again.then(|| previous.iter().map(|(e, _)| e.clone()).collect());
            if !previous.is_empty() && !emit(whole(&key, previous, &order)?, read) {
                return Ok(false);
            }
            order = if again { order.or(of_first) } else { None };
            key = stem.to_string();
        }
        let mut bytes = Vec::with_capacity(entry.size().min(1 << 26) as usize);
        entry.read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 != entry.size() {
            return Err(broken(format!("{name} has {} of its {} bytes", bytes.len(), entry.size())));
        }
        read += 512 + (bytes.len() as u64).next_multiple_of(512);
        parts.push((extension, bytes));
    }
    Ok(parts.is_empty() || emit(whole(&key, parts, &order)?, read))
}

fn sample(path: &Path, key: &str, mut parts: HashMap<String, Vec<u8>>) -> Result<Sample> {
    let image = IMAGES.iter().find_map(|extension| parts.remove(*extension));
    let label = match parts.remove("cls") {
        Some(label) => {
            let text = String::from_utf8_lossy(&label).trim().to_string();
            let wrong = || Error::Sample { path: path.into(), key: key.into(), reason: format!("its .cls is no number: '{text}'") };
            Some(text.parse().map_err(|_| wrong())?)
        }
        None => None,
    };
    let captions = parts.remove("txt").map(|text| split_lines(&String::from_utf8_lossy(&text))).unwrap_or_default();
    let fields = match parts.remove("npy") {
        Some(bytes) => integers(&bytes).map_err(|reason| Error::Sample { path: path.into(), key: key.into(), reason })?,
        None => Vec::new(),
    };
    Ok(Sample { key: key.to_string(), image, label, captions, fields })
}

/// The values of a `.npy` of numbers, whole ones.
fn integers(bytes: &[u8]) -> Result<Vec<i64>, String> {
    fn of<T: npyz::Deserialize>(bytes: &[u8], whole: impl Fn(T) -> i64) -> Option<Vec<i64>> {
        let values = npyz::NpyFile::new(bytes).ok()?.into_vec::<T>().ok()?;
        Some(values.into_iter().map(whole).collect())
    }
    let wrong = |e: std::io::Error| format!("its .npy is broken: {e}");
    let kind = npyz::NpyFile::new(bytes).map_err(wrong)?.dtype().descr();
    of::<i64>(bytes, |x| x)
        .or_else(|| of::<i32>(bytes, i64::from))
        .or_else(|| of::<f64>(bytes, |x| x as i64))
        .or_else(|| of::<f32>(bytes, |x| x as i64))
        .or_else(|| of::<i16>(bytes, i64::from))
        .or_else(|| of::<u8>(bytes, i64::from))
        .or_else(|| of::<i8>(bytes, i64::from))
        .or_else(|| of::<bool>(bytes, i64::from))
        .ok_or_else(|| format!("its .npy of type {kind} cannot be read as numbers"))
}

fn table_samples(path: &Path, kind: Kind, row: &mut u64, emit: &mut dyn FnMut(Sample, f64) -> bool) -> Result<bool> {
    let wrong = |e: arrow::error::ArrowError| Error::Table { path: path.to_path_buf(), reason: e.to_string() };
    let about = if kind == Kind::Retrieval { "caption" } else { "label" };
    batches(path, &["image", about], &mut |batch, share| {
        let images = encoded(path, column(path, &batch, "image")?)?;
        let about_them = column(path, &batch, about)?;
        let labels = (kind != Kind::Retrieval).then(|| cast(about_them, &DataType::Int64)).transpose().map_err(wrong)?;
        let one_each = matches!(about_them.data_type(), DataType::Utf8 | DataType::LargeUtf8);
        let captions = match (kind, one_each) {
            (Kind::Retrieval, true) => Some(cast(about_them, &DataType::Utf8).map_err(wrong)?),
            (Kind::Retrieval, false) => Some(cast(about_them, &list_of_text()).map_err(wrong)?),
            _ => None,
        };
        for (i, image) in images.into_iter().enumerate() {
            let label = labels.as_ref().filter(|labels| labels.is_valid(i)).map(|labels| labels.as_primitive::<Int64Type>().value(i));
            let captions = match &captions {
                Some(texts) if one_each => vec![texts.as_string::<i32>().value(i).to_string()],
                Some(lists) => strings(lists.as_list(), i),
                None => Vec::new(),
            };
            if !emit(Sample { key: format!("row {row}"), image, label, captions, fields: Vec::new() }, share) {
                return Ok(false);
            }
            *row += 1;
        }
        Ok(true)
    })
}

type OnBatch<'a> = &'a mut dyn FnMut(RecordBatch, f64) -> Result<bool>;

/// The batches of a table, those columns only, each with the share of the table up to its end, until `each` gives false.
fn batches(path: &Path, names: &[&str], each: OnBatch) -> Result<bool> {
    let wrong = |e: arrow::error::ArrowError| Error::Table { path: path.to_path_buf(), reason: e.to_string() };
    if path.extension().is_some_and(|extension| extension == "arrow") {
        let size = path.metadata().map_err(Error::io(path))?.len().max(1);
        let mut read = 0;
        for batch in arrow_of(path)?.1 {
            let batch = batch.map_err(wrong)?;
            read += batch.get_array_memory_size() as u64;
            // Such batches may be large: they are worked on in pieces.
            for start in (0..batch.num_rows()).step_by(ROWS) {
                let piece = batch.slice(start, ROWS.min(batch.num_rows() - start));
                if !each(piece, (read as f64 / size as f64).min(1.0))? {
                    return Ok(false);
                }
            }
        }
        return Ok(true);
    }
    let builder = parquet_of(path)?;
    let all = builder.metadata().file_metadata().num_rows().max(1) as f64;
    let mask = ProjectionMask::columns(builder.parquet_schema(), names.iter().copied());
    let reader = builder.with_projection(mask).with_batch_size(ROWS).build();
    let mut rows = 0;
    for batch in reader.map_err(|e| Error::Table { path: path.to_path_buf(), reason: e.to_string() })? {
        let batch = batch.map_err(wrong)?;
        rows += batch.num_rows();
        if !each(batch, rows as f64 / all)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn parquet_of(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file);
    reader.map_err(|e| Error::Table { path: path.to_path_buf(), reason: e.to_string() })
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, arrow::error::ArrowError>>>;

/// An Arrow file, or a stream in a file, as the library `datasets` writes them.
fn arrow_of(path: &Path) -> Result<(arrow::datatypes::SchemaRef, Batches)> {
    let open = || File::open(path).map(BufReader::new).map_err(Error::io(path));
    if let Ok(reader) = FileReader::try_new(open()?, None) {
        return Ok((reader.schema(), Box::new(reader)));
    }
    let reader = StreamReader::try_new(open()?, None).map_err(|e| Error::Table { path: path.to_path_buf(), reason: e.to_string() })?;
    Ok((reader.schema(), Box::new(reader)))
}

fn column<'a>(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| {
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        Error::Table { path: path.to_path_buf(), reason: format!("expected a column {name}, got {}", names.join(", ")) }
    })
}

/// A column of encoded images: bytes, or Hugging Face's struct of `bytes` and `path`, of which either may be null: the library
/// `datasets` leaves images of a local archive where they lie.
fn encoded(path: &Path, images: &ArrayRef) -> Result<Vec<Option<Vec<u8>>>> {
    let wrong = || Error::Table { path: path.to_path_buf(), reason: format!("images are of type {}, expected bytes", images.data_type()) };
    let bytes = match images.as_struct_opt() {
        Some(parts) => parts.column_by_name("bytes").ok_or_else(wrong)?,
        None => images,
    };
    let bytes = cast(bytes, &DataType::LargeBinary).map_err(|_| wrong())?;
    let paths = match images.as_struct_opt().and_then(|parts| parts.column_by_name("path")) {
        Some(paths) => Some(cast(paths, &DataType::Utf8).map_err(|_| wrong())?),
        None => None,
    };
    let folder = path.parent().unwrap_or(path);
    let at_path = |i: usize| {
        let paths = paths.as_ref()?.as_string::<i32>();
        // Absolute paths stand alone.
        paths.is_valid(i).then(|| std::fs::read(folder.join(paths.value(i))).ok()).flatten()
    };
    let bytes = bytes.as_binary::<i64>().iter().enumerate();
    Ok(bytes.map(|(i, image)| image.map(<[u8]>::to_vec).or_else(|| at_path(i))).collect())
}

fn list_of_text() -> DataType {
    DataType::List(Field::new("item", DataType::Utf8, true).into())
}

fn strings(lists: &ListArray, i: usize) -> Vec<String> {
    let values = lists.value(i);
    values.as_string::<i32>().iter().flatten().map(str::to_string).collect()
}
