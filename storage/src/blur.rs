use std::io::Cursor;

use image::{ExtendedColorType, ImageReader};

/// Quality of the JPEG that a blurred image becomes: img2dataset's default.
const JPEG_QUALITY: u8 = 95;

/// The image with its face boxes blurred, as JPEG; `None` if it cannot be decoded.
///
/// `boxes` are left, top, right, bottom as fractions of width and height, and held to 0..1. The formula is that of img2dataset's
/// `BoundingBoxBlurrer` (1.40 to 1.45, which DataComp uses): each box grows by a tenth of its longer side, the mask of
/// all boxes and the image are blurred by a Gaussian whose sigma is a tenth of the longest side of any box, and the
/// blurred mask blends the two images.
pub fn blur_faces(bytes: &[u8], boxes: &[[f32; 4]]) -> Option<Vec<u8>> {
    let image = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?.decode().ok()?.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut pixels = image.into_raw();
    blur_boxes(&mut pixels, width, height, boxes);
    let mut out = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY);
    encoder.encode(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8).ok()?;
    Some(out)
}

/// Blurs the boxes in `pixels`, `[height, width, 3]`.
pub fn blur_boxes(pixels: &mut [u8], width: usize, height: usize, boxes: &[[f32; 4]]) {
    let mut mask = vec![0f32; width * height];
    let mut longest = 0i32;
    let mut region = Region { x: (width, 0), y: (height, 0) };
    for bbox in boxes.iter().filter(|bbox| bbox.iter().all(|x| x.is_finite())) {
        let bbox = bbox.map(|x| x.clamp(0.0, 1.0));
        let at = |fraction: f32, size: usize| (fraction * size as f32) as i32;
        let [left, top, right, bottom] = [at(bbox[0], width), at(bbox[1], height), at(bbox[2], width), at(bbox[3], height)];
        let side = (right - left).max(bottom - top);
        longest = longest.max(side);
        let grown = |at: i32, by: f32, size: usize| ((at as f32 + by * side as f32) as i32).clamp(0, size as i32 - 1) as usize;
        let (left, right) = (grown(left, -0.1, width), grown(right, 0.1, width));
        let (top, bottom) = (grown(top, -0.1, height), grown(bottom, 0.1, height));
        for row in mask.chunks_exact_mut(width).take(bottom).skip(top) {
            row[left.min(right)..right].fill(1.0);
        }
        region.x = (region.x.0.min(left), region.x.1.max(right));
        region.y = (region.y.0.min(top), region.y.1.max(bottom));
    }
    if longest <= 0 || region.x.0 >= region.x.1 || region.y.0 >= region.y.1 {
        return;
    }
    let kernel = gaussian(0.1 * longest as f32);
    // Further away than the kernel reaches the blurred mask is 0.
    let radius = kernel.len() - 1;
    region.x = (region.x.0.saturating_sub(radius), (region.x.1 + radius).min(width));
    region.y = (region.y.0.saturating_sub(radius), (region.y.1 + radius).min(height));
    let mask = convolve(&mask, width, height, &kernel, &region);
    let columns = region.x.1 - region.x.0;
    for channel in 0..3 {
        let plane: Vec<f32> = pixels.iter().skip(channel).step_by(3).map(|&x| f32::from(x) / 255.0).collect();
        let blurred = convolve(&plane, width, height, &kernel, &region);
        for (i, (mask, blurred)) in mask.iter().zip(&blurred).enumerate().filter(|(_, (mask, _))| **mask > 0.0) {
            let at = (region.y.0 + i / columns) * width + region.x.0 + i % columns;
            pixels[at * 3 + channel] = ((plane[at] * (1.0 - mask) + blurred * mask) * 255.0) as u8;
        }
    }
}

/// A part of an image, from the first to behind the last column and row.
struct Region {
    x: (usize, usize),
    y: (usize, usize),
}

/// Weights at distance 0, 1, ... of a Gaussian cut off at four sigma, which sum to 1 over both sides.
fn gaussian(sigma: f32) -> Vec<f32> {
    let radius = (4.0 * sigma).ceil() as usize;
    let weights: Vec<f64> = (0..=radius).map(|x| (-((x * x) as f64) / (2.0 * f64::from(sigma) * f64::from(sigma))).exp()).collect();
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

/// Rows, then columns, mirrored at the border without repeating it: the values of the region.
fn convolve(plane: &[f32], width: usize, height: usize, kernel: &[f32], region: &Region) -> Vec<f32> {
    let mirror = |at: isize, size: usize| -> usize {
        if size == 1 {
            return 0;
        }
        let period = 2 * (size as isize - 1);
        let at = at.rem_euclid(period);
        (if at < size as isize { at } else { period - at }) as usize
    };
    let radius = kernel.len() - 1;
    let (x, y) = (region.x, region.y);
    let columns = x.1 - x.0;
    // The rows that the columns below reach, those behind the border mirrored into them.
    let (first, end) = (y.0.saturating_sub(radius), (y.1 + radius).min(height));
    let mut rows = vec![0f32; columns * (end - first)];
    let mut padded = vec![0f32; columns + 2 * radius];
    for (out, row) in rows.chunks_exact_mut(columns).zip(plane.chunks_exact(width).skip(first)) {
        for (i, value) in padded.iter_mut().enumerate() {
            *value = row[mirror((x.0 + i) as isize - radius as isize, width)];
        }
        add_scaled(out, &padded[radius..], kernel[0]);
        for (k, &weight) in kernel.iter().enumerate().skip(1) {
            add_scaled(out, &padded[radius - k..], weight);
            add_scaled(out, &padded[radius + k..], weight);
        }
    }
    let mut out = vec![0f32; columns * (y.1 - y.0)];
    for (target, y) in out.chunks_exact_mut(columns).zip(y.0..y.1) {
        let row = |at: isize| &rows[(mirror(at, height) - first) * columns..];
        add_scaled(target, row(y as isize), kernel[0]);
        for (k, &weight) in kernel.iter().enumerate().skip(1) {
            add_scaled(target, row(y as isize - k as isize), weight);
            add_scaled(target, row(y as isize + k as isize), weight);
        }
    }
    out
}

/// `out += weight * x`, for as many values as `out` has. Vectors are named, as this crate is compiled for a short build.
fn add_scaled(out: &mut [f32], x: &[f32], weight: f32) {
    struct AddScaled<'a>(&'a mut [f32], &'a [f32], f32);
    impl pulp::WithSimd for AddScaled<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            let AddScaled(out, x, weight) = self;
            let (out, out_rest) = S::as_mut_simd_f32s(out);
            let (x, x_rest) = S::as_simd_f32s(x);
            let weights = simd.splat_f32s(weight);
            for (out, x) in out.iter_mut().zip(x) {
                *out = simd.mul_add_f32s(weights, *x, *out);
            }
            for (out, x) in out_rest.iter_mut().zip(x_rest) {
                *out = weight.mul_add(*x, *out);
            }
        }
    }
    let x = &x[..out.len()];
    pulp::Arch::new().dispatch(AddScaled(out, x, weight));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A white square on black: inside the box it melts, far from it nothing changes.
    #[test]
    fn only_the_boxes_are_blurred() {
        let (width, height) = (80, 60);
        let mut pixels = vec![0u8; width * height * 3];
        for y in 20..30 {
            pixels[(y * width + 20) * 3..(y * width + 30) * 3].fill(255);
        }
        let before = pixels.clone();
        blur_boxes(&mut pixels, width, height, &[[0.2, 0.25, 0.45, 0.58]]);
        let at = |pixels: &[u8], x: usize, y: usize| pixels[(y * width + x) * 3];
        assert!((100..160).contains(&at(&pixels, 20, 25)), "an edge is half as bright: {}", at(&pixels, 20, 25));
        assert!(at(&pixels, 25, 25) > 200);
        for (x, y) in [(79, 0), (79, 59), (60, 25), (0, 59)] {
            assert_eq!(at(&pixels, x, y), at(&before, x, y));
        }
        // A face as large as the picture: the kernel reaches beyond both borders.
        let mut grey = before.clone();
        blur_boxes(&mut grey, width, height, &[[0.0, 0.0, 1.0, 1.0]]);
        assert!(at(&grey, 25, 25) < 120);
        let mut same = before.clone();
        blur_boxes(&mut same, width, height, &[]);
        assert_eq!(same, before);
    }
}
