//! Runs that stop and go on, samples that cannot be read, checkpoints of others, and a model that learns.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use train::backend::{Cpu, Pixels};
use train::model::{Capacity, Model};
use train::parameters::Parameters;
use train::step::Trainer;
use train::{Checkpoint, Device, Encoder, ModelConfig, OpenClipConfig, PreprocessConfig, Recipe, Tokenizer, normalize_rows};

use crate::source::{self, uid};
use crate::{DataTest, Sandbox, Test};

pub const TESTS: &[Test] = &[
    ("runs_go_on_bit_for_bit", resume),
    ("a_run_goes_on_as_it_began_or_not", other_runs),
    ("unreadable_images_are_replaced_and_listed", unreadable),
    ("off_recipe_is_said", off_recipe),
    ("shrunk_images_are_stored_once_and_said", shrunk),
    ("blocks_and_the_doctor", blocks),
    ("killed_replacements_leave_whole_columns", replacements),
    ("pytorch_files_are_read", pytorch),
    ("stopped_embeddings_go_on", embeddings),
    ("loose_files_are_encoded", loose_files),
    ("faces_are_blurred_unless_the_source_did", faces),
];

pub const DATA_TESTS: &[DataTest] = &[("a_model_learns_real_photographs", overfit)];

/// A pool of 48 samples with pictures.
fn pool(t: &Sandbox) {
    source::metadata(&t.path("m/0.parquet"), 0..48);
    source::shard(&t.path("s/0.tar"), 0..48);
    t.ok(&["ingest", "pool", "m", "s"]);
}

/// A command that trains 120 steps of 16 samples.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "--batch-size", "16", "--samples-seen", "1920", "-o", out];
    [&all, more].concat()
}

fn lines(t: &Sandbox, path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(t.path(path)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What of a run's metrics does not depend on the clock.
fn metrics(t: &Sandbox, run: &str) -> Vec<[Value; 4]> {
    let of = |line: &Value| ["step", "loss", "learning_rate", "logit_scale"].map(|name| line[name].clone());
    lines(t, &format!("{run}/metrics.jsonl")).iter().map(of).collect()
}

fn weights(t: &Sandbox, run: &str) -> Vec<u8> {
    std::fs::read(t.path(run).join("open_clip_model.safetensors")).unwrap()
}

/// All steps are the same as some, an end of one kind or another, and the rest.
fn resume(t: &Sandbox) {
    pool(t);
    t.ok(&train("whole", &["--track-samples"]));
    let checkpoints = || {
        let mut names: Vec<_> = std::fs::read_dir(t.path("whole/checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(checkpoints(), ["step_00000024", "step_00000048", "step_00000072", "step_00000096"]);
    // Each is a checkpoint that can be used; a finished run needs no optimizer.
    t.ok(&["encode", "whole/checkpoints/step_00000048", "--texts", "whole/run.json", "-o", "x.npz"]);
    assert!(!t.path("whole/checkpoints/step_00000096/optimizer.safetensors").exists());

    for (run, signal) in [("interrupted", "INT"), ("terminated", "TERM"), ("killed", "KILL")] {
        let command = train(run, &["--track-samples"]);
        let mut child = t.command(&command).stderr(Stdio::piped()).spawn().unwrap();
        while lines(t, &format!("{run}/metrics.jsonl")).len() < 30 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(child.try_wait().unwrap().is_none(), "{run} ended before it was stopped");
        }
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(!t.path(run).join("run.json").exists(), "{run} was stopped too late");
        if signal != "KILL" {
            assert_eq!(output.status.code(), Some(130));
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("stopped at step") && text.contains("--resume"), "{text}");
        }
        t.fails(1, &command, &["holds a run that is not finished", "--resume"]);
        t.ok(&[&command[..], &["--resume"]].concat());
        assert!(weights(t, run) == weights(t, "whole"), "{run}: other weights");
        assert_eq!(metrics(t, run), metrics(t, "whole"), "{run}");
        let seen = |run: &str| t.ok(&["sql", "pool", "-c", &format!("SELECT * FROM '{run}/samples.parquet' ORDER BY uid")]);
        assert_eq!(seen(run), seen("whole"), "{run}");
        let again = t.tarn(&[&command[..], &["--resume"]].concat());
        assert!(again.code == 0 && again.stderr.contains("is finished: 120 steps"), "{}", again.stderr);
    }
    // What was seen is a table that joins with the pool.
    let sql = "SELECT count(*) AS n, sum(seen) AS draws, count(last_loss) = sum(CAST(seen > 0 AS INT)) AS losses \
               FROM pool JOIN 'whole/samples.parquet' s USING (uid)";
    assert_eq!(t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]), "n,draws,losses\n48,1920,true\n");
}

fn other_runs(t: &Sandbox) {
    pool(t);
    t.fails(1, &train("r", &["--resume"]), &["holds no checkpoint of a run that is not finished", "leave --resume away"]);
    let mut child = t.command(&train("r", &[])).stderr(Stdio::null()).spawn().unwrap();
    while !t.path("r/metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none());
    }
    t.fails(1, &train("r", &[]), &["r: another training writes to it"]);
    while !t.path("r/checkpoints/step_00000024").exists() {
        assert!(child.try_wait().unwrap().is_none());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    t.fails(1, &train("r", &["--resume", "--seed", "3"]), &["the run has seed 0, given is 3", "give the run's own"]);
    t.fails(1, &train("r", &["--resume", "--learning-rate", "1e-5"]), &["the run has learning rate"]);
    t.fails(1, &train("r", &["--resume", "--shuffle", "blocks:8"]), &["the run has shuffle"]);
    let other = "SELECT uid FROM pool LIMIT 10";
    let command: Vec<&str> = train("r", &["--resume"]).into_iter().map(|arg| if arg == "no_filter" { other } else { arg }).collect();
    t.fails(1, &command, &["the run has samples 48, given is 10"]);
    t.fails(2, &train("r", &["--shuffle", "blocks"]), &["expected full or blocks:N"]);
    t.fails(1, &train("r", &["--resume", "--max-steps", "20"]), &["the run has done", "and 20 are asked for"]);
    t.fails(1, &["encode", "r", "--texts", "m", "-o", "x.npz"], &["r"]);
    t.write("texts.txt", "a\n");
    t.fails(
        1,
        &["encode", "r", "--texts", "texts.txt", "-o", "x.npz"],
        &["the run is not finished; its newest checkpoint is r/checkpoints/step_"],
    );
    // A different micro-batch, or more memory, is the same run.
    t.ok(&train("r", &["--resume", "--micro-batch", "7"]));
}

fn unreadable(t: &Sandbox) {
    source::metadata(&t.path("m/0.parquet"), 0..48);
    let broken = |i: usize| i % 4 == 1;
    let members = (0..48).flat_map(|i| {
        let mut members = source::members(i);
        if broken(i) {
            // Its header is whole, so that it is taken for an image.
            let half = members[0].1.len() / 2;
            members[0].1.truncate(half);
        }
        members
    });
    t.write("s/0.tar", source::tar(members));
    t.ok(&["ingest", "pool", "m", "s"]);
    let output = t.tarn(&train("r", &["--track-samples"]));
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("draws were replaced because their image could not be read: r/unreadable.jsonl"), "{}", output.stderr);
    let listed: Vec<String> = lines(t, "r/unreadable.jsonl").iter().map(|line| line["uid"].as_str().unwrap().to_string()).collect();
    let expected: Vec<String> = (0..48).filter(|&i| broken(i)).map(uid).collect();
    let sorted = |mut uids: Vec<String>| {
        uids.sort();
        uids
    };
    assert_eq!(sorted(listed), sorted(expected));
    // Every step had its sixteen samples all the same, none of them broken.
    let sql = "SELECT sum(seen) AS draws, max(seen) FILTER (WHERE last_loss IS NULL) AS of_broken FROM 'r/samples.parquet'";
    assert_eq!(t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]), "draws,of_broken\n1920,0\n");

    let none = format!("SELECT uid FROM pool WHERE uid = '{}'", uid(1));
    let command: Vec<&str> = train("n", &[]).into_iter().map(|arg| if arg == "no_filter" { none.as_str() } else { arg }).collect();
    t.fails(1, &command, &["samples drawn has a readable image"]);
}

fn shrunk(t: &Sandbox) {
    pool(t);
    t.fails(1, &train("early", &["--shrunk", "40"]), &["no images shrunk to 40 yet", "tarn shrink POOL --side 40"]);
    // Pictures are 80x60: from here on none is larger, and nothing differs.
    for side in ["40", "60"] {
        let looked = |n: usize| {
            let output = t.tarn(&["shrink", "pool", "--side", side]);
            assert!(output.code == 0 && output.stderr.contains(&format!("{n} images looked at")), "{}", output.stderr);
        };
        looked(48);
        looked(0);
    }
    let column = "SELECT count(shrunk_40) AS a, count(shrunk_60) AS b FROM images";
    assert_eq!(t.ok(&["sql", "pool", "-c", column, "--format", "csv"]), "a,b\n48,0\n");
    t.ok(&train("plain", &["--max-steps", "3"]));
    let same = t.tarn(&train("same", &["--max-steps", "3", "--shrunk", "60"]));
    assert!(!same.stderr.contains("images"), "{}", same.stderr);
    assert_eq!(weights(t, "plain"), weights(t, "same"));
    let other = t.tarn(&train("other", &["--max-steps", "3", "--shrunk", "40"]));
    assert!(other.stderr.contains("(off recipe: batch size, samples seen, images, steps)"), "{}", other.stderr);
    assert_ne!(weights(t, "plain"), weights(t, "other"));
    // What comes later is looked at alone.
    source::shard(&t.path("s/1.tar"), 48..60);
    t.ok(&["ingest", "pool", "s"]);
    t.fails(1, &train("late", &["--shrunk", "40"]), &["12 images are not shrunk to 40 yet", "tarn shrink POOL --side 40"]);
    assert!(t.tarn(&["shrink", "pool", "--side", "40"]).stderr.contains("12 images looked at"));
}

fn off_recipe(t: &Sandbox) {
    pool(t);
    let config = r#"{"embed_dim": 16, "quick_gelu": true,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}"#;
    t.write("small.json", config);
    for (run, more) in [
        ("model", &["--model", "small.json"][..]),
        ("clip", &["--clip-gradients", "0.5"]),
        ("steps", &["--max-steps", "2"]),
        ("rate", &["--learning-rate", "1e-4"]),
    ] {
        let args = [&["train", "pool", "--select", "no_filter", "--scale", "tiny", "-o", run], more].concat();
        let args = if run == "steps" { args } else { [&args[..], &["--max-steps", "1"]].concat() };
        let output = t.tarn(&args);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(output.stderr.contains("scale        tiny (off recipe: "), "{}", output.stderr);
    }
    let receipt: Value = serde_json::from_slice(&std::fs::read(t.path("rate/receipt.json")).unwrap()).unwrap();
    assert_eq!((&receipt["on_recipe"], &receipt["scale"], &receipt["filter"]), (&false.into(), &"tiny".into(), &"no_filter".into()));
    let sql = "SELECT count(*) AS n FROM runs WHERE NOT on_recipe";
    assert_eq!(t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]), "n\n4\n");
    let config: Value = serde_json::from_slice(&std::fs::read(t.path("model/open_clip_config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_cfg"]["quick_gelu"], &config["model_cfg"]["embed_dim"]), (&Value::from(true), &Value::from(16)));
    assert!(lines(t, "clip/metrics.jsonl")[0]["gradient_norm"].as_f64().unwrap() > 0.0);

    for (tower, name) in [("vision_cfg", "timm_model_name"), ("text_cfg", "hf_model_name"), ("text_cfg", "no_such_field")] {
        let text = std::fs::read_to_string(t.path("small.json")).unwrap();
        t.write("other.json", text.replace(&format!(r#""{tower}": {{"#), &format!(r#""{tower}": {{"{name}": "x", "#)));
        let args = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "-o", "z", "--model", "other.json"];
        t.fails(1, &args, &[&format!(r#"other.json: {tower}.{name} = "x" is not supported"#)]);
    }
    let args = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "-o", "z", "--train-memory", "1MB"];
    t.fails(1, &args, &["the model and its optimizer need", "give --train-memory"]);
    let args = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "-o", "z", "--model", "RN50"];
    t.fails(2, &args, &["no model is named 'RN50'", "ViT-B-32"]);
}

fn blocks(t: &Sandbox) {
    pool(t);
    t.ok(&train("blocks", &["--shuffle", "blocks:8"]));
    t.ok(&train("again", &["--shuffle", "blocks:8"]));
    t.ok(&train("full", &[]));
    assert!(weights(t, "blocks") == weights(t, "again"));
    assert!(weights(t, "blocks") != weights(t, "full"));
    let output = t.tarn(&["train", "pool", "--select", "no_filter", "--scale", "tiny", "--doctor"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for words in ["read  ", "decode  ", "train  ", "together  ", " bind"] {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
    t.fails(2, &["train", "pool", "--select", "no_filter", "--scale", "tiny"], &["--output"]);
}

/// A checkpoint with weights from a seed.
pub(crate) fn checkpoint() -> Checkpoint {
    let model_cfg = ModelConfig::named("tiny").unwrap();
    let values = Parameters::new(&model_cfg).draw(9);
    Checkpoint { config: OpenClipConfig { model_cfg, preprocess_cfg: PreprocessConfig::default() }, values }
}

/// How a `.pt` file holds its parameters.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Layout {
    /// A dictionary under this name, beside the epoch.
    Under(&'static str),
    /// The same with matrices whose storage is of their transpose.
    Transposed,
    /// A tree of objects, as TorchScript saves modules.
    Script,
}

/// What `torch.save({"epoch": 1, "state_dict": ...})` writes, with the operations that it uses.
fn pt(checkpoint: &Checkpoint, prefix: &str) -> Vec<u8> {
    pt_of(checkpoint, prefix, Layout::Under("state_dict"))
}

pub(crate) fn pt_of(checkpoint: &Checkpoint, prefix: &str, layout: Layout) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.bytes());
    }
    fn int(out: &mut Vec<u8>, n: usize) {
        out.push(b'J');
        out.extend((n as i32).to_le_bytes());
    }
    fn tuple(out: &mut Vec<u8>, sizes: &[usize]) {
        out.push(b'(');
        sizes.iter().for_each(|&n| int(out, n));
        out.push(b't');
    }
    let parameters = Parameters::new(&checkpoint.config.model_cfg);
    let is_turned = |shape: &[usize]| layout == Layout::Transposed && shape.len() == 2;
    let tensor = |pickle: &mut Vec<u8>, i: usize| {
        let parameter = &parameters.all[i];
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(pickle, "storage");
        pickle.extend(b"ctorch\nFloatStorage\n");
        text(pickle, &i.to_string());
        text(pickle, "cpu");
        int(pickle, parameter.range.len());
        pickle.extend(b"tQ");
        int(pickle, 0);
        tuple(pickle, &parameter.shape);
        let strides = (0..parameter.shape.len()).map(|d| parameter.shape[d + 1..].iter().product()).collect::<Vec<usize>>();
        tuple(pickle, if is_turned(&parameter.shape) { vec![1, parameter.shape[0]] } else { strides }.as_slice());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    };
    let object = b"c__torch__.model\nCLIP\nq\x01)\x81}(";
    let mut pickle = b"\x80\x02".to_vec();
    let all = || parameters.all.iter().enumerate();
    match layout {
        Layout::Script => {
            pickle.extend(object);
            text(&mut pickle, "training");
            pickle.push(b'\x89');
            for (i, parameter) in all().filter(|(_, parameter)| !parameter.name.starts_with("visual.")) {
                text(&mut pickle, &parameter.name);
                tensor(&mut pickle, i);
            }
            text(&mut pickle, "visual");
            pickle.extend(object);
            for (i, name) in all().filter_map(|(i, parameter)| Some((i, parameter.name.strip_prefix("visual.")?))) {
                text(&mut pickle, name);
                tensor(&mut pickle, i);
            }
            pickle.extend(b"ubub.");
        }
        _ => {
            pickle.extend(b"}q\x00(");
            text(&mut pickle, "epoch");
            int(&mut pickle, 1);
            text(&mut pickle, if let Layout::Under(key) = layout { key } else { "state_dict" });
            pickle.extend(b"ccollections\nOrderedDict\nq\x01)R(");
            for (i, parameter) in all() {
                text(&mut pickle, &format!("{prefix}{}", parameter.name));
                tensor(&mut pickle, i);
            }
            pickle.extend(b"uu.");
        }
    }
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("epoch_1/data.pkl", options).unwrap();
    zip.write_all(&pickle).unwrap();
    for (i, parameter) in parameters.all.iter().enumerate() {
        zip.start_file(format!("epoch_1/data/{i}"), options).unwrap();
        let mut values = checkpoint.values[parameter.range.clone()].to_vec();
        if is_turned(&parameter.shape) {
            let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
            values = (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect();
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        zip.write_all(&bytes).unwrap();
    }
    if layout == Layout::Script {
        zip.start_file("epoch_1/constants.pkl", options).unwrap();
        zip.write_all(b"\x80\x02).").unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn pytorch(t: &Sandbox) {
    let checkpoint = checkpoint();
    checkpoint.write(&t.path("folder")).unwrap();
    std::fs::create_dir(t.path("pt")).unwrap();
    std::fs::copy(t.path("folder/open_clip_config.json"), t.path("pt/open_clip_config.json")).unwrap();
    for (name, prefix) in [("pt/epoch_1.pt", ""), ("pt/distributed.pt", "module."), ("pt/open_clip_pytorch_model.bin", "")] {
        t.write(name, pt(&checkpoint, prefix));
        assert!(Checkpoint::read(&t.path(name)).unwrap().values == checkpoint.values, "{name}");
    }
    assert!(Checkpoint::read(&t.path("pt")).unwrap().values == checkpoint.values);
    let wrapped = ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."].map(|prefix| (prefix, Layout::Under("state_dict")));
    let layouts = [Layout::Under("model"), Layout::Transposed, Layout::Script].map(|layout| ("", layout));
    for (i, (prefix, layout)) in wrapped.into_iter().chain(layouts).enumerate() {
        t.write("pt/other.pt", pt_of(&checkpoint, prefix, layout));
        assert!(Checkpoint::read(&t.path("pt/other.pt")).unwrap().values == checkpoint.values, "{i}: {prefix}");
    }
    let refused = |name: &str| Checkpoint::read(&t.path(name)).err().map(|e| e.to_string()).unwrap_or_default();
    t.write("pt/other.pt", pt_of(&checkpoint, "", Layout::Under("ema")));
    let error = refused("pt/other.pt");
    assert!(error.ends_with("expected parameters at its top, or under 'state_dict' or 'model', got 'epoch', 'ema'"), "{error}");
    // What is not a number, and what the configuration does not say.
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let mut bad = checkpoint.clone();
        let parameters = Parameters::new(&bad.config.model_cfg);
        let projection = parameters.all.iter().find(|parameter| parameter.name == "text_projection").unwrap();
        bad.values[projection.range.start + 5] = value;
        bad.write(&t.path("bad")).unwrap();
        let error = refused("bad");
        assert!(error.ends_with(&format!("parameter 'text_projection' holds {shown}, expected finite numbers")), "{error}");
    }
    checkpoint.write(&t.path("layers")).unwrap();
    let config = std::fs::read_to_string(t.path("layers/open_clip_config.json")).unwrap();
    let layers = format!("\"layers\": {}", checkpoint.config.model_cfg.text_cfg.layers);
    assert!(config.contains(&layers), "{config}");
    t.write("layers/open_clip_config.json", config.replace(&layers, "\"layers\": 1"));
    assert!(refused("layers").contains("is not of the model that the configuration describes"), "{}", refused("layers"));
    t.write("layers/open_clip_config.json", config.replace(&layers, "\"layers\": 99"));
    assert!(refused("layers").ends_with("is missing"), "{}", refused("layers"));
    // Without a configuration the shapes say which model it is, if heads are 64 wide.
    t.write("alone.pt", pt(&checkpoint, ""));
    let error = Checkpoint::read(&t.path("alone.pt")).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("head_width must divide the vision width"), "{error}");
    // Broken ones are errors, wherever they break.
    let whole = pt(&checkpoint, "");
    t.write("broken.pt", &whole[..whole.len() / 2]);
    t.write("texts.txt", "a\n");
    t.fails(1, &["encode", "broken.pt", "--texts", "texts.txt", "-o", "x.npz"], &["broken.pt: it is not a file that torch.save"]);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("a/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.").unwrap();
    t.write("evil.pt", zip.finish().unwrap().into_inner());
    t.fails(1, &["encode", "evil.pt", "--texts", "texts.txt", "-o", "x.npz"], &["evil.pt: it holds no state dictionary"]);
    // A dictionary that is built from itself doubles each time; one that holds itself has no end.
    let doubling = [b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s".to_vec(), b"h\x00b".repeat(60), b".".to_vec()].concat();
    let holding = b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00X\x01\x00\x00\x00ch\x00u.".to_vec();
    for (pickle, words) in [(doubling, "more than 100000 entries"), (holding, "expected parameters at its top")] {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in [("a/data.pkl", &pickle[..]), ("a/constants.pkl", b"\x80\x02).")] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        t.write("endless.pt", zip.finish().unwrap().into_inner());
        t.fails(1, &["encode", "endless.pt", "--texts", "texts.txt", "-o", "x.npz"], &[words]);
    }
}

/// Columns that are replaced are there all the time: the old ones or the new.
fn replacements(t: &Sandbox) {
    source::metadata(&t.path("m/0.parquet"), 0..300);
    source::shard(&t.path("s/0.tar"), 0..30);
    t.ok(&["ingest", "pool", "m", "s"]);
    let models = [checkpoint(), Checkpoint { values: checkpoint().values.iter().map(|x| x * 1.5).collect(), ..checkpoint() }];
    models.iter().enumerate().for_each(|(i, model)| model.write(&t.path(&format!("model{i}"))).unwrap());
    let sums =
        || t.ok(&["sql", "pool", "-c", "SELECT count(a_img), count(a_txt), count(a_score), sum(a_score) FROM pool", "--format", "csv"]);
    let embed = |model: usize| ["embed", "pool", "--model", ["model0", "model1"][model], "--column", "a", "--replace"];
    t.ok(&embed(0));
    let first = sums();
    t.ok(&embed(1));
    let second = sums();
    assert!(first != second && first.contains("\n30,300,30,"), "{first}{second}");
    let (mut random, mut done) = (7u64, 0);
    for i in 0..30 {
        let mut tarn = t.command(&embed(i % 2)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(std::time::Duration::from_millis(random >> 55));
        tarn.kill().unwrap();
        done += usize::from(tarn.wait().unwrap().success());
        let now = sums();
        assert!(now == first || now == second, "{now} is neither {first} nor {second}");
    }
    assert!(done < 30, "some are killed");
    t.ok(&embed(0));
    assert_eq!(sums(), first);
    t.ok(&["verify", "pool", "--repair"]);
}

fn embeddings(t: &Sandbox) {
    // Twelve pieces of 1,024 samples.
    source::metadata(&t.path("m/0.parquet"), 0..12_000);
    source::shard(&t.path("s/0.tar"), 0..40);
    t.ok(&["ingest", "pool", "m", "s"]);
    checkpoint().write(&t.path("model")).unwrap();
    let command = ["embed", "pool", "--model", "model", "--column", "a"];
    t.ok(&["embed", "pool", "--model", "model", "--column", "b"]);
    let mut child = t.command(&command).stderr(Stdio::piped()).spawn().unwrap();
    while !t.path("pool/embedding_a/000001.arrow").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was stopped");
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let first = std::fs::metadata(t.path("pool/embedding_a/000000.arrow")).unwrap().modified().unwrap();
    // Stopped again, by force and behind another piece.
    let mut child = t.command(&command).stderr(Stdio::null()).spawn().unwrap();
    while !t.path("pool/embedding_a/000002.arrow").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        std::fs::metadata(t.path("pool/embedding_a/000000.arrow")).unwrap().modified().unwrap(),
        first,
        "kept pieces are not made again"
    );
    t.ok(&command);
    assert!(!t.path("pool/embedding_a").exists());
    let differ = "SELECT count(*) AS n FROM pool WHERE (a_txt IS DISTINCT FROM b_txt) OR (a_img IS DISTINCT FROM b_img) \
                  OR (a_score IS DISTINCT FROM b_score) OR a_txt IS NULL";
    assert_eq!(t.ok(&["sql", "pool", "-c", differ, "--format", "csv"]), "n\n0\n");
    let found = "SELECT count(a_img) AS images, count(a_score) AS scores FROM pool";
    assert_eq!(t.ok(&["sql", "pool", "-c", found, "--format", "csv"]), "images,scores\n40,40\n");
}

/// An array of float32 in an `.npz`.
fn array(path: &Path, name: &str) -> Vec<f32> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut zip.by_name(&format!("{name}.npy")).unwrap(), &mut bytes).unwrap();
    npyz::NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
}

fn loose_files(t: &Sandbox) {
    checkpoint().write(&t.path("model")).unwrap();
    t.write("images/b.jpg", source::picture(2));
    t.write("images/a/c.jpg", source::picture(1));
    t.write("images/broken.jpg", &source::picture(3)[..300]);
    t.write("images/notes.txt", "not a picture");
    t.write("texts.txt", "a red ball\nzwei Bälle\n\n");
    let output = t.tarn(&["encode", "model", "--images", "images", "--texts", "texts.txt", "-o", "out.npz"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("images/broken.jpg: unreadable image: the JPEG breaks off"), "{}", output.stderr);
    let (images, texts) = (array(&t.path("out.npz"), "image_features"), array(&t.path("out.npz"), "text_features"));
    let mut encoder = Encoder::open(&t.path("model"), Device::Cpu).unwrap();
    let pixels = [1, 2].map(|i| encoder.preprocess(&source::picture(i)).unwrap());
    let expected = encoder.encode_images(&pixels).unwrap();
    assert_eq!(images[..2 * 64], expected);
    assert!(images.len() == 3 * 64 && images[2 * 64..].iter().all(|x| x.is_nan()));
    assert_eq!(texts, encoder.encode_texts(&["a red ball", "zwei Bälle", ""]).unwrap());
    assert!(!t.path("out.npz.parts").exists());
    t.ok(&["encode", "model", "--texts", "texts.txt", "--normalize", "-o", "unit.npz"]);
    let mut unit = texts;
    normalize_rows(&mut unit, 64);
    assert_eq!(array(&t.path("unit.npz"), "text_features"), unit);
    t.fails(2, &["encode", "model", "-o", "x.npz"], &["--images"]);
    t.write("empty.txt", "");
    t.fails(2, &["encode", "model", "--texts", "empty.txt", "-o", "x.npz"], &["there is nothing to encode"]);
    // SQL uses the same encoder.
    let sql = "SELECT cosine_similarity(embed_text('a red ball', 'model'), embed_text('A  red ball', 'model')) > 0.9999 AS same";
    let pool = t.small_pool();
    assert_eq!(t.ok(&["sql", pool, "-c", sql, "--format", "csv"]), "same\ntrue\n");
}

/// The same pictures with face boxes, from a source that has blurred them and from one that has not.
fn faces(t: &Sandbox) {
    let with_boxes = |more: &str| {
        let members = (0..16).flat_map(|i| {
            let mut members = source::members(i);
            let json = String::from_utf8(members[1].1.clone()).unwrap();
            members[1].1 = json.replacen('{', &format!("{{\"face_bboxes\": [[0.1, 0.1, 0.9, 0.9]], {more}"), 1).into_bytes();
            members
        });
        source::tar(members)
    };
    t.write("plain/0.tar", source::tar((0..16).flat_map(source::members)));
    t.write("boxes/0.tar", with_boxes(""));
    t.write("blurred/0.tar", with_boxes("\"blurred\": true, "));
    let train = |pool: &'static str| {
        let out = format!("run_{pool}");
        let select = "no_filter";
        t.ok(&["train", pool, "--select", select, "--scale", "tiny", "--batch-size", "16", "--max-steps", "2", "-o", &out]);
        weights(t, &out)
    };
    let ingest = |pool: &str, source: &str, more: &[&str]| t.ok(&[&["ingest", pool, source], more].concat());
    ingest("p", "plain", &[]);
    ingest("b", "boxes", &[]);
    ingest("d", "blurred", &[]);
    ingest("f", "boxes", &["--blurred"]);
    let plain = train("p");
    assert!(train("b") != plain, "boxes are blurred");
    assert!(train("d") == plain && train("f") == plain, "what is blurred already is left as it is");
    // An export says what it did, and an ingest of it believes that.
    t.ok(&["filter", "b", "no_filter", "-o", "all.npy"]);
    t.ok(&["export", "b", "all.npy", "--to", "webdataset", "--blur", "-o", "shards"]);
    t.ok(&["ingest", "e", "shards/*.tar"]);
    assert_eq!(t.ok(&["sql", "e", "-c", "SELECT DISTINCT status FROM images", "--format", "csv"]), "status\nblurred\n");
}

/// A small model that is shown 64 real photographs again and again knows each one's caption.
fn overfit(t: &Sandbox, data: &Path) {
    let mut photographs: HashMap<String, (Option<Vec<u8>>, Option<String>)> = HashMap::new();
    let shard = std::fs::read_dir(data.join("commonpool-mini/shards")).unwrap().map(|e| e.unwrap().path());
    let mut shards: Vec<_> = shard.filter(|path| path.extension().is_some_and(|e| e == "tar")).collect();
    shards.sort();
    let mut archive = tar::Archive::new(std::fs::File::open(&shards[0]).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        let sample = photographs.entry(path.file_stem().unwrap().to_string_lossy().into_owned()).or_default();
        match path.extension().unwrap().to_str().unwrap() {
            "jpg" => sample.0 = Some(bytes),
            "txt" => sample.1 = Some(String::from_utf8(bytes).unwrap()),
            _ => {}
        }
    }
    let mut keys: Vec<&String> = photographs.keys().collect();
    keys.sort();
    let samples: Vec<(&Vec<u8>, &String)> =
        keys.iter().filter_map(|key| Some((photographs[*key].0.as_ref()?, photographs[*key].1.as_ref()?))).take(64).collect();
    assert_eq!(samples.len(), 64);

    let start = checkpoint();
    let config = start.config.model_cfg.clone();
    start.write(&t.path("model")).unwrap();
    let encoder = Encoder::open(&t.path("model"), Device::Cpu).unwrap();
    let pixels: Vec<Vec<u8>> = samples.iter().map(|(image, _)| encoder.preprocess(image).unwrap()).collect();
    let (bytes, sample) = (pixels.concat(), 3 * config.vision_cfg.image_size.pow(2));
    let PreprocessConfig { mean, std, .. } = PreprocessConfig::default();
    let part = |range: Range<usize>| Pixels::Bytes { bytes: &bytes[range.start * sample..range.end * sample], mean, std };
    let tokenizer = Tokenizer::default();
    let captions: Vec<Vec<u32>> = samples.iter().map(|(_, text)| tokenizer.encode(text, 77)).collect();

    let recipe = Recipe { batch_size: 64, learning_rate: 1e-3, warmup: 10, samples_seen: 64 * 150, ..Recipe::named("tiny").unwrap() };
    let mut trainer =
        Trainer::new(Model::new(Box::new(Cpu::new()), &config, &start.values, Capacity::of(&config, 64, 77, 1)).unwrap(), recipe).unwrap();
    let mut loss = f32::NAN;
    for _ in 0..150 {
        loss = trainer.step(&captions, part, &|_| true).unwrap().unwrap().loss;
    }
    let values = trainer.values(0..trainer.model.parameters.len);
    let mut trained = Encoder::new(Checkpoint { config: start.config, values }, Device::Cpu).unwrap();
    let mut images = trained.encode_images(&pixels).unwrap();
    let mut texts = trained.encode_texts(&samples.iter().map(|s| s.1).collect::<Vec<_>>()).unwrap();
    normalize_rows(&mut images, 64);
    normalize_rows(&mut texts, 64);
    let recall = |from: &[f32], to: &[f32]| {
        let nearest = |row: &[f32]| {
            let products = to.chunks_exact(64).map(|other| row.iter().zip(other).map(|(a, b)| a * b).sum::<f32>());
            products.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
        };
        from.chunks_exact(64).enumerate().filter(|(i, row)| samples[nearest(row)].1 == samples[*i].1 || nearest(row) == *i).count() as f64
            / 64.0
    };
    let (to_text, to_image) = (recall(&images, &texts), recall(&texts, &images));
    assert!(to_text > 0.95 && to_image > 0.95, "retrieval {to_text} and {to_image} after a loss of {loss}");
}
