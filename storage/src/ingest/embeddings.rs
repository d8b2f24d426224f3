//! Embeddings join the rows of the metadata file of their stem, which lie together in `pool` in the file's order.
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
use lance::dataset::transaction::{DataReplacementGroup, Operation};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::npz::{self, Npz};
use super::sources::{Kind, Source};
use super::{Run, entry};
use crate::ledger::{self, Entry, FileDigest, digest_file};
use crate::pool::uids_of;
use crate::rejects::{self, Reject};
use crate::{Error, Result, Uid, commit};

/// Rows written at a time: of CommonPool's four embeddings 5 MB.
const BATCH_ROWS: u32 = 1024;

/// An `.npz` whose rows are to be found in the pool.
struct Pending {
    source: Source,
    /// Known once its fragment's turn has come.
    digest: Option<FileDigest>,
    arrays: Vec<npz::Array>,
    /// The metadata of its stem, and which of that file's rows are not in the pool.
    metadata: Entry,
    dropped: Vec<u64>,
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
        match prepare(run, &source).await? {
            Ok(p) => pending.push(p),
            Err(reject) => reject_new(run, &source, reject).await?,
        }
    }
    let Some(dataset) = run.tables.samples.clone().filter(|_| !pending.is_empty()) else { return Ok(()) };
    let mut dataset = add_columns(run, &dataset, &mut pending).await?;
    let pieces = locate(run, &dataset, &pending).await?;
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
        let mut entries = Vec::new();
        for (&file, _) in last.iter().filter(|(file, last)| **last == id && !out[**file]) {
            let p = &pending[file];
            let digest = p.digest.expect("taken before the file was read");
            entries.push((Entry { rows: p.metadata.rows, ..entry(&p.source, digest) }, vec![]));
            run.summary.embeddings += p.metadata.rows;
            run.done.fetch_add(p.source.bytes, Ordering::Relaxed);
        }
        entries.sort_by(|(a, _): &(Entry, Vec<Reject>), (b, _)| a.path.cmp(&b.path));
        let values = values.into_iter().map(|(file, reject)| (reject, pending[file].digest)).collect();
        dataset = commit_group(run, &dataset, group, entries, values).await?;
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

async fn prepare(run: &mut Run<'_>, source: &Source) -> Result<Result<Pending, Reject>> {
    let name = source.name();
    let arrays = match npz::arrays(&source.path) {
        Ok(arrays) => arrays,
        Err(e @ Error::Array { .. }) => return Ok(Err(Reject::file(&name, "array of another type or shape", e))),
        Err(e) => return Ok(Err(Reject::file(&name, "not readable", e))),
    };
    let Some(metadata) = metadata_of(run, &source.path) else {
        let detail =
            format!("ingest {}.parquet first, or put this beside the one that it belongs to", source.path.with_extension("").display());
        return Ok(Err(Reject::file(&name, "no metadata of this stem in the pool", detail)));
    };
    let dropped = rejects::dropped_rows(run.pool, &metadata.digest).await?;
    let rows = metadata.rows + dropped.len() as u64;
    if arrays[0].rows != rows {
        let detail = format!("expected {rows} rows as in {}, got {}", metadata.path, arrays[0].rows);
        return Ok(Err(Reject::file(&name, "another number of rows than its metadata", detail)));
    }
    Ok(Ok(Pending { source: source.clone(), digest: None, arrays, metadata, dropped }))
}

/// The ledger's newest metadata with this stem: in the same folder, or else anywhere if only one file has it.
fn metadata_of(run: &Run<'_>, path: &Path) -> Option<Entry> {
    let metadata = || run.ledger.entries().iter().rev().filter(|e| e.kind == Kind::Metadata.name() && e.rows > 0);
    if let Some(beside) = metadata().find(|e| Path::new(&e.path).with_extension("") == path.with_extension("")) {
        return Some(beside.clone());
    }
    let of_stem: Vec<&Entry> = metadata().filter(|e| Path::new(&e.path).file_stem() == path.file_stem()).collect();
    match of_stem[..] {
        [only] => Some(only.clone()),
        _ => None,
    }
}

/// Makes the columns that the arrays need. Files whose arrays have another type than the pool's column are rejected.
async fn add_columns(run: &mut Run<'_>, dataset: &Arc<Dataset>, pending: &mut Vec<Pending>) -> Result<Arc<Dataset>> {
    let mut fields: Vec<Field> = Schema::from(dataset.schema()).fields().iter().map(|f| f.as_ref().clone()).collect();
    let known = fields.len();
    for p in std::mem::take(pending) {
        let wrong = p.arrays.iter().find_map(|array| {
            let stored = fields.iter().find(|f| f.name() == &array.name)?;
            (stored.data_type() != array.field().data_type()).then(|| (array.name.clone(), stored.data_type().to_string(), array.dim))
        });
        if let Some((name, stored, dim)) = wrong {
            let detail = format!("array '{name}' has dimension {dim}, the pool's column is {stored}");
            let reject = Reject::file(&p.source.name(), "array of another type or shape", detail);
            reject_new(run, &p.source, reject).await?;
            continue;
        }
        let new: Vec<Field> = p.arrays.iter().filter(|a| !fields.iter().any(|f| f.name() == &a.name)).map(npz::Array::field).collect();
        fields.extend(new);
        pending.push(p);
    }
    commit::add_null_columns(dataset, fields.split_off(known)).await
}

/// Finds the rows of each file by one scan over the pool's uids, and checks that they are the ones that its metadata
/// brought. By fragment, in order.
async fn locate(run: &mut Run<'_>, dataset: &Dataset, pending: &[Pending]) -> Result<HashMap<u32, Vec<Piece>>> {
    let starts: HashMap<Uid, usize> = pending.iter().enumerate().filter_map(|(i, p)| Some((p.metadata.first_uid()?, i))).collect();
    let wrap = || Error::lance(dataset.uri());
    let mut scanner = dataset.scan();
    scanner.project(&["uid"]).map_err(wrap())?.with_row_address().scan_in_order(true);
    let mut stream = scanner.try_into_stream().await.map_err(wrap())?;
    let mut pieces: HashMap<u32, Vec<Piece>> = HashMap::new();
    let mut found = vec![false; pending.len()];
    let mut reading: Option<Reading> = None;
    while let Some(batch) = stream.try_next().await.map_err(wrap())? {
        let addresses = batch.column(1).as_primitive::<UInt64Type>().values();
        for (uid, &address) in uids_of(batch.column(0).as_ref()).zip(addresses) {
            if let (None, Some(&file)) = (&reading, starts.get(&uid)) {
                reading = Some(Reading::new(file, &pending[file]));
            }
            let Some(of) = &mut reading else { continue };
            of.next(uid, address, &pending[of.file].dropped);
            if of.left == 0
                && let Some(of) = reading.take()
                && of.uids.finalize().as_slice() == pending[of.file].metadata.uids_digest.unwrap_or_default()
            {
                found[of.file] = true;
                for (fragment, piece) in of.pieces {
                    pieces.entry(fragment).or_default().push(piece);
                }
            }
        }
    }
    for (file, _) in found.iter().enumerate().filter(|(_, found)| !**found) {
        let Pending { source, metadata, .. } = &pending[file];
        let detail =
            format!("the rows of {} are not together in the pool, first uid {}", metadata.path, metadata.first_uid().unwrap_or_default());
        let reject = Reject::file(&source.name(), "its metadata's rows were changed", detail);
        reject_new(run, source, reject).await?;
    }
    Ok(pieces)
}

/// A file's rows while the scan passes over them.
struct Reading {
    file: usize,
    left: u64,
    /// The next row of the file, and how many of its dropped rows lie before.
    row: u64,
    dropped: usize,
    uids: Sha256,
    pieces: Vec<(u32, Piece)>,
}

impl Reading {
    fn new(file: usize, pending: &Pending) -> Reading {
        Reading { file, left: pending.metadata.rows, row: 0, dropped: 0, uids: Sha256::new(), pieces: Vec::new() }
    }

    fn next(&mut self, uid: Uid, address: u64, dropped: &[u64]) {
        while dropped.get(self.dropped) == Some(&self.row) {
            self.dropped += 1;
            self.row += 1;
        }
        self.uids.update(uid.0);
        let (fragment, offset) = ((address >> 32) as u32, address as u32);
        match self.pieces.last_mut() {
            Some((f, p)) if *f == fragment && p.offset + p.rows == offset && p.row + u64::from(p.rows) == self.row => p.rows += 1,
            _ => self.pieces.push((fragment, Piece { file: self.file, row: self.row, offset, rows: 1 })),
        }
        self.row += 1;
        self.left -= 1;
    }
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
        if self.open.as_ref().is_none_or(|(open, _)| *open != file) {
            if let Some((before, mut npz)) = self.open.take() {
                let left = npz.rows_left();
                npz.skip(left).map_err(|e| (before, e))?;
            }
            self.open = Some((file, Npz::open(path).map_err(|e| (file, e))?));
        }
        let (_, npz) = self.open.as_mut().expect("opened above");
        let position = arrays[0].rows - npz.rows_left();
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

async fn commit_group(
    run: &mut Run<'_>,
    dataset: &Arc<Dataset>,
    group: DataReplacementGroup,
    files: Vec<(Entry, Vec<Reject>)>,
    values: Vec<(Reject, Option<FileDigest>)>,
) -> Result<Arc<Dataset>> {
    run.count(&values.iter().map(|(reject, _)| reject.clone()).collect::<Vec<_>>())?;
    let mut entries = run.record(dataset, files).await?;
    rejects::append(run.pool, &values).await?;
    for entry in &mut entries {
        entry.rejected = values.iter().filter(|(_, digest)| *digest == Some(entry.digest)).count() as u64;
    }
    let operation = Operation::DataReplacement { replacements: vec![group] };
    let dataset = commit::execute(dataset, operation, ledger::properties(&entries)).await?;
    entries.iter_mut().for_each(|entry| entry.version = dataset.version().version);
    run.ledger.append(run.pool, entries).await?;
    Ok(dataset)
}
