use std::io::{IsTerminal, Read};
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
        (None, Some(path)) => utf8(std::fs::read(path).map_err(Error::io(path))?).map_err(Error::io(path))?,
        (None, None) if std::io::stdin().is_terminal() => return repl::run(&session, runtime),
        (None, None) => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).and_then(|_| utf8(bytes)).map_err(Error::io("standard input"))?
        }
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
    let mut shell = repl::Shell::new(&session, runtime, format);
    for statement in statements {
        match statement.strip_prefix('\\') {
            Some("q") => break,
            Some(command) => shell.command(command)?,
            None => block_on(runtime, print(&session, &statement, &params, format, args.output.as_deref()))?,
        }
    }
    Ok(())
}

fn utf8(bytes: Vec<u8>) -> std::io::Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|b| **b == b'\n').count();
        std::io::Error::other(format!("line {line} is not UTF-8"))
    })
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

/// Returns the statements of a text, split at semicolons outside quotes and comments, and the shell's own commands, which
/// begin with a backslash and end with their line; empty ones are dropped.
pub(crate) fn statements(text: &str) -> Vec<String> {
    split(text).0
}

/// Whether nothing is left open at the end of the text: what the REPL waits for.
pub(crate) fn is_complete(text: &str) -> bool {
    !split(text).1
}

/// Returns the statements, the last with or without its semicolon, and whether a statement, quote or comment is still open.
fn split(text: &str) -> (Vec<String>, bool) {
    let (mut statements, mut has_code, mut open) = (Vec::new(), false, false);
    // Where the statement begins, and how far it is read.
    let (mut start, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        if !has_code && c == '\\' {
            let end = rest.find('\n').map_or(text.len(), |end| at + end);
            statements.push(text[at..end].trim().to_string());
            (start, at) = (end, end);
            continue;
        }
        if c == ';' {
            if std::mem::take(&mut has_code) {
                statements.push(text[start..at].trim().to_string());
            }
            (start, at) = (at + 1, at + 1);
            continue;
        }
        let is_comment = rest.starts_with("--") || rest.starts_with("/*");
        has_code |= !is_comment && !c.is_whitespace();
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let ends_word = text[start..at].chars().next_back().is_some_and(is_word);
        // Whatever is opened here, with its end.
        let length = if rest.starts_with("--") {
            Some(rest.find('\n').map_or(rest.len(), |end| end + 1))
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if c == '\'' {
            rest[1..].find('\'').map(|end| end + 2)
        } else if c == '"' {
            rest[1..].find('"').map(|end| end + 2)
        } else if !ends_word && (rest.starts_with("E'") || rest.starts_with("e'")) {
            escaped(rest)
        } else if let Some(tag) = dollar_tag(rest).filter(|_| !ends_word) {
            rest[tag.len()..].find(tag).map(|end| end + 2 * tag.len())
        } else {
            Some(c.len_utf8())
        };
        open = length.is_none();
        at += length.unwrap_or(rest.len());
    }
    if has_code {
        statements.push(text[start..].trim().to_string());
    }
    (statements, has_code || open)
}

/// Returns the length of a comment with those within it; none where it is open.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    loop {
        at += text[at..].find(['/', '*'])?;
        match text[at..].get(..2) {
            Some("/*") => (depth, at) = (depth + 1, at + 2),
            Some("*/") if depth == 1 => return Some(at + 2),
            Some("*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
}

/// Returns the length of `E'...'`, where a backslash takes what follows it along.
fn escaped(text: &str) -> Option<usize> {
    let mut at = 2;
    loop {
        at += text[at..].find(['\'', '\\'])?;
        if text[at..].starts_with('\'') {
            return Some(at + 1);
        }
        at += 1 + text[at + 1..].chars().next()?.len_utf8();
    }
}

/// Returns `$$` or `$tag$` where the text begins with one; `$name` alone is a parameter.
fn dollar_tag(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('$')?;
    let end = inner.find('$')?;
    let is_tag = inner[..end].chars().enumerate().all(|(i, c)| c == '_' || c.is_alphabetic() || i > 0 && c.is_numeric());
    is_tag.then(|| &text[..end + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_outside_quotes_and_comments() {
        assert_eq!(statements("select ';' ; -- a; b\nselect \"x;y\" /* ; */;;"), ["select ';'", "-- a; b\nselect \"x;y\" /* ; */"]);
        assert!(statements(" -- nothing;\n").is_empty());
        assert_eq!(
            statements("select $$a;b$$; select $t$it's; ok$t$; select $a + $b;"),
            ["select $$a;b$$", "select $t$it's; ok$t$", "select $a + $b"]
        );
        assert_eq!(statements(r"select E'a\';b'; select e'\\'; select 'E';"), [r"select E'a\';b'", r"select e'\\'", "select 'E'"]);
        assert_eq!(
            statements("/* c; /* nested; */ */ select 3; select \"te\"\"xt;\""),
            ["/* c; /* nested; */ */ select 3", "select \"te\"\"xt;\""]
        );
        assert_eq!(statements("select 1;\n\\d pool\n\\q\nselect\n 'a\\b'"), ["select 1", "\\d pool", "\\q", "select\n 'a\\b'"]);
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
            ("/* /* ; */", false),
            ("select $$;", false),
            ("select E'\\';", false),
            ("", true),
        ] {
            assert_eq!(is_complete(text), complete, "{text}");
        }
    }
}
