//! Rows as people and programs want them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;

use crate::cli::Format;
use crate::{Error, Result};

/// Rows that a table shows; the others are counted.
const TABLE_ROWS: usize = 40;
/// Characters of a cell that a table shows.
const CELL_CHARS: usize = 80;
/// Values of a vector that a table shows.
const VECTOR_VALUES: usize = 3;

/// Writes batches one by one in a format.
pub(crate) enum Sink {
    Table { out: Out, head: Vec<RecordBatch>, shown: usize, rows: usize, schema: SchemaRef },
    Csv(arrow::csv::Writer<Out>),
    Json(arrow::json::ArrayWriter<Out>),
    Jsonl(arrow::json::LineDelimitedWriter<Out>),
    Arrow(arrow::ipc::writer::StreamWriter<Out>),
    Parquet(parquet::arrow::ArrowWriter<Out>),
}

type Out = Box<dyn Write + Send>;

impl Sink {
    /// To `path`, or to standard output.
    pub fn new(format: Format, path: Option<&Path>, schema: SchemaRef) -> Result<Sink> {
        let out: Out = match path {
            Some(path) => Box::new(BufWriter::new(File::create(path).map_err(Error::io(path))?)),
            None => Box::new(BufWriter::new(Stdout)),
        };
        Ok(match format {
            Format::Table => Sink::Table { out, head: Vec::new(), shown: 0, rows: 0, schema },
            Format::Csv => {
                let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(out);
                // The header, also where no row follows.
                writer.write(&text_columns(&RecordBatch::new_empty(schema), |t| t.is_nested() || is_bytes(t), false)?)?;
                Sink::Csv(writer)
            }
            Format::Json => Sink::Json(arrow::json::ArrayWriter::new(out)),
            Format::Jsonl => Sink::Jsonl(arrow::json::LineDelimitedWriter::new(out)),
            Format::Arrow => Sink::Arrow(arrow::ipc::writer::StreamWriter::try_new(out, &schema)?),
            Format::Parquet => Sink::Parquet(parquet::arrow::ArrowWriter::try_new(out, schema, None)?),
        })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Sink::Table { head, shown, rows, .. } => {
                *rows += batch.num_rows();
                let n = (TABLE_ROWS - *shown).min(batch.num_rows());
                if n > 0 {
                    *shown += n;
                    let rows = batch.slice(0, n);
                    head.push(if is_plan(&batch.schema()) { rows } else { text_columns(&rows, |_| true, true)? });
                }
            }
            Sink::Csv(writer) => writer.write(&text_columns(batch, |t| t.is_nested() || is_bytes(t), false)?)?,
            Sink::Json(writer) => writer.write(&text_columns(batch, is_bytes, false)?)?,
            Sink::Jsonl(writer) => writer.write(&text_columns(batch, is_bytes, false)?)?,
            Sink::Arrow(writer) => writer.write(batch)?,
            Sink::Parquet(writer) => writer.write(batch)?,
        }
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        match self {
            Sink::Table { mut out, mut head, shown, rows, schema } => {
                if schema.fields().is_empty() {
                    return Ok(());
                }
                if is_plan(&schema) {
                    for batch in &head {
                        let (kinds, plans) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
                        for (kind, plan) in kinds.iter().zip(plans).filter_map(|(kind, plan)| kind.zip(plan)) {
                            writeln!(out, "{kind}\n{plan}").map_err(Error::Output)?;
                        }
                    }
                    return out.flush().map_err(Error::Output);
                }
                if head.is_empty() {
                    head.push(text_columns(&RecordBatch::new_empty(schema), |_| true, true)?);
                }
                let plural = if rows == 1 { "" } else { "s" };
                let more = if shown < rows { format!(", the first {shown} shown") } else { String::new() };
                writeln!(out, "{}\n{rows} row{plural}{more}", pretty_format_batches(&head)?)
                    .and_then(|()| out.flush())
                    .map_err(Error::Output)?;
            }
            Sink::Csv(writer) => writer.into_inner().flush().map_err(Error::Output)?,
            Sink::Json(mut writer) => {
                writer.finish()?;
                let mut out = writer.into_inner();
                writeln!(out).and_then(|()| out.flush()).map_err(Error::Output)?;
            }
            Sink::Jsonl(mut writer) => {
                writer.finish()?;
                writer.into_inner().flush().map_err(Error::Output)?;
            }
            Sink::Arrow(writer) => writer.into_inner()?.flush().map_err(Error::Output)?,
            Sink::Parquet(writer) => writer.into_inner()?.flush().map_err(Error::Output)?,
        }
        Ok(())
    }
}

/// Standard output; a reader that has gone away ends the program without an error.
pub(crate) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().write(bytes).inspect_err(leave_if_closed)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush().inspect_err(leave_if_closed)
    }
}

fn leave_if_closed(e: &std::io::Error) {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
}

/// A text for standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    Stdout.write_all(text.as_bytes()).and_then(|()| Stdout.flush()).map_err(Error::Output)
}

/// Columns aligned with pipes between them, which is also Markdown.
pub(crate) fn pipe_table(header: &[String], rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().chain([&header.to_vec()]).map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    [line(header), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// What EXPLAIN gives, whose lines are the point.
fn is_plan(schema: &Schema) -> bool {
    schema.fields().len() == 2 && schema.field(0).name() == "plan_type" && schema.field(1).name() == "plan"
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::FixedSizeBinary(_) | DataType::Binary | DataType::LargeBinary)
}

/// The batch with the columns whose type is `chosen` as text: bytes as hexadecimal digits, lists in brackets.
fn text_columns(batch: &RecordBatch, chosen: impl Fn(&DataType) -> bool, shorten: bool) -> Result<RecordBatch> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        if !chosen(column.data_type()) {
            return Ok((field.as_ref().clone(), column.clone()));
        }
        let text: ArrayRef = Arc::new(text(column, shorten)?);
        Ok((Field::new(field.name(), DataType::Utf8, true), text))
    });
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = columns.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

fn text(column: &ArrayRef, shorten: bool) -> Result<StringArray> {
    let options = FormatOptions::new().with_null(if shorten { "NULL" } else { "" }).with_display_error(true);
    let list = column.as_fixed_size_list_opt().filter(|_| shorten);
    let formatter = match list {
        Some(list) => ArrayFormatter::try_new(list.values().as_ref(), &options)?,
        None => ArrayFormatter::try_new(column.as_ref(), &options)?,
    };
    let cell = |i: usize| -> Option<String> {
        if column.is_null(i) {
            return shorten.then(|| "NULL".to_string());
        }
        if let Some(list) = list {
            let dim = list.value_length() as usize;
            let values = (0..dim.min(VECTOR_VALUES)).map(|j| formatter.value(i * dim + j).to_string());
            let tail = if dim > VECTOR_VALUES { format!(", … {dim} values") } else { String::new() };
            return Some(format!("[{}{tail}]", values.collect::<Vec<_>>().join(", ")));
        }
        let text = formatter.value(i).to_string();
        if !shorten {
            return Some(text);
        }
        let mut chars: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CELL_CHARS + 1).collect();
        if chars.chars().count() > CELL_CHARS {
            chars.pop();
            chars.push('…');
        }
        Some(chars)
    };
    Ok((0..column.len()).map(cell).collect())
}
