//! Processes that train one model together.

use std::net::TcpListener;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::{Sandbox, Test, source};

pub const TESTS: &[Test] =
    &[("two_processes_train_as_one", as_one), ("a_lost_process_ends_the_others", lost), ("processes_meet_on_gpus_or_are_refused", devices)];

const STEPS: &str = "40";

fn args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "--batch-size", "16", "--samples-seen", "1920", "-o", out];
    [&all, more].concat()
}

fn pool(t: &Sandbox) {
    source::metadata(&t.path("m/0.parquet"), 0..48);
    source::shard(&t.path("s/0.tar"), 0..48);
    t.ok(&["ingest", "pool", "m", "s"]);
}

/// One of `world` processes, as torchrun would start it.
fn start(t: &Sandbox, rank: usize, world: usize, port: u16, args: &[&str]) -> Child {
    let variables = [("RANK", rank), ("WORLD_SIZE", world), ("MASTER_PORT", port as usize - 1)];
    let mut command = t.command(args);
    command.envs(variables.map(|(name, value)| (name, value.to_string()))).env("MASTER_ADDR", "127.0.0.1");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// How it ended, and what it said.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn interrupt(child: &Child) {
    let done = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

fn metrics(t: &Sandbox, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(t.path(run).join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The same batches, the same losses and parameters as one process has, but for the order of sums.
fn as_one(t: &Sandbox) {
    pool(t);
    let more = ["--max-steps", STEPS, "--track-samples"];
    t.ok(&args("one", &more));
    let port = free_port();
    let second = start(t, 1, 2, port, &args("two", &more));
    let first = start(t, 0, 2, port, &args("two", &more));
    for (code, said) in [end(first), end(second)] {
        assert_eq!(code, Some(0), "{said}");
    }
    let (one, two) = (metrics(t, "one"), metrics(t, "two"));
    assert_eq!((one.len(), two.len()), (40, 40));
    for (one, two) in one.iter().zip(&two) {
        let of = |line: &Value, name: &str| line[name].as_f64().unwrap();
        let difference = (of(one, "loss") - of(two, "loss")).abs() / of(one, "loss");
        assert!(difference < 1e-3, "step {}: {difference}", one["step"]);
        assert_eq!(one["learning_rate"], two["learning_rate"]);
    }
    // The first steps hold no noise but that of the sums.
    let first = |run: &[Value]| run[0]["loss"].as_f64().unwrap();
    assert!((first(&one) - first(&two)).abs() < 1e-5, "{} and {}", first(&one), first(&two));
    let seen =
        |run: &str| t.ok(&["sql", "pool", "-c", &format!("SELECT uid, seen FROM '{run}/samples.parquet' ORDER BY uid"), "--format", "csv"]);
    assert_eq!(seen("one"), seen("two"));
    assert_eq!(t.ok(&["sql", "pool", "-c", "SELECT count(*) AS n FROM runs", "--format", "csv"]), "n\n2\n");
}

/// What the others do, and how the run goes on, by itself.
fn lost(t: &Sandbox) {
    pool(t);
    let port = free_port();
    let mut second = start(t, 1, 2, port, &args("run", &[]));
    let first = start(t, 0, 2, port, &args("run", &[]));
    let mut first = first;
    while metrics(t, "run").len() < 5 && first.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    second.kill().unwrap();
    second.wait().unwrap();
    let (code, said) = end(first);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("process 1 went away") && said.contains("--resume"), "{said}");
    // Two go on to the middle, then one alone to the end.
    let some = ["--resume", "--max-steps", "90"];
    let second = start(t, 1, 2, port, &args("run", &some));
    let first = start(t, 0, 2, port, &args("run", &["--resume"]));
    let (code, said) = end(second);
    assert!(code == Some(1) && said.contains("the run has steps 120, given is 90"), "{said}");
    assert_eq!(end(first).0, Some(1));
    let second = start(t, 1, 2, port, &args("run", &["--resume"]));
    let mut first = start(t, 0, 2, port, &args("run", &["--resume"]));
    while metrics(t, "run").len() < 60 && first.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    interrupt(&second);
    for (code, said) in [end(second), end(first)] {
        assert!(code == Some(130) || said.contains("went away"), "{code:?}: {said}");
    }
    t.ok(&args("run", &["--resume"]));
    let steps: Vec<u64> = metrics(t, "run").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=120).collect::<Vec<u64>>());
    // Another plan is noticed before the first step.
    let (first, second) = (args("other", &[]), args("other", &["--seed", "1"]));
    let second = start(t, 1, 2, port, &second);
    let first = start(t, 0, 2, port, &first);
    let (code, said) = end(second);
    assert!(code == Some(1) && said.contains("the run has seed 0, given is 1"), "{said}");
    assert_eq!(end(first).0, Some(1));
    for (rank, world, words) in
        [(2, 2, "RANK is '2', expected less than WORLD_SIZE"), (0, 3, "a batch of 16 cannot be shared by 3 processes")]
    {
        let (code, said) = end(start(t, rank, world, port, &args("x", &[])));
        assert!(code == Some(1) && said.contains(words), "{said}");
    }
}

/// Two that compute on emulated GPUs train as one on the CPU; two that compute in different ways do not.
pub fn devices(t: &Sandbox) {
    pool(t);
    let config = r#"{"embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}}"#;
    t.write("small.json", config);
    let more = |device: &'static str| ["--model", "small.json", "--max-steps", "3", "--precision", "fp32", "--device", device];
    t.ok(&args("one", &more("cpu")));
    let port = free_port();
    let second = start(t, 1, 2, port, &args("two", &more("emulated")));
    let first = start(t, 0, 2, port, &args("two", &more("emulated")));
    for (code, said) in [end(first), end(second)] {
        assert_eq!(code, Some(0), "{said}");
    }
    for (one, two) in metrics(t, "one").iter().zip(&metrics(t, "two")) {
        let difference = (one["loss"].as_f64().unwrap() - two["loss"].as_f64().unwrap()).abs();
        assert!(difference < 1e-4, "step {}: {difference}", one["step"]);
    }
    let second = start(t, 1, 2, port, &args("mixed", &more("emulated")));
    let first = start(t, 0, 2, port, &args("mixed", &more("cpu")));
    for (code, said) in [end(first), end(second)] {
        assert!(code == Some(1) && said.contains("give all the same --device"), "{said}");
    }
}
