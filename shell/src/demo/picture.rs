use image::{Rgb, RgbImage};
use rand::Rng;
use rand::seq::IndexedRandom;

pub(super) const SHAPES: [&str; 6] = ["circle", "square", "triangle", "star", "ring", "cross"];
pub(super) const TEXTURES: [&str; 4] = ["plain", "striped", "dotted", "checkered"];
pub(super) const COUNTS: [&str; 4] = ["one", "two", "three", "four"];
pub(super) const POSITIONS: [&str; 4] = ["left", "right", "top", "bottom"];
pub(super) const COLOURS: [(&str, [u8; 3]); 8] = [
    ("red", [215, 30, 35]),
    ("green", [30, 150, 55]),
    ("blue", [35, 70, 205]),
    ("yellow", [240, 215, 40]),
    ("purple", [125, 45, 160]),
    ("orange", [240, 130, 25]),
    ("pink", [245, 145, 185]),
    ("white", [245, 245, 245]),
];

/// What a picture shows: `count + 1` equal things, alone ones sometimes to one side.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    pub shape: usize,
    pub colour: usize,
    pub texture: usize,
    pub count: usize,
    pub position: Option<usize>,
}

impl Scene {
    pub fn random(rng: &mut impl Rng) -> Scene {
        let count = if rng.random_bool(0.55) { 0 } else { rng.random_range(1..COUNTS.len()) };
        Scene {
            shape: rng.random_range(0..SHAPES.len()),
            colour: rng.random_range(0..COLOURS.len()),
            texture: if rng.random_bool(0.4) { 0 } else { rng.random_range(1..TEXTURES.len()) },
            count,
            position: (count == 0 && rng.random_bool(0.5)).then(|| rng.random_range(0..POSITIONS.len())),
        }
    }

    /// Draws the scene on a muted background with some noise. `width` and `height` in pixels.
    pub fn draw(&self, width: u32, height: u32, rng: &mut impl Rng) -> RgbImage {
        let shade = rng.random_range(40..110u8);
        let tint: [u8; 3] = std::array::from_fn(|_| shade.saturating_add(rng.random_range(0..40)));
        let things = self.places(rng);
        let colour = COLOURS[self.colour].1;
        let side = f32::from(width.min(height) as u16);
        let stripes = *[5.0f32, 6.0, 7.0].choose(rng).expect("not empty");
        RgbImage::from_fn(width, height, |px, py| {
            let (x, y) = ((px as f32 + 0.5 - (width as f32 - side) / 2.0) / side, (py as f32 + 0.5 - (height as f32 - side) / 2.0) / side);
            let inside = things.iter().find_map(|t| {
                let (dx, dy) = ((x - t.x) / t.radius, (y - t.y) / t.radius);
                let turned = (dx * t.cos + dy * t.sin, dy * t.cos - dx * t.sin);
                contains(SHAPES[self.shape], turned.0, turned.1).then_some(turned)
            });
            let base = match inside {
                Some((dx, dy)) if is_inked(TEXTURES[self.texture], dx, dy, stripes) => colour,
                Some(_) => colour.map(|c| c / 3),
                None => tint,
            };
            Rgb(base.map(|c| (i16::from(c) + rng.random_range(-9..=9)).clamp(0, 255) as u8))
        })
    }

    /// Where the things are, in units of the picture's smaller side.
    fn places(&self, rng: &mut impl Rng) -> Vec<Thing> {
        let centres: Vec<(f32, f32, f32)> = match (self.count, self.position) {
            (0, None) => vec![(0.5, 0.5, 0.33)],
            (0, Some(side)) => vec![[(0.24, 0.5, 0.2), (0.76, 0.5, 0.2), (0.5, 0.24, 0.2), (0.5, 0.76, 0.2)][side]],
            (1, _) => vec![(0.27, 0.5, 0.19), (0.73, 0.5, 0.19)],
            (2, _) => vec![(0.27, 0.3, 0.18), (0.73, 0.3, 0.18), (0.5, 0.73, 0.18)],
            _ => vec![(0.27, 0.27, 0.18), (0.73, 0.27, 0.18), (0.27, 0.73, 0.18), (0.73, 0.73, 0.18)],
        };
        centres
            .into_iter()
            .map(|(x, y, radius)| {
                let mut jitter = |size: f32| rng.random_range(-size..=size);
                let (x, y, radius) = (x + jitter(0.04), y + jitter(0.04), radius * (1.0 + jitter(0.15)));
                let (sin, cos) = jitter(0.25).sin_cos();
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
        "cross" => x.abs().max(y.abs()) <= 1.0 && x.abs().min(y.abs()) <= 0.3,
        _ => {
            // A star: the edge swings between two radii five times around.
            let turn = (x.atan2(-y) / std::f32::consts::TAU * 5.0).rem_euclid(1.0);
            r <= 1.0 - 0.58 * (1.0 - (2.0 * turn - 1.0).abs())
        }
    }
}

/// Whether a texture shows the full colour at a point; elsewhere it is darkened.
fn is_inked(texture: &str, x: f32, y: f32, fineness: f32) -> bool {
    match texture {
        "striped" => (y * fineness / 2.0).rem_euclid(1.0) < 0.5,
        "dotted" => {
            let cell = |v: f32| (v * fineness / 2.0).rem_euclid(1.0) - 0.5;
            cell(x).hypot(cell(y)) > 0.3
        }
        "checkered" => ((x * fineness / 2.0).floor() as i32 + (y * fineness / 2.0).floor() as i32) % 2 == 0,
        _ => true,
    }
}
