use arrow::array::{Array, Float32Array, Int32Array};

use crate::assign::{BLOCK_ROWS, BLOCK_SET, best_of_block};
use crate::metric::Vectors;
use crate::{Error, Result};

/// A named set of vectors held in memory: centroids, prototypes, targets.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorSet {
    dim: usize,
    /// `[n, dim]`, row by row.
    values: Vec<f32>,
}

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

    /// `[n, dim]`, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
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
        let mut scratch = vec![0f32; BLOCK_ROWS * BLOCK_SET.min(self.len())];
        for i in 0..rows.len() {
            if let Some(vector) = vectors.row(i) {
                if vector.len() != self.dim {
                    return Err(Error::Dimensions { left: vector.len(), right: self.dim });
                }
                vector.extend(&mut block);
                which.push(i);
            }
            if which.len() == BLOCK_ROWS || i + 1 == rows.len() {
                let mut of_block = vec![(0u32, f32::NEG_INFINITY); which.len()];
                best_of_block(&block, &self.values, self.dim, &[], &mut scratch, &mut of_block);
                for (&row, (id, similarity)) in which.iter().zip(of_block) {
                    best[row] = Some((id as usize, similarity));
                }
                block.clear();
                which.clear();
            }
        }
        Ok(best)
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
