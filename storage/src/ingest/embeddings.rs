//! Embeddings join the rows of `pool` by uid: row i of an `.npz` is that of row i of the metadata file of its stem.
//! Each fragment gets a file of vectors beside its other columns, which are not rewritten.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float16Array, RecordBatch};
use arrow::buffer::{Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Float16Type, Schema, UInt64Type};
use futures::TryStreamExt;
use half::f16;
use lance::Dataset;
use lance::dataset::transaction::DataReplacementGroup;
use rayon::prelude::*;
use tokio::task::JoinHandle;

use super::census::{Place, Uids};
use super::npz::{self, Npz};
use super::sources::{Kind, Source};
use super::{Run, convert, entry, table};
use crate::ledger::{Entry, FileDigest, digest_file};
use crate::rejects::Reject;
use crate::writer::Change;
use crate::{Error, Result, Uid};

/// Rows written at a time: of CommonPool's four embeddings 5 MB.
const BATCH_ROWS: u32 = 1024;

/// An `.npz` whose rows are to be found in the pool.
struct Pending {
    source: Source,
    /// Known once its fragment's turn has come.
    digest: Option<FileDigest>,
    arrays: Vec<npz::Array>,
    /// Arrays that are left out.
    rejects: Vec<Reject>,
    /// The metadata file of its stem.
    metadata: PathBuf,
    /// How many of its rows are in the pool, and how many of their vectors were left out.
    found: u64,
    lost: u64,
}

/// Rows of a file, one after the other in it and in a fragment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Piece {
    file: usize,
    row: u64,
    offset: u32,
    rows: u32,
}

pub(super) async fn ingest(run: &mut Run<'_>) -> Result<()> {
    let sources = run.of_kind(Kind::Embeddings);
    let mut pending = Vec::new();
    for source in sources {
        match prepare(run, &source) {
            Ok(p) => pending.push(p),
            Err(reject) => reject_new(run, &source, reject).await?,
        }
    }
    let Some(dataset) = run.tables.samples.clone().filter(|_| !pending.is_empty()) else {
        for p in pending {
            reject_new(run, &p.source, Reject::file(&p.source.name(), NO_METADATA, "the pool has no samples")).await?;
        }
        return Ok(());
    };
    let dataset = add_columns(run, &dataset, &mut pending).await?;
    run.tables.samples = Some(dataset);
    // As many files at a time as two fragments have rows, each metadata file once among them.
    let mut rest = pending.into_iter().peekable();
    while rest.peek().is_some() {
        let (mut some, mut rows): (Vec<Pending>, u64) = (Vec::new(), 0);
        while let Some(p) = rest.next_if(|p| {
            let fits = some.is_empty() || rows + p.arrays[0].rows <= 2 * run.options.fragment_rows as u64;
            fits && !some.iter().any(|other| other.metadata == p.metadata)
        }) {
            rows += p.arrays[0].rows;
            some.push(p);
        }
        join(run, some).await?;
    }
    Ok(())
}

async fn join(run: &mut Run<'_>, mut pending: Vec<Pending>) -> Result<()> {
    let mut dataset = run.tables.samples.clone().expect("set by the caller");
    let pieces = locate(run, &dataset, &mut pending).await?;
    // Each file is recorded with the last fragment that it reaches into.
    let mut last: HashMap<usize, u32> = HashMap::new();
    for (&fragment, pieces) in &pieces {
        for piece in pieces {
            last.entry(piece.file).and_modify(|last| *last = fragment.max(*last)).or_insert(fragment);
        }
    }
    let mut out = vec![false; pending.len()];
    let mut fragments: Vec<(u32, Vec<Piece>)> = pieces.into_iter().collect();
    fragments.sort_unstable_by_key(|(id, _)| *id);
    let files: Files = Arc::new(pending.iter().map(|p| (p.source.path.clone(), p.arrays.clone())).collect());
    let mut ahead: Option<Digests> = None;
    for at in 0..fragments.len() {
        let (id, mut pieces) = fragments[at].clone();
        // Digests are taken while the fragment before is written; the writer then finds the files in the page cache.
        let digests = ahead.take().unwrap_or_else(|| digest_all(&files, &pieces, &pending));
        for (file, digest) in run.wait("", digests).await? {
            let source = pending[file].source.clone();
            match digest {
                Ok(digest) if run.is_known(&digest) => run.known(&source),
                Ok(digest) => {
                    pending[file].digest = Some(digest);
                    continue;
                }
                Err(e) => run.reject_file(&source, None, Reject::file(&source.name(), "not readable", e)).await?,
            }
            out[file] = true;
        }
        ahead = fragments.get(at + 1).map(|(_, next)| digest_all(&files, next, &pending));
        let (group, values) = loop {
            pieces.retain(|piece| !out[piece.file]);
            if pieces.is_empty() {
                break (None, vec![]);
            }
            let what = pending[pieces[0].file].source.name();
            let task = tokio::spawn(write(dataset.clone(), id, pieces.clone(), files.clone()));
            match run.wait(&what, task).await? {
                Ok((group, values)) => break (Some(group), values),
                // Without the file that turned out to be broken.
                Err((file, e)) => {
                    out[file] = true;
                    let Pending { source, digest, .. } = &pending[file];
                    run.reject_file(&source.clone(), *digest, Reject::file(&source.name(), "not readable", e)).await?;
                }
            }
        };
        let Some(group) = group else { continue };
        for (file, _) in &values {
            pending[*file].lost += 1;
        }
        let mut done = Vec::new();
        let values: Vec<_> = values.into_iter().map(|(file, reject)| (reject, pending[file].digest)).collect();
        for (&file, _) in last.iter().filter(|(file, last)| **last == id && !out[**file]) {
            let p = &pending[file];
            let digest = p.digest.expect("taken before the file was read");
            let rejected = p.lost + p.rejects.len() as u64;
            done.push((Entry { rows: p.found, rejected, ..entry(&p.source, digest) }, p.rejects.clone()));
        }
        done.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        let (rows, bytes) = done.iter().fold((0, 0), |(rows, bytes), (entry, _)| (rows + entry.rows, bytes + entry.bytes));
        let change = Change { columns: vec![group], ..Change::default() };
        dataset = run.commit(&dataset, change, done, values).await?;
        run.summary.embeddings += rows;
        run.done.fetch_add(bytes, Ordering::Relaxed);
    }
    run.tables.samples = Some(dataset);
    Ok(())
}

type Digests = JoinHandle<Result<Vec<(usize, Result<FileDigest>)>>>;

/// The digests of the files of these pieces, but for those that are known.
fn digest_all(files: &Files, pieces: &[Piece], pending: &[Pending]) -> Digests {
    let mut of_pieces: Vec<usize> = pieces.iter().map(|piece| piece.file).filter(|&file| pending[file].digest.is_none()).collect();
    of_pieces.dedup();
    let files = files.clone();
    let digest = move || Ok(of_pieces.into_par_iter().map(|file| (file, digest_file(&files[file].0))).collect());
    tokio::task::spawn_blocking(digest)
}

/// Rejects a file of which nothing was read but its header.
async fn reject_new(run: &mut Run<'_>, source: &Source, reject: Reject) -> Result<()> {
    let digest = digest_file(&source.path).ok();
    run.reject_file(source, digest, reject).await
}

const NO_METADATA: &str = "no metadata of this stem in the pool";

fn prepare(run: &Run<'_>, source: &Source) -> Result<Pending, Reject> {
    let name = source.name();
    let (arrays, left_out) = npz::arrays(&source.path).map_err(|e| {
        let reason = if matches!(e, Error::Array { .. }) { WRONG_ARRAY } else { "not readable" };
        Reject::file(&name, reason, e)
    })?;
    let rejects = left_out.into_iter().map(|e| left_out_array(&name, &e)).collect();
    let metadata = metadata_of(run, &source.path).ok_or_else(|| {
        let stem = source.path.with_extension("");
        Reject::file(&name, NO_METADATA, format!("ingest {}.parquet first, or put this beside the one that it belongs to", stem.display()))
    })?;
    Ok(Pending { source: source.clone(), digest: None, arrays, rejects, metadata, found: 0, lost: 0 })
}

const WRONG_ARRAY: &str = "array of another type or shape";

/// Says of an array that the others of its file go in without it.
fn left_out_array(file: &str, e: &Error) -> Reject {
    let column = if let Error::Array { array, .. } = e { Some(array.clone()) } else { None };
    Reject { column, kept: true, ..Reject::file(file, WRONG_ARRAY, e) }
}

/// The metadata file with this stem: in the same folder, or else the only one that the ledger has and that is there.
fn metadata_of(run: &Run<'_>, path: &Path) -> Option<PathBuf> {
    let beside = ["parquet", "csv"].map(|extension| path.with_extension(extension)).into_iter().find(|path| path.is_file());
    if beside.is_some() {
        return beside;
    }
    let metadata = run.ledger.entries().iter().filter(|e| e.kind == Kind::Metadata.name()).map(|e| PathBuf::from(&e.path));
    let mut of_stem: Vec<PathBuf> = metadata.filter(|p| p.file_stem() == path.file_stem() && p.is_file()).collect();
    of_stem.sort_unstable();
    of_stem.dedup();
    (of_stem.len() == 1).then(|| of_stem.remove(0))
}

/// The uid of each row of a metadata file, as far as it can be read, and how many rows it says that it has.
fn uids_of_file(path: &Path) -> Result<(Vec<Option<Uid>>, u64)> {
    let header = table::header(path)?;
    let columns: &[&str] = if header.schema.field_with_name("uid").is_ok() { &["uid"] } else { &["url", "text"] };
    let mut uids = Vec::new();
    for batch in table::open(path, Some(columns))? {
        let Ok(batch) = batch else { break };
        uids.extend(convert::uids(&batch)?.into_iter().map(Result::ok));
    }
    let is_csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let rows = if is_csv { uids.len() as u64 } else { header.rows };
    Ok((uids, rows))
}

/// Makes the columns that the arrays need. Arrays of another type than the pool's column are left out, and files of none
/// but those are rejected.
async fn add_columns(run: &mut Run<'_>, dataset: &Arc<Dataset>, pending: &mut Vec<Pending>) -> Result<Arc<Dataset>> {
    let mut fields: Vec<Field> = Schema::from(dataset.schema()).fields().iter().map(|f| f.as_ref().clone()).collect();
    let known = fields.len();
    for mut p in std::mem::take(pending) {
        let mut wrong = Vec::new();
        p.arrays.retain(|array| {
            let stored = fields.iter().find(|f| f.name() == &array.name && f.data_type() != array.field().data_type());
            wrong.extend(stored.map(|stored| Error::Array {
                path: p.source.path.clone(),
                array: array.name.clone(),
                expected: format!("the pool's {}", stored.data_type()),
                got: format!("dimension {}", array.dim),
            }));
            stored.is_none()
        });
        if let (true, Some(e)) = (p.arrays.is_empty(), wrong.first()) {
            reject_new(run, &p.source, Reject::file(&p.source.name(), WRONG_ARRAY, e)).await?;
            continue;
        }
        let name = p.source.name();
        p.rejects.extend(wrong.iter().map(|e| left_out_array(&name, e)));
        let new: Vec<Field> = p.arrays.iter().filter(|a| !fields.iter().any(|f| f.name() == &a.name)).map(npz::Array::field).collect();
        fields.extend(new);
        pending.push(p);
    }
    run.writer.add_null_columns(dataset, fields.split_off(known)).await
}

/// Finds the rows of each file by one scan over the pool's uids. By fragment, in the order of its rows. Files whose
/// metadata cannot be read, has another number of rows, or has no row in the pool, are rejected.
async fn locate(run: &mut Run<'_>, dataset: &Dataset, pending: &mut [Pending]) -> Result<HashMap<u32, Vec<Piece>>> {
    let paths: Vec<PathBuf> = pending.iter().map(|p| p.metadata.clone()).collect();
    let read = tokio::task::spawn_blocking(move || paths.par_iter().map(|path| uids_of_file(path)).collect::<Vec<_>>()).await;
    let read = read.map_err(|_| Error::ReaderPanicked { path: dataset.uri().into() })?;
    let mut all = Vec::new();
    let mut with_uid = vec![0; pending.len()];
    let mut rejects: HashMap<usize, Reject> = HashMap::new();
    for (file, read) in read.into_iter().enumerate() {
        let p = &pending[file];
        let name = p.source.name();
        match read {
            Ok((_, rows)) if rows != p.arrays[0].rows => {
                let detail = format!("expected {rows} rows as in {}, got {}", p.metadata.display(), p.arrays[0].rows);
                rejects.insert(file, Reject::file(&name, "another number of rows than its metadata", detail));
            }
            Ok((uids, _)) => {
                with_uid[file] = uids.iter().flatten().count() as u64;
                all.extend(uids.into_iter().enumerate().filter_map(|(row, uid)| Some((uid?, (file as u32, row as u32)))));
            }
            Err(e) => {
                rejects.insert(file, Reject::file(&name, "its metadata is not readable", e));
            }
        }
    }
    let (uids, _) = Uids::new(all);
    let mut found: Vec<(u64, Place)> = Vec::new();
    uids.find(dataset, |_, place, address| found.push((address, place))).await?;
    found.par_sort_unstable();
    let mut pieces: HashMap<u32, Vec<Piece>> = HashMap::new();
    for (address, (file, row)) in found {
        let (file, row, offset) = (file as usize, u64::from(row), address as u32);
        pending[file].found += 1;
        let of_fragment = pieces.entry((address >> 32) as u32).or_default();
        match of_fragment.last_mut() {
            Some(p) if p.file == file && p.offset + p.rows == offset && p.row + u64::from(p.rows) == row => p.rows += 1,
            _ => of_fragment.push(Piece { file, row, offset, rows: 1 }),
        }
    }
    for (file, p) in pending.iter().enumerate() {
        // Some rows may be there from shards, and the others still to come with the metadata.
        let is_in = p.found == with_uid[file] || run.ledger.entries().iter().any(|e| Path::new(&e.path) == p.metadata);
        let none = || Reject::file(&p.source.name(), NO_METADATA, format!("ingest {} first", p.metadata.display()));
        let reject = rejects.remove(&file).or_else(|| (p.found == 0 || !is_in).then(none));
        if let Some(reject) = reject {
            pieces.values_mut().for_each(|pieces| pieces.retain(|piece| piece.file != file));
            reject_new(run, &p.source, reject).await?;
        }
    }
    pieces.retain(|_, pieces| !pieces.is_empty());
    Ok(pieces)
}

type Files = Arc<Vec<(PathBuf, Vec<npz::Array>)>>;
type Written = Result<(DataReplacementGroup, Vec<(usize, Reject)>), (usize, Error)>;

/// Writes a fragment's vectors: those that `pieces` bring, and for other rows what is there. An inner error names the
/// file that could not be read.
async fn write(dataset: Arc<Dataset>, fragment: u32, pieces: Vec<Piece>, files: Files) -> Result<Written> {
    let wrap = || Error::lance(dataset.uri());
    let of_id = dataset.get_fragment(fragment as usize).expect("pieces are of this version's fragments");
    let rows = of_id.physical_rows().await.map_err(wrap())? as u32;
    let mut arrays: Vec<npz::Array> = Vec::new();
    for piece in &pieces {
        for array in &files[piece.file].1 {
            if !arrays.iter().any(|a| a.name == array.name) {
                arrays.push(array.clone());
            }
        }
    }
    let names: Vec<&str> = arrays.iter().map(|a| a.name.as_str()).collect();
    let schema = dataset.schema().project(&names).map_err(wrap())?;
    // What other files brought to this fragment before.
    let ids: Vec<i32> = schema.fields.iter().map(|f| f.id).collect();
    let has_values = of_id.metadata().files.iter().any(|file| file.fields.iter().any(|id| ids.contains(id)));

    let (sender, receiver) = tokio::sync::mpsc::channel(3);
    let runtime = tokio::runtime::Handle::current();
    let (old, of_task) = (dataset.clone(), arrays.clone());
    let reader = tokio::task::spawn_blocking(move || {
        let mut reader = Reader { files: &files, open: None, lost: Vec::new() };
        let mut at = 0;
        for start in (0..rows).step_by(BATCH_ROWS as usize) {
            let n = BATCH_ROWS.min(rows - start);
            let old = match has_values {
                true => Some(runtime.block_on(existing(&old, fragment, start, n, &of_task)).map_err(|e| (None, e))?),
                false => None,
            };
            let batch = reader.batch(&of_task, &pieces, &mut at, start, n, old).map_err(|(file, e)| (Some(file), e))?;
            if sender.blocking_send(Ok(batch)).is_err() {
                break; // the writer says why
            }
        }
        // All of a file is read before any of it counts, its checksum with it.
        if let Some((file, npz)) = &mut reader.open {
            let left = npz.rows_left();
            npz.skip(left).map_err(|e| (Some(*file), e))?;
        }
        Ok::<_, (Option<usize>, Error)>(reader.lost)
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|batch| (batch, receiver)) });
    let written = of_id.write_columns(stream, &schema).await;
    match reader.await.map_err(|_| Error::ReaderPanicked { path: dataset.uri().into() })? {
        Ok(lost) => Ok(Ok((written.map_err(wrap())?, lost))),
        Err((Some(file), e)) => Ok(Err((file, e))),
        Err((None, e)) => Err(e),
    }
}

/// Physical rows of a fragment as they are, deleted ones null.
async fn existing(dataset: &Arc<Dataset>, fragment: u32, start: u32, n: u32, arrays: &[npz::Array]) -> Result<Vec<(u32, RecordBatch)>> {
    let wrap = || Error::lance(dataset.uri());
    let names: Vec<&str> = arrays.iter().map(|a| a.name.as_str()).collect();
    let mut scanner = dataset.scan();
    let of_id = dataset.get_fragment(fragment as usize).expect("checked by the caller").metadata().clone();
    let deleted = dataset.get_fragment(fragment as usize).expect("as above").get_deletion_vector().await.map_err(wrap())?;
    let live = |offset: &u32| !deleted.as_ref().is_some_and(|d| d.contains(*offset));
    // The scan counts live rows only.
    let before = (0..start).filter(live).count() as i64;
    let within = (start..start + n).filter(live).count() as i64;
    scanner.project(&names).map_err(wrap())?.with_fragments(vec![of_id]).with_row_address().scan_in_order(true);
    scanner.limit(Some(within), Some(before)).map_err(wrap())?;
    let batches: Vec<RecordBatch> = match within {
        0 => vec![],
        _ => scanner.try_into_stream().await.map_err(wrap())?.try_collect().await.map_err(wrap())?,
    };
    let mut runs = Vec::new();
    for batch in batches {
        let addresses = batch["_rowaddr"].as_primitive::<UInt64Type>().values().to_vec();
        let mut i = 0;
        while i < addresses.len() {
            let mut len = 1;
            while i + len < addresses.len() && addresses[i + len] == addresses[i] + len as u64 {
                len += 1;
            }
            runs.push((addresses[i] as u32, batch.slice(i, len)));
            i += len;
        }
    }
    Ok(runs)
}

struct Reader<'a> {
    files: &'a [(PathBuf, Vec<npz::Array>)],
    open: Option<(usize, Npz)>,
    /// Vectors that are not finite.
    lost: Vec<(usize, Reject)>,
}

impl Reader<'_> {
    /// Rows `start..start + n` of the fragment; `at` is the first piece that reaches into them.
    fn batch(
        &mut self,
        arrays: &[npz::Array],
        pieces: &[Piece],
        at: &mut usize,
        start: u32,
        n: u32,
        old: Option<Vec<(u32, RecordBatch)>>,
    ) -> Result<RecordBatch, (usize, Error)> {
        let mut columns: Vec<Column> = arrays.iter().map(|array| Column::new(array, n as usize)).collect();
        for (offset, batch) in old.iter().flatten() {
            columns.iter_mut().zip(batch.columns()).for_each(|(column, values)| column.take((offset - start) as usize, values));
        }
        while let Some(piece) = pieces.get(*at).filter(|piece| piece.offset < start + n) {
            let from = piece.offset.max(start);
            let to = (piece.offset + piece.rows).min(start + n);
            let row = piece.row + u64::from(from - piece.offset);
            self.read(piece.file, row, (from - start) as usize, (to - from) as usize, &mut columns)?;
            if piece.offset + piece.rows > start + n {
                break;
            }
            *at += 1;
        }
        let fields: Vec<Field> = arrays.iter().map(npz::Array::field).collect();
        let columns = columns.into_iter().map(Column::finish).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| (pieces[0].file, e.into()))
    }

    fn read(&mut self, file: usize, row: u64, at: usize, n: usize, columns: &mut [Column]) -> Result<(), (usize, Error)> {
        let (path, arrays) = &self.files[file];
        let passed = |npz: &Npz| arrays[0].rows - npz.rows_left();
        if self.open.as_ref().is_none_or(|(open, npz)| *open != file || passed(npz) > row) {
            if let Some((before, mut npz)) = self.open.take() {
                let left = npz.rows_left();
                npz.skip(left).map_err(|e| (before, e))?;
            }
            self.open = Some((file, Npz::open(path, arrays).map_err(|e| (file, e))?));
        }
        let (_, npz) = self.open.as_mut().expect("opened above");
        let position = passed(npz);
        npz.skip(row - position).map_err(|e| (file, e))?;
        let of_array: Vec<usize> =
            arrays.iter().map(|array| columns.iter().position(|c| c.name == array.name).expect("columns of all files")).collect();
        let mut outs: Vec<Option<&mut [u8]>> = columns.iter_mut().map(|column| Some(column.rows_mut(at, n))).collect();
        let mut outs: Vec<&mut [u8]> = of_array.iter().map(|&i| outs[i].take().expect("one array a column")).collect();
        npz.read(n as u64, &mut outs).map_err(|e| (file, e))?;
        for &i in &of_array {
            for k in columns[i].check(at, n) {
                let reject = Reject::row(&path.display().to_string(), row + (k - at) as u64, "vector is not finite", "");
                self.lost.push((file, Reject { column: Some(columns[i].name.clone()), kept: true, ..reject }));
            }
        }
        Ok(())
    }
}

/// A column of vectors being filled.
struct Column {
    name: String,
    dim: usize,
    values: MutableBuffer,
    valid: Vec<bool>,
}

impl Column {
    fn new(array: &npz::Array, n: usize) -> Column {
        let dim = array.dim as usize;
        Column { name: array.name.clone(), dim, values: MutableBuffer::from_len_zeroed(n * dim * 2), valid: vec![false; n] }
    }

    fn rows_mut(&mut self, at: usize, n: usize) -> &mut [u8] {
        &mut self.values.as_slice_mut()[at * self.dim * 2..(at + n) * self.dim * 2]
    }

    fn take(&mut self, at: usize, values: &ArrayRef) {
        let list = values.as_fixed_size_list();
        let numbers = list.values().as_primitive::<Float16Type>().values();
        for i in 0..list.len() {
            let start = list.value_offset(i) as usize;
            let row = &numbers[start..start + self.dim];
            for (out, x) in self.rows_mut(at + i, 1).chunks_exact_mut(2).zip(row) {
                out.copy_from_slice(&x.to_le_bytes());
            }
            self.valid[at + i] = list.is_valid(i);
        }
    }

    /// Marks rows `at..at + n` as there, but for those with NaN or infinity, which it gives.
    fn check(&mut self, at: usize, n: usize) -> Vec<usize> {
        let mut bad = Vec::new();
        for i in at..at + n {
            // All bits of the exponent: an or over the row finds none in most.
            let row = self.rows_mut(i, 1);
            let found = row.as_chunks::<2>().0.iter().fold(false, |bad, x| bad | (u16::from_le_bytes(*x) & 0x7c00 == 0x7c00));
            if found {
                row.fill(0);
                bad.push(i);
            }
            self.valid[i] = !found;
        }
        bad
    }

    fn finish(self) -> ArrayRef {
        let values = ScalarBuffer::<f16>::from(Buffer::from(self.values));
        let item = Arc::new(Field::new("item", DataType::Float16, true));
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid));
        let list = FixedSizeListArray::try_new(item, self.dim as i32, Arc::new(Float16Array::new(values, None)), nulls);
        Arc::new(list.expect("n * dim values"))
    }
}
