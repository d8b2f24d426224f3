//! Checkpoints and evaluation sets of any bytes, and sound ones of which some are changed: each is read or refused.

use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tarn_tests::damaged;
use train::Checkpoint;

use crate::{Sandbox, Test, sets, source, training};

pub(crate) const TESTS: &[Test] = &[
    ("any_pickle_is_read_or_refused", pickles),
    ("any_safetensors_are_read_or_refused", safetensors),
    ("any_evaluation_set_is_read_or_refused", evaluation_sets),
];

fn run<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, each: impl Fn(T)) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&strategy, |value| {
        each(value);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

fn pickles(t: &Sandbox) {
    let checkpoint = training::checkpoint();
    for layout in [training::Layout::Under("state_dict"), training::Layout::Script] {
        let whole = training::pt_of(&checkpoint, "", layout);
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&whole)).unwrap();
        let mut members = Vec::new();
        for i in 0..zip.len() {
            let mut member = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).unwrap();
            members.push((member.name().unwrap().into_owned(), bytes));
        }
        let pickle = members.iter().find(|(name, _)| name.ends_with("data.pkl")).unwrap().1.clone();
        run(damaged(pickle), |pickle| {
            let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
            for (name, bytes) in &members {
                let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
                zip.start_file(name, options).unwrap();
                zip.write_all(if name.ends_with("data.pkl") { &pickle } else { bytes }).unwrap();
            }
            t.write("x.pt", zip.finish().unwrap().into_inner());
            let _ = Checkpoint::read(&t.path("x.pt"));
        });
        run(damaged(whole), |bytes| {
            t.write("x.pt", bytes);
            let _ = Checkpoint::read(&t.path("x.pt"));
        });
    }
}

fn safetensors(t: &Sandbox) {
    training::checkpoint().write(&t.path("model")).unwrap();
    let read = |name: &str| std::fs::read(t.path(&format!("model/{name}"))).unwrap();
    let (config, weights) = (read("open_clip_config.json"), read("open_clip_model.safetensors"));
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let sound = config.clone();
    // Most of the bytes are values, of which any may be.
    let (header, values) = weights.split_at(header);
    run((damaged(config.clone()), damaged(header.to_vec())), |(config, header)| {
        t.write("model/open_clip_config.json", config);
        let _ = Checkpoint::read(&t.path("model"));
        t.write("x/open_clip_config.json", &sound);
        t.write("x/open_clip_model.safetensors", [&header, values].concat());
        let _ = Checkpoint::read(&t.path("x"));
    });
}

const TASK: &str = "key = 'mine'\nname = 'Mine'\nkind = 'classification'\nmetric = 'acc1'\nsize = 3\nclasses = 2\nrandom = 0.5\n\
    tags = ['a']\nfields = ['region']\n[[groups]]\nname = 'acc1_by'\nby = ['region']\ntop = 1\n";

fn evaluation_sets(t: &Sandbox) {
    let mut shard = tar::Builder::new(Vec::new());
    for i in 0..3 {
        for (extension, bytes) in [("jpg", source::picture(i)), ("cls", b"1".to_vec()), ("npy", sets::npy(&[i as i64]))] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            shard.append_data(&mut header, format!("{i}.{extension}"), &bytes[..]).unwrap();
        }
    }
    let shard = shard.into_inner().unwrap();
    t.write("sets/mine/classnames.txt", "cat\ndog\n");
    t.write("sets/mine/zeroshot_classification_templates.txt", "a {c}\n");
    t.write("sets/mine/test/nshards.txt", "1");
    run((damaged(TASK.as_bytes().to_vec()), damaged(shard.clone())), |(task, shard)| {
        t.write("sets/mine/task.toml", task);
        t.write("sets/mine/test/0.tar", shard);
        let Ok(found) = eval::find(&t.path("sets")) else { return };
        for set in found.sets {
            let _ = eval::for_each_image(None, &set, &AtomicBool::new(false), &|_| {}, &mut |_| true);
        }
    });
}
