use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type};
use half::f16;
use lance_linalg::distance::Cosine;

use crate::{Error, Result};

/// A column of vectors; lists of a fixed size are read in place, others through a float32 copy.
enum Vectors<'a> {
    F16(&'a FixedSizeListArray, &'a [f16]),
    F32(&'a FixedSizeListArray, &'a [f32]),
    Lists(ArrayRef),
}

/// One row of a column.
enum Vector<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl<'a> Vectors<'a> {
    fn of(column: &'a dyn Array) -> Result<Vectors<'a>> {
        if let Some(list) = column.as_fixed_size_list_opt() {
            match list.value_type() {
                DataType::Float16 => return Ok(Vectors::F16(list, list.values().as_primitive::<Float16Type>().values())),
                DataType::Float32 => return Ok(Vectors::F32(list, list.values().as_primitive::<Float32Type>().values())),
                _ => {}
            }
        }
        let target = DataType::List(Field::new("item", DataType::Float32, true).into());
        match column.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Null => {}
            other => return Err(Error::NotAVector { got: other.to_string() }),
        }
        let lists = cast(column, &target).map_err(|_| Error::NotAVector { got: column.data_type().to_string() })?;
        Ok(Vectors::Lists(lists))
    }

    fn row(&self, i: usize) -> Option<Vector<'_>> {
        let range = |list: &FixedSizeListArray| {
            let dim = list.value_length() as usize;
            list.is_valid(i).then(|| i * dim..(i + 1) * dim)
        };
        match self {
            Vectors::F16(list, values) => Some(Vector::F16(&values[range(list)?])),
            Vectors::F32(list, values) => Some(Vector::F32(&values[range(list)?])),
            Vectors::Lists(lists) => {
                let lists = lists.as_list::<i32>();
                let (from, to) = (lists.value_offsets()[i] as usize, lists.value_offsets()[i + 1] as usize);
                lists.is_valid(i).then(|| Vector::F32(&lists.values().as_primitive::<Float32Type>().values()[from..to]))
            }
        }
    }
}

impl Vector<'_> {
    fn len(&self) -> usize {
        match self {
            Vector::F16(v) => v.len(),
            Vector::F32(v) => v.len(),
        }
    }

    /// As float32, through `scratch` where it is not.
    fn widen<'s>(&'s self, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        match self {
            Vector::F32(v) => v,
            Vector::F16(v) => {
                scratch.clear();
                scratch.extend(v.iter().map(|x| x.to_f32()));
                scratch
            }
        }
    }
}

/// The cosine of the angle between the vectors of `a` and `b`, row by row, as float32; a column of one row stands
/// for every row. NULL where either is NULL, NaN where either is all zeros.
pub fn cosine_similarity(a: &dyn Array, b: &dyn Array, rows: usize) -> Result<Float32Array> {
    let (left, right) = (Vectors::of(a)?, Vectors::of(b)?);
    let at = |column: &dyn Array, i: usize| if column.len() == 1 { 0 } else { i };
    let (mut scratch_a, mut scratch_b) = (Vec::new(), Vec::new());
    let mut row = |i: usize| {
        let (Some(x), Some(y)) = (left.row(at(a, i)), right.row(at(b, i))) else { return Ok(None) };
        if x.len() != y.len() {
            return Err(Error::Dimensions { left: x.len(), right: y.len() });
        }
        let distance = match (&x, &y) {
            (Vector::F16(x), Vector::F16(y)) => f16::cosine(x, y),
            _ => f32::cosine(x.widen(&mut scratch_a), y.widen(&mut scratch_b)),
        };
        Ok(Some(1.0 - distance))
    };
    (0..rows).map(&mut row).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeListArray, Float64Array, ListArray};
    use arrow::datatypes::Float64Type;

    use super::*;

    fn halves(rows: &[Option<[f32; 3]>]) -> FixedSizeListArray {
        FixedSizeListArray::from_iter_primitive::<Float16Type, _, _>(
            rows.iter().map(|row| row.map(|row| row.map(|x| Some(f16::from_f32(x))))),
            3,
        )
    }

    #[test]
    fn columns_constants_nulls_and_slices() {
        let a = halves(&[Some([9.0, 9.0, 9.0]), Some([1.0, 0.0, 0.0]), None, Some([1.0, 1.0, 0.0])]);
        let a = a.slice(1, 3);
        let b = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(2.0), Some(0.0), Some(0.0)])]);
        let similarity = cosine_similarity(&a, &b, 3).unwrap();
        assert!((similarity.value(0) - 1.0).abs() < 1e-6);
        assert!(similarity.is_null(1));
        assert!((similarity.value(2) - 0.5f32.sqrt()).abs() < 1e-3);
        let itself = cosine_similarity(&a, &a, 3).unwrap();
        assert!((itself.value(2) - 1.0).abs() < 1e-3 && itself.is_null(1));
    }

    #[test]
    fn refuses_other_dimensions_and_types() {
        let a = halves(&[Some([1.0, 0.0, 0.0])]);
        let b = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(2.0), Some(0.0)])]);
        assert_eq!(cosine_similarity(&a, &b, 1).unwrap_err().to_string(), "vectors of different dimensions: 3 and 2");
        assert!(cosine_similarity(&a, &Float64Array::from(vec![1.0]), 1).is_err());
    }
}
