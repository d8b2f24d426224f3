//! From an image's bytes to the model's pixels, as torchvision computes them.

mod crop;
mod decode;
mod resize;

use image::{ImageEncoder, RgbImage};
use rand::Rng;

use crate::{Error, Result};
use crop::Crop;
pub use decode::decode;
use resize::resize;

/// Images of more pixels on a side are refused instead of decoded.
const MAX_SIDE: u32 = 1 << 15;

/// RandomResizedCrop(scale 0.9-1.0, ratio 3/4-4/3, bicubic) to `[size, size, 3]`, DataComp's only augmentation.
pub fn random_resized_crop(image: &RgbImage, size: usize, rng: &mut impl Rng) -> Vec<u8> {
    let crop = Crop::random(image.width(), image.height(), rng);
    resize(crop.of(image), size, size)
}

/// The smaller side resized to `size` (bicubic), then the centre cut out: `[size, size, 3]`.
/// An error for pictures so long and thin that the long side would be resized to more than 32,768 pixels.
pub fn resize_center_crop(image: &RgbImage, size: usize) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    let (short, long) = (width.min(height), width.max(height));
    let new_long = size as u64 * u64::from(long) / u64::from(short);
    if new_long > u64::from(MAX_SIDE) {
        return Err(Error::Image { reason: format!("{width}x{height} is too long and thin") });
    }
    let new_long = new_long as u32;
    let size = size as u32;
    let (new_width, new_height) = if width <= height { (size, new_long) } else { (new_long, size) };
    let whole = Crop { left: 0, top: 0, width, height };
    let resized = resize(whole.of(image), new_width as usize, new_height as usize);
    let image = RgbImage::from_raw(new_width, new_height, resized).expect("as many bytes as pixels");
    let center = Crop::center(new_width, new_height, size).of(&image);
    Ok((0..center.height).flat_map(|y| &center.bytes[y * center.stride..][..center.width * 3]).copied().collect())
}

/// The image with its shorter side resized to `side` (bicubic), as a JPEG of quality 95: decoded and cropped in less time,
/// at the cost of other pixels. `None` where it is no larger, or unreadable.
pub fn shrink(bytes: &[u8], side: usize) -> Option<Vec<u8>> {
    let image = decode(bytes).ok()?;
    let (width, height) = image.dimensions();
    let short = width.min(height) as usize;
    if short <= side {
        return None;
    }
    let scaled = |length: u32| (length as usize * side + short / 2) / short;
    let (new_width, new_height) = (scaled(width), scaled(height));
    let whole = Crop { left: 0, top: 0, width, height };
    let pixels = resize(whole.of(&image), new_width, new_height);
    let mut jpeg = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95);
    encoder.write_image(&pixels, new_width as u32, new_height as u32, image::ExtendedColorType::Rgb8).ok()?;
    Some(jpeg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn center_crop_keeps_the_middle() {
        let image = RgbImage::from_fn(300, 100, |x, _| image::Rgb(if (100..200).contains(&x) { [200, 10, 10] } else { [0, 0, 0] }));
        let pixels = resize_center_crop(&image, 50).unwrap();
        assert_eq!(pixels.len(), 50 * 50 * 3);
        let middle = &pixels[(25 * 50 + 25) * 3..][..3];
        assert_eq!(middle, [200, 10, 10]);
    }

    #[test]
    fn long_and_thin_is_an_error() {
        assert!(resize_center_crop(&RgbImage::new(1, 30_000), 224).is_err());
    }
}
