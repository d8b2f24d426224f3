use storage::Pool;
use storage::ingest::{Summary, ingest};
use tokio::runtime::Runtime;

use super::block_on;
use crate::Result;
use crate::cli;
use crate::progress::Meter;

pub(crate) fn run(args: cli::Ingest, runtime: &Runtime) -> Result<()> {
    let meter = Meter::new("ingest");
    let pool = Pool::at(&args.pool);
    let summary = block_on(runtime, ingest(&pool, &args.sources, &|progress| meter.show(progress)));
    meter.finish();
    print(&args.pool, &summary?);
    Ok(())
}

fn print(pool: &str, s: &Summary) {
    crate::note!(
        "ingested {} samples ({} with embeddings) and {} images from {} files",
        s.rows,
        s.embeddings,
        s.images,
        s.files - s.known_files
    );
    if s.known_files > 0 {
        crate::note!("passed over {} files that the pool has already", s.known_files);
    }
    for (reason, count) in &s.skipped {
        let example = s.examples.get(reason).map(String::as_str).unwrap_or_default();
        crate::note!("skipped {count}: {reason} (first: {example})");
    }
    crate::note!("{pool} now has {} samples, {} images", s.pool_rows, s.pool_images);
}
