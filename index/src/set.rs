use arrow::array::{Array, Float32Array, Int32Array};
use gemm::{Parallelism, gemm};

use crate::metric::Vectors;
use crate::{Error, Result};

/// A named set of vectors held in memory: centroids, prototypes, targets.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorSet {
    dim: usize,
    /// `[n, dim]`, row by row.
    values: Vec<f32>,
}

/// Rows whose products with the whole set are made at once.
const BLOCK_ROWS: usize = 256;
/// Vectors of the set whose products are held at once.
const BLOCK_SET: usize = 4096;

impl VectorSet {
    /// `values` is `[n, dim]`, row by row, n at least 1.
    pub fn new(dim: usize, values: Vec<f32>) -> Result<VectorSet> {
        match dim != 0 && !values.is_empty() && values.len().is_multiple_of(dim) {
            true => Ok(VectorSet { dim, values }),
            false => Err(Error::SetShape { dim, values: values.len() }),
        }
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The vector with this id.
    pub fn vector(&self, id: usize) -> &[f32] {
        &self.values[id * self.dim..(id + 1) * self.dim]
    }

    /// For each row the id of the vector with the largest inner product, the first of equals; exact, in float32.
    /// NULL where the row is NULL.
    pub fn nearest(&self, rows: &dyn Array) -> Result<Int32Array> {
        Ok(self.best(rows)?.into_iter().map(|best| best.map(|(id, _)| id as i32)).collect())
    }

    /// For each row the largest inner product with a vector of the set. NULL where the row is NULL.
    pub fn max_similarity(&self, rows: &dyn Array) -> Result<Float32Array> {
        Ok(self.best(rows)?.into_iter().map(|best| best.map(|(_, similarity)| similarity)).collect())
    }

    fn best(&self, rows: &dyn Array) -> Result<Vec<Option<(usize, f32)>>> {
        let vectors = Vectors::of(rows)?;
        let mut best = vec![None; rows.len()];
        let (mut block, mut which) = (Vec::with_capacity(BLOCK_ROWS * self.dim), Vec::with_capacity(BLOCK_ROWS));
        let mut products = vec![0f32; BLOCK_ROWS * BLOCK_SET.min(self.len())];
        for i in 0..rows.len() {
            if let Some(vector) = vectors.row(i) {
                if vector.len() != self.dim {
                    return Err(Error::Dimensions { left: vector.len(), right: self.dim });
                }
                vector.extend(&mut block);
                which.push(i);
            }
            if which.len() == BLOCK_ROWS || i + 1 == rows.len() {
                self.best_of_block(&block, &which, &mut products, &mut best);
                block.clear();
                which.clear();
            }
        }
        Ok(best)
    }

    fn best_of_block(&self, block: &[f32], which: &[usize], products: &mut [f32], best: &mut [Option<(usize, f32)>]) {
        for start in (0..self.len()).step_by(BLOCK_SET) {
            let n = BLOCK_SET.min(self.len() - start);
            let set = &self.values[start * self.dim..(start + n) * self.dim];
            let (m, k) = (which.len(), self.dim);
            // SAFETY: products is [m, n], block [m, k] and set [n, k], each row by row.
            unsafe {
                let (d, a, b) = (products.as_mut_ptr(), block.as_ptr(), set.as_ptr());
                let (row, dim) = (n as isize, k as isize);
                gemm(m, n, k, d, 1, row, false, a, 1, dim, b, dim, 1, 0.0, 1.0, false, false, false, Parallelism::None);
            }
            for (products, &row) in products.chunks_exact(n).zip(which) {
                let first = best[row].unwrap_or((start, f32::NEG_INFINITY));
                let found = products.iter().enumerate().fold(
                    first,
                    |(id, most), (i, &product)| {
                        if product > most { (start + i, product) } else { (id, most) }
                    },
                );
                best[row] = Some(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::FixedSizeListArray;
    use arrow::datatypes::Float16Type;
    use half::f16;

    use super::*;

    #[test]
    fn finds_the_largest_product_across_blocks() {
        let (n, dim) = (BLOCK_SET + 37, 5);
        let value = |i: usize| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5;
        let set = VectorSet::new(dim, (0..n * dim).map(value).collect()).expect("whole rows");
        let row = |i: usize| (i % 7 != 3).then(|| (0..dim).map(move |j| Some(f16::from_f32(value(i * 31 + j)))).collect::<Vec<_>>());
        let rows = FixedSizeListArray::from_iter_primitive::<Float16Type, _, _>((0..700).map(row), dim as i32).slice(9, 600);
        let (nearest, most) = (set.nearest(&rows).expect("vectors"), set.max_similarity(&rows).expect("vectors"));
        for i in 0..600 {
            let Some(row) = row(i + 9) else {
                assert!(nearest.is_null(i) && most.is_null(i));
                continue;
            };
            let product = |id: usize| set.vector(id).iter().zip(&row).map(|(x, y)| x * y.expect("all there").to_f32()).sum::<f32>();
            let best = (0..n).map(product).fold(f32::NEG_INFINITY, f32::max);
            assert!((best - most.value(i)).abs() < 1e-5);
            assert!((best - product(nearest.value(i) as usize)).abs() < 1e-5);
        }
    }

    #[test]
    fn refuses_vectors_of_another_length() {
        let set = VectorSet::new(2, vec![1.0, 0.0]).expect("one row");
        let rows = FixedSizeListArray::from_iter_primitive::<Float16Type, _, _>([Some(vec![Some(f16::ONE); 3])], 3);
        assert_eq!(set.nearest(&rows).expect_err("refused").to_string(), "vectors of different dimensions: 3 and 2");
        assert_eq!(VectorSet::new(3, vec![1.0]).expect_err("refused").to_string(), "1 values are no vectors of 3");
    }
}
