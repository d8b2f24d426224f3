use image::RgbImage;
use rand::Rng;

use super::resize::Pixels;

/// A rectangle of whole pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl Crop {
    /// torchvision's `RandomResizedCrop.get_params` with scale (0.9, 1.0) and ratio (3/4, 4/3): ten tries, then the
    /// largest central crop whose ratio is in range, which is what very wide and tall images get.
    pub fn random(width: u32, height: u32, rng: &mut impl Rng) -> Crop {
        const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);
        let area = f64::from(width) * f64::from(height);
        for _ in 0..10 {
            let target = area * rng.random_range(0.9..=1.0);
            let ratio = rng.random_range(RATIO.0.ln()..=RATIO.1.ln()).exp();
            let (w, h) = ((target * ratio).sqrt().round() as u32, (target / ratio).sqrt().round() as u32);
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let (left, top) = (rng.random_range(0..=width - w), rng.random_range(0..=height - h));
                return Crop { left, top, width: w, height: h };
            }
        }
        let ratio = f64::from(width) / f64::from(height);
        let (w, h) = if ratio < RATIO.0 {
            (width, (f64::from(width) / RATIO.0).round() as u32)
        } else if ratio > RATIO.1 {
            ((f64::from(height) * RATIO.1).round() as u32, height)
        } else {
            (width, height)
        };
        Crop { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }

    /// torchvision's `CenterCrop`: the offset is rounded to the nearest even at halves, as Python's `round`.
    pub fn center(width: u32, height: u32, size: u32) -> Crop {
        let offset = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as u32;
        Crop { left: offset(width), top: offset(height), width: size, height: size }
    }

    /// The rectangle's pixels.
    pub fn of(self, image: &RgbImage) -> Pixels<'_> {
        let stride = image.width() as usize * 3;
        let bytes = &image.as_raw()[self.top as usize * stride + self.left as usize * 3..];
        Pixels { bytes, width: self.width as usize, height: self.height as usize, stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn random_crops_stay_inside_and_in_ratio() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (width, height) in [(100, 100), (640, 480), (33, 47), (1, 1), (2000, 10), (10, 2000)] {
            for _ in 0..200 {
                let c = Crop::random(width, height, &mut rng);
                assert!(c.width >= 1 && c.left + c.width <= width && c.top + c.height <= height, "{c:?}");
                if width.min(height) > 30 {
                    let area = f64::from(c.width * c.height) / f64::from(width * height);
                    assert!((0.85..=1.0).contains(&area), "{c:?} of {width}x{height}");
                }
            }
        }
        assert_eq!(Crop::random(2000, 10, &mut rng), Crop { left: 993, top: 0, width: 13, height: 10 });
    }

    #[test]
    fn center_rounds_as_python() {
        assert_eq!(Crop::center(67, 64, 64).left, 2); // round(1.5)
        assert_eq!(Crop::center(69, 64, 64).left, 2); // round(2.5)
    }
}
