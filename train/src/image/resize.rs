//! Pillow's bicubic resize with antialiasing, bit for bit. Source: `Resample.c` of Pillow 5 and later.

use crate::backend::vectorized;

/// Pixels `[height, width, 3]`, rows `stride` bytes apart.
#[derive(Clone, Copy)]
pub struct Pixels<'a> {
    pub bytes: &'a [u8],
    pub width: usize,
    pub height: usize,
    pub stride: usize,
}

/// Bits after the point of weights in whole numbers.
const PRECISION: u32 = 32 - 8 - 2;

/// For each output pixel the first input pixel that it reads, and the weights from there on.
struct Weights {
    first: Vec<usize>,
    /// As many as `taps` for each output pixel, zeros at the end.
    weights: Vec<i32>,
    taps: usize,
}

/// `[new_height, new_width, 3]`.
pub fn resize(source: Pixels, new_width: usize, new_height: usize) -> Vec<u8> {
    let arch = pulp::Arch::new();
    let row = |y: usize| &source.bytes[y * source.stride..][..source.width * 3];
    // A side that stays is left as it is, as Pillow does.
    let mut wide = Vec::with_capacity(source.height * new_width * 3);
    if new_width == source.width {
        (0..source.height).for_each(|y| wide.extend_from_slice(row(y)));
    } else {
        let weights = weights(source.width, new_width);
        wide.resize(source.height * new_width * 3, 0);
        let mut columns = vec![[0; ROWS]; source.width * 3];
        for top in (0..source.height).step_by(ROWS) {
            let rows: [&[u8]; ROWS] = std::array::from_fn(|r| row((top + r).min(source.height - 1)));
            let out = &mut wide[top * new_width * 3..];
            vectorized(
                arch,
                #[inline(always)]
                || {
                    for (r, row) in rows.iter().enumerate() {
                        for (column, &x) in columns.iter_mut().zip(*row) {
                            column[r] = i32::from(x);
                        }
                    }
                    across(out, &columns, &weights);
                },
            );
        }
    }
    if new_height == source.height {
        return wide;
    }
    let weights = weights(source.height, new_height);
    let line = new_width * 3;
    let mut out = vec![0; new_height * line];
    let mut sums = vec![0i32; line];
    for (y, out) in out.chunks_exact_mut(line).enumerate() {
        let taps = &weights.weights[y * weights.taps..][..weights.taps];
        let rows = wide[weights.first[y] * line..].chunks_exact(line).zip(taps);
        sums.fill(1 << (PRECISION - 1));
        for (row, &weight) in rows {
            vectorized(
                arch,
                #[inline(always)]
                || {
                    for (sum, &x) in sums.iter_mut().zip(row) {
                        *sum += i32::from(x) * weight;
                    }
                },
            );
        }
        vectorized(
            arch,
            #[inline(always)]
            || {
                for (out, &sum) in out.iter_mut().zip(&sums) {
                    *out = clip(sum);
                }
            },
        );
    }
    out
}

/// Rows that are worked on side by side.
const ROWS: usize = 16;

/// Up to `ROWS` rows `out[_, new_width, 3]`, as many as there is room for, from their columns `[width, 3]`.
#[inline(always)]
fn across(out: &mut [u8], columns: &[[i32; ROWS]], weights: &Weights) {
    let line = weights.first.len() * 3;
    for (i, (&first, taps)) in weights.first.iter().zip(weights.weights.chunks_exact(weights.taps)).enumerate() {
        for c in 0..3 {
            let mut sums = [1i32 << (PRECISION - 1); ROWS];
            for (column, &weight) in columns[first * 3 + c..].iter().step_by(3).zip(taps) {
                for (sum, x) in sums.iter_mut().zip(column) {
                    *sum += x * weight;
                }
            }
            for (out, sum) in out.chunks_exact_mut(line).zip(sums) {
                out[i * 3 + c] = clip(sum);
            }
        }
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn weights(size: usize, new_size: usize) -> Weights {
    let scale = size as f64 / new_size as f64;
    let filter_scale = scale.max(1.0);
    let support = 2.0 * filter_scale;
    let taps = support.ceil() as usize * 2 + 1;
    let mut all = Weights { first: Vec::with_capacity(new_size), weights: vec![0; new_size * taps], taps };
    for (i, whole) in all.weights.chunks_exact_mut(taps).enumerate() {
        let center = (i as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as isize).max(0) as usize;
        let end = ((center + support + 0.5) as usize).min(size);
        let weights: Vec<f64> = (first..end).map(|x| bicubic((x as f64 - center + 0.5) * (1.0 / filter_scale))).collect();
        let sum: f64 = weights.iter().sum();
        for (whole, weight) in whole.iter_mut().zip(weights) {
            let scaled = weight / sum * f64::from(1 << PRECISION);
            *whole = (scaled + 0.5f64.copysign(scaled)) as i32;
        }
        all.first.push(first);
    }
    all
}

/// Keys' cubic convolution with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(bytes: &[u8]) -> (u64, u64) {
        bytes.iter().fold((0, 0), |(sum, weighted), &b| {
            let sum = sum + u64::from(b);
            (sum, (weighted + sum) % 1_000_000_007)
        })
    }

    /// Of the same pixels by Pillow 13: `Image.fromarray(a).resize((w, h), Image.BICUBIC)`, with
    /// `a[y, x, c] = (x * x * 7 + y * 13 * (c + 1) + x * y * 5) % 256` in 64-bit integers.
    #[test]
    fn is_pillow_s() {
        let image = |width: usize, height: usize| {
            let value = |i: usize| {
                let (y, x, c) = (i / (width * 3), i / 3 % width, i % 3);
                ((x * x * 7 + y * 13 * (c + 1) + x * y * 5) % 256) as u8
            };
            (0..width * height * 3).map(value).collect::<Vec<u8>>()
        };
        for ((width, height), (new_width, new_height), expected) in PILLOW {
            let bytes = image(width, height);
            let out = resize(Pixels { bytes: &bytes, width, height, stride: width * 3 }, new_width, new_height);
            assert_eq!(checksum(&out), expected, "{width}x{height} to {new_width}x{new_height}");
        }
    }

    type Sizes = (usize, usize);
    const PILLOW: [(Sizes, Sizes, (u64, u64)); 8] = [
        ((50, 37), (16, 12), (74_614, 21_406_550)),
        ((50, 37), (64, 48), (1_192_937, 475_056_152)),
        ((33, 100), (33, 20), (254_273, 251_480_951)),
        ((33, 100), (10, 100), (385_071, 577_112_036)),
        ((7, 5), (3, 9), (9_136, 336_603)),
        ((224, 200), (224, 224), (19_280_176, 194_263_899)),
        ((1, 9), (8, 3), (6_232, 169_972)),
        ((500, 333), (96, 64), (2_360_949, 761_862_472)),
    ];
}
