use image::{Rgb, RgbImage};
use rand::Rng;

pub(super) const SHAPES: [&str; 5] = ["circle", "square", "triangle", "ring", "cross"];
pub(super) const TEXTURES: [&str; 3] = ["plain", "striped", "dotted"];
pub(super) const COUNTS: [&str; 4] = ["one", "two", "three", "four"];
pub(super) const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 30, 35]),
    ("green", [30, 165, 55]),
    ("blue", [40, 80, 225]),
    ("yellow", [245, 220, 40]),
    ("purple", [150, 50, 185]),
    ("white", [245, 245, 245]),
];

/// What a picture shows: `count + 1` equal things.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    pub shape: usize,
    pub colour: usize,
    pub texture: usize,
    pub count: usize,
}

impl Scene {
    pub fn random(rng: &mut impl Rng) -> Scene {
        Scene {
            shape: rng.random_range(0..SHAPES.len()),
            colour: rng.random_range(0..COLOURS.len()),
            texture: if rng.random_bool(0.4) { 0 } else { rng.random_range(1..TEXTURES.len()) },
            count: if rng.random_bool(0.6) { 0 } else { rng.random_range(1..COUNTS.len()) },
        }
    }

    /// Draws the scene on a muted background with some noise. `width` and `height` in pixels.
    pub fn draw(&self, width: u32, height: u32, rng: &mut impl Rng) -> RgbImage {
        let shade = rng.random_range(20..70u8);
        let tint: [u8; 3] = std::array::from_fn(|_| shade.saturating_add(rng.random_range(0..30)));
        let things = self.places(rng);
        let colour = COLOURS[self.colour].1;
        let side = f32::from(width.min(height) as u16);
        RgbImage::from_fn(width, height, |px, py| {
            let (x, y) = ((px as f32 + 0.5 - (width as f32 - side) / 2.0) / side, (py as f32 + 0.5 - (height as f32 - side) / 2.0) / side);
            let inside = things.iter().find_map(|t| {
                let (dx, dy) = ((x - t.x) / t.radius, (y - t.y) / t.radius);
                let turned = (dx * t.cos + dy * t.sin, dy * t.cos - dx * t.sin);
                contains(SHAPES[self.shape], turned.0, turned.1).then_some(turned)
            });
            let base = match inside {
                Some((dx, dy)) if is_inked(TEXTURES[self.texture], dx, dy) => colour,
                Some(_) => [0; 3],
                None => tint,
            };
            Rgb(base.map(|c| (i16::from(c) + rng.random_range(-9..=9)).clamp(0, 255) as u8))
        })
    }

    /// Where the things are, in units of the picture's smaller side.
    fn places(&self, rng: &mut impl Rng) -> Vec<Thing> {
        let centres = match self.count {
            0 => vec![(0.5, 0.5, 0.4)],
            1 => vec![(0.26, 0.5, 0.22), (0.74, 0.5, 0.22)],
            2 => vec![(0.27, 0.3, 0.21), (0.73, 0.3, 0.21), (0.5, 0.73, 0.21)],
            _ => vec![(0.27, 0.27, 0.21), (0.73, 0.27, 0.21), (0.27, 0.73, 0.21), (0.73, 0.73, 0.21)],
        };
        centres
            .into_iter()
            .map(|(x, y, radius)| {
                let mut jitter = |size: f32| rng.random_range(-size..=size);
                let (x, y, radius) = (x + jitter(0.04), y + jitter(0.04), radius * (1.0 + jitter(0.15)));
                let (sin, cos) = jitter(0.12).sin_cos();
                Thing { x, y, radius, sin, cos }
            })
            .collect()
    }
}

/// A place, and a turn as the sine and cosine of its angle.
struct Thing {
    x: f32,
    y: f32,
    radius: f32,
    sin: f32,
    cos: f32,
}

/// Whether a shape of radius 1 covers a point.
fn contains(shape: &str, x: f32, y: f32) -> bool {
    let r = x.hypot(y);
    match shape {
        "circle" => r <= 1.0,
        "square" => x.abs().max(y.abs()) <= 0.85,
        "triangle" => y <= 0.75 && y >= 2.0 * x.abs() - 1.0,
        "ring" => (0.55..=1.0).contains(&r),
        _ => x.abs().max(y.abs()) <= 1.0 && x.abs().min(y.abs()) <= 0.3,
    }
}

/// Whether a texture shows the colour at a point; elsewhere it is black.
fn is_inked(texture: &str, x: f32, y: f32) -> bool {
    match texture {
        "striped" => (y * 2.5).rem_euclid(1.0) < 0.55,
        "dotted" => {
            let cell = |v: f32| (v * 2.5).rem_euclid(1.0) - 0.5;
            cell(x).hypot(cell(y)) > 0.3
        }
        _ => true,
    }
}
