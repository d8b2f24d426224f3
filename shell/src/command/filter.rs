use engine::{Filter, Session};
use storage::{Error as StorageError, Receipt};
use tokio::runtime::Runtime;

use super::{block_on, open};
use crate::cli;
use crate::format::print;
use crate::{Error, Result};

pub(crate) fn run(args: cli::Filter, runtime: &Runtime) -> Result<()> {
    if args.list {
        return print(&list());
    }
    if let Some(name) = &args.show {
        return print(&Filter::resolve(name)?.sql);
    }
    let (Some(pool), Some(filter), Some(output)) = (&args.pool, &args.filter, &args.output) else {
        return Err(Error::Usage { message: "a pool, a filter and -o are needed".into(), hint: "tarn filter POOL NAME -o subset.npy" });
    };
    if output.extension().is_none_or(|extension| extension != "npy") {
        let message = format!("the subset must be a .npy file, got {}", output.display());
        return Err(Error::Usage { message, hint: "tarn filter POOL NAME -o subset.npy" });
    }
    let filter = Filter::resolve(filter)?.bind(&args.params)?;
    let (subset, receipt) = block_on(runtime, async {
        let session = Session::over(open(pool, args.at.as_deref()).await?).await?;
        Ok::<_, Error>(session.subset(&filter).await?)
    })?;
    if subset.is_empty() {
        return Err(StorageError::SubsetEmpty.into());
    }
    subset.write(output)?;
    receipt.write(&Receipt::path_beside(output))?;
    let share = 100.0 * receipt.subset_size as f64 / receipt.pool_rows.max(1) as f64;
    crate::note!(
        "selected {} of {} samples ({share:.1}%) in {:.2} s: {}",
        receipt.subset_size,
        receipt.pool_rows,
        receipt.wall_seconds,
        output.display()
    );
    Ok(())
}

fn list() -> String {
    let mut text = String::new();
    for filter in Filter::shipped() {
        text += &format!("{}: {}\n", filter.name, filter.about);
        for p in &filter.parameters {
            let default = p.default.as_ref().map(|value| format!(" = {value}")).unwrap_or_default();
            let choices = if p.choices.is_empty() { String::new() } else { format!(" ({})", p.choices.join(", ")) };
            text += &format!("    --param {}: {}{choices}{default}  {}\n", p.name, p.data_type.name(), p.about);
        }
    }
    text
}
