//! What can be told of an image from its first bytes, and of the faces in it.

use std::io::Cursor;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use image::{ImageFormat, ImageReader};

pub use crate::blur::{blur_boxes, blur_faces};

/// The face boxes of a row of samples, as `blur_boxes` takes them.
pub(crate) fn face_boxes(samples: &RecordBatch, row: usize) -> Option<Vec<[f32; 4]>> {
    let column = samples.column_by_name("face_bboxes")?.as_list_opt::<i32>()?;
    let boxes = column.is_valid(row).then(|| column.value(row))?;
    let boxes = boxes.as_fixed_size_list();
    let of = |i: usize| boxes.value(i).as_primitive::<Float32Type>().values().as_ref().try_into().ok();
    Some((0..boxes.len()).filter_map(of).collect())
}

/// `images.status` of an image whose faces its source has blurred already.
pub const BLURRED: &str = "blurred";

/// `(format, width, height)` from the header, without decoding pixels.
/// `None` for bytes that are not an image of a format that `tarn` reads.
pub fn inspect(bytes: &[u8]) -> Option<(&'static str, u32, u32)> {
    let format = match image::guess_format(bytes).ok()? {
        ImageFormat::Jpeg => "jpeg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        _ => return None,
    };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let (width, height) = reader.into_dimensions().ok()?;
    Some((format, width, height))
}
