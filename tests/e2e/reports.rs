//! Reports of runs, and what is submitted.

use std::collections::BTreeMap;

use eval::{TaskResult, tasks};
use serde_json::{Value, json};
use train::parameters::Parameters;
use train::{Checkpoint, Device, Encoder, ModelConfig, OpenClipConfig, PreprocessConfig};

use crate::{Sandbox, Test, source};

pub const TESTS: &[Test] = &[
    ("reports_lay_runs_side_by_side", side_by_side),
    ("submissions_are_whole_or_refused", submissions),
    ("contamination_is_found", contamination),
];

/// A run of the scale small as its folder would tell of it: with all tasks, the score of each the run's own.
fn forge(t: &Sandbox, name: &str, seed: u64, subset: &str, model: Option<&str>, score: impl Fn(usize) -> f64) {
    let mut digest = String::new();
    if let Some(model) = model {
        let model_cfg = ModelConfig::named(model).unwrap();
        let values = Parameters::new(&model_cfg).draw(3);
        let checkpoint = Checkpoint { config: OpenClipConfig { model_cfg, preprocess_cfg: PreprocessConfig::default() }, values };
        checkpoint.write(&t.path(name)).unwrap();
        digest = Encoder::open(&t.path(name), Device::Cpu).unwrap().digest().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    }
    std::fs::create_dir_all(t.path(name)).unwrap();
    let receipt = json!({
        "filter": subset, "sql": format!("SELECT uid FROM pool WHERE text <> '{subset}' & \"x\""), "parameters": {"fraction": 0.3}, "pool": "gone",
        "pool_version": 7, "pool_rows": 12_800_000, "subset_size": 8, "subset_sha256": sha256(t, subset), "resources": {},
        "tarn_version": "0", "wall_seconds": 0.5
    });
    let run = json!({
        "pool": "gone", "scale": "small", "on_recipe": true, "recipe": train::Recipe::named("small").unwrap(), "seed": seed,
        "shuffle": "full", "steps": 3125, "samples_seen": 12_800_000, "samples": 8, "not_in_pool": 0, "no_image": 0, "unreadable": 0,
        "loss": 5.5, "seconds": 3600.0, "samples_per_second": 3555.0, "receipt": receipt
    });
    t.write(&format!("{name}/run.json"), run.to_string());
    t.write(&format!("{name}/receipt.json"), receipt.to_string());
    std::fs::copy(t.path(&format!("{subset}.npy")), t.path(&format!("{name}/subset.npy"))).unwrap();
    let curve = (1..=3125).map(|step| format!("{{\"step\": {step}, \"loss\": {}}}\n", 5.0 + 4.0 / f64::from(step)));
    t.write(&format!("{name}/metrics.jsonl"), curve.collect::<String>());
    let lines = tasks().iter().enumerate().map(|(i, task)| {
        let main = task.metric.as_ref().map(|_| score(i));
        let result = TaskResult {
            key: task.key.clone(),
            dataset: task.name.clone(),
            metrics: BTreeMap::from([("main_metric".to_string(), main)]),
            metric: task.metric.clone(),
            random: task.random,
            samples: task.size.unwrap(),
            unreadable: 0,
            checkpoint: digest.clone(),
            data: String::new(),
            seconds: 1.0,
        };
        serde_json::to_string(&result).unwrap() + "\n"
    });
    t.write(&format!("{name}/eval_results.jsonl"), lines.collect::<String>());
}

/// Of a subset that is made if it is not there.
fn sha256(t: &Sandbox, subset: &str) -> String {
    let path = t.path(&format!("{subset}.npy"));
    if !path.exists() {
        let uids = (0..8).map(|i| storage::Uid([i as u8 + subset.len() as u8; 16])).collect();
        storage::Subset::new(uids, None).write(&path).unwrap();
    }
    storage::Subset::read(&path).unwrap().digest()
}

fn side_by_side(t: &Sandbox) {
    forge(t, "runs/base", 0, "no_filter", None, |i| 0.1 + i as f64 / 1000.0);
    forge(t, "runs/score-0", 0, "score", None, |i| 0.15 + i as f64 / 1000.0);
    forge(t, "runs/score-1", 1, "score", None, |i| 0.17 + i as f64 / 1000.0);
    forge(t, "runs/score-2", 2, "score", None, |i| 0.19 + i as f64 / 1000.0);
    let text = t.ok(&["report", "runs"]);
    // ImageNet is the task at 11; scores rise by a thousandth a task.
    for line in ["| base           | no_filter ", "| mean of 3 seeds | score ", "DataComp, small | CLIP score (L/14 30%)", "| chance"] {
        assert!(text.replace("  ", " ").contains(&line.replace("  ", " ")), "{line}: {text}");
    }
    let row = |name: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.split('|').nth(1).is_some_and(|cell| cell.trim() == name)).unwrap();
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let mean = |base: f64, of: &dyn Fn(&str) -> bool| {
        let places: Vec<f64> =
            tasks().iter().enumerate().filter(|(_, task)| of(&task.key) && task.metric.is_some()).map(|(i, _)| i as f64).collect();
        format!("{:.3}", base + places.iter().sum::<f64>() / places.len() as f64 / 1000.0)
    };
    assert_eq!(
        row("base")[4..],
        [
            mean(0.1, &|k| k == "imagenet1k"),
            mean(0.1, &|k| ["imagenet_sketch", "imagenetv2", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet"].contains(&k)),
            mean(0.1, &|k| k.starts_with("vtab/") || k == "sun397"),
            mean(0.1, &|k| k.starts_with("retrieval/") || k == "misc/winogavil"),
            mean(0.1, &|_| true)
        ]
    );
    // Three seeds at a distance of 0.02: the standard error of their mean is 0.02 / √3.
    assert_eq!(row("mean of 3 seeds")[4], format!("{} ± 0.012", mean(0.17, &|k| k == "imagenet1k")));
    assert_eq!(text.matches("| DataComp, small").count(), 7);
    assert!(text.contains("| ImageNet 1k ") && !text.contains("− base"), "{text}");

    let against = t.ok(&["report", "runs", "--against", "score-1"]);
    let line = against.lines().find(|line| line.starts_with("| MNIST ")).unwrap().to_string();
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    assert_eq!((cells[4], cells[6], cells[9]), ("-0.070", "-0.020", "+0.020"), "{line}");
    t.fails(1, &["report", "runs", "--against", "score"], &["no run is named 'score', there are base, score-0, score-1, score-2"]);

    let csv = t.ok(&["report", "runs", "--format", "csv"]);
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines.len(), lines[0].len(), lines[0][13]), (5, 9 + 5 + 38, "average_38"));
    assert_eq!((lines[1][9], lines[2][5]), ("0.111", "0"));
    t.ok(&["report", "runs", "-o", "table.tex"]);
    let latex = std::fs::read_to_string(t.path("table.tex")).unwrap();
    assert!(latex.starts_with("\\begin{tabular}{llllrrrrr}\n\\toprule\nrun & filter") && latex.contains("no\\_filter"), "{latex}");
    assert!(latex.contains("$\\cap$ CLIP score (L/14 30\\%)") && latex.contains("$\\pm$ 0.012"), "{latex}");
    let markdown = t.ok(&["report", "runs", "--format", "markdown"]);
    assert!(
        markdown.starts_with("| run | filter | subset size | samples seen | ImageNet |") && markdown.contains("| **0.201** |"),
        "{markdown}"
    );

    // The page needs no other file, holds every plot, and text of queries does it no harm.
    let output = t.tarn(&["report", "runs", "-o", "page.html"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("base: its subset is not described: "), "the pool is gone: {}", output.stderr);
    let page = std::fs::read_to_string(t.path("page.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 1 + 1 + 3, "averages, losses, and three runs against the first");
    assert!(page.contains("WHERE text &lt;&gt; 'score' &amp; &quot;x&quot;") && !page.contains("<> 'score'"), "queries are escaped");
    for absent in ["src=", "<script", "@import", "url("] {
        assert!(!page.contains(absent), "{absent} in the page");
    }
    let tags = |tag: &str| (page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count());
    for tag in ["svg", "table", "figure", "section", "dl", "pre"] {
        assert_eq!(tags(tag).0, tags(tag).1, "{tag}");
    }

    // A checkpoint on the way is no repetition of its run, and has seen fewer samples.
    t.write("runs/score-1/checkpoints/step_00000625/eval_results.jsonl", std::fs::read(t.path("runs/score-1/eval_results.jsonl")).unwrap());
    let steps = t.ok(&["report", "runs/score-0", "runs/score-1/checkpoints/step_00000625"]);
    assert!(steps.contains("| score-1/step_00000625 | score ") && steps.contains("| 2.56M ") && !steps.contains("mean of"), "{steps}");
    t.write("broken/eval_results.jsonl", "{bad\n");
    let output = t.tarn(&["report", "runs/base", "broken"]);
    assert!(output.code == 0 && output.stderr.contains("broken is left out: line 1 of broken/eval_results.jsonl"), "{}", output.stderr);
    t.fails(2, &["report", "runs", "-o", "x.pdf"], &["a report ends in .html, .csv, .md, .tex or .txt, got .pdf"]);

    // Experiments as tables, without a pool.
    let sql = "SELECT r.filter, count(*) AS runs, round(avg(e.value), 3) AS imagenet FROM evals e JOIN runs r ON r.run = e.run WHERE e.task = 'imagenet1k' GROUP BY r.filter ORDER BY 1";
    assert_eq!(t.ok(&["sql", "runs", "-c", sql, "--format", "csv"]), "filter,runs,imagenet\nno_filter,1,0.111\nscore,3,0.181\n");
    let receipts = "SELECT count(*) AS n FROM runs WHERE receipt LIKE '%SELECT uid FROM pool%'";
    assert_eq!(t.ok(&["sql", "runs", "-c", receipts, "--format", "csv"]), "n\n4\n");
}

const WHO: [&str; 12] = [
    "--track",
    "filtering",
    "--method",
    "scores",
    "--author",
    "A. Nonymous",
    "--email",
    "a@example.org",
    "--hf-username",
    "anon",
    "--hf-repo",
    "scores",
];

fn submissions(t: &Sandbox) {
    forge(t, "run", 0, "score", Some("ViT-B-32"), |i| 0.15 + i as f64 / 1000.0);
    let submit =
        |run: &'static str, out: &'static str| -> Vec<&str> { ["report", run, "--submission", out].into_iter().chain(WHO).collect() };
    t.ok(&submit("run", "out"));
    let metadata: Value = serde_json::from_slice(&std::fs::read(t.path("out/metadata.json")).unwrap()).unwrap();
    assert_eq!(
        (metadata["scale"].as_str(), metadata["model"].as_str(), metadata["track"].as_str()),
        (Some("small"), Some("ViT-B-32"), Some("filtering"))
    );
    assert_eq!((metadata["ImageNet 1k"].as_f64(), metadata["dataset_size"].as_str()), (Some(0.161), Some("8")));
    assert_eq!(std::fs::read(t.path("out/small_scale/results.jsonl")).unwrap(), std::fs::read(t.path("run/eval_results.jsonl")).unwrap());
    assert_eq!(storage::Subset::read(&t.path("out/small_scale/samples/subset.npy")).unwrap().len(), 8);
    t.fails(1, &submit("run", "out"), &["out is not empty"]);
    t.fails(2, &["report", "run", "--submission", "new", "--track", "byod"], &["a submission needs --method"]);

    // Everything that is wrong is said at once, and nothing is written.
    let change = |path: &str, of: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&std::fs::read(t.path(path)).unwrap()).unwrap();
        of(&mut value);
        t.write(path, value.to_string());
    };
    change("run/run.json", &|run| {
        run["recipe"]["learning_rate"] = 1e-3.into();
        run["steps"] = 10.into();
        run["receipt"]["subset_sha256"] = "00".into();
        run["recipe"]["model"] = "ViT-B-16".into();
    });
    let results = std::fs::read_to_string(t.path("run/eval_results.jsonl")).unwrap();
    let less: String = results.lines().skip(2).map(|line| line.replace("\"samples\":15000", "\"samples\":12") + "\n").collect();
    t.write("run/eval_results.jsonl", less.replacen("\"checkpoint\":\"", "\"checkpoint\":\"ff", 1));
    t.fails(
        1,
        &submit("run", "new"),
        &[
            "run cannot be submitted:",
            "it is off its recipe: model, learning rate",
            "its weights are not of the model ViT-B-16",
            "it was trained for 10 of 3125 steps",
            "it has 36 of the 38 tasks, and lacks Caltech-101, CIFAR-10",
            "CLEVR Counts was evaluated on 12 of 15000 samples",
            "results are of other weights than the run's",
            "run/subset.npy is not the subset that it was trained on",
        ],
    );
    assert!(!t.path("new").exists());
    let report = t.tarn(&["report", "run"]);
    assert!(
        report.stderr.contains("run: evaluated on fewer samples than DataComp's sets have: CLEVR Counts (12 of 15000)"),
        "{}",
        report.stderr
    );
}

/// Images of a pool that stand in an evaluation set are found by their hashes and by their embeddings, and a filter leaves
/// them out.
fn contamination(t: &Sandbox) {
    source::shard(&t.path("shards/0.tar"), 0..12);
    t.ok(&["ingest", "pool", "shards"]);
    let missing = t.tarn(&["sql", "pool", "-c", "SELECT * FROM near_eval_images()"]);
    assert!(missing.stderr.contains("has no table eval_images") && missing.stderr.contains("tarn eval-images"), "{}", missing.stderr);
    t.ok(&["train", "pool", "--select", "no_filter", "--scale", "tiny", "--max-steps", "1", "--batch-size", "8", "-o", "run"]);
    t.ok(&["embed", "pool", "--model", "run", "--column", "tiny"]);
    // Three of the pool's pictures, one of them smaller, and two of others.
    let smaller = {
        let picture = image::load_from_memory(&source::picture(4)).unwrap().resize_exact(64, 48, image::imageops::FilterType::Triangle);
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let mut members: Vec<(String, Vec<u8>)> = [0, 7, 40, 41].iter().map(|i| (format!("s{i}.jpg"), source::picture(*i))).collect();
    members.push(("s4.png".into(), smaller));
    members.push(("s5.jpg".into(), b"not a picture".to_vec()));
    let labelled = members
        .into_iter()
        .flat_map(|(name, bytes)| [(name.replace(".jpg", ".cls").replace(".png", ".cls"), b"0".to_vec()), (name, bytes)]);
    t.write("sets/wds_seen_test/classnames.txt", "x\n");
    t.write("sets/wds_seen_test/zeroshot_classification_templates.txt", "a {c}\n");
    t.write("sets/wds_seen_test/test/nshards.txt", "1");
    t.write("sets/wds_seen_test/test/0.tar", source::tar(labelled.collect::<Vec<_>>()));
    let args = ["eval-images", "pool", "--data", "sets", "--model", "run", "--column", "tiny_img"];
    t.ok(&args);
    t.ok(&args);
    let csv = |sql: &str| t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]);
    assert_eq!(
        csv("SELECT count(*) AS n, count(phash) AS hashes, count(tiny_img) AS embeddings FROM eval_images"),
        "n,hashes,embeddings\n6,5,5\n"
    );
    let near = csv("SELECT uid_text(uid) AS uid, task, sample FROM near_eval_images(threshold => 8) ORDER BY sample");
    let expected: String =
        [(0, "s0"), (4, "s4"), (7, "s7")].iter().map(|(i, sample)| format!("{},seen,{sample}\n", source::uid(*i))).collect();
    assert_eq!(near, format!("uid,task,sample\n{expected}"));
    let by_embedding =
        "SELECT count(DISTINCT n.uid) AS n FROM eval_images e, LATERAL nearest(pool, tiny_img, e.tiny_img, 3) n WHERE n._distance < 0.0001";
    let found: usize = csv(by_embedding).lines().nth(1).unwrap().parse().unwrap();
    assert!(found >= 2, "{found}");
    t.ok(&["filter", "pool", "decontaminated", "--param", "threshold=8", "-o", "clean.npy"]);
    assert_eq!(storage::Subset::read(&t.path("clean.npy")).unwrap().len(), 9);
    // A line of the report, once the run has results.
    t.ok(&["eval", "run", "--data", "sets"]);
    let report = t.ok(&["report", "run", "--subsets", "--similarity", "0.9999"]);
    assert!(
        report.contains("like evaluation images (4 bits)") && report.contains("like evaluation images (tiny_img, cosine 0.9999)"),
        "{report}"
    );
    let near: f64 = csv("SELECT count(*) AS n FROM near_eval_images()").lines().nth(1).unwrap().parse().unwrap();
    assert!((2.0..=3.0).contains(&near) && report.contains(&format!("| {near} ({:.2}%)", 100.0 * near / 12.0)), "{near}: {report}");
    // A set that breaks off leaves the table as it was.
    t.write("sets/wds_seen_test/test/0.tar", [1; 2000]);
    t.fails(1, &args, &["sets/wds_seen_test/test/0.tar: the shard cannot be read"]);
    assert_eq!(csv("SELECT count(*) AS n FROM eval_images"), "n\n6\n");
    let other = ["eval-images", "pool", "--data", "sets", "--model", "run", "--column", "tiny_image"];
    t.fails(1, &other, &["tiny_image"]);
}
