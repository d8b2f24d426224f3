//! Kernels that bound queries: distances between columns of vectors, beside a plain copy of the same bytes.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{Array, AsArray, FixedSizeListArray, Float16Array, Float32Array};
use arrow::datatypes::{DataType, Field, Float16Type};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use index::{Metric, VectorSet, measure};

const ROWS: usize = 50_000;
const DIM: usize = 768;

fn column(seed: usize) -> FixedSizeListArray {
    let values = (0..ROWS * DIM).map(|i| f16::from_f32(((i * 7919 + seed * 104_729) % 1013) as f32 / 1013.0 - 0.5));
    let item = Arc::new(Field::new("item", DataType::Float16, true));
    FixedSizeListArray::new(item, DIM as i32, Arc::new(Float16Array::from_iter_values(values)), None)
}

fn vectors(c: &mut Criterion) {
    let (a, b) = (column(1), column(2));
    let mut group = c.benchmark_group("vectors");
    group.sample_size(10).throughput(Throughput::Bytes((2 * ROWS * DIM * 2) as u64));
    // As many bytes read as the distance reads, and as many written.
    let (from_a, from_b) = (a.values().as_primitive::<Float16Type>().values(), b.values().as_primitive::<Float16Type>().values());
    let mut to = vec![f16::ZERO; 2 * ROWS * DIM];
    group.bench_function("copy", |bench| {
        bench.iter(|| {
            to[..ROWS * DIM].copy_from_slice(from_a);
            to[ROWS * DIM..].copy_from_slice(from_b);
            black_box(&to);
        });
    });
    for (name, metric) in [("cosine_similarity", Metric::CosineSimilarity), ("l2_distance", Metric::L2Distance)] {
        group.bench_function(name, |bench| bench.iter(|| -> Float32Array { measure(metric, &a, &b, ROWS).expect("vectors") }));
    }
    group.finish();
    let set = VectorSet::new(DIM, (0..1000 * DIM).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect()).expect("whole rows");
    let rows = a.slice(0, 5000);
    let mut group = c.benchmark_group("sets");
    group.sample_size(10).throughput(Throughput::Elements(rows.len() as u64));
    group.bench_function("nearest of 1000", |bench| bench.iter(|| set.nearest(&rows).expect("vectors")));
    group.finish();
}

criterion_group!(benches, vectors);
criterion_main!(benches);
