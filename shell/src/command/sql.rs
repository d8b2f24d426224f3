use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use engine::{Rows, Session};
use futures::TryStreamExt;
use tokio::runtime::Runtime;

use super::session::session;
use super::{block_on, open, runs};
use crate::cli::{self, Format};
use crate::format::Sink;
use crate::progress::Meter;
use crate::{Error, Result, repl};

const BETWEEN_REPORTS: Duration = Duration::from_millis(300);

pub(crate) fn run(args: cli::Sql, runtime: &Runtime) -> Result<()> {
    let meter = Arc::new(Meter::new("query"));
    // Kept until the end: it holds the tables of a folder of runs.
    let runs = block_on(runtime, runs::tables(Path::new(&args.pool)))?;
    let session = block_on(runtime, async {
        let pool = match &runs {
            Some(tables) => tables.pool(),
            None => open(&args.pool, args.at.as_deref()).await?,
        };
        session(pool, &args.queries, meter).await
    })?;
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => std::fs::read_to_string(path).map_err(Error::io(path))?,
        (None, None) if std::io::stdin().is_terminal() => return repl::run(&session, runtime),
        (None, None) => std::io::read_to_string(std::io::stdin()).map_err(Error::io("standard input"))?,
    };
    let params: Vec<_> = args.params.iter().map(|(name, value)| (name.clone(), engine::guess(value))).collect();
    let statements = statements(&text);
    if args.output.is_some() && statements.len() > 1 {
        let message = format!("-o takes the rows of one statement, got {}", statements.len());
        return Err(Error::Usage { message, hint: "run the others first, each with its own -c" });
    }
    let format = format(&args)?;
    for (name, _) in &args.params {
        if args.params.iter().filter(|(other, _)| other == name).count() > 1 {
            return Err(Error::Usage { message: format!("--param {name} is given twice"), hint: "give each once" });
        }
    }
    for statement in statements {
        block_on(runtime, print(&session, &statement, &params, format, args.output.as_deref()))?;
    }
    Ok(())
}

/// The format that is asked for, or that the output's name ends in, or a table.
fn format(args: &cli::Sql) -> Result<Format> {
    let ending = args.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
    Ok(match (args.format, ending) {
        (Some(format), _) => format,
        (None, Some("npy")) => {
            let message = "a .npy is a subset, not rows".to_string();
            return Err(Error::Usage { message, hint: "tarn filter POOL SQL -o subset.npy, or COPY (SELECT uid ...) TO 'subset.npy'" });
        }
        (None, Some(ending)) => Format::from_str(ending, true).unwrap_or(Format::Table),
        (None, None) => Format::Table,
    })
}

/// Runs one statement and writes its rows as they come.
pub(crate) async fn print(
    session: &Session,
    statement: &str,
    params: &engine::Params,
    format: Format,
    output: Option<&Path>,
) -> Result<()> {
    print_rows(session, session.sql(statement, params).await?, format, output).await
}

/// Writes a query's rows as they come.
pub(crate) async fn print_rows(session: &Session, mut batches: Rows, format: Format, output: Option<&Path>) -> Result<()> {
    if batches.schema().fields().is_empty() {
        // SET and its like: there is nothing to print.
        while batches.try_next().await.map_err(|e| session.error(e))?.is_some() {}
        return Ok(());
    }
    let mut sink = Sink::new(format, output, batches.schema())?;
    let (meter, scans, mut tick) = (Meter::new("scan"), batches.scans(), tokio::time::interval(BETWEEN_REPORTS));
    tick.tick().await;
    loop {
        tokio::select! {
            batch = batches.try_next() => match batch.map_err(|e| session.error(e)).inspect_err(|_| meter.finish())? {
                Some(batch) => sink.write(&batch)?,
                None => break,
            },
            _ = tick.tick() => meter.show(scans.progress()),
        }
    }
    meter.finish();
    sink.finish()
}

/// The statements of a text, split at semicolons outside quotes and comments; empty ones are dropped.
pub(crate) fn statements(text: &str) -> Vec<String> {
    split(text).0
}

/// Whether nothing is left open at the end of the text: what the REPL waits for.
pub(crate) fn is_complete(text: &str) -> bool {
    !split(text).1
}

/// The statements, the last with or without its semicolon, and whether a statement, quote or comment is still open.
fn split(text: &str) -> (Vec<String>, bool) {
    let (mut statements, mut current, mut has_code, mut open) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ';' {
            if std::mem::take(&mut has_code) {
                statements.push(current.trim().to_string());
            }
            current.clear();
            continue;
        }
        current.push(c);
        let next = chars.peek().copied();
        let mut until = |end: &str| {
            let from = current.len();
            open = true;
            while open && let Some(inner) = chars.next() {
                current.push(inner);
                open = !current[from..].ends_with(end);
            }
        };
        match (c, next) {
            ('\'', _) => until("'"),
            ('"', _) => until("\""),
            ('-', Some('-')) => {
                until("\n");
                open = false;
                continue;
            }
            ('/', Some('*')) => {
                until("*/");
                continue;
            }
            _ => {}
        }
        has_code |= !c.is_whitespace();
    }
    if has_code {
        statements.push(current.trim().to_string());
    }
    (statements, has_code || open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_outside_quotes_and_comments() {
        assert_eq!(statements("select ';' ; -- a; b\nselect \"x;y\" /* ; */;;"), ["select ';'", "-- a; b\nselect \"x;y\" /* ; */"]);
        assert!(statements(" -- nothing;\n").is_empty());
    }

    #[test]
    fn complete_means_closed() {
        for (text, complete) in [
            ("select 1;", true),
            ("select 1", false),
            ("select ';", false),
            ("select 1; -- x", true),
            ("select 1; select", false),
            ("/* ; ", false),
            ("", true),
        ] {
            assert_eq!(is_complete(text), complete, "{text}");
        }
    }
}
