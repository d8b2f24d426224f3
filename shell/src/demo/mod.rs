//! The demo: makes a small pool of drawn pictures with faulty captions, then does what a user would do with it,
//! by the commands that a user would type.

mod caption;
mod picture;
mod source;

use std::path::Path;

use clap::Parser;
use tokio::runtime::Runtime;

use crate::cli::{self, Cli};
use crate::{Error, Result, command};

/// The share of the pool that each filter keeps.
const FRACTION: &str = "0.3";

/// The share of the samples that pass `combined`'s rules which makes about as many.
const FRACTION_OF_CLEAN: &str = "0.4";

/// Saved filters that the demo writes for its pool.
const FILTERS: [(&str, &str); 2] = [
    (
        "score.sql",
        "-- about: the pairs that the scorer finds most alike
-- param fraction: double = 0.3     -- of the pool, by score
SELECT uid FROM pool
WHERE scorer_score >= (SELECT top_fraction(scorer_score, $fraction) FROM pool)
",
    ),
    (
        "combined.sql",
        "-- about: plain captions of some length on pictures of some size, and of these the best scores
-- param fraction: double = 0.4     -- of the samples that pass the rules, by score
WITH clean AS (
    SELECT uid, scorer_score FROM pool
    WHERE word_count(text) > 2
      AND text ~ '^[ -~]*$' AND text !~ '[0-9]{4}'
      AND least(original_width, original_height) >= 48
)
SELECT uid FROM clean
WHERE scorer_score >= (SELECT top_fraction(scorer_score, $fraction) FROM clean)
",
    ),
];

pub(crate) fn run(args: cli::Demo, runtime: &Runtime) -> Result<()> {
    let dir = &args.dir;
    if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::DemoExists { path: dir.clone() });
    }
    say("A pool of drawn pictures in CommonPool's layout, and pictures to evaluate on, are made first.");
    let made = source::write(dir, args.samples, args.seed)?;
    say(&format!("{made}"));
    for (name, text) in FILTERS {
        let path = dir.join("filters").join(name);
        std::fs::create_dir_all(dir.join("filters")).and_then(|()| std::fs::write(&path, text)).map_err(Error::io(&path))?;
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let (pool, evalsets) = (path("pool"), path("evalsets"));
    let tarn = |args: &[&str]| type_and_run(args, runtime);
    let seen = args.samples_seen.map(|n| n.to_string());
    let seed = args.seed.to_string();
    let train = |select: &[&str], run: &str| {
        let mut command = vec!["train", &pool, "--select"];
        command.extend(select);
        command.extend(["--scale", "tiny", "--seed", &seed, "-o", run]);
        if let Some(seen) = &seen {
            command.extend(["--samples-seen", seen]);
        }
        tarn(&command)
    };

    tarn(&["ingest", &pool, &path("source")])?;
    say("What is in it?");
    tarn(&[
        "sql",
        &pool,
        "-c",
        "SELECT uid, text, original_width AS width, original_height AS height FROM pool ORDER BY sample_hash(uid, 1) LIMIT 6",
    ])?;
    tarn(&["sql", &pool, "-c", "SELECT word_count(text) AS words, count(*) AS samples FROM pool GROUP BY words ORDER BY words"])?;

    say("Train a first model on captions of some length, to score the pool with.");
    let scorer = path("runs/scorer");
    train(&["SELECT uid FROM pool WHERE word_count(text) > 2 AND least(original_width, original_height) >= 48"], &scorer)?;
    tarn(&["embed", &pool, "--model", &scorer, "--column", "scorer"])?;
    tarn(&[
        "sql",
        &pool,
        "-c",
        "SELECT uid, scorer_score, text FROM pool WHERE scorer_score IS NOT NULL ORDER BY scorer_score DESC LIMIT 3",
    ])?;
    tarn(&["sql", &pool, "-c", "SELECT uid, scorer_score, text FROM pool WHERE scorer_score IS NOT NULL ORDER BY scorer_score LIMIT 3"])?;

    say("Four filters, each trained for the same number of samples seen and evaluated on the same pictures.");
    let (score, combined) = (path("filters/score.sql"), path("filters/combined.sql"));
    let (fraction, of_clean) = (format!("fraction={FRACTION}"), format!("fraction={FRACTION_OF_CLEAN}"));
    let filters: [(&str, Vec<&str>); 4] = [
        ("no_filter", vec!["no_filter"]),
        ("random_subset", vec!["random_subset", "--param", &fraction]),
        ("score", vec![&score, "--param", &fraction]),
        ("combined", vec![&combined, "--param", &of_clean]),
    ];
    let mut runs = Vec::new();
    for (name, select) in &filters {
        let run = path(&format!("runs/{name}"));
        train(select, &run)?;
        tarn(&["eval", &run, "--data", &evalsets])?;
        runs.push(run);
    }
    say("Which data?");
    let mut report = vec!["report"];
    report.extend(runs.iter().map(String::as_str));
    tarn(&report)?;
    say("Go on from here:");
    for next in [
        vec!["sql", &pool],
        vec!["sql", &pool, "-c", "SELECT filter, avg(value) AS score FROM evals GROUP BY filter ORDER BY score"],
        vec!["filter", "--list"],
        vec!["train", &pool, "--select", "SELECT uid FROM pool WHERE scorer_score > 0.5", "--scale", "tiny", "-o", &path("runs/mine")],
    ] {
        crate::note!("$ tarn {}", quoted(&next));
    }
    Ok(())
}

/// Shows a command as it would be typed, and runs it.
fn type_and_run(args: &[&str], runtime: &Runtime) -> Result<()> {
    crate::note!("\n$ tarn {}", quoted(args));
    let cli = Cli::try_parse_from(std::iter::once(&"tarn").chain(args)).expect("the demo's own commands parse");
    command::run(cli.command, runtime)
}

fn say(text: &str) {
    crate::note!("\n{text}");
}

/// The arguments for a POSIX shell.
fn quoted(args: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:".contains(c);
    let quote = |arg: &&str| match arg.chars().all(plain) && !arg.is_empty() {
        true => arg.to_string(),
        false => format!("'{}'", arg.replace('\'', "'\\''")),
    };
    args.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// Makes a folder and those above it.
fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io(path))
}
