//! Products of vectors: one pass over both, several sums at once, in float32 whatever the vectors are in.

use half::f16;

/// The sums that every metric is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Products {
    /// Σ x·y
    pub xy: f32,
    /// Σ x·x
    pub xx: f32,
    /// Σ y·y
    pub yy: f32,
    /// Σ (x-y)·(x-y), which near vectors would lose to rounding if it were made of the others.
    pub dd: f32,
}

/// A number that vectors are made of.
pub(crate) trait Number: Copy {
    fn to_f32(self) -> f32;

    /// 16 numbers from `p` on as float32.
    ///
    /// # Safety
    /// Needs AVX-512F, and 16 numbers behind `p`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(p: *const Self) -> std::arch::x86_64::__m512;
}

impl Number for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(p: *const f32) -> std::arch::x86_64::__m512 {
        unsafe { std::arch::x86_64::_mm512_loadu_ps(p) }
    }
}

impl Number for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(p: *const f16) -> std::arch::x86_64::__m512 {
        unsafe { std::arch::x86_64::_mm512_cvtph_ps(std::arch::x86_64::_mm256_loadu_si256(p.cast())) }
    }
}

/// The sums over two vectors of the same length.
pub(crate) fn products<X: Number, Y: Number>(x: &[X], y: &[Y]) -> Products {
    assert_eq!(x.len(), y.len(), "vectors of the same length");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there, and the lengths are the same.
        return unsafe { avx512(x, y) };
    }
    by_lanes(x, y)
}

/// Eight sums of each kind, which compilers turn into vector instructions.
fn by_lanes<X: Number, Y: Number>(x: &[X], y: &[Y]) -> Products {
    const LANES: usize = 8;
    let (mut xy, mut xx, mut yy, mut dd) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (blocks_x, rest_x) = x.as_chunks::<LANES>();
    let (blocks_y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in blocks_x.iter().zip(blocks_y) {
        for i in 0..LANES {
            let (x, y) = (x[i].to_f32(), y[i].to_f32());
            xy[i] += x * y;
            xx[i] += x * x;
            yy[i] += y * y;
            dd[i] += (x - y) * (x - y);
        }
    }
    let mut sums = Products { xy: xy.iter().sum(), xx: xx.iter().sum(), yy: yy.iter().sum(), dd: dd.iter().sum() };
    add_rest(&mut sums, rest_x, rest_y);
    sums
}

fn add_rest<X: Number, Y: Number>(sums: &mut Products, x: &[X], y: &[Y]) {
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x.to_f32(), y.to_f32());
        sums.xy += x * y;
        sums.xx += x * x;
        sums.yy += y * y;
        sums.dd += (x - y) * (x - y);
    }
}

/// # Safety
/// Needs AVX-512F, and `y` to be as long as `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<X: Number, Y: Number>(x: &[X], y: &[Y]) -> Products {
    use std::arch::x86_64::*;
    let blocks = x.len() / 16;
    let zero = _mm512_setzero_ps();
    let (mut xy, mut xx, mut yy, mut dd) = ([zero; 2], [zero; 2], [zero; 2], [zero; 2]);
    for i in 0..blocks {
        // SAFETY: 16 numbers lie behind each pointer.
        let (a, b) = unsafe { (X::load(x.as_ptr().add(i * 16)), Y::load(y.as_ptr().add(i * 16))) };
        let k = i % 2; // two chains of additions
        xy[k] = _mm512_fmadd_ps(a, b, xy[k]);
        xx[k] = _mm512_fmadd_ps(a, a, xx[k]);
        yy[k] = _mm512_fmadd_ps(b, b, yy[k]);
        let d = _mm512_sub_ps(a, b);
        dd[k] = _mm512_fmadd_ps(d, d, dd[k]);
    }
    let sum = |v: [__m512; 2]| _mm512_reduce_add_ps(_mm512_add_ps(v[0], v[1]));
    let mut sums = Products { xy: sum(xy), xx: sum(xx), yy: sum(yy), dd: sum(dd) };
    add_rest(&mut sums, &x[blocks * 16..], &y[blocks * 16..]);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agree_with_sums_in_float64_at_every_length() {
        for n in [0, 1, 15, 16, 17, 31, 48, 512, 769] {
            let x: Vec<f16> = (0..n).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let exact = |f: fn(f64, f64) -> f64| x.iter().zip(&y).map(|(x, y)| f(x.to_f64(), f64::from(*y))).sum::<f64>();
            for got in [products(&x, &y), by_lanes(&x, &y)] {
                assert!((f64::from(got.xy) - exact(|x, y| x * y)).abs() < 1e-3, "{n}");
                assert!((f64::from(got.xx) - exact(|x, _| x * x)).abs() < 1e-3, "{n}");
                assert!((f64::from(got.yy) - exact(|_, y| y * y)).abs() < 1e-3, "{n}");
                assert!((f64::from(got.dd) - exact(|x, y| (x - y) * (x - y))).abs() < 1e-3, "{n}");
            }
        }
    }
}
