use std::fmt::Write;

use super::plot::{self, Bar};
use super::runs::{RunResults, ScoreOf};
use super::summary::{published, repeats, standard_error};
use super::table::{RowKind, Table};
use super::{Report, score};
use crate::Aggregate;
use crate::metric::mean;
use crate::task::{scored, tasks};

const STYLE: &str = include_str!("style.css");

/// The report as one page that needs nothing else.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("{} run{}", report.runs.len(), if report.runs.len() == 1 { "" } else { "s" });
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>tarn: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}, zero-shot</h1>\n"
    );
    table(&mut page, &report.summary, true);
    if !report.notes.is_empty() {
        let items: String = report.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        let _ = writeln!(page, "<ul class=\"notes\">{items}</ul>");
    }
    bars(&mut page, report);
    curves(&mut page, report);
    differences(&mut page, report);
    for of_tasks in report.tables().into_iter().skip(1) {
        let _ = writeln!(page, "<h2>{}</h2>", escape(&of_tasks.title));
        table(&mut page, &of_tasks, false);
    }
    page += "<h2>Where the runs come from</h2>\n";
    report.runs.iter().for_each(|run| source(&mut page, run));
    page += "</main>\n</body>\n</html>\n";
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn table(page: &mut String, table: &Table, summary: bool) {
    let class = |i: usize| if i < table.scores_from { "" } else { " class=\"score\"" };
    let header: String = table.header.iter().enumerate().map(|(i, cell)| format!("<th{}>{}</th>", class(i), escape(cell))).collect();
    let _ = writeln!(page, "<div class=\"wide\"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>");
    for row in &table.rows {
        let kind = match row.kind {
            RowKind::Own => "own",
            RowKind::Repeats => "repeats",
            RowKind::Published => "published",
            RowKind::Chance => "chance",
        };
        let cell = |(i, cell): (usize, &String)| {
            let best = row.best.contains(&i);
            let text = if best { format!("<strong>{}</strong>", escape(cell)) } else { escape(cell) };
            let lost = if cell.starts_with('-') && cell.len() > 1 { " lost" } else { "" };
            match i < table.scores_from {
                true => format!("<td>{text}</td>"),
                false => format!("<td class=\"score{lost}\">{text}</td>"),
            }
        };
        let cells: String = row.cells.iter().enumerate().map(cell).collect();
        let _ = writeln!(page, "<tr class=\"{kind}\">{cells}</tr>");
    }
    page.push_str("</tbody></table></div>\n");
    if summary && table.rows.iter().any(|row| row.kind == RowKind::Published) {
        page.push_str(
            "<p class=\"source\">DataComp's rows are its filtering baselines: Gadre et al. 2023, \
             <a href=\"https://arxiv.org/abs/2304.14108\">arXiv 2304.14108</a>, table 3. Two trainings on the same data differ by some \
             0.002 on ImageNet.</p>\n",
        );
    }
}

/// The score that runs are compared by: the average over 38, or the mean of the tasks that all have.
fn overall(report: &Report) -> (String, ScoreOf<'_>, Option<f64>) {
    let over_38 = |run: &RunResults| Aggregate::Average.of(|task| run.score(&task.key));
    if report.runs.iter().all(|run| over_38(run).is_some()) {
        return (Aggregate::Average.name().to_string(), Box::new(over_38), Aggregate::Average.chance());
    }
    let keys = keys(report);
    let random: Option<Vec<f64>> =
        keys.iter().map(|key| report.runs.iter().find_map(|run| run.result(key)).and_then(|r| r.random)).collect();
    let name = format!("Mean of {} tasks that all runs have", keys.len());
    let of = move |run: &RunResults| {
        let scores: Option<Vec<f64>> = keys.iter().map(|key| run.score(key)).collect();
        mean(scores?)
    };
    (name, Box::new(of), random.and_then(mean))
}

/// Tasks that all runs have: DataComp's where there are any, else the others.
fn keys(report: &Report) -> Vec<String> {
    let all = |key: &str| report.runs.iter().all(|run| run.score(key).is_some());
    let listed: Vec<String> = scored().map(|task| task.key.clone()).filter(|key| all(key)).collect();
    match listed.is_empty() {
        false => listed,
        true => report.runs[0].results.iter().map(|result| result.key.clone()).filter(|key| all(key)).collect(),
    }
}

fn bars(page: &mut String, report: &Report) {
    let (name, of, chance) = overall(report);
    let repeated = repeats(&report.runs);
    let bar = |label: String, value: f64| Bar { label, value, error: 0.0, pale: false };
    let mut bars: Vec<Bar> = report.runs.iter().filter_map(|run| Some(bar(run.name.clone(), of(run)?))).collect();
    for runs in &repeated {
        let Some(values) = runs.iter().map(|run| of(run)).collect::<Option<Vec<f64>>>() else { continue };
        let label = format!("{} seeds of {}", runs.len(), runs[0].run.as_ref().map_or("", |run| &run.receipt.filter));
        bars.push(Bar { error: standard_error(&values), ..bar(label, mean(values.iter().copied()).unwrap_or_default()) });
    }
    if name == Aggregate::Average.name() {
        let published = published(&report.runs).into_iter();
        bars.extend(published.map(|b| Bar { pale: true, ..bar(b.filter.clone(), b.score(Aggregate::Average)) }));
    }
    if !bars.is_empty() {
        let pale = if bars.iter().any(|bar| bar.pale) { "<figcaption>Grey: DataComp's baselines.</figcaption>" } else { "" };
        let _ = writeln!(page, "<h2>{}</h2>\n<figure>{}{pale}</figure>", escape(&name), plot::scores(&bars, chance));
    }
}

fn curves(page: &mut String, report: &Report) {
    let with: Vec<&RunResults> = report.runs.iter().filter(|run| run.losses.len() > 1).collect();
    if with.is_empty() {
        return;
    }
    let curves: Vec<Vec<(f64, f64)>> = with.iter().map(|run| run.losses.clone()).collect();
    let legend: String = with.iter().enumerate().map(|(i, run)| legend(i, &run.name)).collect();
    let _ = writeln!(page, "<h2>Training loss</h2>\n<figure>{}<figcaption>{legend}</figcaption></figure>", plot::losses(&curves));
}

fn legend(i: usize, name: &str) -> String {
    let plotters::style::RGBColor(r, g, b) = plot::colour(i);
    format!("<span class=\"key\"><i style=\"background:rgb({r},{g},{b})\"></i>{}</span>", escape(name))
}

/// Of each run, its tasks' differences from the run chosen.
fn differences(page: &mut String, report: &Report) {
    let base = &report.runs[report.against.unwrap_or(0)];
    let order: Vec<String> = tasks().iter().map(|task| task.key.clone()).collect();
    let difference = |run: &RunResults, key: &str| Some(run.score(key)? - base.score(key)?);
    let all = report.runs.iter().flat_map(|run| run.results.iter().filter_map(|result| difference(run, &result.key)));
    let most = all.map(f64::abs).fold(0.0, f64::max);
    for run in report.runs.iter().filter(|run| run.folder != base.folder) {
        // DataComp's tasks by themselves, where there are any.
        let listed = run.has_listed() && base.has_listed();
        let mut results: Vec<_> = run.results.iter().filter(|result| result.score().is_some() && result.listed() == listed).collect();
        results.sort_by_key(|result| order.iter().position(|key| *key == result.key).unwrap_or(order.len()));
        let bar = |label: &str, value: f64| Bar { label: label.to_string(), value, error: 0.0, pale: false };
        let bars: Vec<Bar> = results.iter().filter_map(|result| Some(bar(&result.dataset, difference(run, &result.key)?))).collect();
        if bars.is_empty() {
            continue;
        }
        let title = format!("{} against {}", run.name, base.name);
        let better = bars.iter().filter(|bar| bar.value > 0.0).count();
        let _ = writeln!(
            page,
            "<h2>{}</h2>\n<p>Better on {better} of {} tasks, {} in the mean.</p>\n<figure>{}</figure>",
            escape(&title),
            bars.len(),
            mean(bars.iter().map(|bar| bar.value)).map_or("-".into(), |mean| format!("{mean:+.3}")),
            plot::differences(&bars, most)
        );
    }
}

/// What a run was made of.
fn source(page: &mut String, run: &RunResults) {
    let mut facts: Vec<(String, String)> = vec![("folder".into(), run.folder.display().to_string())];
    let mut fact = |name: &str, value: String| facts.push((name.to_string(), value));
    if let Some(of) = &run.run {
        let receipt = &of.receipt;
        let share = 100.0 * receipt.subset_size as f64 / receipt.pool_rows.max(1) as f64;
        fact("pool", format!("{}, version {}", of.pool, receipt.pool_version));
        fact("filter", receipt.filter.clone());
        for (name, value) in &receipt.parameters {
            fact(&format!("parameter {name}"), value.to_string());
        }
        fact("subset", format!("{} of {} samples ({share:.1}%), {} with an image", receipt.subset_size, receipt.pool_rows, of.samples));
        let (seen, steps) = (run.samples_seen, run.step.unwrap_or(of.steps));
        fact("seen", format!("{seen} samples in {steps} steps: each {:.2} times", seen as f64 / of.samples.max(1) as f64));
        fact("recipe", format!("{}, {}", of.scale, if of.on_recipe { "unchanged" } else { "changed" }));
        fact("model", of.recipe.model.clone());
        fact("seed", of.seed.to_string());
        if run.step.is_none() {
            fact("last loss", score(Some(of.loss.into())));
        }
        fact("subset's SHA-256", receipt.subset_sha256.clone());
    }
    let _ = writeln!(page, "<section><h3>{}</h3>\n<dl>", escape(&run.name));
    for (name, value) in facts {
        let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escape(&name), escape(&value));
    }
    page.push_str("</dl>\n");
    if let Some(sql) = run.run.as_ref().map(|of| of.receipt.sql.trim()).filter(|sql| !sql.is_empty()) {
        let _ = writeln!(page, "<pre>{}</pre>", escape(sql));
    }
    page.push_str("</section>\n");
}
