//! How fast a pool is filled: `cargo bench --bench storage`.
//! `tests/peers` has the comparisons with other programs.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use parquet::arrow::ArrowWriter;
use storage::Pool;
use storage::ingest::{Options, ingest};

const ROWS: u64 = 200_000;

/// `ROWS` samples in files of 10,000, with uids as scattered as hashes.
fn write_metadata(folder: &Path) {
    for file in 0..ROWS / 10_000 {
        let rows = file * 10_000..(file + 1) * 10_000;
        let uid = |i: u64| format!("{:016x}{:016x}", (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), i);
        let column = |f: &dyn Fn(u64) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.clone().map(f))) };
        let sizes: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.clone().map(|i| 200 + (i % 900) as i64)));
        let scores: ArrayRef = Arc::new(Float32Array::from_iter_values(rows.clone().map(|i| (i % 1000) as f32 / 1000.0)));
        let batch = RecordBatch::try_from_iter([
            ("uid", column(&uid)),
            ("url", column(&|i| format!("https://www.example{}.org/pictures/{i:x}/large.jpg", i % 997))),
            ("text", column(&|i| format!("photograph number {i} of a house by the lake, in the style of {}", i % 61))),
            ("original_width", sizes.clone()),
            ("original_height", sizes),
            ("clip_l14_similarity_score", scores),
            ("sha256", column(&|i| format!("{}{}", uid(i), uid(i + 1)))),
        ]);
        let batch = batch.expect("columns of one length");
        let out = std::fs::File::create(folder.join(format!("{file:08}.parquet"))).expect("a writable folder");
        let mut writer = ArrowWriter::try_new(out, batch.schema(), None).expect("a plain schema");
        writer.write(&batch).and_then(|()| writer.close()).expect("a writable file");
    }
}

fn metadata(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let source = tempfile::tempdir().expect("a temporary folder");
    write_metadata(source.path());
    let sources = [source.path().display().to_string()];
    let mut group = c.benchmark_group("ingest");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).throughput(Throughput::Elements(ROWS));
    group.bench_function("metadata", |b| {
        b.iter_with_large_drop(|| {
            let pool = tempfile::tempdir().expect("a temporary folder");
            let root = pool.path().join("pool").display().to_string();
            let summary = runtime.block_on(ingest(&Pool::at(&root), &sources, &Options::default(), &|_| {}));
            assert_eq!(summary.expect("good sources").rows, ROWS);
            pool
        });
    });
    group.finish();
}

criterion_group!(benches, metadata);
criterion_main!(benches);
