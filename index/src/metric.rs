use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type};
use half::f16;

use crate::kernel::{Products, products};
use crate::{Error, Result};

/// How near two vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// x·y / (|x| |y|): 1 for the same direction.
    CosineSimilarity,
    /// 1 - x·y / (|x| |y|): 0 for the same direction.
    CosineDistance,
    /// x·y
    InnerProduct,
    /// |x - y|
    L2Distance,
}

impl Metric {
    #[inline(always)]
    fn of(self, p: Products) -> f32 {
        match self {
            Metric::CosineSimilarity => p.xy / (p.xx.sqrt() * p.yy.sqrt()),
            Metric::CosineDistance => 1.0 - p.xy / (p.xx.sqrt() * p.yy.sqrt()),
            Metric::InnerProduct => p.xy,
            Metric::L2Distance => p.dd.sqrt(),
        }
    }
}

/// What a search goes by: less is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distance {
    /// 1 - x·y / (|x| |y|)
    Cosine,
    /// 1 - x·y
    Dot,
    /// |x - y|
    L2,
}

impl Distance {
    #[inline(always)]
    pub(crate) fn of(self, p: Products) -> f32 {
        match self {
            Distance::Cosine => Metric::CosineDistance.of(p),
            Distance::Dot => 1.0 - p.xy,
            Distance::L2 => Metric::L2Distance.of(p),
        }
    }

    /// Its name in SQL and in Lance's indexes.
    pub fn name(self) -> &'static str {
        match self {
            Distance::Cosine => "cosine",
            Distance::Dot => "dot",
            Distance::L2 => "l2",
        }
    }

    pub fn parse(name: &str) -> Option<Distance> {
        [Distance::Cosine, Distance::Dot, Distance::L2].into_iter().find(|distance| distance.name().eq_ignore_ascii_case(name))
    }
}

/// A column of vectors; lists of a fixed size are read in place, others through a float32 copy.
pub(crate) enum Vectors<'a> {
    F16(&'a FixedSizeListArray, &'a [f16]),
    F32(&'a FixedSizeListArray, &'a [f32]),
    Lists(ArrayRef),
}

/// One row of a column.
pub(crate) enum Vector<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

impl<'a> Vectors<'a> {
    pub fn of(column: &'a dyn Array) -> Result<Vectors<'a>> {
        if let Some(list) = column.as_fixed_size_list_opt() {
            // A sliced list gives its values sliced with it.
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
        if lists.as_list::<i32>().values().null_count() > 0 {
            return Err(Error::NullInVector);
        }
        Ok(Vectors::Lists(lists))
    }

    pub fn row(&self, i: usize) -> Option<Vector<'_>> {
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
    pub fn len(&self) -> usize {
        match self {
            Vector::F16(v) => v.len(),
            Vector::F32(v) => v.len(),
        }
    }

    /// Appends the numbers as float32.
    pub fn extend(&self, out: &mut Vec<f32>) {
        match self {
            Vector::F16(v) => out.extend(v.iter().map(|x| x.to_f32())),
            Vector::F32(v) => out.extend_from_slice(v),
        }
    }
}

/// A column of vectors as lists of a fixed size, of float16 or float32.
pub fn as_fixed(column: &ArrayRef) -> Result<FixedSizeListArray> {
    if let Some(list) = column.as_fixed_size_list_opt()
        && matches!(list.value_type(), DataType::Float16 | DataType::Float32)
    {
        return Ok(list.clone());
    }
    let vectors = Vectors::of(column)?;
    let dim = (0..column.len()).find_map(|i| vectors.row(i).map(|row| row.len())).unwrap_or(1);
    let mut values = Vec::with_capacity(column.len() * dim);
    let mut there = Vec::with_capacity(column.len());
    for i in 0..column.len() {
        match vectors.row(i) {
            Some(row) if row.len() != dim => return Err(Error::Dimensions { left: dim, right: row.len() }),
            Some(row) => row.extend(&mut values),
            None => values.extend(std::iter::repeat_n(0.0, dim)),
        }
        there.push(vectors.row(i).is_some());
    }
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values = Arc::new(Float32Array::from(values));
    FixedSizeListArray::try_new(item, dim as i32, values, Some(there.into())).map_err(|e| Error::lance(e.into()))
}

/// Returns what is looked for, `[n, dim]`, and the rows it is of: those that are not NULL and, where a direction is wanted,
/// not all zeros. An error where a vector is of another length than `dim` or holds a number that is not finite.
pub fn check_queries(column: &dyn Array, dim: usize, distance: Distance) -> Result<(Vec<f32>, Vec<usize>)> {
    let vectors = Vectors::of(column)?;
    let (mut values, mut rows) = (Vec::with_capacity(column.len() * dim), Vec::with_capacity(column.len()));
    for i in 0..column.len() {
        let Some(row) = vectors.row(i) else { continue };
        if row.len() != dim {
            return Err(Error::Dimensions { left: dim, right: row.len() });
        }
        let start = values.len();
        row.extend(&mut values);
        if values[start..].iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFiniteQuery);
        }
        if distance == Distance::Cosine && values[start..].iter().all(|x| *x == 0.0) {
            values.truncate(start);
            continue;
        }
        rows.push(i);
    }
    Ok((values, rows))
}

/// The metric between the vectors of `a` and `b`, row by row, as float32; a column of one row stands for every row.
/// NULL where either is NULL, and where the metric is not a number: the cosine of a vector of zeros. An error where lengths
/// differ.
pub fn measure(metric: Metric, a: &dyn Array, b: &dyn Array, rows: usize) -> Result<Float32Array> {
    let (left, right) = (Vectors::of(a)?, Vectors::of(b)?);
    let step = |column: &dyn Array| usize::from(column.len() != 1);
    let (step_a, step_b) = (step(a), step(b));
    let mut values = Vec::with_capacity(rows);
    for i in 0..rows {
        let value = match (left.row(i * step_a), right.row(i * step_b)) {
            (Some(x), Some(y)) if x.len() != y.len() => return Err(Error::Dimensions { left: x.len(), right: y.len() }),
            (Some(x), Some(y)) => Some(between(metric, &x, &y)).filter(|value| !value.is_nan()),
            _ => None,
        };
        values.push(value);
    }
    Ok(values.into())
}

fn between(metric: Metric, x: &Vector, y: &Vector) -> f32 {
    metric.of(match (x, y) {
        (Vector::F16(x), Vector::F16(y)) => products(x, y),
        (Vector::F16(x), Vector::F32(y)) => products(x, y),
        (Vector::F32(x), Vector::F16(y)) => products(x, y),
        (Vector::F32(x), Vector::F32(y)) => products(x, y),
    })
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
        let similarity = measure(Metric::CosineSimilarity, &a, &b, 3).expect("vectors");
        assert!((similarity.value(0) - 1.0).abs() < 1e-6);
        assert!(similarity.is_null(1));
        assert!((similarity.value(2) - 0.5f32.sqrt()).abs() < 1e-6);
        let distance = measure(Metric::L2Distance, &a, &b, 3).expect("vectors");
        assert_eq!((distance.value(0), distance.value(2)), (1.0, 2f32.sqrt()));
        let product = measure(Metric::InnerProduct, &b, &a, 3).expect("vectors");
        assert_eq!((product.value(0), product.is_null(1)), (2.0, true));
        let itself = measure(Metric::CosineDistance, &a, &a, 3).expect("vectors");
        assert!(itself.value(2).abs() < 1e-6 && itself.is_null(1));
        let zero = halves(&[Some([0.0; 3])]);
        assert!(measure(Metric::CosineSimilarity, &a, &zero, 3).expect("vectors").null_count() == 3);
    }

    #[test]
    fn refuses_other_dimensions_and_types() {
        let a = halves(&[Some([1.0, 0.0, 0.0])]);
        let b = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(2.0), Some(0.0)])]);
        let refused = |b: &dyn Array| measure(Metric::InnerProduct, &a, b, 1).expect_err("refused").to_string();
        assert_eq!(refused(&b), "vectors of different dimensions: 3 and 2");
        assert!(refused(&Float64Array::from(vec![1.0])).starts_with("not a vector: Float64"));
        let holes = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(2.0), None, Some(1.0)])]);
        assert_eq!(refused(&holes), "a vector has a NULL inside");
    }
}
