use storage::Pool;
use storage::ingest::{Options, Summary, ingest};
use tokio::runtime::Runtime;

use super::{allocator, block_on};
use crate::cli;
use crate::progress::Meter;
use crate::{Error, Result};

/// What one group of files takes.
const LEAST_MEMORY: u64 = 300 << 20;

pub(crate) fn run(args: cli::Ingest, runtime: &Runtime) -> Result<()> {
    allocator::few_arenas();
    if args.memory < LEAST_MEMORY {
        let message = format!("--memory must be at least 300MB, got {} bytes", args.memory);
        return Err(Error::Usage { message, hint: "the default is 2GB" });
    }
    let meter = Meter::new("ingest");
    let pool = Pool::at(&args.pool);
    let default = Options::default();
    let options = Options {
        memory: args.memory,
        strict: args.strict,
        blurred: args.blurred,
        fragment_rows: args.fragment_rows.unwrap_or(default.fragment_rows),
        group_bytes: args.group_bytes.unwrap_or(default.group_bytes),
    };
    let summary = block_on(runtime, ingest(&pool, &args.sources, &options, &|progress| meter.show(progress)));
    meter.finish();
    let summary = summary?;
    print(&args.pool, &summary);
    let queries = cli::Queries { memory: args.memory, resources: args.resources };
    if let Err(e) = super::versions::extend_columns(&pool, &queries, runtime) {
        if e.is_interrupt() {
            return Err(e);
        }
        crate::note!("warning: a computed column lags behind the new samples: {e}");
        e.hint().iter().for_each(|hint| crate::note!("hint: {hint}"));
    }
    if summary.refused_files > 0 && summary.refused_files == summary.files {
        return Err(Error::NothingIngested { pool: args.pool });
    }
    Ok(())
}

fn print(pool: &str, s: &Summary) {
    crate::note!(
        "ingested {} samples, embeddings of {}, and {} images from {} files",
        s.rows,
        s.embeddings,
        s.images,
        s.files - s.known_files
    );
    if s.completed > 0 {
        crate::note!("completed {} samples that the pool had in part", s.completed);
    }
    if s.known_files > 0 {
        crate::note!("passed over {} files that the pool has already", s.known_files);
    }
    for (reason, (count, first)) in &s.passed_over {
        crate::note!("passed over {count}: {reason} (first: {first})");
    }
    for (reason, count) in &s.rejects {
        let example = s.examples.get(reason).map(String::as_str).unwrap_or_default();
        crate::note!("rejected {count}: {reason} (first: {example})");
    }
    if !s.rejects.is_empty() {
        crate::note!("all rejects: tarn sql {pool} -c \"SELECT * FROM rejects\"");
    }
    crate::note!("{pool} now has {} samples, {} images", s.pool_rows, s.pool_images);
}
