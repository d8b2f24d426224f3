//! The demo's path in miniature: from a pool to scores.

use crate::{Sandbox, Test};

pub const TESTS: &[Test] = &[("demo_in_miniature", demo_in_miniature), ("recipes_run", recipes_run)];

fn demo_in_miniature(t: &Sandbox) {
    let output = t.tarn(&["demo", "d", "--samples", "300", "--samples-seen", "640"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for words in ["$ tarn ingest d/pool d/source", "$ tarn embed d/pool --model d/runs/scorer --column scorer", "Go on from here"] {
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
    let report = t.ok(&["report", "d/runs/no_filter", "d/runs/random_subset", "d/runs/score", "d/runs/combined"]);
    assert_eq!(report.lines().count(), 7, "{report}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(&report), "the demo ends in this table");
    t.fails(1, &["demo", "d"], &["d already exists and is not empty", "tarn demo d-2"]);

    // What it leaves can be explored.
    let csv = |sql: &str| t.ok(&["sql", "d/pool", "-c", sql, "--format", "csv"]);
    assert_eq!(csv("SELECT count(*) AS n FROM runs"), "n\n5\n");
    assert_eq!(csv("SELECT count(*) AS n FROM evals"), "n\n16\n");
    let consistent = "SELECT count(*) AS n FROM pool WHERE abs(scorer_score - cosine_similarity(scorer_img, scorer_txt)) > 0.01";
    assert_eq!(csv(consistent), "n\n0\n");
    let null_without_image = "SELECT count(*) AS n FROM pool WHERE scorer_score IS NULL AND uid IN (SELECT uid FROM images)";
    assert_eq!(csv(null_without_image), "n\n0\n");
    // An evaluation made again replaces its rows.
    t.ok(&["eval", "d/runs/score", "--data", "d/evalsets"]);
    assert_eq!(csv("SELECT count(*) AS n FROM evals"), "n\n16\n");
    t.fails(
        1,
        &["embed", "d/pool", "--model", "d/runs/score", "--column", "scorer"],
        &["column 'scorer_img' is already in the pool", "--replace"],
    );
    t.ok(&["embed", "d/pool", "--model", "d/runs/score", "--column", "scorer", "--replace"]);

    // The same seed gives the same weights, from the query or from its file.
    t.ok(&["filter", "d/pool", "d/filters/combined.sql", "-o", "s.npy"]);
    let args = |out: &'static str, select: &'static str| {
        ["train", "d/pool", "--select", select, "--scale", "tiny", "--samples-seen", "256", "-o", out]
    };
    t.ok(&args("a", "s.npy"));
    t.ok(&args("b", "d/filters/combined.sql"));
    let weights = |run: &str| std::fs::read(t.path(run).join("open_clip_model.safetensors")).unwrap();
    assert!(weights("a") == weights("b"), "weights differ");
    t.fails(1, &args("a", "s.npy"), &["a exists already and holds a run"]);
    let run: serde_json::Value = serde_json::from_slice(&std::fs::read(t.path("a/run.json")).unwrap()).unwrap();
    assert_eq!((run["on_recipe"].as_bool(), run["receipt"]["filter"].as_str()), (Some(false), Some("combined")));

    // A report leaves out what has no results, and says so.
    let output = t.tarn(&["report", "a", "d/runs/score"]);
    assert!(output.stderr.contains("a holds no results and is left out"), "{}", output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);

    // Numbers that cannot be are refused before any work.
    let with =
        |flag: &'static str, value: &'static str| ["train", "d/pool", "--select", "no_filter", "--scale", "tiny", "-o", "z", flag, value];
    t.fails(1, &with("--batch-size", "0"), &["the batch size must be at least 1"]);
    t.fails(1, &with("--max-steps", "0"), &["--max-steps must be at least 1"]);
    t.fails(1, &with("--micro-batch", "4096"), &["micro-batch 4096 is larger than the batch of 128"]);
    t.fails(2, &with("--learning-rate", "0"), &["the learning rate must be a number above 0, got 0"]);
    assert!(!t.path("z").exists());

    // Uids without a row or an image are counted; an error only if none is left.
    let lost = "SELECT uid FROM pool WHERE uid NOT IN (SELECT uid FROM images)";
    let train =
        |select: &str, out: &str| t.tarn(&["train", "d/pool", "--select", select, "--scale", "tiny", "--max-steps", "1", "-o", out]);
    let output = train(lost, "c");
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("have no image") && output.stderr.contains("none of the subset's"), "{}", output.stderr);
    let strangers = "SELECT uid FROM pool UNION ALL SELECT uid('000000000000000000000000000000ff')";
    let output = train(strangers, "c");
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("1 are not in the pool"), "{}", output.stderr);
}

/// The real recipes' models run, here with a batch that two cores can bear.
fn recipes_run(t: &Sandbox) {
    t.ok(&["demo", "d", "--samples", "40", "--samples-seen", "128"]);
    let args = [
        "train",
        "d/pool",
        "--select",
        "no_filter",
        "--scale",
        "small",
        "--batch-size",
        "4",
        "--micro-batch",
        "2",
        "--max-steps",
        "2",
        "-o",
        "r",
    ];
    let output = t.tarn(&args);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(
        output.stderr.contains("scale        small (off recipe: batch size, steps)") && output.stderr.contains("151.3 M parameters"),
        "{}",
        output.stderr
    );
    let metrics = std::fs::read_to_string(t.path("r/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2);
}
