//! Every command that writes to a pool is killed at random moments: what it does not change is as it was, what it does is
//! as before or as after, and the same command comes to its end. `TARN_TEST_KILLS` says how often for each command.

use std::process::Stdio;
use std::time::Instant;

use half::f16;

use crate::differential::Random;
use crate::{Sandbox, Test, source, storage, training};

pub(crate) const TESTS: &[Test] = &[("a_kill_leaves_the_old_or_the_new", kills)];

const KILLS: usize = 4;

/// A command that writes, and a query of what it changes.
struct Write {
    command: &'static str,
    query: &'static str,
}

const WRITES: [Write; 14] = [
    Write { command: "ingest POOL m s late --fragment-rows 60 --group-bytes 40KB", query: "" },
    Write { command: "embed POOL --model model0 --column b", query: "SELECT sum(b_score) FROM pool" },
    Write { command: "embed POOL --model model1 --column a --replace", query: "SELECT sum(a_score), count(a_img) FROM pool" },
    Write { command: "shrink POOL --side 40", query: "SELECT count(shrunk_40) FROM images" },
    Write { command: "compact POOL", query: "" },
    Write { command: "clean POOL --older-than 0s", query: "" },
    Write { command: "index POOL create clip_b --name i --replace --with partitions=2", query: INDEXES },
    Write { command: "index POOL create original_width --name i --using btree --replace", query: INDEXES },
    Write { command: "index POOL drop i", query: INDEXES },
    Write { command: "index POOL update i", query: INDEXES },
    Write { command: "sql POOL -c ALTER|TABLE|pool|ADD|COLUMN|words|AS|(word_count(text))", query: "SELECT sum(words) FROM pool" },
    Write { command: "sql POOL -c ALTER|TABLE|pool|DROP|COLUMN|wide", query: "SELECT sum(wide) FROM pool" },
    Write { command: "vectors POOL add v vectors.npz", query: "SELECT count(*) FROM vectors" },
    Write { command: "tag POOL t", query: "" },
];

const INDEXES: &str = "SELECT name, \"column\", kind, rows, lagging FROM indexes";

fn kills(t: &Sandbox) {
    let kills = std::env::var("TARN_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    storage::sources(t);
    source::metadata(&t.path("late/7.parquet"), 700..800);
    source::metadata(&t.path("late/8.parquet"), 800..850);
    source::shard(&t.path("late/7.tar"), 690..720);
    source::shard(&t.path("late/8.tar"), 720..740);
    let model = training::checkpoint();
    let other = train::Checkpoint { values: model.values.iter().map(|x| x * 1.5).collect(), ..model.clone() };
    model.write(&t.path("model0")).unwrap();
    other.write(&t.path("model1")).unwrap();
    let values = (0..40).map(|i| f16::from_f32(i as f32)).collect();
    source::write_npz(&t.path("vectors.npz"), [("v", 8, values)].into_iter(), false);
    t.ok(&["ingest", "start", "m", "s", "--fragment-rows", "100"]);
    t.ok(&["embed", "start", "--model", "model0", "--column", "a"]);
    t.ok(&["sql", "start", "-c", "ALTER TABLE pool ADD COLUMN wide AS (original_width * 2)"]);
    t.ok(&["index", "start", "create", "clip_b", "--name", "i", "--using", "ivf_flat", "--with", "partitions=4"]);
    source::metadata(&t.path("m/4.parquet"), 400..450);
    t.ok(&["ingest", "start", "m", "--fragment-rows", "100"]);
    t.ok(&["sql", "start", "-c", "ALTER TABLE pool ADD COLUMN wide AS (original_width * 2)"]);

    let (mut random, mut killed, mut old, mut new) = (Random(17), 0, 0, 0);
    for write in WRITES {
        let command = |pool: &str| -> Vec<String> {
            let words = write.command.replace("POOL", pool);
            words.split(' ').map(|word| word.replace('|', " ")).collect()
        };
        let run = |pool: &str| t.command(&command(pool).iter().map(String::as_str).collect::<Vec<_>>());
        copy(t, "start", "undisturbed");
        let before = state(t, "undisturbed", &write);
        let start = Instant::now();
        let output = run("undisturbed").output().unwrap();
        let whole = start.elapsed();
        assert!(output.status.success(), "{}: {}", write.command, String::from_utf8_lossy(&output.stderr));
        let after = state(t, "undisturbed", &write);
        for kill in 0..kills {
            copy(t, "start", "killed");
            let mut tarn = run("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
            tarn.kill().unwrap();
            killed += usize::from(!tarn.wait().unwrap().success());
            let now = state(t, "killed", &write);
            // These commit group by group.
            let grows = ["ingest", "sql", "shrink"].iter().any(|name| write.command.starts_with(name));
            assert!(grows || now == before || now == after, "{} leaves neither {before} nor {after} but {now}", write.command);
            (old, new) = (old + usize::from(now == before), new + usize::from(now == after));
            if now != after {
                let again = run("killed").output().unwrap();
                assert!(again.status.success(), "{}, again: {}", write.command, String::from_utf8_lossy(&again.stderr));
                assert_eq!(state(t, "killed", &write), after, "{}, again", write.command);
            }
            if kill % 8 == 0 {
                t.ok(&["verify", "killed", "--repair"]);
                t.ok(&["verify", "killed", "--deep"]);
            }
        }
    }
    eprintln!("{killed} killed, of which {old} left the pool as it was and {new} as it was to be");
    assert!(killed > 0);
}

fn copy(t: &Sandbox, from: &str, to: &str) {
    let _ = std::fs::remove_dir_all(t.path(to));
    let done = std::process::Command::new("cp").arg("-r").arg(t.path(from)).arg(t.path(to)).status();
    assert!(done.unwrap().success());
}

/// What the pool holds: all that was ingested, and what the query says, which may be an error.
fn state(t: &Sandbox, pool: &str, write: &Write) -> String {
    let columns = "uid, url, text, original_width, original_height, clip_l14_similarity_score, clip_a, clip_b";
    let base = format!(
        "SELECT {columns} FROM pool ORDER BY uid; SELECT uid, width, height, format, sha256, status FROM images ORDER BY uid; \
         SELECT kind, sha256, rows, added, rejected FROM ledger ORDER BY sha256; \
         SELECT path, row, member, reason FROM rejects ORDER BY 1, 2, 3, 4"
    );
    let base = t.ok(&["sql", pool, "-c", &base, "--format", "csv"]);
    let digest = base.bytes().fold(0u64, |digest, byte| digest.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let of = match write.query {
        "" => String::new(),
        query => {
            let output = t.tarn(&["sql", pool, "-c", query, "--format", "csv"]);
            assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
            if output.code == 0 { String::from_utf8(output.stdout).unwrap() } else { output.stderr.lines().next().unwrap_or("").into() }
        }
    };
    format!("{digest:x} of {} lines, {of}", base.lines().count())
}
