use std::path::Path;
use std::sync::Arc;

use engine::{Bound, Filter, Session};
use storage::Subset;
use tokio::runtime::Runtime;

use super::session::session;
use super::{block_on, open, sql};
use crate::cli::{self, Format};
use crate::format::{pipe_table, print};
use crate::progress::Meter;
use crate::{Error, Result};

/// Examples of each side of a comparison.
const EXAMPLES: usize = 5;

pub(crate) fn run(args: cli::Filter, runtime: &Runtime) -> Result<()> {
    if args.list {
        return print(&list());
    }
    if let Some(name) = &args.show {
        return print(Filter::resolve(name)?.sql());
    }
    let (Some(pool), Some(filter)) = (&args.pool, &args.filter) else {
        return Err(Error::Usage { message: "a pool and a filter are needed".into(), hint: "tarn filter POOL NAME -o subset.npy" });
    };
    let meter = Arc::new(Meter::new("filter"));
    let done = block_on(runtime, async {
        if let Some(output) = &args.output {
            check_output(output)?;
        }
        // Names and parameters are looked at before the pool is opened.
        let bound = if is_subset(filter) { None } else { Some(Filter::resolve(filter)?.bind(&args.params)?) };
        let session = session(open(pool, args.at.as_deref()).await?, &args.queries, meter.clone()).await?;
        match (&args.diff, bound) {
            (Some(other), _) => diff(&session, &args, filter, other).await,
            (None, None) => Err(Error::Usage {
                message: format!("{filter} is a subset already"),
                hint: "compare it: tarn filter POOL A.npy --diff B.npy",
            }),
            (None, Some(bound)) if args.explain => explain(&session, &bound).await,
            (None, Some(bound)) if args.explain_drop => explain_drop(&session, &bound, &meter).await,
            (None, Some(bound)) => write(&session, &bound, args.output.as_deref(), &meter).await,
        }
    });
    meter.finish();
    done
}

fn is_subset(text: &str) -> bool {
    Path::new(text).extension().is_some_and(|extension| extension == "npy")
}

fn check_output(output: &Path) -> Result<()> {
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    if output.extension().is_none_or(|extension| extension != "npy") {
        let message = format!("the subset must be a .npy file, got {}", output.display());
        return Err(Error::Usage { message, hint: "tarn filter POOL NAME -o subset.npy" });
    }
    match parent.is_some_and(|parent| !parent.is_dir()) {
        true => Err(Error::Usage {
            message: format!("no such folder: {}", parent.unwrap_or(output).display()),
            hint: "make it first, or choose another",
        }),
        false => Ok(()),
    }
}

async fn write(session: &Session, filter: &Bound, output: Option<&Path>, meter: &Meter) -> Result<()> {
    let Some(output) = output else {
        return Err(Error::Usage { message: "-o is needed".into(), hint: "tarn filter POOL NAME -o subset.npy" });
    };
    let receipt = session.write_subset(filter, output).await?;
    meter.finish();
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

async fn explain(session: &Session, filter: &Bound) -> Result<()> {
    sql::print_rows(session, session.explain(filter).await?, Format::Table, None).await
}

async fn explain_drop(session: &Session, filter: &Bound, meter: &Meter) -> Result<()> {
    let drops = session.drops(filter).await?;
    meter.finish();
    let share = |n: u64| format!("{:.2}%", 100.0 * n as f64 / drops.rows.max(1) as f64);
    let header = ["condition", "removes alone", "", "removes at the margin", ""].map(str::to_string);
    let rows: Vec<Vec<String>> = drops
        .conditions
        .iter()
        .map(|c| vec![c.text.clone(), c.alone.to_string(), share(c.alone), c.margin.to_string(), share(c.margin)])
        .collect();
    let mut text = format!("{} of {} samples survive ({})\n\n{}", drops.kept, drops.rows, share(drops.kept), pipe_table(&header, &rows));
    for (heading, groups) in &drops.survivors {
        let total = groups.iter().map(|(_, n)| n).sum::<u64>().max(1);
        let of_total = |n: u64| format!("{:.2}%", 100.0 * n as f64 / total as f64);
        let rows: Vec<Vec<String>> = groups.iter().map(|(name, n)| vec![name.clone(), n.to_string(), of_total(*n)]).collect();
        text += &format!("\n{}", pipe_table(&[heading.clone(), "survive".into(), "".into()], &rows));
    }
    print(&text)
}

async fn diff(session: &Session, args: &cli::Filter, left: &str, right: &str) -> Result<()> {
    let (a, b) = (select(session, left, &args.params).await?, select(session, right, &[]).await?);
    let diff = session.diff(&a, &b, EXAMPLES).await?;
    let mut text = format!(
        "{left}: {}\n{right}: {}\nboth: {}\nonly {left}: {}\nonly {right}: {}\nJaccard: {:.4}\n",
        diff.left,
        diff.right,
        diff.both,
        diff.left - diff.both,
        diff.right - diff.both,
        diff.jaccard()
    );
    for (name, samples) in [(left, &diff.only_left), (right, &diff.only_right)] {
        if !samples.is_empty() {
            text += &format!("\nonly {name}, for instance:\n");
        }
        for (uid, caption) in samples {
            let caption: String = caption.chars().map(|c| if c.is_control() { ' ' } else { c }).take(100).collect();
            text += &format!("    {uid}  {caption}\n");
        }
    }
    print(&text)
}

async fn select(session: &Session, name: &str, params: &[(String, String)]) -> Result<Subset> {
    match is_subset(name) {
        true => Ok(Subset::read(Path::new(name))?),
        false => Ok(session.subset(&Filter::resolve(name)?.bind(params)?).await?.0),
    }
}

fn list() -> String {
    let mut text = String::new();
    for filter in Filter::shipped() {
        text += &format!("{}: {}\n", filter.name(), filter.about);
        for p in &filter.parameters {
            let default = p.default.as_ref().map(|value| format!(" = {value}")).unwrap_or_default();
            let choices = if p.choices.is_empty() { String::new() } else { format!(" ({})", p.choices.join(", ")) };
            text += &format!("    --param {}: {}{choices}{default}  {}\n", p.name, p.data_type.name(), p.about);
        }
    }
    text
}
