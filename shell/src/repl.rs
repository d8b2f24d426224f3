//! The interactive shell.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use engine::Session;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use tokio::runtime::Runtime;

use crate::cli::Format;
use crate::command::{INTERACTIVE, block_on, sql};
use crate::{Error, Result, STOP};

const COMMANDS: [(&str, &str); 6] = [
    ("\\q", "leave"),
    ("\\d [TABLE]", "list tables, or a table's columns"),
    ("\\df [FUNCTION]", "list tarn's functions, or tell of one"),
    ("\\?", "this list"),
    ("\\timing", "show how long each statement takes, or stop showing it"),
    ("\\i FILE", "run a file"),
];

const KEYWORDS: [&str; 40] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "LIMIT",
    "OFFSET",
    "HAVING",
    "JOIN",
    "LEFT",
    "INNER",
    "ON",
    "USING",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS",
    "NULL",
    "BETWEEN",
    "LIKE",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "DISTINCT",
    "UNION",
    "ALL",
    "WITH",
    "EXPLAIN",
    "ANALYZE",
    "DESCRIBE",
    "SHOW FUNCTIONS",
    "SHOW TABLES",
    "DESC",
    "ASC",
    "COPY",
    "CAST",
];

/// Reads statements until the end of input or `\q`. An error ends a statement, not the shell.
pub(crate) fn run(session: &Session, runtime: &Runtime) -> Result<()> {
    INTERACTIVE.store(true, Ordering::SeqCst);
    let config = Config::builder().completion_type(CompletionType::List).build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(config).map_err(readline)?;
    editor.set_helper(Some(Words::of(session, runtime)));
    let history = history_path();
    if let Some(path) = &history {
        let _ = editor.load_history(path); // a first run has none
    }
    crate::note!("{}: \\? for help, \\q to leave", session.pool().root());
    let mut shell = Shell::new(session, runtime, Format::Table);
    loop {
        STOP.store(false, Ordering::Relaxed);
        match editor.readline("tarn> ") {
            Ok(line) => {
                let _ = editor.add_history_entry(line.trim());
                if line.trim() == "\\q" {
                    break;
                }
                shell.run(&line);
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(readline(e)),
        }
    }
    if let Some(path) = &history {
        let saved = path.parent().map(std::fs::create_dir_all).transpose().is_ok() && editor.save_history(path).is_ok();
        if !saved {
            crate::note!("warning: the history could not be saved to {}", path.display());
        }
    }
    Ok(())
}

fn readline(e: ReadlineError) -> Error {
    Error::Output(std::io::Error::other(e))
}

/// `$XDG_DATA_HOME/tarn/history`.
fn history_path() -> Option<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))?;
    Some(data.join("tarn/history"))
}

pub(crate) struct Shell<'a> {
    session: &'a Session,
    runtime: &'a Runtime,
    format: Format,
    timing: bool,
}

impl<'a> Shell<'a> {
    pub fn new(session: &'a Session, runtime: &'a Runtime, format: Format) -> Shell<'a> {
        Shell { session, runtime, format, timing: false }
    }

    fn run(&mut self, text: &str) {
        let result = match text.trim().strip_prefix('\\') {
            Some(command) => self.command(command),
            None => self.statements(text),
        };
        if let Err(e) = result {
            crate::note!("error: {e}");
            if let Some(hint) = e.hint() {
                crate::note!("hint: {hint}");
            }
        }
    }

    /// Runs one of the commands, given without its backslash.
    pub fn command(&mut self, command: &str) -> Result<()> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, argument.trim()) {
            ("?", _) => COMMANDS.iter().for_each(|(command, about)| println!("{command:<14} {about}")),
            ("timing", _) => {
                self.timing = !self.timing;
                println!("timing is {}", if self.timing { "on" } else { "off" });
            }
            ("d", "") => {
                for (table, columns) in self.runtime.block_on(self.session.tables()) {
                    println!("{table} ({} columns)", columns.len());
                }
            }
            ("d", table) => return self.statements(&format!("DESCRIBE {table};")),
            ("df", name) => return functions(name),
            ("i", "") => return Err(Error::Usage { message: "\\i needs a file".into(), hint: "\\i query.sql" }),
            ("i", path) => return self.statements(&std::fs::read_to_string(path).map_err(Error::io(path))?),
            _ => return Err(Error::Usage { message: format!("unknown command \\{name}"), hint: "\\? lists the commands" }),
        }
        Ok(())
    }

    fn statements(&self, text: &str) -> Result<()> {
        for statement in sql::statements(text) {
            let start = Instant::now();
            block_on(self.runtime, sql::print(self.session, &statement, &[], self.format, None))?;
            if self.timing {
                println!("{:.3} s", start.elapsed().as_secs_f64());
            }
        }
        Ok(())
    }
}

/// tarn's functions with a line each, or one with all that is said of it.
fn functions(name: &str) -> Result<()> {
    let all = engine::function_list();
    if name.is_empty() {
        let width = all.iter().map(|function| function.syntax.len()).max().unwrap_or(0);
        for function in &all {
            let first = function.description.split_inclusive(". ").next().unwrap_or_default();
            println!("{:<width$}  {}", function.syntax, first.trim_end());
        }
        println!("those of DataFusion besides: SHOW FUNCTIONS;");
        return Ok(());
    }
    let Some(function) = all.iter().find(|function| function.name == name) else {
        let near = storage::closest(name, all.iter().map(|function| function.name.as_str()));
        let near = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
        return Err(Error::Usage {
            message: format!("'{name}' is none of tarn's functions{near}"),
            hint: "SHOW FUNCTIONS LIKE 'name%'; tells of all",
        });
    };
    println!("{}\n{}", function.syntax, function.description);
    for (name, about) in &function.arguments {
        println!("    {name}: {about}");
    }
    println!("for instance: {}", function.example);
    Ok(())
}

/// Completes keywords, tables, columns and functions, and asks for more lines until a semicolon.
struct Words {
    words: Vec<String>,
}

impl Words {
    fn of(session: &Session, runtime: &Runtime) -> Words {
        let mut words: Vec<String> = KEYWORDS.iter().map(|word| word.to_string()).collect();
        words.extend(session.function_names().into_iter().map(|name| format!("{name}(")));
        for (table, columns) in runtime.block_on(session.tables()) {
            words.push(table);
            words.extend(columns.into_iter().map(|(name, _)| name));
        }
        words.sort();
        words.dedup();
        Words { words }
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let start = line[..position]
            .rfind(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(0, |i| i + line[i..].chars().next().map_or(1, char::len_utf8));
        let prefix = &line[start..position];
        if prefix.is_empty() {
            return Ok((start, Vec::new()));
        }
        let matches = |word: &&String| word.to_lowercase().starts_with(&prefix.to_lowercase());
        let pair = |word: &String| Pair { display: word.clone(), replacement: word.clone() };
        Ok((start, self.words.iter().filter(matches).map(pair).collect()))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let input = context.input();
        let complete = input.trim().is_empty() || input.trim_start().starts_with('\\') || sql::is_complete(input);
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Highlighter for Words {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        Cow::Borrowed(prompt)
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Helper for Words {}
