//! Matrix products by the crate `gemm`, checked.

/// A matrix inside a slice: element `(i, j)` is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Strides {
    row: usize,
    column: usize,
}

impl Strides {
    pub fn rows_of(row: usize) -> Strides {
        Strides { row, column: 1 }
    }

    pub fn transposed(self) -> Strides {
        Strides { row: self.column, column: self.row }
    }

    fn last(self, rows: usize, columns: usize) -> usize {
        (rows - 1) * self.row + (columns - 1) * self.column
    }
}

/// `out[m, n] = keep * out + factor * a[m, k] · b[k, n]`.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    (m, n, k): (usize, usize, usize),
    (out, out_strides): (&mut [f32], Strides),
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
    keep: bool,
    factor: f32,
    parallelism: gemm::Parallelism,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(out_strides.last(m, n) < out.len() && a_strides.last(m, k) < a.len() && b_strides.last(k, n) < b.len());
    // SAFETY: the assertion keeps every element that the strides reach inside its slice, and `out` is borrowed
    // mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_strides.column as isize,
            out_strides.row as isize,
            keep,
            a.as_ptr(),
            a_strides.column as isize,
            a_strides.row as isize,
            b.as_ptr(),
            b_strides.column as isize,
            b_strides.row as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The inner products `[n, m]` of `a[n, dim]` and `b[m, dim]`, on all cores.
pub fn inner_products(a: &[f32], b: &[f32], dim: usize) -> Vec<f32> {
    let (n, m) = (a.len() / dim, b.len() / dim);
    let mut out = vec![0.0; n * m];
    let (out_rows, rows) = (Strides::rows_of(m), Strides::rows_of(dim));
    matmul((n, m, dim), (&mut out, out_rows), (a, rows), (b, rows.transposed()), false, 1.0, gemm::Parallelism::Rayon(0));
    out
}
