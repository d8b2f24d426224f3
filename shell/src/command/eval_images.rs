use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use arrow::array::{ArrayRef, Float16Array, Int64Array, RecordBatch, RecordBatchIterator, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use eval::{EvalImage, EvalSet, for_each_image};
use half::f16;
use storage::{Pool, eval_images_schema};
use tokio::runtime::Runtime;
use train::Encoder;

use super::{block_on, device, open_encoder};
use crate::cli;
use crate::progress::Meter;
use crate::{Result, STOP};

pub(crate) fn run(args: cli::EvalImages, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let found = eval::find(&args.data)?;
    if let Some((_, e)) = found.broken.into_iter().next() {
        return Err(e.into());
    }
    let mut encoder = match &args.model {
        Some(model) => Some(open_encoder(model, device(&args.compute)?)?),
        None => None,
    };
    if let (Some(column), Some(encoder)) = (&args.column, &encoder) {
        block_on(runtime, pool.check_embedding(column, encoder.config().embed_dim))?;
    }
    let embedding = args.column.as_deref().zip(encoder.as_ref().map(|encoder| encoder.config().embed_dim));
    let schema = eval_images_schema(embedding);
    let meter = Meter::new("eval-images");
    // One version of the table, written while the images are worked on.
    let (sender, receiver) = sync_channel::<Result<RecordBatch, ArrowError>>(2);
    let batches = RecordBatchIterator::new(receiver, schema.clone());
    let (written, read) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(encoder.as_mut(), &found.sets, &schema, sender, &meter));
        let written = runtime.block_on(pool.write_eval_images(Box::new(batches)));
        (written, reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    meter.finish();
    let images = read?;
    written?;
    crate::note!("the table eval_images holds {images} images of {} evaluation sets now, and nothing else", found.sets.len());
    Ok(())
}

/// The number of images read. A stop and a set that is broken end the table's writing with an error, so that the table stays
/// as it was: half of a set would pass for all of it.
fn read(
    mut encoder: Option<&mut Encoder>,
    sets: &[EvalSet],
    schema: &SchemaRef,
    sender: SyncSender<Result<RecordBatch, ArrowError>>,
    meter: &Meter,
) -> Result<u64> {
    let mut images = 0;
    for set in sets {
        let mut each = |chunk: Vec<EvalImage>| {
            images += chunk.len() as u64;
            chunk.is_empty() || sender.send(batch(schema, &chunk)).is_ok()
        };
        let done = for_each_image(encoder.as_deref_mut(), set, &STOP, &|progress| meter.show(progress), &mut each);
        if let Err(e) = done {
            let _ = sender.send(Err(ArrowError::ExternalError("not all sets were read".into())));
            return Err(e.into());
        }
    }
    Ok(images)
}

fn batch(schema: &SchemaRef, images: &[EvalImage]) -> Result<RecordBatch, ArrowError> {
    let tasks: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|image| &image.task)));
    let samples: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|image| &image.sample)));
    let hashes: ArrayRef = Arc::new(images.iter().map(|image| image.hash).collect::<Int64Array>());
    let mut columns = vec![tasks, samples, hashes];
    if let Some(DataType::FixedSizeList(item, dim)) = schema.fields().get(3).map(|field| field.data_type()) {
        let zeros = vec![0.0; *dim as usize];
        let rows = images.iter().flat_map(|image| image.embedding.as_ref().unwrap_or(&zeros).iter().map(|x| f16::from_f32(*x)));
        let nulls = NullBuffer::from_iter(images.iter().map(|image| image.embedding.is_some()));
        let item: Arc<Field> = item.clone();
        let values = Arc::new(Float16Array::from_iter_values(rows));
        columns.push(Arc::new(arrow::array::FixedSizeListArray::try_new(item, *dim, values, Some(nulls))?));
    }
    RecordBatch::try_new(schema.clone(), columns)
}
