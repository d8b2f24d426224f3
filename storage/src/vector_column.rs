//! The vectors of a column, read where they lie in the data files: mapped, without a copy, where the pool is on a local
//! disk and the column is stored plainly, as columns of 128 numbers and more are; through Lance otherwise.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, AsArray, FixedSizeListArray};
use arrow::datatypes::{DataType, Float16Type, Float32Type};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::{ProjectionRequest, fragment::FileFragment};
use lance_encoding::decoder::{PageEncoding, PageInfo};
use lance_encoding::format::metadata::{compressive_encoding::Compression, full_zip_layout::Details, page_layout::Layout};
use lance_io::scheduler::{ScanScheduler, SchedulerConfig};
use memmap2::{Advice, Mmap};
use rayon::prelude::*;
use tokio::runtime::Handle;

use crate::rows::{Bits, Rows};
use crate::{Error, Result};

/// A column of vectors of float16 or float32, at one version of a table.
pub struct VectorColumn {
    /// `None` where it lies in memory.
    dataset: Option<Arc<Dataset>>,
    name: String,
    dim: usize,
    half: bool,
    fragments: Vec<Fragment>,
    /// The rows that are not deleted.
    live: Rows,
    /// The place of a fragment in `fragments`, by its id.
    places: HashMap<u32, usize>,
    runtime: Option<Handle>,
}

struct Fragment {
    id: u32,
    /// Deleted ones with them.
    rows: usize,
    vectors: Vectors,
}

enum Vectors {
    /// NULL in every row.
    None,
    Mapped(Vec<Page>),
    /// To be read through Lance.
    Lance,
    Memory(FixedSizeListArray),
}

/// A stretch of rows in a data file: at `offset + i * stride` a byte that is not 0 where the row is NULL, if there is such
/// a byte, and the values. A page without an offset is NULL.
struct Page {
    first: usize,
    rows: usize,
    file: Arc<Mmap>,
    place: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    offset: usize,
    stride: usize,
    control: usize,
}

/// Rows of a fragment that follow each other, and their vectors.
pub struct Stretch<'a> {
    pub fragment: u32,
    /// The place of the first row in the fragment.
    pub first: u32,
    pub rows: usize,
    pub dim: usize,
    /// Whether values are float16, otherwise float32; little end first.
    pub half: bool,
    bytes: &'a [u8],
    stride: usize,
    control: usize,
    nulls: Option<&'a dyn Array>,
}

impl Stretch<'_> {
    /// The bytes of a row's vector, which may lie anywhere in memory; `None` where it is NULL.
    #[inline(always)]
    pub fn vector(&self, i: usize) -> Option<&[u8]> {
        let row = &self.bytes[i * self.stride..(i + 1) * self.stride];
        let null = (self.control == 1 && row[0] != 0) || self.nulls.is_some_and(|nulls| nulls.is_null(i));
        (!null).then(|| &row[self.control..])
    }

    /// The row's address: its fragment in the upper half, its place there in the lower.
    pub fn address(&self, i: usize) -> u64 {
        u64::from(self.fragment) << 32 | (u64::from(self.first) + i as u64)
    }
}

/// Rows that a core works on at once.
const STRETCH_ROWS: usize = 4096;
/// Bytes that are read ahead through Lance.
const READ_AHEAD: u64 = 32 << 20;

impl VectorColumn {
    /// Opens a column; an error where there is none of this name, or it holds no vectors. Must be called within a runtime.
    pub fn open(dataset: Arc<Dataset>, name: &str) -> BoxFuture<'_, Result<VectorColumn>> {
        async move {
            let wrap = || Error::lance(dataset.uri());
            let Some(field) = dataset.schema().field(name) else { return Err(Error::no_column(&dataset, name)) };
            let not_vectors = || Error::NotVectors { column: name.to_string(), got: field.data_type().to_string() };
            let DataType::FixedSizeList(item, dim) = field.data_type() else { return Err(not_vectors()) };
            let half = match item.data_type() {
                DataType::Float16 => true,
                DataType::Float32 => false,
                _ => return Err(not_vectors()),
            };
            let (id, dim) = (field.id, dim as usize);
            let store = dataset.object_store(None).await.map_err(wrap())?;
            let scheduler =
                store.has_direct_local_paths().then(|| ScanScheduler::new(store.clone(), SchedulerConfig::max_bandwidth(&store)));
            let (mut fragments, mut partly) = (Vec::new(), HashMap::new());
            for fragment in dataset.get_fragments() {
                let rows = fragment.physical_rows().await.map_err(wrap())?;
                let dead = fragment.get_deletion_vector().await.map_err(wrap())?;
                if let Some(dead) = dead {
                    let mut live = Bits::all(rows);
                    dead.iter().for_each(|row| live.set(row as usize, false));
                    partly.insert(fragment.id() as u32, live);
                }
                let vectors = match &scheduler {
                    Some(scheduler) => mapped(&dataset, &fragment, id, dim, half, scheduler).await?.unwrap_or(Vectors::Lance),
                    None => Vectors::Lance,
                };
                fragments.push(Fragment { id: fragment.id() as u32, rows, vectors });
            }
            let places = fragments.iter().enumerate().map(|(i, fragment)| (fragment.id, i)).collect();
            let name = name.to_string();
            Ok(VectorColumn {
                dataset: Some(dataset),
                name,
                dim,
                half,
                fragments,
                live: Rows::but(partly),
                places,
                runtime: Some(Handle::current()),
            })
        }
        .boxed()
    }

    /// A column in memory, of float16 or float32; its rows' addresses are their places.
    pub fn of_array(name: &str, array: FixedSizeListArray) -> Result<VectorColumn> {
        let half = match array.value_type() {
            DataType::Float16 => true,
            DataType::Float32 => false,
            other => return Err(Error::NotVectors { column: name.to_string(), got: other.to_string() }),
        };
        let (dim, rows) = (array.value_length() as usize, array.len());
        let fragments = vec![Fragment { id: 0, rows, vectors: Vectors::Memory(array) }];
        Ok(VectorColumn {
            dataset: None,
            name: name.to_string(),
            dim,
            half,
            fragments,
            live: Rows::all(),
            places: [(0, 0)].into(),
            runtime: None,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Whether its numbers are float16, otherwise float32.
    pub fn is_half(&self) -> bool {
        self.half
    }

    /// The table at the version read; `None` of a column in memory.
    pub fn dataset(&self) -> Option<&Arc<Dataset>> {
        self.dataset.as_ref()
    }

    /// The ids of the fragments, and their rows, deleted ones with them.
    pub fn fragments(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.fragments.iter().map(|fragment| (fragment.id, fragment.rows))
    }

    /// The rows that are not deleted.
    pub fn live(&self) -> &Rows {
        &self.live
    }

    /// Rows that are not deleted.
    pub fn len(&self) -> u64 {
        self.fragments.iter().map(|fragment| self.live.of(fragment.id).map_or(fragment.rows as u64, Bits::count)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all of it is read in place, and random access costs no more than memory does.
    pub fn is_mapped(&self) -> bool {
        self.fragments.iter().all(|fragment| !matches!(fragment.vectors, Vectors::Lance))
    }

    /// Hands all rows of these fragments to `each`, deleted and NULL ones with them, in stretches that all cores work on,
    /// in no particular order. Blocks; not to be called on a thread that drives futures.
    pub fn for_each_of(&self, wanted: &(dyn Fn(u32) -> bool + Sync), stop: &AtomicBool, each: &(dyn Fn(Stretch) + Sync)) -> Result<()> {
        let wanted: Vec<&Fragment> = self.fragments.iter().filter(|fragment| wanted(fragment.id)).collect();
        let mapped = wanted.iter().filter_map(|fragment| match &fragment.vectors {
            Vectors::Mapped(pages) => Some((fragment.id, pages)),
            _ => None,
        });
        let stretches: Vec<Stretch> = mapped
            .flat_map(|(id, pages)| {
                pages
                    .iter()
                    .filter_map(move |page| Some((id, page, page.place?)))
                    .flat_map(|(id, page, place)| (0..page.rows).step_by(STRETCH_ROWS).map(move |from| self.stretch(id, page, place, from)))
            })
            .collect();
        stretches.into_par_iter().for_each(|stretch| {
            if !stop.load(Ordering::Relaxed) {
                each(stretch);
            }
        });
        for fragment in &wanted {
            match &fragment.vectors {
                Vectors::Lance => self.read_through_lance(fragment, stop, each)?,
                Vectors::Memory(array) => (0..array.len()).into_par_iter().step_by(STRETCH_ROWS).for_each(|from| {
                    let slice = array.slice(from, STRETCH_ROWS.min(array.len() - from));
                    each(self.stretch_of(fragment.id, from as u32, &slice));
                }),
                Vectors::None | Vectors::Mapped(_) => {}
            }
        }
        Ok(())
    }

    /// As `for_each_of`, of all fragments.
    pub fn for_each(&self, stop: &AtomicBool, each: &(dyn Fn(Stretch) + Sync)) -> Result<()> {
        self.for_each_of(&|_| true, stop, each)
    }

    fn stretch<'a>(&self, fragment: u32, page: &'a Page, place: Place, from: usize) -> Stretch<'a> {
        let rows = STRETCH_ROWS.min(page.rows - from);
        let start = place.offset + from * place.stride;
        let bytes = &page.file[start..start + rows * place.stride];
        let first = (page.first + from) as u32;
        let (dim, half) = (self.dim, self.half);
        Stretch { fragment, first, rows, dim, half, bytes, stride: place.stride, control: place.control, nulls: None }
    }

    fn read_through_lance(&self, fragment: &Fragment, stop: &AtomicBool, each: &(dyn Fn(Stretch) + Sync)) -> Result<()> {
        let (Some(dataset), Some(runtime)) = (&self.dataset, &self.runtime) else { return Ok(()) };
        let wrap = || Error::lance(dataset.uri());
        let wanted = dataset.fragments().iter().filter(|f| f.id == u64::from(fragment.id)).cloned().collect();
        let mut scanner = dataset.scan();
        scanner.project(&[&self.name]).map_err(wrap())?.with_fragments(wanted).scan_in_order(true);
        scanner.include_deleted_rows().with_row_id().batch_size(STRETCH_ROWS).io_buffer_size(READ_AHEAD);
        let mut stream = runtime.block_on(scanner.try_into_stream()).map_err(wrap())?;
        let mut first = 0;
        while let Some(batch) = runtime.block_on(stream.try_next()).map_err(wrap())? {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let column = batch.column(0).as_fixed_size_list();
            each(self.stretch_of(fragment.id, first, column));
            first += column.len() as u32;
        }
        Ok(())
    }

    fn stretch_of<'a>(&self, fragment: u32, first: u32, column: &'a FixedSizeListArray) -> Stretch<'a> {
        let bytes: &[u8] = match self.half {
            true => column.values().as_primitive::<Float16Type>().values().inner(),
            false => column.values().as_primitive::<Float32Type>().values().inner(),
        };
        let nulls = (column.null_count() > 0).then_some(column as &dyn Array);
        let stride = self.dim * if self.half { 2 } else { 4 };
        Stretch { fragment, first, rows: column.len(), dim: self.dim, half: self.half, bytes, stride, control: 0, nulls }
    }

    /// Hands the vectors of these rows to `each` in their order, with their place among them; `None` where a row has none
    /// or is not there. Blocks.
    pub fn take(&self, rows: &[u64], each: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<()> {
        let mut unmapped = Vec::new();
        // Neighbours are mostly of one page.
        let mut last: Option<(&Fragment, &Page)> = None;
        for (i, &row) in rows.iter().enumerate() {
            let (id, at) = ((row >> 32) as u32, row as u32 as usize);
            if !last.is_some_and(|(fragment, page)| fragment.id == id && (page.first..page.first + page.rows).contains(&at)) {
                let fragment = self.places.get(&id).map(|&place| &self.fragments[place]);
                last = match fragment.map(|fragment| (fragment, &fragment.vectors)) {
                    Some((fragment, Vectors::Lance)) => {
                        match at < fragment.rows && self.live.has(row) {
                            true => unmapped.push(i),
                            false => each(i, None),
                        }
                        continue;
                    }
                    Some((_, Vectors::Memory(array))) => {
                        let stretch = self.stretch_of(id, 0, array);
                        each(i, if at < stretch.rows { stretch.vector(at) } else { None });
                        continue;
                    }
                    Some((fragment, Vectors::Mapped(pages))) => {
                        let page = pages.partition_point(|page| page.first + page.rows <= at);
                        pages.get(page).map(|page| (fragment, page))
                    }
                    _ => None,
                };
            }
            let vector = last.and_then(|(_, page)| {
                let place = page.place?;
                let start = place.offset + (at - page.first) * place.stride;
                let row = &page.file[start..start + place.stride];
                (place.control == 0 || row[0] == 0).then(|| &row[place.control..])
            });
            each(i, vector);
        }
        if unmapped.is_empty() {
            return Ok(());
        }
        let (Some(dataset), Some(runtime)) = (&self.dataset, &self.runtime) else { return Ok(()) };
        let wrap = || Error::lance(dataset.uri());
        for which in unmapped.chunks(STRETCH_ROWS) {
            let ids: Vec<u64> = which.iter().map(|&i| rows[i]).collect();
            let projection = ProjectionRequest::from_columns([&self.name], dataset.schema());
            let batch = runtime.block_on(dataset.take_rows(&ids, projection)).map_err(wrap())?;
            if batch.num_rows() != ids.len() {
                return Err(Error::Changed { path: dataset.uri().to_string() });
            }
            let stretch = self.stretch_of(0, 0, batch.column(0).as_fixed_size_list());
            which.iter().enumerate().for_each(|(at, &i)| each(i, stretch.vector(at)));
        }
        Ok(())
    }
}

impl std::fmt::Debug for VectorColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Where the column of a fragment lies in its data file; `None` where it is not stored in a way that can be read in place.
async fn mapped(
    dataset: &Dataset,
    fragment: &FileFragment,
    id: i32,
    dim: usize,
    half: bool,
    scheduler: &Arc<ScanScheduler>,
) -> Result<Option<Vectors>> {
    let wrap = || Error::lance(dataset.uri());
    if !fragment.metadata().overlays.is_empty() {
        return Ok(None);
    }
    let Some(file) = fragment.data_file_for_field(id as u32) else { return Ok(Some(Vectors::None)) };
    let at = file.fields.iter().position(|field| *field == id);
    let Some(&index) = at.and_then(|at| file.column_indices.get(at)) else { return Ok(None) };
    if file.base_id.is_some() {
        return Ok(None);
    }
    let path = dataset.data_dir().join(file.path.as_str());
    let opened = scheduler.open_file(&path, &file.file_size_bytes).await.map_err(wrap())?;
    let metadata = fragment.get_file_metadata(&opened).await.map_err(wrap())?;
    let Some(info) = metadata.column_infos.get(index as usize) else { return Ok(None) };
    let local = PathBuf::from(format!("/{path}"));
    let opened = File::open(&local).map_err(Error::io(&local))?;
    // SAFETY: data files are written once and never changed; what removes one leaves the mapping whole.
    let map = Arc::new(unsafe { Mmap::map(&opened) }.map_err(Error::io(&local))?);
    let _ = map.advise(Advice::Normal);
    let (mut first, mut pages) = (0, Vec::new());
    for page in info.page_infos.iter() {
        let Some(place) = place(page, dim, if half { 2 } else { 4 }) else { return Ok(None) };
        let rows = page.num_rows as usize;
        if place.is_some_and(|place| place.offset + rows * place.stride > map.len()) {
            return Err(Error::Truncated { path: local });
        }
        pages.push(Page { first, rows, file: map.clone(), place });
        first += rows;
    }
    Ok((fragment.physical_rows().await.map_err(wrap())? == first).then_some(Vectors::Mapped(pages)))
}

/// Where the rows of a page lie: `Some(None)` where all are NULL, `None` where they do not lie there plainly.
fn place(page: &PageInfo, dim: usize, width: usize) -> Option<Option<Place>> {
    let PageEncoding::Structural(layout) = &page.encoding else { return None };
    let buffers = &page.buffer_offsets_and_sizes;
    match layout.layout.as_ref()? {
        Layout::ConstantLayout(constant) => (constant.inline_value.is_none() && buffers.is_empty()).then_some(None),
        Layout::FullZipLayout(zip) => {
            let Some(Details::BitsPerValue(bits)) = zip.details else { return None };
            let Some(Compression::FixedSizeList(list)) = &zip.value_compression.as_ref()?.compression else { return None };
            let Some(Compression::Flat(flat)) = &list.values.as_ref()?.compression else { return None };
            let &[(offset, size)] = &buffers[..] else { return None };
            let control = match zip.bits_def {
                0 => 0,
                1 => 1,
                _ => return None,
            };
            let stride = control + dim * width;
            let plain = zip.bits_rep == 0
                && !list.has_validity
                && flat.data.is_none()
                && flat.bits_per_value == 8 * width as u64
                && list.items_per_value == dim as u64
                && bits as usize == 8 * dim * width
                && size == stride as u64 * page.num_rows;
            plain.then_some(Some(Place { offset: offset as usize, stride, control }))
        }
        Layout::MiniBlockLayout(_) | Layout::BlobLayout(_) => None,
    }
}
