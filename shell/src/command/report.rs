use std::path::Path;

use eval::report::{Report, Submission, Table, html, report, submit};
use tokio::runtime::Runtime;

use super::{block_on, subset_facts};
use crate::cli::{self, ReportFormat};
use crate::format::{pipe_table, print};
use crate::{Error, Result};

pub(crate) fn run(args: cli::Report, runtime: &Runtime) -> Result<()> {
    let mut report = report(&args.runs, args.against.as_deref())?;
    for note in &report.notes {
        crate::note!("{note}");
    }
    if let Some(out) = &args.submission {
        return submission(&args, &report, out);
    }
    let ending = args.output.as_deref().and_then(Path::extension).and_then(|ending| ending.to_str());
    let format = match (args.format, ending) {
        (Some(format), _) => format,
        (None, Some("html")) => ReportFormat::Html,
        (None, Some("csv")) => ReportFormat::Csv,
        (None, Some("md")) => ReportFormat::Markdown,
        (None, Some("tex")) => ReportFormat::Latex,
        (None, None | Some("txt")) => ReportFormat::Text,
        (None, Some(other)) => {
            let message = format!("a report ends in .html, .csv, .md, .tex or .txt, got .{other}");
            return Err(Error::Usage { message, hint: "or give --format" });
        }
    };
    if args.subsets || args.similarity.is_some() || format == ReportFormat::Html {
        block_on(runtime, subset_facts::add(&mut report.runs, &args.queries, args.similarity))?;
    }
    let text = match format {
        ReportFormat::Text => tables(&report, |table| pipe_table(&table.header, &table.texts())),
        ReportFormat::Csv => report.csv(),
        ReportFormat::Markdown => tables(&report, Table::markdown),
        ReportFormat::Latex => tables(&report, Table::latex),
        ReportFormat::Html => html(&report),
    };
    match &args.output {
        Some(path) => std::fs::write(path, text).map_err(Error::io(path)),
        None => print(&text),
    }
}

fn tables(report: &Report, text: impl Fn(&Table) -> String) -> String {
    report.tables().iter().map(text).collect::<Vec<_>>().join("\n")
}

fn submission(args: &cli::Report, report: &Report, out: &Path) -> Result<()> {
    let [run] = report.runs.as_slice() else {
        let message = format!("a submission is of one run, got {}", report.runs.len());
        return Err(Error::Usage { message, hint: "tarn report RUN --submission DIR --method NAME ..." });
    };
    let a = &args.submit;
    let needed = |value: &Option<String>, flag: &'static str| {
        let message = format!("a submission needs {flag}");
        value.clone().ok_or(Error::Usage { message, hint: "tarn report RUN --submission DIR --track filtering --method NAME --author NAMES --email ADDRESS --hf-username NAME --hf-repo NAME" })
    };
    let submission = Submission {
        track: needed(&a.track, "--track")?,
        method: needed(&a.method, "--method")?,
        author: needed(&a.author, "--author")?,
        email: needed(&a.email, "--email")?,
        writeup: a.writeup.clone(),
        hf_username: needed(&a.hf_username, "--hf-username")?,
        hf_repo: needed(&a.hf_repo, "--hf-repo")?,
        samples: a.samples.clone(),
        checkpoint: a.checkpoint,
    };
    for path in submit(run, &submission, out)? {
        crate::note!("{}", path.display());
    }
    Ok(())
}
