use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use arrow::array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryBuilder, RecordBatch, RecordBatchIterator, RecordBatchReader, new_null_array,
};
use arrow::compute::{filter_record_batch, interleave};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::StreamExt;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use lance::table::format::Fragment;
use tokio::task::JoinHandle;

use super::census::{Place, Uids};
use super::sources::{Kind, Source};
use super::{Run, convert, entry, table};
use crate::computed::is_computed_field;
use crate::ledger::{Entry, FileDigest, digest_file};
use crate::rejects::Reject;
use crate::writer::{self, Change};
use crate::{Error, Result, Table, Uid, schema};

const DUPLICATE: &str = "duplicate uid";
const BREAKS_OFF: &str = "file breaks off";
const TWICE: &str = "a column's name comes twice";

/// A metadata file whose header is in order.
#[derive(Clone)]
struct File {
    source: Source,
    rows: u64,
    has_uid: bool,
    /// Columns that only metadata brings: a row that lacks them was brought by a shard, and is completed.
    own: Vec<String>,
    /// Columns of it that the pool cannot take, and what was said of them.
    left_out: Vec<String>,
    rejects: Vec<Reject>,
    digest: Option<FileDigest>,
    known: bool,
    /// Where a broken file ends, and why.
    end: Option<(u64, String)>,
}

/// Brings in all metadata files, in groups of about a fragment's rows.
pub(super) async fn ingest(run: &mut Run<'_>) -> Result<()> {
    let sources = run.of_kind(Kind::Metadata);
    let (mut files, new_schema) = plan(run, sources).await?;
    if files.is_empty() {
        return Ok(());
    }
    let mut dataset = match &run.tables.samples {
        Some(dataset) => {
            let known = dataset.schema().fields.len();
            run.writer.add_null_columns(dataset, new_schema.fields()[known..].iter().map(|f| f.as_ref().clone()).collect()).await?
        }
        None => run.writer.create(Table::Pool, Arc::new(new_schema.clone())).await?,
    };
    // Computed columns are left to their expression: without a file of theirs a fragment is known to lack them.
    let stored = new_schema.fields().iter().filter(|field| !is_computed_field(field)).cloned().collect::<Vec<_>>();
    let new_schema = Arc::new(Schema::new(stored));
    let groups = groups(&files, run.options.fragment_rows as u64);

    let mut flying: VecDeque<Flying> = VecDeque::new();
    let mut next = 0;
    loop {
        // Files with other columns may complete what is still under way.
        let same = |next: usize| flying.back().is_none_or(|last| files[groups[last.number].start].own == files[groups[next].start].own);
        if next < groups.len() && flying.len() < run.options.writers() && same(next) {
            let group = Arc::new(plan_group(run, &dataset, &mut files[groups[next].clone()], &flying).await?);
            let (fragment_rows, done) = (run.options.fragment_rows, run.done.clone());
            let task = tokio::spawn(write(dataset.clone(), new_schema.clone(), group.clone(), fragment_rows, done));
            flying.push_back(Flying { number: next, group, task });
            next += 1;
            continue;
        }
        let Some(Flying { number, group, task }) = flying.pop_front() else {
            run.tables.samples = Some(dataset);
            return Ok(());
        };
        let what = group.files.first().map(|f| f.source.name()).unwrap_or_default();
        match run.wait(&what, task).await? {
            Written::Done { fragments, files } => {
                let mut change = Change { fragments, ..Change::default() };
                for (_, address) in group.files.iter().flat_map(|file| &file.completes) {
                    change.dead.entry((address >> 32) as u32).or_default().push(*address as u32);
                }
                let (rows, added) = files.iter().fold((0, 0), |(rows, added), (entry, _)| (rows + entry.rows, added + entry.added));
                dataset = run.commit(&dataset, change, files, Vec::new()).await?;
                run.summary.rows += added;
                run.summary.completed += rows - added;
            }
            // What this group and those after it were found to hold is no longer so.
            Written::Broken { file, end } => {
                files[groups[number].clone()].iter_mut().filter(|f| f.source == file).for_each(|f| f.end = Some(end.clone()));
                flying.drain(..).for_each(|later| later.task.abort());
                next = number;
            }
        }
    }
}

/// Reads all headers, and settles the pool's columns: those it has and those that the files bring. Files that cannot
/// be opened are rejected; a column that the pool cannot take is left out.
async fn plan(run: &mut Run<'_>, sources: Vec<Source>) -> Result<(Vec<File>, Schema)> {
    let existing = run.tables.samples.as_ref().map(|dataset| Schema::from(dataset.schema()));
    let mut fields: Vec<Field> = existing.iter().flat_map(|s| s.fields().iter().map(|f| f.as_ref().clone())).collect();
    if fields.is_empty() {
        fields.extend(schema::pool_field("uid"));
    }
    let mut files = Vec::new();
    for source in sources {
        match table::header(&source.path) {
            Ok(header) => {
                let (own, rejects) = add_fields(&mut fields, &source, &header.schema);
                let has_uid = header.schema.field_with_name("uid").is_ok();
                let left_out = rejects.iter().filter(|reject| reject.reason != TWICE).filter_map(|reject| reject.column.clone()).collect();
                files.push(File { source, rows: header.rows, has_uid, own, left_out, rejects, digest: None, known: false, end: None });
            }
            Err(e) => {
                let reason = match e {
                    Error::ColumnMissing { .. } => "no uid, and no url and text to make one of",
                    _ => "not readable",
                };
                let digest = digest_file(&source.path).ok();
                run.reject_file(&source, digest, Reject::file(&source.name(), reason, e)).await?;
            }
        }
    }
    Ok((files, Schema::new(fields)))
}

/// Adds the file's new columns, and returns those that no shard brings, with a reject for each that is left out.
fn add_fields(fields: &mut Vec<Field>, source: &Source, file: &SchemaRef) -> (Vec<String>, Vec<Reject>) {
    let (mut new, mut own, mut rejects) = (Vec::new(), Vec::new(), Vec::new());
    for (i, field) in file.fields().iter().enumerate() {
        let name = field.name();
        let mut leave_out = |reason, detail: String| {
            let reject = Reject::file(&source.name(), reason, detail);
            rejects.push(Reject { column: Some(name.clone()), kept: true, ..reject });
        };
        if file.fields()[..i].iter().any(|before| before.name() == name) {
            leave_out(TWICE, "the first is taken".into());
            continue;
        }
        if !schema::can_be_column(name) {
            leave_out("a column has a name that a pool cannot have", "a name with a dot, none, or one that Lance keeps for itself".into());
            continue;
        }
        if fields.iter().any(|f| f.name() == name && is_computed_field(f)) {
            leave_out(
                "a column is computed in this pool",
                format!("rename it, or drop the computed one: ALTER TABLE pool DROP COLUMN {name}"),
            );
            continue;
        }
        let is_null = field.data_type() == &DataType::Null;
        let as_stored = schema::pool_field(name).unwrap_or_else(|| schema::extra_field(field));
        let stored = fields.iter().find(|f| f.name() == name);
        // A column that is all null says nothing of its type.
        if is_null && stored.is_none() && schema::pool_field(name).is_none() {
            continue;
        }
        let to = stored.unwrap_or(&as_stored);
        if !convert::can_convert(field.data_type(), to) {
            leave_out("a column has another type than the pool's", format!("expected {}, got {}", to.data_type(), field.data_type()));
            continue;
        }
        if stored.is_none() {
            new.push(as_stored);
        }
        if !is_null && !schema::SHARD_COLUMNS.contains(&name.as_str()) {
            own.push(name.clone());
        }
    }
    fields.extend(new);
    (own, rejects)
}

/// Consecutive files of the same columns and together about `rows` rows.
fn groups(files: &[File], rows: u64) -> Vec<Range<usize>> {
    let (mut groups, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, file) in files.iter().enumerate() {
        if i > start && (held + file.rows > rows || file.own != files[start].own) {
            groups.push(start..i);
            (start, held) = (i, 0);
        }
        held += file.rows;
    }
    if start < files.len() {
        groups.push(start..files.len());
    }
    groups
}

/// A group that is being written.
struct Flying {
    number: usize,
    group: Arc<Group>,
    task: JoinHandle<Result<Written>>,
}

/// Files, and what of each goes in.
struct Group {
    files: Vec<Planned>,
    uids: Uids,
}

struct Planned {
    source: Source,
    digest: FileDigest,
    end: Option<u64>,
    /// Columns that the pool cannot take.
    left_out: Vec<String>,
    /// Rows that do not go in, ascending.
    dropped: Vec<u64>,
    /// Rows that take the place of one that a shard has brought, ascending, with its address.
    completes: Vec<(u64, u64)>,
    /// Rows whose uid this ingest has met before.
    duplicates: HashSet<u64>,
    rejects: Vec<Reject>,
}

impl Planned {
    fn drop_row(&mut self, row: u64, uid: Uid) {
        self.dropped.push(row);
        self.rejects.push(Reject::row(&self.source.name(), row, DUPLICATE, uid));
    }
}

/// What a file's uids are: its digest, one uid a row (zero where there is none), the rows without, and where and why
/// it ends early.
struct Column {
    digest: FileDigest,
    uids: Vec<Uid>,
    bad: Vec<(u64, &'static str, String)>,
    end: Option<(u64, String)>,
}

fn read_uids(file: &File) -> Result<Column> {
    let digest = digest_file(&file.source.path)?;
    let mut read = Column { digest, uids: Vec::with_capacity(file.rows as usize), bad: Vec::new(), end: file.end.clone() };
    let columns: &[&str] = if file.has_uid { &["uid"] } else { &["url", "text"] };
    for batch in table::open(&file.source.path, Some(columns))? {
        let uids = match batch {
            Ok(batch) => convert::uids(&batch)?,
            Err(e) => {
                read.end.get_or_insert((read.uids.len() as u64, e.to_string()));
                break;
            }
        };
        for uid in uids {
            let row = read.uids.len() as u64;
            if read.end.as_ref().is_some_and(|(end, _)| row == *end) {
                return Ok(read);
            }
            read.uids.push(uid.unwrap_or_else(|(_, reason, detail)| {
                read.bad.push((row, reason, detail));
                Uid::default()
            }));
        }
    }
    Ok(read)
}

/// Decides what of each file goes in: rows with a proper uid that neither the pool, nor a group before it, nor a row
/// before it has.
async fn plan_group(run: &mut Run<'_>, dataset: &Arc<Dataset>, files: &mut [File], flying: &VecDeque<Flying>) -> Result<Group> {
    let reading = files.iter().filter(|file| !file.known).map(|file| {
        let file = file.clone();
        async move {
            let uids = tokio::task::spawn_blocking({
                let file = file.clone();
                move || read_uids(&file)
            });
            (file.source, uids.await)
        }
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let read: Vec<_> = futures::stream::iter(reading.collect::<Vec<_>>()).buffered(cores).collect().await;

    let (mut planned, mut all): (Vec<Planned>, Vec<(Uid, Place)>) = (Vec::new(), Vec::new());
    for (source, uids) in read {
        let file = files.iter_mut().find(|f| f.source == source).expect("one of these");
        let name = source.name();
        let uids = match uids.unwrap_or_else(|_| Err(Error::ReaderPanicked { path: source.path.clone() })) {
            Ok(uids) => uids,
            Err(e) => {
                file.known = true;
                run.reject_file(&source, file.digest, Reject::file(&name, "not readable", e)).await?;
                continue;
            }
        };
        if file.digest.replace(uids.digest).is_none() && run.is_known(&uids.digest) {
            file.known = true;
            run.known(&source);
            continue;
        }
        let mut rejects = file.rejects.clone();
        rejects.extend(uids.bad.iter().map(|(row, reason, detail)| Reject::row(&name, *row, reason, detail)));
        if let Some((end, why)) = &uids.end {
            rejects.push(Reject::row(&name, *end, BREAKS_OFF, why));
        }
        let dropped: Vec<u64> = uids.bad.iter().map(|(row, ..)| *row).collect();
        let number = planned.len() as u32;
        let rows = uids.uids.iter().enumerate().map(|(row, uid)| (*uid, (number, row as u32)));
        match dropped.is_empty() {
            true => all.extend(rows),
            false => all.extend(rows.filter(|(_, (_, row))| dropped.binary_search(&u64::from(*row)).is_err())),
        }
        let end = uids.end.map(|(end, _)| end);
        planned.push(Planned {
            source,
            digest: uids.digest,
            end,
            left_out: file.left_out.clone(),
            dropped,
            completes: vec![],
            duplicates: HashSet::new(),
            rejects,
        });
    }
    let (uids, mut again) = Uids::new(all);
    for flying in flying {
        again.extend(uids.iter().filter(|(uid, _)| flying.group.uids.get(*uid).is_some()));
    }
    for (uid, (file, row)) in again {
        planned[file as usize].duplicates.insert(u64::from(row));
        planned[file as usize].drop_row(u64::from(row), uid);
    }
    let mut group = Group { files: planned, uids };
    let mut existing = Vec::new();
    group.uids.find(dataset, |uid, place, address| existing.push((place, uid, address))).await?;
    existing.retain(|((file, row), ..)| !group.files[*file as usize].duplicates.contains(&u64::from(*row)));
    existing.sort_unstable();
    for (number, planned) in group.files.iter_mut().enumerate() {
        let of_file = existing.iter().filter(|((file, _), ..)| *file == number as u32);
        let of_file: Vec<(u64, Uid, u64)> = of_file.map(|((_, row), uid, address)| (u64::from(*row), *uid, *address)).collect();
        if !of_file.is_empty() {
            let own = &files.iter().find(|f| f.source == planned.source).expect("one of these").own;
            decide_existing(dataset, planned, own, of_file).await?;
        }
        planned.dropped.sort_unstable();
        planned.dropped.dedup();
        planned.rejects.sort_by_key(|reject| reject.row);
    }
    Ok(group)
}

/// Rows whose uid the pool has: one that fills a column that is null there completes it, others are duplicates.
async fn decide_existing(dataset: &Arc<Dataset>, planned: &mut Planned, own: &[String], rows: Vec<(u64, Uid, u64)>) -> Result<()> {
    let own: Vec<&str> = own.iter().map(String::as_str).filter(|name| dataset.schema().field(name).is_some()).collect();
    let mut fills = vec![false; rows.len()];
    if !own.is_empty() {
        // Row by row as the file has them, against the same rows of the pool.
        let addresses: Vec<u64> = rows.iter().map(|(.., address)| *address).collect();
        let projection = ProjectionRequest::from_columns(own.iter().copied(), dataset.schema());
        let old = dataset.take_rows(&addresses, projection).await.map_err(Error::lance(dataset.uri()))?;
        let (mut at, mut row) = (0, 0);
        for batch in table::open(&planned.source.path, Some(&own))? {
            let Ok(batch) = batch else { break };
            while at < rows.len() && rows[at].0 < row + batch.num_rows() as u64 {
                let i = (rows[at].0 - row) as usize;
                fills[at] = own.iter().any(|column| batch[*column].is_valid(i) && old[*column].is_null(at));
                at += 1;
            }
            row += batch.num_rows() as u64;
        }
    }
    for ((row, uid, address), fills) in rows.into_iter().zip(fills) {
        match fills {
            true => planned.completes.push((row, address)),
            false => planned.drop_row(row, uid),
        }
    }
    Ok(())
}

enum Written {
    Done {
        fragments: Vec<Fragment>,
        files: Vec<(Entry, Vec<Reject>)>,
    },
    /// A file turned out to end before `end`.
    Broken {
        file: Source,
        end: (u64, String),
    },
}

/// Writes a group's rows as fragments.
async fn write(dataset: Arc<Dataset>, schema: SchemaRef, group: Arc<Group>, fragment_rows: usize, done: Arc<AtomicU64>) -> Result<Written> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(4);
    let reader = tokio::task::spawn_blocking({
        let (schema, dataset) = (schema.clone(), dataset.clone());
        move || read_group(&group, &schema, &dataset, &sender, &done)
    });
    let batches: Box<dyn RecordBatchReader + Send> = Box::new(RecordBatchIterator::new(receiver, schema));
    let fragments = writer::write_fragments(&dataset, batches, fragment_rows).await;
    match reader.await.map_err(|_| Error::ReaderPanicked { path: dataset.uri().into() })? {
        Ok(files) => Ok(Written::Done { fragments: fragments?, files }),
        Err(Stopped::Broken { file, end }) => Ok(Written::Broken { file, end }),
        Err(Stopped::Failed(e)) => Err(e),
        Err(Stopped::WriterGone) => Err(fragments.err().unwrap_or(Error::Changed { path: dataset.uri().to_string() })),
    }
}

enum Stopped {
    Broken { file: Source, end: (u64, String) },
    Failed(Error),
    WriterGone,
}

impl From<Error> for Stopped {
    fn from(e: Error) -> Stopped {
        Stopped::Failed(e)
    }
}

type Batches = SyncSender<Result<RecordBatch, ArrowError>>;

fn read_group(
    group: &Group,
    schema: &SchemaRef,
    dataset: &Arc<Dataset>,
    batches: &Batches,
    done: &AtomicU64,
) -> Result<Vec<(Entry, Vec<Reject>)>, Stopped> {
    let mut entries = Vec::new();
    for file in &group.files {
        let mut rows = Rows::new(file, schema, dataset);
        for batch in table::open(&file.source.path, None)? {
            let batch = match batch {
                _ if rows.is_at_end() => break,
                Ok(batch) => rows.convert(&batch)?,
                Err(e) => {
                    // The writer must not take what it has for all.
                    let _ = batches.send(Err(ArrowError::ExternalError(e.to_string().into())));
                    return Err(Stopped::Broken { file: file.source.clone(), end: (rows.row, e.to_string()) });
                }
            };
            if batch.num_rows() > 0 && batches.send(Ok(batch)).is_err() {
                return Err(Stopped::WriterGone);
            }
        }
        done.fetch_add(file.source.bytes, Ordering::Relaxed);
        entries.push(rows.finish());
    }
    Ok(entries)
}

/// A metadata file's rows on their way into the pool.
struct Rows<'a> {
    file: &'a Planned,
    name: String,
    schema: &'a SchemaRef,
    dataset: &'a Arc<Dataset>,
    /// Rows read so far, and how many of `dropped` and `completes` lie before.
    row: u64,
    dropped: usize,
    completed: usize,
    entry: Entry,
    rejects: Vec<Reject>,
}

impl<'a> Rows<'a> {
    fn new(file: &'a Planned, schema: &'a SchemaRef, dataset: &'a Arc<Dataset>) -> Rows<'a> {
        let entry = entry(&file.source, file.digest);
        let name = file.source.name();
        Rows { file, name, schema, dataset, row: 0, dropped: 0, completed: 0, entry, rejects: file.rejects.clone() }
    }

    fn is_at_end(&self) -> bool {
        self.file.end.is_some_and(|end| self.row >= end)
    }

    fn convert(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let n = match self.file.end {
            Some(end) => batch.num_rows().min((end - self.row) as usize),
            None => batch.num_rows(),
        };
        let batch = batch.slice(0, n);
        let mut keep = vec![true; n];
        while let Some(&row) = self.file.dropped.get(self.dropped).filter(|&&row| row < self.row + n as u64) {
            keep[(row - self.row) as usize] = false;
            self.dropped += 1;
        }
        let mut uids = FixedSizeBinaryBuilder::with_capacity(n, 16);
        for (uid, keep) in convert::uids(&batch)?.into_iter().zip(&keep) {
            let uid = uid.unwrap_or_default();
            if *keep {
                self.entry.rows += 1;
            }
            uids.append_value(uid.0)?;
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        let uids: ArrayRef = Arc::new(uids.finish());
        for field in self.schema.fields() {
            let mut lost = Vec::new();
            columns.push(match batch.column_by_name(field.name()).filter(|_| !self.file.left_out.contains(field.name())) {
                _ if field.name() == "uid" => uids.clone(),
                Some(column) => convert::column(column, field, &mut lost)?,
                None => new_null_array(field.data_type(), n),
            });
            for (i, reason, detail) in lost.into_iter().filter(|(i, ..)| keep[*i]) {
                let row = Reject::row(&self.name, self.row + i as u64, reason, detail);
                self.rejects.push(Reject { column: Some(field.name().clone()), kept: true, ..row });
            }
        }
        let columns = self.complete(columns, n)?;
        let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
        self.row += n as u64;
        Ok(filter_record_batch(&batch, &BooleanArray::from(keep))?)
    }

    /// Where a row takes the place of one in the pool, what it lacks is taken over.
    fn complete(&mut self, columns: Vec<ArrayRef>, n: usize) -> Result<Vec<ArrayRef>> {
        let of_batch: Vec<(usize, u64)> = self.file.completes[self.completed..]
            .iter()
            .take_while(|(row, _)| *row < self.row + n as u64)
            .map(|(row, address)| ((row - self.row) as usize, *address))
            .collect();
        if of_batch.is_empty() {
            return Ok(columns);
        }
        self.completed += of_batch.len();
        let addresses: Vec<u64> = of_batch.iter().map(|(_, address)| *address).collect();
        let names = self.schema.fields().iter().map(|f| f.name().as_str());
        let projection = ProjectionRequest::from_columns(names, self.dataset.schema());
        let old = self.dataset.take_rows(&addresses, projection);
        let old = tokio::runtime::Handle::current().block_on(old).map_err(Error::lance(self.dataset.uri()))?;
        let at: HashMap<usize, usize> = of_batch.iter().enumerate().map(|(k, (i, _))| (*i, k)).collect();
        let columns = self.schema.fields().iter().zip(columns).map(|(field, new)| {
            let Some(old) = old.column_by_name(field.name()) else { return Ok(new) };
            let from: Vec<(usize, usize)> = (0..n)
                .map(|i| match at.get(&i) {
                    Some(&k) if new.is_null(i) => (1, k),
                    _ => (0, i),
                })
                .collect();
            Ok(interleave(&[new.as_ref(), old.as_ref()], &from)?)
        });
        columns.collect()
    }

    fn finish(self) -> (Entry, Vec<Reject>) {
        let added = self.entry.rows - self.completed as u64;
        let mut rejects = self.rejects;
        rejects.sort_by_key(|reject| reject.row);
        (Entry { added, rejected: rejects.len() as u64, ..self.entry }, rejects)
    }
}
