//! Loops over slices that compile to the widest vectors of the CPU.

/// Runs `f` compiled for the widest vectors of this CPU. `f` must be marked `#[inline(always)]`, and is taken as
/// `FnMut` because a call through `FnOnce` is a function of its own, compiled for the oldest CPU.
#[inline(always)]
pub fn vectorized<R>(arch: pulp::Arch, f: impl FnMut() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnMut() -> R> pulp::WithSimd for Op<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(mut self, _simd: S) -> R {
            (self.0)()
        }
    }
    arch.dispatch(Op(f))
}

#[inline(always)]
pub fn add_to(out: &mut [f32], x: &[f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o += x;
    }
}

/// Sum with sixteen running totals, so that it vectorises.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut totals = [0.0; 16];
    let chunks = x.chunks_exact(16);
    let mut rest = 0.0;
    for &x in chunks.remainder() {
        rest += f(x);
    }
    for chunk in chunks {
        for (total, &x) in totals.iter_mut().zip(chunk) {
            *total += f(x);
        }
    }
    totals.iter().sum::<f32>() + rest
}

#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; 16];
    let chunks = x.chunks_exact(16);
    for (i, &x) in chunks.remainder().iter().enumerate() {
        largest[i] = x;
    }
    for chunk in chunks {
        for (largest, &x) in largest.iter_mut().zip(chunk) {
            *largest = if x > *largest { x } else { *largest };
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut totals = [0.0; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let mut rest = 0.0;
    for (a, b) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        rest += a * b;
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..16 {
            totals[i] += a[i] * b[i];
        }
    }
    totals.iter().sum::<f32>() + rest
}
