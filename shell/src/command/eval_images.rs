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

use super::{block_on, open_encoder};
use crate::cli;
use crate::progress::Meter;
use crate::{Error, Result, STOP};

pub(crate) fn run(args: cli::EvalImages, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let found = eval::find(&args.data)?;
    let mut failed: Vec<String> = Vec::new();
    for (path, e) in &found.broken {
        crate::note!("{} cannot be read: {e}", path.display());
        failed.push(path.display().to_string());
    }
    let mut encoder = args.model.as_deref().map(open_encoder).transpose()?;
    let embedding = args.column.as_deref().zip(encoder.as_ref().map(|encoder| encoder.config().embed_dim));
    let schema = eval_images_schema(embedding);
    let meter = Meter::new("eval-images");
    // One version of the table, written while the images are worked on.
    let (sender, receiver) = sync_channel::<Result<RecordBatch, ArrowError>>(2);
    let batches = RecordBatchIterator::new(receiver, schema.clone());
    let (written, read) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(encoder.as_mut(), &found.sets, &schema, sender, &meter, &mut failed));
        let written = runtime.block_on(pool.write_eval_images(Box::new(batches)));
        (written, reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    meter.finish();
    let images = read?;
    written?;
    crate::note!("{images} images of {} evaluation sets are in eval_images", found.sets.len());
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::NotEvaluated { sets: failed }),
    }
}

/// The number of images read. A stop ends the table's writing with an error, so that nothing of it is kept.
fn read(
    mut encoder: Option<&mut Encoder>,
    sets: &[EvalSet],
    schema: &SchemaRef,
    sender: SyncSender<Result<RecordBatch, ArrowError>>,
    meter: &Meter,
    failed: &mut Vec<String>,
) -> Result<u64> {
    let mut images = 0;
    for set in sets {
        let mut each = |chunk: Vec<EvalImage>| {
            images += chunk.len() as u64;
            chunk.is_empty() || sender.send(batch(schema, &chunk)).is_ok()
        };
        match for_each_image(encoder.as_deref_mut(), set, &STOP, &|progress| meter.show(progress), &mut each) {
            Ok(()) => {}
            Err(stopped @ eval::Error::Interrupted { .. }) => {
                let _ = sender.send(Err(ArrowError::ExternalError("stopped".into())));
                return Err(stopped.into());
            }
            Err(e) => {
                meter.suspend(|| crate::note!("{}: {e}", set.task.name));
                failed.push(set.task.name.clone());
            }
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
