use storage::Pool;
use tokio::runtime::Runtime;

use super::block_on;
use crate::Result;
use crate::cli;
use crate::format::print;

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

pub(crate) fn compact(pool: &str, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(pool))?;
    for (table, before, after) in block_on(runtime, pool.compact())? {
        crate::note!("{}: {before} fragments, now {after}", table.name());
    }
    Ok(())
}

pub(crate) fn clean(args: cli::Clean, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let (versions, bytes) = block_on(runtime, pool.clean(args.older_than))?;
    crate::note!("removed {versions} versions, {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}
