use std::path::Path;

use storage::Pool;
use tokio::runtime::Runtime;

use super::{block_on, device, open_encoder};
use crate::cli;
use crate::progress::Meter;
use crate::{Error, Result, STOP};

pub(crate) fn run(args: cli::Embed, runtime: &Runtime) -> Result<()> {
    let name = &args.column;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        let message = format!("'{name}' is no column's name: use lower-case letters, digits and _");
        return Err(Error::Usage { message, hint: "for instance: --column scorer" });
    }
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let encoder = open_encoder(&args.model, device(&args.compute)?)?;
    let meter = Meter::new("embed");
    let done = {
        let _inside = runtime.enter();
        // Beside the pool's tables, where that is a folder of this machine.
        let kept = match Path::new(&args.pool).is_dir() {
            true => Path::new(&args.pool).join(format!("embedding_{name}")),
            false => std::env::temp_dir().join(format!("tarn_{}_{name}", args.pool.replace(|c: char| !c.is_alphanumeric(), "_"))),
        };
        train::embed::embed(&pool, encoder, name, args.replace, &kept, &STOP, &|progress| meter.show(progress))
    };
    meter.finish();
    let done = done?;
    crate::note!("added {name}_img, {name}_txt and {name}_score to {} samples", done.rows);
    if done.no_image + done.unreadable > 0 {
        crate::note!(
            "{} of them have no image and {} an unreadable one: their {name}_img and {name}_score are NULL",
            done.no_image,
            done.unreadable
        );
    }
    Ok(())
}
