//! Products of vectors: one pass over both, several sums at once, in float32 whatever the vectors are in.

use gemm::{Parallelism, gemm};
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
    // SAFETY: so many numbers lie behind each.
    unsafe { sums(x.as_ptr(), y.as_ptr(), x.len()) }
}

/// The sums over a vector as it is stored, of float16 or float32, little end first and anywhere in memory, and another.
pub(crate) fn products_of_stored(x: &[u8], half: bool, y: &[f32]) -> Products {
    assert_eq!(x.len(), y.len() * if half { 2 } else { 4 }, "vectors of the same length");
    // SAFETY: so many numbers lie behind each; they are read wherever they lie.
    unsafe {
        match half {
            true => sums(x.as_ptr().cast::<f16>(), y.as_ptr(), y.len()),
            false => sums(x.as_ptr().cast::<f32>(), y.as_ptr(), y.len()),
        }
    }
}

/// Writes a stored vector as float32, and gives the sum of the squares.
pub(crate) fn widen(x: &[u8], half: bool, out: &mut [f32]) -> f32 {
    assert_eq!(x.len(), out.len() * if half { 2 } else { 4 }, "room for the vector");
    // SAFETY: as many numbers lie behind `x` as `out` has room for.
    unsafe {
        match half {
            true => widen_from(x.as_ptr().cast::<f16>(), out),
            false => widen_from(x.as_ptr().cast::<f32>(), out),
        }
    }
}

/// # Safety
/// `out.len()` numbers lie behind `x`, wherever that is.
unsafe fn widen_from<X: Number>(x: *const X, out: &mut [f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return unsafe { widen_avx512(x, out) };
    }
    let mut xx = 0.0;
    for (i, out) in out.iter_mut().enumerate() {
        *out = unsafe { x.add(i).read_unaligned() }.to_f32();
        xx += *out * *out;
    }
    xx
}

/// # Safety
/// Needs AVX-512F, and `out.len()` numbers behind `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn widen_avx512<X: Number>(x: *const X, out: &mut [f32]) -> f32 {
    use std::arch::x86_64::*;
    let blocks = out.len() / 16;
    let mut sum = _mm512_setzero_ps();
    for i in 0..blocks {
        // SAFETY: 16 numbers lie behind, and 16 places in front.
        unsafe {
            let a = X::load(x.add(i * 16));
            _mm512_storeu_ps(out.as_mut_ptr().add(i * 16), a);
            sum = _mm512_fmadd_ps(a, a, sum);
        }
    }
    let mut xx = _mm512_reduce_add_ps(sum);
    for (i, out) in out.iter_mut().enumerate().skip(blocks * 16) {
        *out = unsafe { x.add(i).read_unaligned() }.to_f32();
        xx += *out * *out;
    }
    xx
}

/// # Safety
/// `n` numbers lie behind each pointer, wherever that is.
unsafe fn sums<X: Number, Y: Number>(x: *const X, y: *const Y, n: usize) -> Products {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return unsafe { avx512(x, y, n) };
    }
    unsafe { by_lanes(x, y, n) }
}

/// Eight sums of each kind, which compilers turn into vector instructions.
///
/// # Safety
/// `n` numbers lie behind each pointer.
unsafe fn by_lanes<X: Number, Y: Number>(x: *const X, y: *const Y, n: usize) -> Products {
    const LANES: usize = 8;
    let (mut xy, mut xx, mut yy, mut dd) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let blocks = n / LANES;
    for block in 0..blocks {
        for i in 0..LANES {
            // SAFETY: within the first `n`.
            let at = block * LANES + i;
            let (x, y) = unsafe { (x.add(at).read_unaligned().to_f32(), y.add(at).read_unaligned().to_f32()) };
            xy[i] += x * y;
            xx[i] += x * x;
            yy[i] += y * y;
            dd[i] += (x - y) * (x - y);
        }
    }
    let mut sums = Products { xy: xy.iter().sum(), xx: xx.iter().sum(), yy: yy.iter().sum(), dd: dd.iter().sum() };
    unsafe { add_rest(&mut sums, x, y, blocks * LANES..n) };
    sums
}

/// # Safety
/// The range lies within what is behind each pointer.
unsafe fn add_rest<X: Number, Y: Number>(sums: &mut Products, x: *const X, y: *const Y, range: std::ops::Range<usize>) {
    for i in range {
        let (x, y) = unsafe { (x.add(i).read_unaligned().to_f32(), y.add(i).read_unaligned().to_f32()) };
        sums.xy += x * y;
        sums.xx += x * x;
        sums.yy += y * y;
        sums.dd += (x - y) * (x - y);
    }
}

/// # Safety
/// Needs AVX-512F, and `n` numbers behind each pointer.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<X: Number, Y: Number>(x: *const X, y: *const Y, n: usize) -> Products {
    use std::arch::x86_64::*;
    let blocks = n / 16;
    let zero = _mm512_setzero_ps();
    let (mut xy, mut xx, mut yy, mut dd) = ([zero; 2], [zero; 2], [zero; 2], [zero; 2]);
    for i in 0..blocks {
        // SAFETY: 16 numbers lie behind each pointer.
        let (a, b) = unsafe { (X::load(x.add(i * 16)), Y::load(y.add(i * 16))) };
        let k = i % 2; // two chains of additions
        xy[k] = _mm512_fmadd_ps(a, b, xy[k]);
        xx[k] = _mm512_fmadd_ps(a, a, xx[k]);
        yy[k] = _mm512_fmadd_ps(b, b, yy[k]);
        let d = _mm512_sub_ps(a, b);
        dd[k] = _mm512_fmadd_ps(d, d, dd[k]);
    }
    let sum = |v: [__m512; 2]| _mm512_reduce_add_ps(_mm512_add_ps(v[0], v[1]));
    let mut sums = Products { xy: sum(xy), xx: sum(xx), yy: sum(yy), dd: sum(dd) };
    unsafe { add_rest(&mut sums, x, y, blocks * 16..n) };
    sums
}

/// x·y
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len(), "vectors of the same length");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there, and the lengths are the same.
        return unsafe { dot_avx512(x, y) };
    }
    const LANES: usize = 16;
    let (blocks_x, rest_x) = x.as_chunks::<LANES>();
    let (blocks_y, rest_y) = y.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (x, y) in blocks_x.iter().zip(blocks_y) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + rest_x.iter().zip(rest_y).map(|(x, y)| x * y).sum::<f32>()
}

/// # Safety
/// Needs AVX-512F, and `y` to be as long as `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn dot_avx512(x: &[f32], y: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_ps(); 4];
    let (blocks_x, rest_x) = x.as_chunks::<64>();
    let (blocks_y, rest_y) = y.as_chunks::<64>();
    for (x, y) in blocks_x.iter().zip(blocks_y) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 16 numbers lie behind each pointer.
            let (a, b) = unsafe { (_mm512_loadu_ps(x.as_ptr().add(i * 16)), _mm512_loadu_ps(y.as_ptr().add(i * 16))) };
            *sum = _mm512_fmadd_ps(a, b, *sum);
        }
    }
    let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_reduce_add_ps(sum) + rest_x.iter().zip(rest_y).map(|(x, y)| x * y).sum::<f32>()
}

/// The products of a stored vector with each of `queries` `[n, dim]`, and the sum of its squares: what is stored is read once.
pub(crate) fn dots_of_stored(x: &[u8], half: bool, queries: &[f32], products: &mut [f32]) -> f32 {
    let dim = x.len() / if half { 2 } else { 4 };
    assert_eq!(queries.len(), dim * products.len(), "vectors of the same length");
    // SAFETY: so many numbers lie behind each.
    unsafe {
        match half {
            true => dots_from(x.as_ptr().cast::<f16>(), dim, queries, products),
            false => dots_from(x.as_ptr().cast::<f32>(), dim, queries, products),
        }
    }
}

/// # Safety
/// `dim` numbers lie behind `x`, wherever that is.
unsafe fn dots_from<X: Number>(x: *const X, dim: usize, queries: &[f32], products: &mut [f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return unsafe { dots_avx512(x, dim, queries, products) };
    }
    let mut xx = 0.0;
    for (query, product) in queries.chunks_exact(dim).zip(products) {
        let sums = unsafe { sums(x, query.as_ptr(), dim) };
        *product = sums.xy;
        xx = sums.xx;
    }
    xx
}

/// # Safety
/// Needs AVX-512F, and `dim` numbers behind `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn dots_avx512<X: Number>(x: *const X, dim: usize, queries: &[f32], products: &mut [f32]) -> f32 {
    use std::arch::x86_64::*;
    /// Queries whose sums are held in registers.
    const GROUP: usize = 8;
    let blocks = dim / 16;
    let mut xx = 0.0;
    for (g, (queries, products)) in queries.chunks(GROUP * dim).zip(products.chunks_mut(GROUP)).enumerate() {
        let n = products.len();
        let (mut sums, mut squares) = ([_mm512_setzero_ps(); GROUP], _mm512_setzero_ps());
        // A group that is not full is summed as if it were, its first query standing for those that lack.
        let starts: [*const f32; GROUP] = std::array::from_fn(|q| queries[if q < n { q * dim } else { 0 }..].as_ptr());
        for i in 0..blocks {
            // SAFETY: 16 numbers lie behind each pointer.
            unsafe {
                let a = X::load(x.add(i * 16));
                if g == 0 {
                    squares = _mm512_fmadd_ps(a, a, squares);
                }
                for q in 0..GROUP {
                    sums[q] = _mm512_fmadd_ps(a, _mm512_loadu_ps(starts[q].add(i * 16)), sums[q]);
                }
            }
        }
        let rest = |query: &[f32]| -> f32 { (blocks * 16..dim).map(|i| unsafe { x.add(i).read_unaligned() }.to_f32() * query[i]).sum() };
        for (q, product) in products.iter_mut().enumerate() {
            *product = _mm512_reduce_add_ps(sums[q]) + rest(&queries[q * dim..(q + 1) * dim]);
        }
        if g == 0 {
            xx = _mm512_reduce_add_ps(squares);
            xx += (blocks * 16..dim).map(|i| unsafe { x.add(i).read_unaligned() }.to_f32().powi(2)).sum::<f32>();
        }
    }
    xx
}

/// `products[i, j] = rows[i]·set[j]`: rows `[m, dim]`, set `[n, dim]`, products `[m, n]`, each row by row. On one core.
pub(crate) fn multiply(rows: &[f32], set: &[f32], dim: usize, products: &mut [f32]) {
    let (m, n) = (rows.len() / dim, set.len() / dim);
    assert!(products.len() >= m * n, "room for the products");
    let (row, n_step) = (dim as isize, n as isize);
    // SAFETY: the sizes are those of the slices.
    unsafe {
        let (d, a, b) = (products.as_mut_ptr(), rows.as_ptr(), set.as_ptr());
        gemm(m, n, dim, d, 1, n_step, false, a, 1, row, b, row, 1, 0.0, 1.0, false, false, false, Parallelism::None);
    }
}

/// The place and value of the greatest number, of equals the first; NaN counts for nothing.
pub(crate) fn argmax(values: &[f32]) -> Option<(usize, f32)> {
    const LANES: usize = 16;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
        }
    }
    let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });
    values.iter().position(|&x| x == most).map(|i| (i, most))
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
            // SAFETY: both have n numbers.
            let lanes = unsafe { by_lanes(x.as_ptr(), y.as_ptr(), n) };
            // As it lies in a file: after a byte of something else.
            let stored: Vec<u8> = [7].into_iter().chain(x.iter().flat_map(|x| x.to_le_bytes())).collect();
            let mut wide = vec![0.0; n];
            let squares = widen(&stored[1..], true, &mut wide);
            assert_eq!(wide, x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
            assert!((f64::from(squares) - exact(|x, _| x * x)).abs() < 1e-3, "{n}");
            let twice: Vec<f32> = y.iter().chain(&y).copied().collect();
            let mut dots = [0.0; 2];
            if n > 0 {
                let squares = dots_of_stored(&stored[1..], true, &twice, &mut dots);
                assert!((f64::from(squares) - exact(|x, _| x * x)).abs() < 1e-3, "{n}");
                assert!(dots.iter().all(|dot| (f64::from(*dot) - exact(|x, y| x * y)).abs() < 1e-3), "{n}");
            }
            for got in [products(&x, &y), lanes, products_of_stored(&stored[1..], true, &y)] {
                assert!((f64::from(got.xy) - exact(|x, y| x * y)).abs() < 1e-3, "{n}");
                assert!((f64::from(got.xx) - exact(|x, _| x * x)).abs() < 1e-3, "{n}");
                assert!((f64::from(got.yy) - exact(|_, y| y * y)).abs() < 1e-3, "{n}");
                assert!((f64::from(got.dd) - exact(|x, y| (x - y) * (x - y))).abs() < 1e-3, "{n}");
            }
        }
    }

    #[test]
    fn the_first_of_the_greatest() {
        for n in [1usize, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..n).map(|i| ((i * 7) % 13) as f32).collect();
            let most = values.iter().copied().fold(0.0, f32::max);
            assert_eq!(argmax(&values), Some((values.iter().position(|&x| x == most).expect("is one"), most)));
        }
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN]), Some((1, 1.0)));
        assert_eq!((argmax(&[]), argmax(&[f32::NAN])), (None, None));
    }
}
