//! Evaluation: metrics against published tools' values, every kind of task from end to end on sets made on the spot, and
//! what becomes of broken ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use eval::metric::{self, Grouping, Metrics};
use eval::{Aggregate, Kind, Task, TaskResult, read_results, scored, tasks};
use serde_json::Value;
use train::Checkpoint;
use train::parameters::Parameters;

use crate::sets::{
    CLASSES, IMAGES, Oracle, TEMPLATES, batch, captions, checkpoint, classes, classification, folder_of, image_column, make_forty, members,
    npy, parquet, shards, texts,
};
use crate::{DataTest, Sandbox, Test};

pub const TESTS: &[Test] = &[
    ("metrics_equal_the_published_tools", golden),
    ("ties_and_nothing", ties_and_nothing),
    ("forty_tasks_and_others", forty_tasks),
    ("a_killed_evaluation_goes_on", killed),
    ("broken_sets_cost_nothing_else", broken),
];

pub const DATA_TESTS: &[DataTest] = &[("real_eval_equals_clip_benchmark", clip_benchmark)];

/// clip_benchmark's metrics, best classes and logits for the same checkpoint; pixels may differ by a rounding.
fn clip_benchmark(t: &Sandbox, data: &Path) {
    let path = |name: &str| data.join(name).display().to_string();
    let output = t.tarn(&["eval", &path("clip-tiny"), "--data", &path("evalsets"), "-o", "out", "--predictions"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(
        output.stderr.contains("2 of DataComp's 38 tasks are there\nmissing, without which there is no average over 38: Caltech-101, "),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains("not of DataComp's list, reported apart: flickr8k"), "{}", output.stderr);
    let results = read_results(&t.path("out")).unwrap();
    assert_eq!(results.len(), 3);
    for result in results {
        let file = data.join(format!("expected/eval_wds_{}_test.json", result.key));
        let expected: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for (metric, expected) in expected["metrics"].as_object().unwrap() {
            let (got, expected) = (result.metrics[metric].unwrap(), expected.as_f64().unwrap());
            assert!((got - expected).abs() <= 0.002 + 1e-9, "{} {metric}: {got}, expected {expected}", result.key);
        }
    }
    let rows = |path: &Path| -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split(',').map(str::to_string).collect()).collect()
    };
    let (got, expected) = (rows(&t.path("out/predictions/cifar10.csv")), rows(&data.join("expected/predictions_cifar10.csv")));
    assert_eq!((got.len(), &got[0]), (expected.len(), &expected[0]));
    let mut same = 0;
    for (got, expected) in got.iter().zip(&expected).skip(1) {
        assert_eq!(got[..2], expected[..2]);
        same += usize::from(got[2] == expected[2]);
        for i in 7..12 {
            let (got, expected): (f32, f32) = (got[i].parse().unwrap(), expected[i].parse().unwrap());
            assert!((got - expected).abs() <= 0.001, "{got}, expected {expected}");
        }
    }
    assert!(same as f64 >= 0.99 * (got.len() - 1) as f64, "{same} best classes are the same");
}

fn numbers<T>(value: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(of).collect()
}

fn integers(value: &Value) -> Vec<i64> {
    numbers(value, |x| x.as_i64().unwrap())
}

fn floats(value: &Value) -> Vec<f32> {
    numbers(value, |x| x.as_f64().unwrap() as f32)
}

fn same(got: &Metrics, expected: &Value) {
    for (name, expected) in expected.as_object().unwrap() {
        let got = *got.get(name).unwrap_or_else(|| panic!("no metric {name} among {:?}", got.keys()));
        let close = got.zip(expected.as_f64()).map_or(got.is_none() && expected.is_null(), |(got, expected)| (got - expected).abs() < 1e-6);
        assert!(close, "{name}: {got:?}, expected {expected}");
    }
}

/// Values that tests/golden/metrics.py had from scikit-learn, WILDS and clip_benchmark.
fn golden(_: &Sandbox) {
    let golden: Value = serde_json::from_str(include_str!("../golden/metrics.json")).unwrap();
    let c = &golden["classification"];
    let labels: Vec<usize> = integers(&c["labels"]).into_iter().map(|x| x as usize).collect();
    let top: Vec<Vec<usize>> = numbers(&c["logits"], |row| metric::top_k(&floats(row), 5));
    let mut got = Metrics::from([
        ("acc1".into(), metric::accuracy_at(1, &top, &labels)),
        ("acc5".into(), metric::accuracy_at(5, &top, &labels)),
        ("acc_avg".into(), metric::accuracy_at(1, &top, &labels)),
        ("mean_per_class_recall".into(), metric::mean_per_class_recall(&top, &labels)),
        ("recall-macro_all".into(), metric::mean_per_class_recall(&top, &labels)),
        ("F1-macro_all".into(), metric::macro_f1(&top, &labels)),
    ]);
    same(&got, &c["metrics"]);
    let fields: Vec<String> = numbers(&c["fields"], |name| name.as_str().unwrap().to_string());
    let values: Vec<Vec<i64>> = numbers(&c["values"], integers);
    for (name, by, best, expected) in
        [("acc", "year", 1, "by_year"), ("acc", "region", 1, "by_region"), ("acc_top5", "region", 5, "top5_by_region")]
    {
        let right: Vec<bool> = top.iter().zip(&labels).map(|(top, label)| top[..best].contains(label)).collect();
        got = metric::group_accuracies(&Grouping::new(name, &[by]), &fields, &values, &right);
        same(&got, &c[expected]);
        assert_eq!(got.len(), c[expected].as_object().unwrap().len());
    }
    let f = &golden["faces"];
    let answers: Vec<[usize; 4]> = numbers(&f["answers"], |row| std::array::from_fn(|i| row[i].as_u64().unwrap() as usize));
    got = eval::face_metrics(&answers, &numbers(&f["values"], integers));
    same(&got, &f["metrics"]);
    assert_eq!(got.len(), f["metrics"].as_object().unwrap().len());
    let r = &golden["retrieval"];
    let flat = |rows: &Value| numbers(rows, floats).concat();
    let (images, captions, image_of) = (flat(&r["images"]), flat(&r["captions"]), integers(&r["image_of"]));
    let to_images = metric::first_hits(&captions, &images, 6, |caption, image| image_of[caption] == image as i64);
    let to_texts = metric::first_hits(&images, &captions, 6, |image, caption| image_of[caption] == image as i64);
    same(&eval::recalls(&to_images, &to_texts), &r["metrics"]);
    let a = &golden["association"];
    let scores = numbers(&a["questions"], |question| {
        let associated: Vec<bool> = numbers(&question["associated"], |x| x.as_bool().unwrap());
        let chosen = metric::chosen(&floats(&question["similar"]), associated.iter().filter(|x| **x).count());
        let score = metric::jaccard(&associated, &chosen);
        assert!((score - question["score"].as_f64().unwrap()).abs() < 1e-9);
        (associated.len(), score)
    });
    same(&eval::association_metrics(&scores), &a["metrics"]);
}

fn ties_and_nothing(_: &Sandbox) {
    assert_eq!(metric::top_k(&[0.5, 0.9, 0.5, 0.9, 0.1], 3), [1, 3, 0]);
    assert_eq!(metric::top_k(&[0.0, 0.0], 5), [0, 1]);
    assert_eq!(metric::top_k(&[f32::NAN, 1.0], 1), [0], "a model that gives no numbers is wrong, not a panic");
    let (top, labels) = (vec![vec![0, 1], vec![1, 0], vec![2, 0], vec![0, 2]], [0, 0, 2, 2]);
    assert_eq!(metric::accuracy_at(1, &top, &labels), Some(0.5));
    assert_eq!(metric::accuracy_at(2, &top, &labels), Some(1.0));
    // Class 1 does not occur; classes 0 and 2 are right half of the time each.
    assert_eq!(metric::mean_per_class_recall(&top, &labels), Some(0.5));
    assert_eq!(metric::accuracy_at(1, &[], &[]), None);
    assert_eq!(metric::macro_f1(&[], &[]), None);
    // Of equal scores the earlier comes first; what nothing belongs to is never found.
    let hits = metric::first_hits(&[1.0, 1.0, 1.0], &[1.0, 1.0], 1, |query, other| query == other);
    assert_eq!(hits, [0, 1, usize::MAX]);
    assert_eq!(eval::recalls(&hits, &[])["image_retrieval_recall@1"], Some(1.0 / 3.0));
    assert_eq!(eval::recalls(&hits, &[])["mean_recall@1"], None);
    // A model that gives no numbers finds nothing but by chance.
    let nothing = metric::first_hits(&[f32::NAN; 3], &[1.0, 1.0, 1.0], 1, |query, other| query == other);
    assert_eq!(nothing, [0, 1, 2]);
    assert_eq!(metric::chosen(&[0.3, 0.3, 0.3], 2), [false, true, true]);
    assert_eq!((metric::jaccard(&[false], &[false]), metric::jaccard(&[true, false], &[true, true])), (0.0, 0.5));
    assert_eq!(eval::association_metrics(&[(5, 1.0)])["jaccard_score_10-12"], None);
    // The region that is left out is the worst by far; one that is empty is not the worst.
    let fmow = eval::of_key("wilds/fmow").unwrap();
    let values: Vec<Vec<i64>> = [0, 0, 2, 5, 5].iter().map(|region| vec![*region, 1, 0]).collect();
    let got = metric::group_accuracies(&fmow.groups[1], &fmow.fields, &values, &[true, false, true, false, false]);
    assert_eq!((got["acc_worst_region"], got["acc_region:5"], got["acc_region:1"]), (Some(0.5), Some(0.0), None));
    // Values so large that empty groups cannot be listed are no reason to stop.
    let got = metric::group_accuracies(&fmow.groups[1], &fmow.fields, &[vec![i64::MAX, 1, 0]], &[true]);
    assert_eq!(got["acc_worst_region"], Some(1.0));
}

fn by_key(t: &Sandbox, folder: &str) -> BTreeMap<String, TaskResult> {
    read_results(&t.path(folder)).unwrap().into_iter().map(|result| (result.key.clone(), result)).collect()
}

fn forty_tasks(t: &Sandbox) {
    checkpoint().write(&t.path("model")).unwrap();
    let mut oracle = Oracle::new();
    let expected = make_forty(t, &mut oracle);
    // Sets that are not of the list: by its layout alone, by a task.toml, and a parquet of images and captions.
    let plain = eval::of_key("mnist").unwrap();
    let shapes = classification(t, "sets/wds_shapes_test", plain, &mut oracle);
    let worst = Task { metric: Some("acc_wg".into()), ..eval::of_key("fairness/geode").unwrap().clone() };
    let places = classification(t, "sets/places", &worst, &mut oracle);
    t.write(
        "sets/places/task.toml",
        "name = \"Places\"\nmetric = \"acc_wg\"\nrandom = 0.1\nfields = [\"region\", \"country\"]\ngroups = [{ name = \"acc\", by = [\"region\"] }]\n",
    );
    let images: Vec<usize> = (0..IMAGES).collect();
    let first = |i: &usize| captions(*i)[0].clone();
    let columns = vec![
        ("image", image_column(&images, None)),
        ("caption", Arc::new(StringArray::from(images.iter().map(first).collect::<Vec<_>>())) as ArrayRef),
    ];
    parquet(t, "sets/pairs/data/test-00000-of-00001.parquet", &batch(columns));
    t.write("sets/notes.parquet", "a file that lies there by chance");

    let args = ["eval", "model", "--data", "sets", "-o", "out"];
    let output = t.tarn(&args);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("38 of DataComp's 38 tasks are there\n"), "{}", output.stderr);
    assert!(output.stderr.contains("reported apart: pairs, Places, shapes"), "{}", output.stderr);
    let results = by_key(t, "out");
    assert_eq!(results.len(), 43);
    for task in tasks() {
        let result = &results[&task.key];
        assert_eq!((result.samples, result.dataset.as_str()), (if task.kind == Kind::Association { 5 } else { 12 }, task.name.as_str()));
        let (got, expected) = (result.score(), expected[&task.key]);
        match task.kind {
            Kind::Faces => assert_eq!((got, result.metrics["acc_gender_avg"]), (None, Some(expected)), "{}", task.key),
            _ => assert!((got.unwrap() - expected).abs() < 1e-6, "{}: {got:?}, expected {expected}", task.key),
        }
    }
    assert_eq!((results["shapes"].score(), results["places"].score()), (Some(shapes), Some(places)));
    assert_eq!((results["shapes"].random, results["places"].random), (Some(1.0 / 6.0), Some(0.1)));
    assert!(results["pairs"].score().is_some());

    // DataComp's files hold DataComp's tasks alone, in its form; aggregates are plain means.
    let lines = |file: &str| {
        std::fs::read_to_string(t.path(file)).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let listed = lines("out/eval_results.jsonl");
    assert_eq!((listed.len(), lines("out/eval_results_other.jsonl").len()), (40, 3));
    assert_eq!(listed.iter().filter(|line| !line["metrics"]["main_metric"].is_null()).count(), 38);
    assert!(listed.iter().all(|line| line["key"].is_string() && line["dataset"].is_string() && line.get("main_metric").is_none()));
    let mean = |keys: Vec<&str>| keys.iter().map(|key| expected[*key]).sum::<f64>() / keys.len() as f64;
    let all = mean(scored().map(|task| task.key.as_str()).collect());
    assert!(output.stderr.contains(&format!("Average over 38: {all:.4} (chance ")), "{all}: {}", output.stderr);
    for aggregate in Aggregate::ALL {
        let value = mean(aggregate.tasks().map(|task| task.key.as_str()).collect());
        assert!(output.stderr.contains(&format!("{}: {value:.4} (chance", aggregate.name())), "{value}: {}", output.stderr);
    }
    let report = t.ok(&["report", "out"]);
    assert!(report.contains("Average over 38") && report.contains("| chance") && report.contains("Places"), "{report}");

    // What is known is not evaluated again, classifiers included: tasks of the same classes share one.
    let bytes = std::fs::read(t.path("out/eval_results.jsonl")).unwrap();
    assert_eq!(std::fs::read_dir(t.path("out/classifiers")).unwrap().count(), 5);
    let output = t.tarn(&args);
    assert!(output.stderr.matches("as evaluated before").count() == 43, "{}", output.stderr);
    assert_eq!(std::fs::read(t.path("out/eval_results.jsonl")).unwrap(), bytes);

    // Without one of them there is no average over 38 anywhere.
    std::fs::remove_dir_all(t.path("sets/wds_objectnet_test")).unwrap();
    let output = t.tarn(&["eval", "model", "--data", "sets", "-o", "less"]);
    assert!(
        output.stderr.contains("37 of DataComp's 38 tasks are there\nmissing, without which there is no average over 38: ObjectNet\n"),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains("mean of 37 of the 38 tasks") && !output.stderr.contains("Average over 38:"), "{}", output.stderr);
    let less = t.tarn(&["report", "less"]);
    let table = String::from_utf8_lossy(&less.stdout);
    assert!(table.contains("mean of 37 of 38") && !table.contains("Average over 38"), "{table}");
    assert!(less.stderr.contains("37 of the 38 tasks, and no average over 38; lacking ObjectNet"), "{}", less.stderr);

    // One evaluated again costs no other.
    let before = by_key(t, "less");
    let output =
        t.tarn(&["eval", "model", "--data", "sets", "-o", "less", "--overwrite", "--tasks", " MNIST,wds_shapes_test", "--predictions"]);
    assert!(output.code == 0 && !output.stderr.contains("as evaluated before"), "{}", output.stderr);
    let values = |results: BTreeMap<String, TaskResult>| results.into_iter().map(|(key, result)| (key, result.metrics)).collect::<Vec<_>>();
    assert_eq!(values(by_key(t, "less")), values(before));
    assert!(t.path("less/predictions/mnist.csv").exists());

    // Results of another model are not mixed in.
    let other = Checkpoint { values: Parameters::new(&checkpoint().config.model_cfg).draw(10), ..checkpoint() };
    other.write(&t.path("other")).unwrap();
    t.fails(1, &["eval", "other", "--data", "sets", "-o", "less"], &["holds 42 results of another checkpoint", "--overwrite"]);
    let output = t.tarn(&["eval", "other", "--data", "sets", "-o", "less", "--overwrite", "--tasks", "mnist,Flickr"]);
    assert_eq!((output.code, by_key(t, "less").len()), (0, 2), "{}", output.stderr);
    t.fails(2, &["eval", "other", "--data", "sets", "--tasks", "minst"], &["no task here is named 'minst', did you mean 'mnist'?"]);
    assert!(t.ok(&["eval", "--data", "sets", "--list"]).contains("winogavil"));
}

/// Killed whenever a task is done, an evaluation ends with the results of one that was not.
fn killed(t: &Sandbox) {
    checkpoint().write(&t.path("model")).unwrap();
    let mut oracle = Oracle::new();
    for task in tasks().iter().filter(|task| task.kind == Kind::Classification).take(5) {
        classification(t, &folder_of(task), task, &mut oracle);
    }
    t.ok(&["eval", "model", "--data", "sets", "-o", "whole"]);
    let done = || std::fs::read_to_string(t.path("out/eval_results.jsonl")).unwrap_or_default().lines().count();
    for n in 1..=5 {
        let mut child = t.command(&["eval", "model", "--data", "sets", "-o", "out"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        while done() < n && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // A line that was torn is written again.
    let path = t.path("out/eval_results.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 20]).unwrap();
    let output = t.tarn(&["eval", "model", "--data", "sets", "-o", "out"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.matches("as evaluated before").count() == 4, "{}", output.stderr);
    let values =
        |folder: &str| by_key(t, folder).into_iter().map(|(key, result)| (key, result.metrics, result.samples)).collect::<Vec<_>>();
    assert_eq!(values("out"), values("whole"));
    assert_eq!(done(), 5);
}

fn broken(t: &Sandbox) {
    checkpoint().write(&t.path("model")).unwrap();
    let mut oracle = Oracle::new();
    let mnist = eval::of_key("mnist").unwrap();
    let geode = eval::of_key("fairness/geode").unwrap();
    for folder in ["mnist", "cifar10", "stl10", "cars", "food101", "gtsrb", "country211"] {
        classification(t, &format!("sets/wds_{folder}_test"), mnist, &mut oracle);
    }
    classification(t, "sets/wds_geode_test", geode, &mut oracle);
    let cut = |file: &str, at: usize| {
        let bytes = std::fs::read(t.path(file)).unwrap();
        std::fs::write(t.path(file), &bytes[..at]).unwrap();
    };
    cut("sets/wds_cifar10_test/test/1.tar", 5000);
    cut("sets/wds_cars_test/test/1.tar", 512 * 3);
    std::fs::remove_file(t.path("sets/wds_stl10_test/classnames.txt")).unwrap();
    std::fs::remove_file(t.path("sets/wds_food101_test/test/1.tar")).unwrap();
    classes(t, "sets/wds_gtsrb_test", &texts(&CLASSES[..2]), &texts(&TEMPLATES));
    // One sample without an image, one whose image is none, in a set that is sound else.
    let mut samples: Vec<_> = (0..4).map(|i| members(i, vec![("cls", b"1".to_vec())])).collect();
    samples[1].pop();
    samples[2][1].1.truncate(100);
    shards(t, "sets/wds_country211_test", samples);
    shards(t, "sets/wds_geode_test", vec![members(0, vec![("cls", b"1".to_vec()), ("npy", npy(&[1]))]), members(1, vec![])]);
    t.write("sets/typo/task.toml", "nmae = 'x'\n");
    t.write("sets/typo/test/nshards.txt", "0\n");
    t.write("sets/notes.txt", "not a set");

    let output = t.tarn(&["eval", "model", "--data", "sets", "-o", "out"]);
    assert_eq!(output.code, 1);
    for words in [
        "CIFAR-10: not evaluated: sets/wds_cifar10_test/test/1.tar: the shard cannot be read: it breaks off",
        "Stanford Cars: not evaluated: sets/wds_cars_test/test/1.tar: the shard cannot be read",
        "sets/wds_stl10_test cannot be evaluated: sets/wds_stl10_test/classnames.txt: expected one entry a line, got no such file",
        "sets/wds_food101_test/test/1.tar: expected 2 shards, got no such file",
        "is outside the 2 classes of classnames.txt",
        "GeoDE: not evaluated: sets/wds_geode_test: sample s0000000: its .npy has 1 numbers, expected 2: region, country",
        "sets/typo cannot be evaluated: sets/typo/test/nshards.txt: expected a number of shards, got '0'",
        "Country211: 2 samples are left out, an image cannot be read: s0000001: it has no image",
        "error: not evaluated: ",
    ] {
        assert!(output.stderr.contains(words), "'{words}' is not in {}", output.stderr);
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
    let results = by_key(t, "out");
    assert_eq!(results.keys().collect::<Vec<_>>(), ["country211", "mnist"]);
    assert_eq!((results["country211"].samples, results["country211"].unreadable), (2, 2));
    t.write("sets/typo/test/nshards.txt", "1\n");
    t.write("sets/typo/test/0.tar", [0; 1024]);
    let output = t.tarn(&["eval", "model", "--data", "sets/typo", "-o", "typo"]);
    assert!(output.stderr.contains("sets/typo/task.toml: ") && output.stderr.contains("nmae"), "{}", output.stderr);
    t.write("sets/typo/task.toml", "metric = 'acc2'\n");
    let output = t.tarn(&["eval", "model", "--data", "sets/typo", "-o", "typo"]);
    assert!(output.stderr.contains("metric = 'acc2', expected one of acc1, acc5, mean_per_class_recall"), "{}", output.stderr);
    t.write("sets/typo/task.toml", "kind = 'faces'\nfields = ['age']\n");
    let output = t.tarn(&["eval", "model", "--data", "sets/typo", "-o", "typo"]);
    assert!(output.stderr.contains("faces have the fields"), "{}", output.stderr);
    t.fails(1, &["eval", "model", "--data", "nowhere"], &["no such folder: nowhere"]);
    t.fails(1, &["report", "nowhere"], &["no such folder: nowhere"]);
}
