//! Ingest, its order and its interruptions, what it rejects, versions, verify and export.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Instant;

use half::f16;

use crate::source::{self, uid};
use crate::{Sandbox, Test};

pub(crate) const TESTS: &[Test] = &[
    ("order_of_sources_changes_nothing", order),
    ("killed_ingests_lose_and_double_nothing", kills),
    ("rejects_are_exact", rejects),
    ("strict_stops_at_the_first", strict),
    ("compressed_shards_and_csv", compressed),
    ("made_uids", made_uids),
    ("columns_come_in_any_order", columns),
    ("embeddings_find_their_rows", joins),
    ("two_ingests_at_once", two_at_once),
    ("versions_and_tags", versions),
    ("verify_finds_and_mends", verify),
    ("export_webdataset", export_webdataset),
    ("export_parquet_and_urls", export_parquet),
];

/// Everything in a pool, in one order, without what depends on when it was committed.
pub(crate) fn content(t: &Sandbox, pool: &str) -> String {
    let queries = [
        "SELECT * FROM pool ORDER BY uid",
        "SELECT uid, width, height, format, sha256, status FROM images ORDER BY uid",
        "SELECT kind, sha256, rows, added, rejected FROM ledger ORDER BY sha256",
        "SELECT path, row, member, \"column\", reason, detail, kept FROM rejects ORDER BY 1, 2, 3, 4, 5, 6",
    ];
    queries.map(|sql| t.ok(&["sql", pool, "-c", sql, "--format", "jsonl"])).concat()
}

/// 400 samples in metadata of four files, vectors for three of them, and pictures of 120 samples in four shards.
pub(crate) fn sources(t: &Sandbox) {
    for file in 0..4 {
        let samples = file * 100..(file + 1) * 100;
        source::metadata(&t.path(&format!("m/{file}.parquet")), samples.clone());
        if file != 2 {
            let arrays: &[(&str, usize)] = if file == 1 { &[("clip_b", 8)] } else { &[("clip_a", 4), ("clip_b", 8)] };
            source::embeddings(&t.path(&format!("m/{file}.npz")), arrays, samples, file == 3);
        }
    }
    for file in 0..4 {
        source::shard(&t.path(&format!("s/{file}.tar")), file * 90 + 50..file * 90 + 80);
    }
}

/// A column of a query as words.
fn values(t: &Sandbox, pool: &str, sql: &str) -> Vec<String> {
    t.ok(&["sql", pool, "-c", sql, "--format", "csv"]).lines().skip(1).map(str::to_string).collect()
}

fn order(t: &Sandbox) {
    sources(t);
    t.ok(&["ingest", "once", "m", "s", "--fragment-rows", "150"]);
    assert_eq!(values(t, "once", "SELECT (SELECT count(*) FROM pool) AS a, (SELECT count(*) FROM images) AS b"), ["400,120"]);
    assert_eq!(values(t, "once", "SELECT count(clip_a), count(clip_b) FROM pool"), ["200,300"]);
    // Each vector is with its sample.
    let sql = "SELECT uid, clip_b FROM pool WHERE clip_b IS NOT NULL";
    let rows = t.ok(&["sql", "once", "-c", sql, "--format", "jsonl"]);
    let by_uid: BTreeMap<String, usize> = (0..400).map(|i| (uid(i), i)).collect();
    for line in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let i = by_uid[row["uid"].as_str().unwrap()];
        let got: Vec<f32> = row["clip_b"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let expected: Vec<f32> = source::vector(i, 8).iter().map(|x| x.to_f32()).collect();
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3), "sample {i}: {got:?}");
    }
    // Shards first, then vectors before their metadata, then the rest, file by file.
    t.ok(&["ingest", "late", "s"]);
    assert_eq!(values(t, "late", "SELECT count(*), count(text) FROM pool"), ["120,120"]);
    let early = t.tarn(&["ingest", "late", "m/0.npz"]);
    assert_eq!(early.code, 1);
    assert!(early.stderr.contains("no metadata of this stem in the pool"), "{}", early.stderr);
    for file in ["m/3.parquet", "m/1.parquet", "m/3.npz", "m/0.parquet", "m/1.npz", "m/2.parquet", "m/0.npz"] {
        t.ok(&["ingest", "late", file]);
    }
    let same = |sql: &str| assert_eq!(t.ok(&["sql", "once", "-c", sql]), t.ok(&["sql", "late", "-c", sql]), "{sql}");
    let columns = "uid, url, text, original_width, original_height, clip_l14_similarity_score, clip_a, clip_b";
    same(&format!("SELECT {columns} FROM pool ORDER BY uid"));
    same("SELECT uid, sha256 FROM images ORDER BY uid");
    same("SELECT count(*) FROM rejects");
    t.ok(&["verify", "late", "--deep"]);
    // More next week, and all of it again.
    source::metadata(&t.path("m/4.parquet"), 400..450);
    let again = t.tarn(&["ingest", "late", "m", "s"]);
    assert!(again.stderr.contains("ingested 50 samples") && again.stderr.contains("passed over 11 files"), "{}", again.stderr);
}

/// Ingests are killed at random moments and started again until one comes to its end; each time the pool is the same.
fn kills(t: &Sandbox) {
    sources(t);
    // A duplicate across files, a bad uid and a broken shard are to be rejected once, however often the files are read.
    source::metadata(&t.path("m/5.parquet"), 390..405);
    let mut rows: Vec<_> = (405..415).map(source::row).collect();
    rows[3].uid = "x".to_string();
    tarn_tests::write_metadata(&t.path("m/6.parquet"), &rows);
    let shard = std::fs::read(t.path("s/3.tar")).unwrap();
    t.write("s/4.tar", &shard[..shard.len() - 3000]);
    let options = ["--fragment-rows", "100", "--group-bytes", "40KB"];
    let start = Instant::now();
    t.ok(&[&["ingest", "undisturbed", "m", "s"], &options[..]].concat());
    let whole = start.elapsed();
    let expected = content(t, "undisturbed");

    let (mut killed, mut pools, mut random) = (0, 0, 7u64);
    while killed < 100 {
        let pool = format!("pool{pools}");
        pools += 1;
        loop {
            let mut tarn = t.command(&[&["ingest", &pool, "m", "s"], &options[..]].concat()).stderr(Stdio::null()).spawn().unwrap();
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            std::thread::sleep(whole.mul_f64((random >> 40) as f64 / (1u64 << 24) as f64));
            tarn.kill().unwrap();
            if tarn.wait().unwrap().success() {
                break;
            }
            killed += 1;
        }
        assert!(content(t, &pool) == expected, "{pool} after {killed} kills differs");
        t.ok(&["verify", &pool, "--deep"]);
    }
}

/// A folder of everything that can be wrong, and what the table says of it.
fn rejects(t: &Sandbox) {
    let dir = |name: &str| t.path(&format!("bad/{name}"));
    source::metadata(&dir("a.parquet"), 0..20);
    source::embeddings(&dir("a.npz"), &[("clip_a", 4)], 0..19, false); // one row less
    let mut rows: Vec<_> = (20..40).map(source::row).collect();
    rows[1].uid = uid(20); // twice in the file
    rows[2].uid = uid(5); // in another file
    rows[3].uid = uid(23)[..31].to_string();
    rows[4].score = Some(f32::NAN);
    rows[5].score = Some(f32::INFINITY);
    rows[6].width = 1 << 40;
    tarn_tests::write_metadata(&dir("b.parquet"), &rows);
    let mut vectors: Vec<f16> = (20..40).flat_map(|i| source::vector(i, 4)).collect();
    vectors[7 * 4] = f16::NAN;
    vectors[3 * 4] = f16::NAN; // of a row that is not in the pool; row 2 is, by another file
    source::write_npz(&dir("b.npz"), [("clip_a", 4, vectors)].into_iter(), false);
    let parquet = std::fs::read(dir("a.parquet")).unwrap();
    t.write("bad/c.parquet", &parquet[..parquet.len() / 2]);
    source::metadata(&dir("d.parquet"), 40..50);
    let npz = std::fs::read(dir("b.npz")).unwrap();
    t.write("bad/d.npz", &npz[..npz.len() / 2]);
    source::metadata(&dir("e.parquet"), 50..60);
    source::embeddings(&dir("e.npz"), &[("clip_a", 6)], 50..60, false); // another dimension
    source::embeddings(&dir("dim.npz"), &[("b32_img", 500)], 50..60, false); // CommonPool's have 512
    source::embeddings(&dir("f.npz"), &[("clip_a", 4)], 0..3, false); // of nothing
    t.write("bad/g.csv", "name,age\nx,1\n");

    let part = |i: usize, which: &[usize]| which.iter().map(|&k| source::members(i)[k].clone()).collect::<Vec<_>>();
    let with = |i: usize, k: usize, bytes: &[u8]| {
        let mut members = source::members(i);
        members[k].1 = bytes.to_vec();
        members
    };
    let members = [
        source::members(0),
        with(1, 1, b"{\"uid\": "),
        with(2, 1, br#"{"uid": "abc", "caption": "x"}"#),
        part(3, &[1, 2]),
        part(4, &[0]),
        part(10, &[0, 2]),
        with(5, 0, b""),
        with(6, 0, b"<html>gone</html>"),
        source::members(0).into_iter().map(|(name, bytes)| (name.replace("000000000", "again"), bytes)).collect(),
        vec![("../../etc/x.jpg".to_string(), b"x".to_vec())],
        source::members(7),
    ];
    t.write("bad/h.tar", source::tar(members.concat()));
    let whole = source::tar([source::members(8), source::members(9)].concat());
    let end = whole.len() - 1024 - 600; // within the last member
    t.write("bad/i.tar", &whole[..end]);
    t.write("bad/k.tar", b"");
    t.write("bad/j.tar.gz", b"\x1f\x8b\x08 and no more");

    let output = t.tarn(&["ingest", "pool", "bad"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let file = |name: &str, reason: &str| format!("{name},,,,{reason},false");
    let row = |name: &str, row: usize, reason: &str| format!("{name},{row},,,{reason},false");
    let value = |name: &str, row: usize, column: &str, reason: &str| format!("{name},{row},,{column},{reason},true");
    let member = |name: &str, member: &str, reason: &str| format!("{name},,{member},,{reason},false");
    let mut expected = [
        file("a.npz", "another number of rows than its metadata"),
        value("b.npz", 7, "clip_a", "vector is not finite"),
        row("b.parquet", 1, "duplicate uid"),
        row("b.parquet", 2, "duplicate uid"),
        row("b.parquet", 3, "not a uid"),
        value("b.parquet", 4, "clip_b32_similarity_score", "not a finite number"),
        value("b.parquet", 4, "clip_l14_similarity_score", "not a finite number"),
        value("b.parquet", 5, "clip_b32_similarity_score", "not a finite number"),
        value("b.parquet", 5, "clip_l14_similarity_score", "not a finite number"),
        value("b.parquet", 6, "original_height", "does not fit the column's type"),
        value("b.parquet", 6, "original_width", "does not fit the column's type"),
        file("c.parquet", "not readable"),
        file("d.npz", "not readable"),
        file("e.npz", "array of another type or shape"),
        file("dim.npz", "array of another type or shape"),
        file("f.npz", "no metadata of this stem in the pool"),
        file("g.csv", "\"no uid, and no url and text to make one of\""),
        member("h.tar", "../../etc/x", "\"no uid, url or text\""),
        member("h.tar", "000000001", "broken json"),
        member("h.tar", "000000002", "not a uid"),
        member("h.tar", "000000003", "no image"),
        member("h.tar", "000000004", "\"no uid, url or text\""),
        member("h.tar", "000000010", "\"no json, which others in its shard have\""),
        member("h.tar", "000000005", "image of zero bytes"),
        member("h.tar", "000000006", "not an image"),
        member("h.tar", "again", "duplicate image"),
        file("i.tar", "shard breaks off"),
        file("j.tar.gz", "shard breaks off"),
        file("k.tar", "no samples"),
    ];
    let sql = "SELECT regexp_replace(path, '.*/', '') AS file, row, member, \"column\", reason, kept FROM rejects";
    expected.sort();
    let listed = || {
        let mut rows = values(t, "pool", sql);
        rows.sort();
        rows
    };
    assert_eq!(listed(), expected);
    // What is good is in.
    assert_eq!(values(t, "pool", "SELECT count(*), count(clip_a), count(clip_b32_similarity_score) FROM pool"), ["57,17,55"]);
    assert_eq!(values(t, "pool", "SELECT count(*) FROM images"), ["3"]);
    // Summed up by kind, and no more of them after a second run.
    assert!(output.stderr.contains("rejected 2: duplicate uid"), "{}", output.stderr);
    t.ok(&["ingest", "pool", "bad"]);
    assert_eq!(listed(), expected);
    t.ok(&["verify", "pool"]);
    // Mended files go in.
    std::fs::copy(dir("a.parquet"), dir("c.parquet")).unwrap();
    source::embeddings(&dir("a.npz"), &[("clip_a", 4)], 0..20, false);
    source::metadata(&dir("f.parquet"), 60..63);
    t.write("bad/i.tar", whole);
    t.ok(&["ingest", "pool", "bad"]);
    assert_eq!(values(t, "pool", "SELECT count(*), count(clip_a) FROM pool"), ["60,39"]);
    assert_eq!(values(t, "pool", "SELECT count(*) FROM images"), ["4"]);
}

fn strict(t: &Sandbox) {
    source::metadata(&t.path("m/a.parquet"), 0..10);
    source::metadata(&t.path("m/b.parquet"), 5..15);
    let words = ["stopped at the first reject: duplicate uid", "b.parquet, row 0", "--strict"];
    t.fails(1, &["ingest", "pool", "m", "--strict", "--fragment-rows", "10"], &words);
    t.ok(&["ingest", "pool", "m"]);
    assert_eq!(values(t, "pool", "SELECT (SELECT count(*) FROM pool) AS a, (SELECT count(*) FROM rejects) AS b"), ["15,5"]);
}

fn compressed(t: &Sandbox) {
    source::shard(&t.path("0.tar"), 0..5);
    let tar = source::tar((5..10).flat_map(source::members));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar).unwrap();
    t.write("1.tar.gz", gz.finish().unwrap());
    let tar = source::tar((10..15).flat_map(source::members));
    t.write("2.tar.zst", zstd::encode_all(tar.as_slice(), 1).unwrap());
    t.write("extra.csv", format!("uid,text,aesthetic\n{},\"a \"\"b\"\" c\",5.5\n{},\"x, y\",nan\n{}\n", uid(20), uid(0), uid(21)));
    t.ok(&["ingest", "pool", "*.tar*", "extra.csv"]);
    assert_eq!(values(t, "pool", "SELECT count(*) FROM images"), ["15"]);
    let sql = "SELECT text, aesthetic FROM pool WHERE text LIKE '%b%c' OR text LIKE 'x%' ORDER BY 1";
    assert_eq!(values(t, "pool", sql), ["\"a \"\"b\"\" c\",5.5", "\"x, y\","]);
    assert_eq!(
        values(t, "pool", "SELECT row, reason FROM rejects ORDER BY row"),
        ["1,not a finite number", "2,another number of fields than the header"]
    );
    // A column that comes later fills the samples that are there, and only what is null.
    t.write("more.csv", format!("uid,score\n{},1\n{},2\n{},3\n", uid(0), uid(3), uid(20)));
    let output = t.tarn(&["ingest", "pool", "more.csv"]);
    assert!(output.stderr.contains("completed 3 samples"), "{}", output.stderr);
    let sql = format!("SELECT text, aesthetic, score FROM pool WHERE uid IN ('{}', '{}') ORDER BY score", uid(3), uid(20));
    assert_eq!(values(t, "pool", &sql), ["caption 3,,2", "\"a \"\"b\"\" c\",5.5,3"]);
    t.ok(&["verify", "pool", "--deep"]);
}

/// Files that bring columns of samples that other files of the same command, or earlier ones, have brought.
fn columns(t: &Sandbox) {
    let uids = || (0..6).map(uid);
    let csv = |name: &str, header: &str, value: &str| {
        let rows: String = uids().map(|uid| format!("{uid},{value}\n")).collect();
        t.write(name, format!("uid,{header}\n{rows}"));
    };
    csv("a.csv", "text", "a cat");
    csv("b.csv", "score", "0.5");
    csv("c.csv", "aesthetic", "5");
    t.ok(&["ingest", "pool", "a.csv", "b.csv"]);
    assert_eq!(values(t, "pool", "SELECT count(*), count(text), count(score) FROM pool"), ["6,6,6"]);
    // Two files complete the same rows, in groups that are under way together.
    csv("d.csv", "aesthetic", "6");
    t.ok(&["ingest", "pool", "c.csv", "d.csv", "--fragment-rows", "1"]);
    assert_eq!(values(t, "pool", "SELECT count(*), count(text), min(aesthetic), max(aesthetic) FROM pool"), ["6,6,5,5"]);
    t.ok(&["verify", "pool"]);
    for name in ["a.b", "_rowid"] {
        csv("odd.csv", name, "1");
        let output = t.tarn(&["ingest", "pool", "odd.csv", "a.csv"]);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(output.stderr.contains("a column has a name that a pool cannot have"), "{}", output.stderr);
    }
}

/// Vectors are joined by uid: whatever has happened to the rows, and whichever arrays came before.
fn joins(t: &Sandbox) {
    for file in 0..3 {
        source::metadata(&t.path(&format!("m/{file}.parquet")), file * 10..(file + 1) * 10);
    }
    t.ok(&["ingest", "pool", "m"]);
    // Rows 5 to 8 move to the end of the pool.
    let rows: String = (5..9).map(|i| format!("{},1\n", uid(i))).collect();
    t.write("scores.csv", format!("uid,score\n{rows}"));
    t.ok(&["ingest", "pool", "scores.csv"]);
    source::embeddings(&t.path("x/0.npz"), &[("clip_a", 4)], 0..10, false);
    source::embeddings(&t.path("y/0.npz"), &[("clip_b", 8)], 0..10, false);
    source::embeddings(&t.path("m/1.npz"), &[("clip_b", 8)], 10..20, false);
    source::embeddings(&t.path("m/2.npz"), &[("clip_a", 4), ("clip_b", 8)], 20..30, true);
    t.ok(&["ingest", "pool", "x", "y"]);
    t.ok(&["ingest", "pool", "m"]);
    let right = |expected: &str| {
        assert_eq!(values(t, "pool", "SELECT count(clip_a), count(clip_b) FROM pool"), [expected]);
        let rows = t.ok(&["sql", "pool", "-c", "SELECT uid, clip_a, clip_b FROM pool", "--format", "jsonl"]);
        let by_uid: BTreeMap<String, usize> = (0..40).map(|i| (uid(i), i)).collect();
        for row in rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
            let i = by_uid[row["uid"].as_str().unwrap()];
            for (column, dim) in [("clip_a", 4), ("clip_b", 8)] {
                let Some(got) = row[column].as_array() else { continue };
                let expected = source::vector(i, dim);
                let near = got.iter().zip(&expected).all(|(a, b)| (a.as_f64().unwrap() as f32 - b.to_f32()).abs() < 1e-3);
                assert!(near, "{column} of sample {i}: {got:?}");
            }
        }
    };
    right("20,30");
    // One array that is there already with one that is not.
    source::embeddings(&t.path("m/1.npz"), &[("clip_b", 8), ("clip_a", 4)], 10..20, false);
    t.ok(&["ingest", "pool", "m"]);
    right("30,30");
    // A metadata file that has grown, with its vectors.
    source::metadata(&t.path("m/2.parquet"), 20..35);
    source::embeddings(&t.path("m/2.npz"), &[("clip_a", 4), ("clip_b", 8)], 20..35, false);
    t.ok(&["ingest", "pool", "m"]);
    right("35,35");
    t.ok(&["compact", "pool"]);
    right("35,35");
    t.ok(&["verify", "pool", "--deep"]);
}

fn made_uids(t: &Sandbox) {
    t.write("pairs.csv", "url,text\nhttp://a/b.jpg,a cat\n,\nhttp://a/c.jpg,\n");
    t.ok(&["ingest", "pool", "pairs.csv"]);
    // python: hashlib.sha256(b"http://a/b.jpg" + b"\0" + b"a cat").hexdigest()[:32]
    let rows = values(t, "pool", "SELECT uid_text(uid), url FROM pool ORDER BY url");
    assert_eq!(rows[0], "73cb5dcc048eb703f698afb5a7e6d08b,http://a/b.jpg");
    assert_eq!(rows.len(), 2);
    assert_eq!(values(t, "pool", "SELECT row, reason FROM rejects"), ["1,\"no uid, url or text\""]);
    let members = [("x/1.jpg".to_string(), source::picture(1)), ("x/1.txt".to_string(), b"a cat".to_vec())];
    t.write("own.tar", source::tar(members));
    t.ok(&["ingest", "pool", "own.tar"]);
    assert_eq!(values(t, "pool", "SELECT p.text FROM pool p JOIN images i ON p.uid = i.uid"), ["a cat"]);
}

/// Both succeed, or one says who holds the pool; nothing is there twice.
fn two_at_once(t: &Sandbox) {
    sources(t);
    let start = || t.command(&["ingest", "pool", "m", "s", "--fragment-rows", "100"]).stderr(Stdio::piped()).spawn().unwrap();
    let both = [start(), start()].map(|tarn| tarn.wait_with_output().unwrap());
    for output in &both {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || stderr.contains("is being written by process"), "{stderr}");
    }
    assert!(both.iter().any(|output| output.status.success()));
    assert_eq!(values(t, "pool", "SELECT count(*), count(DISTINCT uid) FROM pool"), ["400,400"]);
    t.ok(&["verify", "pool"]);
}

fn versions(t: &Sandbox) {
    sources(t);
    t.ok(&["ingest", "pool", "m/0.parquet"]);
    t.ok(&["tag", "pool", "first"]);
    t.ok(&["filter", "pool", "clip_score", "--param", "fraction=0.5", "-o", "a.npy"]);
    t.ok(&["ingest", "pool", "m", "s"]);
    let count = |at: &[&str]| t.ok(&[&["sql", "pool", "-c", "SELECT count(*) AS n FROM pool", "--format", "csv"], at].concat());
    assert_eq!((count(&[]).as_str(), count(&["--at", "first"]).as_str()), ("n\n400\n", "n\n100\n"));
    let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(t.path("a.receipt.json")).unwrap()).unwrap();
    let version = receipt["pool_version"].to_string();
    for at in ["first", version.as_str(), "a.receipt.json"] {
        t.ok(&["filter", "pool", "clip_score", "--param", "fraction=0.5", "--at", at, "-o", "b.npy"]);
        assert!(std::fs::read(t.path("b.npy")).unwrap() == std::fs::read(t.path("a.npy")).unwrap(), "at {at}");
    }
    t.fails(1, &["sql", "pool", "--at", "frist", "-c", "SELECT 1"], &["no version or tag 'frist'", "tags first"]);
    t.fails(1, &["sql", "pool", "--at", "999", "-c", "SELECT 1"], &["no version or tag '999'", "versions 1 to"]);
    t.fails(1, &["tag", "pool", "first"], &["tag 'first' exists", "--force"]);
    t.fails(1, &["tag", "pool", "12"], &["'12' cannot be a tag"]);
    t.fails(1, &["tag", "pool", "é"], &["'é' cannot be a tag"]);
    source::metadata(&t.path("other/0.parquet"), 0..7);
    t.ok(&["ingest", "another", "other"]);
    t.fails(1, &["sql", "another", "--at", "a.receipt.json", "-c", "SELECT 1"], &["is a receipt of a pool of 100 samples"]);
    assert!(t.ok(&["tag", "pool"]).contains("first  "));
    // Compaction changes nothing that is read; cleaning keeps what has a tag.
    let before = content(t, "pool");
    t.ok(&["compact", "pool"]);
    assert!(content(t, "pool") == before);
    t.ok(&["clean", "pool", "--older-than", "0s"]);
    assert!(content(t, "pool") == before);
    assert_eq!(count(&["--at", "first"]), "n\n100\n");
    t.ok(&["tag", "pool", "first", "--delete"]);
    t.ok(&["clean", "pool", "--older-than", "0s"]);
    t.fails(1, &["sql", "pool", "--at", "first", "-c", "SELECT 1"], &["no version or tag 'first'"]);
    t.fails(2, &["clean", "pool", "--older-than", "soon"], &["expected an age such as 14d"]);
    // Vectors still find their rows after compaction.
    source::metadata(&t.path("late/9.parquet"), 500..520);
    t.ok(&["ingest", "pool", "late"]);
    t.ok(&["compact", "pool"]);
    source::embeddings(&t.path("late/9.npz"), &[("clip_a", 4)], 500..520, false);
    t.ok(&["ingest", "pool", "late"]);
    assert_eq!(values(t, "pool", "SELECT count(clip_a) FROM pool"), ["220"]);
    t.ok(&["verify", "pool", "--deep"]);
}

fn verify(t: &Sandbox) {
    sources(t);
    t.ok(&["ingest", "pool", "m", "s"]);
    assert!(t.ok(&["verify", "pool", "--deep"]).contains("0 of 120 images are not the bytes"));
    // A byte of an image.
    let blobs = std::fs::read_dir(t.path("pool/images.lance/data")).unwrap().flatten().find(|e| e.path().is_dir()).unwrap();
    let blob = std::fs::read_dir(blobs.path()).unwrap().flatten().next().unwrap().path();
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[300] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    t.ok(&["verify", "pool"]);
    let output = t.tarn(&["verify", "pool", "--deep"]);
    assert_eq!(output.code, 1);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 of 120 images are not the bytes that were ingested"));
    assert!(output.stderr.contains("pool is not sound: 1 findings"), "{}", output.stderr);
    bytes[300] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    // A file that no version holds.
    t.write("pool/pool.lance/data/left.lance", "half a file");
    assert_eq!(t.tarn(&["verify", "pool"]).code, 1);
    assert!(t.ok(&["verify", "pool", "--repair"]).contains("repaired"));
    assert!(!t.path("pool/pool.lance/data/left.lance").exists());
    t.ok(&["verify", "pool", "--deep"]);
    // Vectors that are no directions.
    let long: Vec<f16> = (200..300).flat_map(|_| [f16::ONE, f16::ONE, f16::ZERO, f16::ZERO]).collect();
    source::write_npz(&t.path("m/2.npz"), [("clip_a", 4, long)].into_iter(), false);
    t.ok(&["ingest", "pool", "m"]);
    let output = t.tarn(&["verify", "pool"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("100 of 300 vectors of clip_a have a length other than 1"));
    assert_eq!(output.code, 0, "a column of one's own");
}

fn export_webdataset(t: &Sandbox) {
    sources(t);
    t.ok(&["ingest", "pool", "m", "s"]);
    // Three samples with an image, one of them twice, and one without.
    let sql = format!("SELECT uid FROM pool WHERE uid IN ('{}', '{}', '{}') UNION ALL SELECT uid('{}')", uid(51), uid(50), uid(0), uid(51));
    t.ok(&["filter", "pool", &sql, "-o", "a.npy"]);
    let output = t.tarn(&["export", "pool", "a.npy", "--to", "webdataset", "-o", "out"]);
    assert!(output.stderr.contains("exported 3 samples to 1 files") && output.stderr.contains("1 that have no image"), "{}", output.stderr);
    let mut archive = tar::Archive::new(std::fs::File::open(t.path("out/00000000.tar")).unwrap());
    let mut members = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        members.push((entry.path().unwrap().display().to_string(), bytes));
    }
    let expected: Vec<String> = [(50, 0), (51, 0), (51, 1)]
        .iter()
        .flat_map(|(i, copy)| ["jpg", "json", "txt"].map(|extension| format!("{}-{copy}.{extension}", uid(*i))))
        .collect();
    assert_eq!(members.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected);
    assert_eq!((&members[0].1, &members[6].1), (&source::picture(50), &source::picture(51)));
    assert_eq!(members[2].1, b"caption 50");
    let json: serde_json::Value = serde_json::from_slice(&members[1].1).unwrap();
    assert_eq!((json["uid"].as_str(), json["original_width"].as_i64()), (Some(uid(50).as_str()), Some(250)));
    let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(t.path("out/meta.json")).unwrap()).unwrap();
    assert_eq!((meta["output_shard_count"].as_i64(), meta["output_shard_format"].as_str()), (Some(1), Some("{:08d}.tar")));
    assert!(std::fs::read(t.path("out/sample_ids.npy")).unwrap() == std::fs::read(t.path("a.npy")).unwrap());
    t.fails(1, &["export", "pool", "a.npy", "--to", "webdataset", "-o", "out"], &["out holds an earlier export", "--overwrite"]);
    t.ok(&["export", "pool", "a.npy", "--to", "webdataset", "-o", "out", "--overwrite"]);
    // What others wrote is never touched.
    t.fails(1, &["export", "pool", "a.npy", "--to", "webdataset", "-o", "s", "--overwrite"], &["s holds files that no export wrote"]);
    // It is a source again.
    t.ok(&["ingest", "second", "out"]);
    assert_eq!(values(t, "second", "SELECT count(*) FROM images"), ["2"]);
}

fn export_parquet(t: &Sandbox) {
    sources(t);
    t.ok(&["ingest", "pool", "m", "s"]);
    t.ok(&["export", "pool", "SELECT uid FROM pool WHERE original_width < 203", "--to", "parquet", "--columns", "uid,text", "-o", "p"]);
    let rows = values(t, "pool", "SELECT uid, text FROM 'p/00000.parquet' ORDER BY text");
    assert_eq!(rows, (0..3).map(|i| format!("{},caption {i}", uid(i))).collect::<Vec<_>>());
    let output = t.tarn(&["export", "pool", "no_filter", "--to", "urls", "-o", "u"]);
    assert!(output.stderr.contains("img2dataset --url_list u"), "{}", output.stderr);
    assert_eq!(values(t, "pool", "SELECT count(url) FROM 'u/00000.parquet'"), ["400"]);
    let wrong = ["export", "pool", "no_filter", "--to", "parquet", "--columns", "txt", "-o", "v"];
    t.fails(1, &wrong, &["pool has no column 'txt'", "did you mean 'text'?"]);
    t.fails(2, &["export", "pool", "no_filter", "--to", "parquet", "--blur", "-o", "v"], &["--blur is for shards"]);
    t.ok(&["ingest", "again", "p"]);
}
