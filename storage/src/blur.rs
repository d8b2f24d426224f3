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
    }
    if longest <= 0 {
        return;
    }
    let kernel = gaussian(0.1 * longest as f32);
    let mask = convolve(&mask, width, height, &kernel);
    for channel in 0..3 {
        let plane: Vec<f32> = pixels.iter().skip(channel).step_by(3).map(|&x| f32::from(x) / 255.0).collect();
        let blurred = convolve(&plane, width, height, &kernel);
        for (i, out) in pixels.iter_mut().skip(channel).step_by(3).enumerate() {
            if mask[i] > 0.0 {
                *out = ((plane[i] * (1.0 - mask[i]) + blurred[i] * mask[i]) * 255.0) as u8;
            }
        }
    }
}

/// Weights at distance 0, 1, ... of a Gaussian cut off at four sigma, which sum to 1 over both sides.
fn gaussian(sigma: f32) -> Vec<f32> {
    let radius = (4.0 * sigma).ceil() as usize;
    let weights: Vec<f64> = (0..=radius).map(|x| (-((x * x) as f64) / (2.0 * f64::from(sigma) * f64::from(sigma))).exp()).collect();
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

/// Rows, then columns, mirrored at the border without repeating it.
fn convolve(plane: &[f32], width: usize, height: usize, kernel: &[f32]) -> Vec<f32> {
    let mirror = |at: isize, size: usize| -> usize {
        if size == 1 {
            return 0;
        }
        let period = 2 * (size as isize - 1);
        let at = at.rem_euclid(period);
        (if at < size as isize { at } else { period - at }) as usize
    };
    let radius = kernel.len() - 1;
    let mut rows = vec![0f32; plane.len()];
    let mut padded = vec![0f32; width + 2 * radius];
    for (out, row) in rows.chunks_exact_mut(width).zip(plane.chunks_exact(width)) {
        for (i, x) in padded.iter_mut().enumerate() {
            *x = row[mirror(i as isize - radius as isize, width)];
        }
        for (x, out) in out.iter_mut().enumerate() {
            let at = x + radius;
            *out = kernel[0] * padded[at] + (1..=radius).map(|k| kernel[k] * (padded[at - k] + padded[at + k])).sum::<f32>();
        }
    }
    let mut out = vec![0f32; plane.len()];
    for y in 0..height {
        let target = &mut out[y * width..(y + 1) * width];
        for (k, weight) in kernel.iter().enumerate() {
            for at in if k == 0 { vec![y as isize] } else { vec![y as isize - k as isize, y as isize + k as isize] } {
                let row = &rows[mirror(at, height) * width..][..width];
                target.iter_mut().zip(row).for_each(|(t, x)| *t += weight * x);
            }
        }
    }
    out
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
        let mut same = before.clone();
        blur_boxes(&mut same, width, height, &[]);
        assert_eq!(same, before);
    }
}
