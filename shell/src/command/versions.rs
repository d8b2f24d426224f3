use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use storage::Pool;
use tokio::runtime::Runtime;

use super::block_on;
use super::session::session;
use crate::cli;
use crate::format::print;
use crate::progress::Meter;
use crate::{Error, Result};

pub(crate) fn tag(args: cli::Tag, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let Some(name) = &args.name else {
        let versions = block_on(runtime, pool.versions())?;
        let mut text = format!("versions {} to {}\n", versions.oldest, versions.newest);
        for (name, version) in &versions.tags {
            text += &format!("{name}  {version}\n");
        }
        return print(&text);
    };
    if args.delete {
        block_on(runtime, pool.untag(name))?;
        crate::note!("removed tag {name}");
    } else {
        let version = block_on(runtime, pool.tag(name, args.force))?;
        crate::note!("{name} is version {version} of {}", args.pool);
    }
    Ok(())
}

pub(crate) fn compact(args: cli::Compact, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    extend_columns(&pool, &args.queries, runtime)?;
    for (table, before, after) in block_on(runtime, pool.compact())? {
        crate::note!("{}: {before} fragments, now {after}", table.name());
    }
    Ok(())
}

pub(crate) fn shrink(args: cli::Shrink, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let side = args.side as usize;
    let meter = Meter::new("shrink");
    let smaller = Arc::new(AtomicU64::new(0));
    let counted = smaller.clone();
    let shrink = move |image: &[u8]| {
        let shrunk = train::image::shrink(image, side);
        counted.fetch_add(u64::from(shrunk.is_some()), Ordering::Relaxed);
        shrunk
    };
    let looked = block_on(runtime, pool.shrink_images(side, shrink, &|progress| meter.show(progress)));
    meter.finish();
    let (images, smaller) = (looked?, smaller.load(Ordering::Relaxed));
    crate::note!("{images} images looked at, {smaller} of them larger: train with --shrunk {side}");
    Ok(())
}

/// Extends computed columns to rows that came after them.
pub(crate) fn extend_columns(pool: &Pool, queries: &cli::Queries, runtime: &Runtime) -> Result<()> {
    if block_on(runtime, pool.computed())?.iter().all(|column| column.lagging == 0) {
        return Ok(());
    }
    let meter = Arc::new(Meter::new("compute"));
    let extended =
        block_on(runtime, async { Ok::<_, Error>(session(pool.clone(), queries, meter.clone()).await?.extend_columns().await?) });
    meter.finish();
    for (column, rows) in extended? {
        match rows {
            Ok(rows) => crate::note!("computed {column} for {rows} new samples"),
            Err(e) => {
                crate::note!("warning: {column} lags behind the new samples: {e}");
                e.hint().iter().for_each(|hint| crate::note!("hint: {hint}"));
            }
        }
    }
    Ok(())
}

pub(crate) fn clean(args: cli::Clean, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let (versions, bytes) = block_on(runtime, pool.clean(args.older_than))?;
    crate::note!("removed {versions} versions, {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}
