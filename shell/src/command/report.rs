use crate::Result;
use crate::cli;
use crate::format::{pipe_table, print};

pub(crate) fn run(args: cli::Report) -> Result<()> {
    let table = eval::report(&args.runs)?;
    print(&pipe_table(&table.header, &table.rows))?;
    for note in &table.notes {
        crate::note!("{note}");
    }
    Ok(())
}
