//! What can be told of an image from its first bytes.

use std::io::Cursor;

use image::{ImageFormat, ImageReader};

pub use crate::blur::{blur_boxes, blur_faces};

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
