use std::borrow::Cow;
use std::io::Cursor;

use image::{DynamicImage, ImageReader, Limits, RgbImage};
use libjpeg_turbo_rs::{Decoder, PixelFormat};

use super::MAX_SIDE;
use crate::{Error, Result};

/// Larger JPEGs are refused: Pillow's limit.
const MAX_PIXELS: usize = 178_956_970;

/// Decodes to 8-bit RGB as Pillow's `convert("RGB")`: no regard to an EXIF orientation, alpha dropped, 16 bits cut to
/// their upper 8 (grey: held to 255), the first frame of a GIF. A JPEG that breaks off is an error.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    // A decoder's panic on hostile bytes costs that image and not the run.
    let decoded = std::panic::catch_unwind(|| if bytes.starts_with(&[0xff, 0xd8]) { jpeg(bytes) } else { other(bytes) });
    let image = decoded.map_err(|_| "the decoder failed".to_string()).flatten().map_err(|reason| Error::Image { reason })?;
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::Image { reason: "no pixels".into() });
    }
    Ok(image)
}

fn jpeg(bytes: &[u8]) -> Result<RgbImage, String> {
    let bytes = segments(bytes)?;
    let mut decoder = Decoder::new(&bytes).map_err(|e| e.to_string())?;
    let (width, height) = (u32::from(decoder.header().width), u32::from(decoder.header().height));
    if width.max(height) > MAX_SIDE || width as usize * height as usize > MAX_PIXELS {
        return Err(format!("{width}x{height} is more than {MAX_PIXELS} pixels, or than {MAX_SIDE} on a side"));
    }
    // As libjpeg does with bits that have flipped: it goes on behind them.
    decoder.set_lenient(true);
    decoder.set_output_format(PixelFormat::Rgb);
    let pixels = decoder.decode_image().map_err(|e| e.to_string())?.data;
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| "another size than its header says".to_string())
}

/// Returns the file without bytes between its segments that belong to none, which libjpeg steps over (`next_marker` in
/// jdmarker.c), once it is known that an end marker follows the first scan. Segments are stepped over whole: thumbnails
/// within them have such markers, too.
fn segments(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let breaks_off = || format!("the JPEG breaks off after {} bytes", bytes.len());
    // What is kept before `from`, where anything was left out.
    let (mut kept, mut from) = (Vec::new(), 0);
    let mut at = 2;
    loop {
        let junk = bytes.get(at..).and_then(|rest| rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)));
        let marker = at + junk.ok_or_else(breaks_off)?;
        if marker > at {
            kept.extend_from_slice(&bytes[from..at]);
            from = marker;
        }
        match bytes[marker + 1] {
            0xd8 => return Err("the JPEG begins a second time".into()),
            0xd9 => return Err(breaks_off()),
            // Markers without a segment.
            0x01 | 0xd0..=0xd7 => at = marker + 2,
            name => {
                let length = bytes.get(marker + 2..marker + 4).ok_or_else(breaks_off)?;
                at = marker + 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
                if name == 0xda {
                    let ends = bytes.get(at..).is_some_and(|scan| scan.windows(2).rev().any(|pair| pair == [0xff, 0xd9]));
                    break if ends { Ok(()) } else { Err(breaks_off()) }?;
                }
            }
        }
    }
    if from == 0 {
        return Ok(bytes.into());
    }
    kept.extend_from_slice(&bytes[from..]);
    Ok(kept.into())
}

/// Returns a PNG with an end chunk, where it breaks off behind its pixels, as far as its chunks are whole.
fn with_end(bytes: &[u8]) -> Cow<'_, [u8]> {
    const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
    let (mut at, mut has_pixels) = (8, false);
    while let Some(&[a, b, c, d]) = bytes.get(at..at + 4) {
        let end = at.saturating_add(12 + u32::from_be_bytes([a, b, c, d]) as usize);
        let name = bytes.get(at + 4..at + 8).unwrap_or_default();
        if name == b"IEND" || name == b"IDAT" && end > bytes.len() {
            return bytes.into();
        }
        if end > bytes.len() {
            break;
        }
        has_pixels |= name == b"IDAT";
        at = end;
    }
    if has_pixels { [&bytes[..at], END].concat().into() } else { bytes.into() }
}

fn other(bytes: &[u8]) -> Result<RgbImage, String> {
    let bytes = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") { with_end(bytes) } else { bytes.into() };
    let mut reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    let (width, height, pixels) = match reader.decode().map_err(|e| e.to_string())? {
        DynamicImage::ImageLuma16(image) => {
            let grey = image.as_raw().iter().flat_map(|&x| [x.min(255) as u8; 3]).collect();
            (image.width(), image.height(), grey)
        }
        DynamicImage::ImageLumaA16(image) => {
            let grey = image.as_raw().chunks_exact(2).flat_map(|x| [(x[0] >> 8) as u8; 3]).collect();
            (image.width(), image.height(), grey)
        }
        DynamicImage::ImageRgb16(image) => (image.width(), image.height(), image.as_raw().iter().map(|x| (x >> 8) as u8).collect()),
        DynamicImage::ImageRgba16(image) => {
            let rgb = image.as_raw().chunks_exact(4).flat_map(|x| [x[0], x[1], x[2]].map(|x| (x >> 8) as u8)).collect();
            (image.width(), image.height(), rgb)
        }
        image => return Ok(image.into_rgb8()),
    };
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| "another size than its header says".to_string())
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageFormat};

    use super::*;

    fn png(pixels: &[u8], width: u32, color: ExtendedColorType) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image::write_buffer_with_format(&mut out, pixels, width, 1, color, ImageFormat::Png).unwrap();
        out.into_inner()
    }

    /// What Pillow 13's `Image.open(...).convert("RGB")` gives for the same files.
    #[test]
    fn converts_as_pillow() {
        let sixteen = |values: &[u16]| values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
        let grey = png(&sixteen(&[0, 255, 256, 65535]), 4, ExtendedColorType::L16);
        assert_eq!(decode(&grey).unwrap().as_raw(), &[[0; 3], [255; 3], [255; 3], [255; 3]].concat());
        let rgb = png(&sixteen(&[0, 256, 65535]), 1, ExtendedColorType::Rgb16);
        assert_eq!(decode(&rgb).unwrap().as_raw(), &[0, 1, 255]);
        let rgba = png(&[10, 20, 30, 0, 40, 50, 60, 128], 2, ExtendedColorType::Rgba8);
        assert_eq!(decode(&rgba).unwrap().as_raw(), &[10, 20, 30, 40, 50, 60]);
        let la = png(&[10, 0, 200, 128], 2, ExtendedColorType::La8);
        assert_eq!(decode(&la).unwrap().as_raw(), &[10, 10, 10, 200, 200, 200]);
        // These two Pillow wrote: inks of 10, 100, 200 and 50; three colours of which one is transparent.
        let cmyk = decode(include_bytes!("fixtures/cmyk.jpg")).unwrap();
        assert!(cmyk.pixels().all(|pixel| pixel.0 == [197, 125, 44]), "{:?}", cmyk.get_pixel(0, 0));
        let palette = decode(include_bytes!("fixtures/palette.png")).unwrap();
        assert_eq!(palette.as_raw(), &[1, 2, 3, 40, 50, 60, 250, 251, 252]);
    }

    #[test]
    fn every_format_is_read() {
        let image = RgbImage::from_fn(16, 16, |x, y| image::Rgb(if x < 8 { [250, 10, 10] } else { [10, 10, y as u8 * 15] }));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Jpeg] {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).unwrap();
            let decoded = decode(bytes.get_ref()).unwrap();
            let step = image.as_raw().iter().zip(decoded.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            let largest = if matches!(format, ImageFormat::Png | ImageFormat::WebP) { 0 } else { 60 };
            assert!(step.is_some_and(|step| step <= largest), "{format:?}: {step:?}");
        }
        let mut bytes = Cursor::new(Vec::new());
        image::GrayImage::from_pixel(8, 8, image::Luma([77])).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        assert!(decode(bytes.get_ref()).unwrap().pixels().all(|pixel| pixel.0 == [77; 3]));
    }

    /// The first frame, however the next ones differ.
    #[test]
    fn a_gif_is_its_first_frame() {
        let frame = |color: [u8; 4]| image::Frame::new(image::RgbaImage::from_pixel(4, 4, image::Rgba(color)));
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        encoder.encode_frames([frame([9, 200, 30, 255]), frame([255, 0, 0, 255])]).unwrap();
        drop(encoder);
        assert!(decode(&bytes).unwrap().pixels().all(|pixel| pixel.0 == [9, 200, 30]));
    }

    #[test]
    fn a_jpeg_that_breaks_off_is_refused() {
        let mut whole = Cursor::new(Vec::new());
        RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 9])).write_to(&mut whole, ImageFormat::Jpeg).unwrap();
        let mut whole = whole.into_inner();
        assert!(decode(&whole).is_ok());
        for cut in [1, 2, 10, whole.len() / 2, whole.len() - 4] {
            assert!(decode(&whole[..whole.len() - cut]).is_err(), "{cut} bytes are missing");
        }
        whole.extend_from_slice(b"bytes behind the end");
        assert!(decode(&whole).is_ok());
    }

    /// Pillow 13 reads and refuses the same, the read ones to the same pixels as the file without.
    #[test]
    fn bytes_between_segments_are_stepped_over() {
        let mut whole = Cursor::new(Vec::new());
        RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, y as u8, 9])).write_to(&mut whole, ImageFormat::Jpeg).unwrap();
        let whole = whole.into_inner();
        let pixels = decode(&whole).unwrap();
        let end_of_first = 4 + usize::from(u16::from_be_bytes([whole[4], whole[5]]));
        let scan = whole.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let with = |at: usize, junk: &[u8]| [&whole[..at], junk, &whole[at..]].concat();
        let read = [
            with(end_of_first, b"\0\0\0"),
            with(end_of_first, b"abc"),
            with(end_of_first, b"\xff\0x\xff\xff"),
            with(scan, b"\0\0"),
            with(whole.len() - 2, b"\0\0\0\0"),
            // An Exif segment whose length is two short, and a comment of no bytes.
            with(2, b"\xff\xe1\0\x0aExif\0\0II*\0"),
            with(end_of_first, b"\xff\xfe\0\x02"),
            [&whole[..2], &whole[end_of_first..]].concat(),
        ];
        for (i, bytes) in read.iter().enumerate() {
            assert!(decode(bytes).unwrap() == pixels, "{i}");
        }
        assert!(decode(&[&whole[..2], &whole].concat()).is_err());
        assert!(decode(&whole[..scan]).is_err());
    }

    /// All its pixels are there, which is what Pillow asks for.
    #[test]
    fn a_png_needs_no_end_chunk() {
        let whole = png(&[1, 2, 3, 4, 5, 6], 2, ExtendedColorType::Rgb8);
        for cut in [1, 4, 11, 12] {
            assert_eq!(decode(&whole[..whole.len() - cut]).unwrap().as_raw(), &[1, 2, 3, 4, 5, 6], "{cut} bytes are missing");
        }
        assert!(decode(&whole[..whole.len() - 13]).is_err());
    }

    #[test]
    fn not_an_image_is_an_error() {
        assert!(decode(b"hello").is_err());
        assert!(decode(&[0xff, 0xd8, 0xff, 0xe0, 0, 0]).is_err());
        assert!(decode(&[]).is_err());
    }
}
