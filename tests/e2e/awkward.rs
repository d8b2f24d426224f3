//! Sources as people have them: what is wrong with a value costs that value, and is listed.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListArray, NullArray, RecordBatch, StringArray};
use half::f16;
use tarn_tests::{unchecked_text, write_parquet};

use crate::source::{self, members, uid};
use crate::{Sandbox, Test, storage};

pub(crate) const TESTS: &[Test] = &[
    ("damaged_files_are_named", damaged_files),
    ("vectors_and_columns_of_ones_own", own_vectors),
    ("parts_of_samples_are_never_mixed", names),
    ("samples_without_uids_and_urls", unnamed),
    ("text_that_is_not_utf8", not_utf8),
    ("columns_that_a_pool_cannot_take", columns),
    ("columns_that_are_all_null", nulls),
    ("csv_with_an_open_quote", open_quote),
    ("arrays_that_a_pool_cannot_take", arrays),
    ("minima_beside_missing_statistics", missing_statistics),
    ("zeros_and_nans_with_and_without_an_index", zeros),
    ("verify_names_files_that_lack_rows", verify),
    ("deep_queries_run_or_are_errors", deep),
    ("commands_in_piped_input", piped),
    ("what_is_wrong_is_said", messages),
];

fn values(t: &Sandbox, sql: &str) -> Vec<String> {
    t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]).lines().skip(1).map(str::to_string).collect()
}

fn rejects(t: &Sandbox) -> Vec<String> {
    let sql = "SELECT concat_ws(' ', regexp_replace(path, '.*/', ''), row, member, \"column\", reason, kept) AS r FROM rejects ORDER BY r";
    values(t, sql).iter().map(|reject| reject.replace('"', "")).collect()
}

/// A metadata file of samples from `start` with these columns beside uid and url.
fn table(t: &Sandbox, name: &str, start: usize, columns: &[(&str, ArrayRef)]) {
    let rows = start..start + columns[0].1.len();
    let text = |of: &dyn Fn(usize) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.clone().map(of))) };
    let mut all = vec![("uid", text(&uid), true), ("url", text(&|i| format!("https://example.org/{i}")), true)];
    all.extend(columns.iter().map(|(name, values)| (*name, values.clone(), true)));
    write_parquet(&t.path(name), &RecordBatch::try_from_iter_with_nullable(all).unwrap());
}

fn texts(of: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(of.to_vec()))
}

fn numbers(of: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(of.to_vec()))
}

/// Every image is stored with its own sample, whatever the members are called.
fn names(t: &Sandbox) {
    let called = |i: usize, key: &str| members(i).into_iter().map(|(name, bytes)| (name.replace(&format!("{i:09}"), key), bytes)).collect();
    let twice: Vec<Vec<_>> = vec![called(1, "7"), called(2, "7"), called(3, "/abs/../3")];
    let mut mixed: Vec<_> = called(4, "8");
    mixed.extend::<Vec<_>>(called(5, "8"));
    mixed.sort_by(|a: &(String, Vec<u8>), b| a.0.cmp(&b.0));
    // Two archives, one behind the other.
    let second = source::tar([members(6), members(7)].concat());
    t.write("a.tar", [source::tar([twice.concat(), mixed].concat()), second].concat());
    t.ok(&["ingest", "pool", "a.tar"]);
    let mut expected: Vec<String> = [1, 2, 3, 6, 7].map(|i| format!("{},caption {i}", uid(i))).to_vec();
    expected.sort();
    assert_eq!(values(t, "SELECT uid_text(p.uid), text FROM pool p JOIN images USING (uid) ORDER BY 1"), expected);
    for i in [1, 2, 3, 6, 7] {
        std::fs::write(t.path("one.tar"), source::tar(members(i))).unwrap();
        let digest = |pool: &str| {
            let sql = format!("SELECT encode(sha256, 'hex') FROM images WHERE uid = '{}'", uid(i));
            t.ok(&["sql", pool, "-c", &sql, "--format", "csv"])
        };
        t.ok(&["ingest", &format!("pool{i}"), "one.tar"]);
        assert_eq!(digest("pool"), digest(&format!("pool{i}")), "image of sample {i}");
    }
    let listed = rejects(t);
    assert!(listed.iter().any(|r| r == "a.tar 8 member name comes twice, in another order false"), "{listed:?}");
    assert_eq!(values(t, "SELECT count(*) FROM images"), ["5"]);
}

/// Equal captions, or none, do not make equal samples.
fn unnamed(t: &Sandbox) {
    let captions = ["", "", "image", "image"];
    let pairs = captions
        .iter()
        .enumerate()
        .flat_map(|(i, text)| [(format!("{i}.jpg"), source::picture(i)), (format!("{i}.txt"), text.as_bytes().to_vec())]);
    let shard = source::tar(pairs);
    t.write("a.tar", &shard);
    t.ok(&["ingest", "pool", "a.tar"]);
    assert_eq!(values(t, "SELECT count(*), count(DISTINCT sha256) FROM images"), ["4,4"]);
    // The same again, and the same image under another key.
    t.write("a.tar", [shard, source::tar([("9.jpg".to_string(), source::picture(0)), ("9.txt".to_string(), vec![])])].concat());
    t.ok(&["ingest", "pool", "a.tar"]);
    assert_eq!(values(t, "SELECT count(*), count(DISTINCT sha256) FROM images"), ["5,4"]);
}

fn not_utf8(t: &Sandbox) {
    let captions: Vec<Vec<u8>> =
        (0..20_000).map(|i| if i == 9000 { b"caf\xe9 9000".to_vec() } else { format!("caption {i}").into_bytes() }).collect();
    let captions: Vec<&[u8]> = captions.iter().map(Vec::as_slice).collect();
    table(t, "a.parquet", 0, &[("text", unchecked_text(&captions)), ("extra", unchecked_text(&captions))]);
    t.write("b.csv", [&b"url,text\nu1,caf\xe9\nu2,plain\n"[..]].concat());
    let mut bad = members(30_000);
    bad[1].1 = format!(r#"{{"uid": "{}", "caption": "half \ud83d", "exif": {{"x": "\udc00"}}, "big": 1e999}}"#, uid(30_000)).into_bytes();
    bad.remove(2);
    t.write("c.tar", source::tar(bad));
    t.ok(&["ingest", "pool", "a.parquet", "b.csv", "c.tar"]);
    let replaced = "not UTF-8, replaced by U+FFFD true";
    let expected = [
        format!("a.parquet 9000 extra {replaced}"),
        format!("a.parquet 9000 text {replaced}"),
        format!("b.csv 0 text {replaced}"),
        "c.tar 000030000 text half of a surrogate pair, replaced by U+FFFD true".to_string(),
    ];
    assert_eq!(rejects(t), expected);
    assert_eq!(values(t, "SELECT count(*), count(text), count(DISTINCT text) FROM pool"), ["20003,20003,20003"]);
    let sql = "SELECT text FROM pool WHERE contains(text, chr(65533)) ORDER BY text";
    assert_eq!(values(t, sql), ["caf\u{fffd}", "caf\u{fffd} 9000", "half \u{fffd}"]);
    t.ok(&["verify", "pool"]);
}

fn columns(t: &Sandbox) {
    let odd = ["a.b", "", "_rowid", "_distance", "good"].map(|name| (name, numbers(&[1, 2])));
    table(t, "a.parquet", 0, &odd);
    table(t, "b.parquet", 2, &[("original_width", texts(&["5", "x"])), ("TEXT", texts(&["upper", "case"]))]);
    let lists = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([Some([Some(1)]), None]);
    table(t, "c.parquet", 4, &[("Caption", texts(&["a", "b"])), ("good", Arc::new(lists) as ArrayRef)]);
    let mut captions = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    captions.append_value([Some("first"), Some("second")]);
    captions.append_value([Some("only")]);
    table(t, "d.parquet", 6, &[("text", Arc::new(captions.finish()) as ArrayRef)]);
    t.ok(&["ingest", "pool", "a.parquet", "b.parquet", "c.parquet", "d.parquet"]);
    let name = "a column has a name that a pool cannot have true";
    let mut expected = vec![
        format!("a.parquet  {name}"),
        format!("a.parquet _distance {name}"),
        format!("a.parquet _rowid {name}"),
        format!("a.parquet a.b {name}"),
        "b.parquet 1 original_width does not fit the column's type true".to_string(),
        "c.parquet good a column has another type than the pool's true".to_string(),
        "d.parquet 0 text a list, of which the first is taken true".to_string(),
    ];
    expected.sort();
    let mut listed = rejects(t);
    listed.sort();
    assert_eq!(listed, expected);
    assert_eq!(
        values(t, "SELECT text, original_width, good FROM pool ORDER BY url"),
        [",,1", ",,2", "upper,5,", "case,,", "a,,", "b,,", "first,,", "only,,"]
    );
}

/// NULL is a value of any type.
fn nulls(t: &Sandbox) {
    let null = || Arc::new(NullArray::new(2)) as ArrayRef;
    table(t, "a.parquet", 0, &[("extra", null()), ("text", null()), ("face_bboxes", null())]);
    table(t, "b.parquet", 2, &[("extra", texts(&["x", "y"])), ("text", texts(&["a", "b"]))]);
    table(t, "c.parquet", 4, &[("extra", null()), ("text", null())]);
    for file in ["a.parquet", "b.parquet", "c.parquet"] {
        t.ok(&["ingest", "pool", file, "--strict"]);
    }
    assert_eq!(values(t, "SELECT text, extra FROM pool ORDER BY url"), [",", ",", "a,x", "b,y", ",", ","]);
    assert_eq!(rejects(t), [""; 0]);
}

fn open_quote(t: &Sandbox) {
    t.write("a.csv", "url,text\nu1,\"never closed\nu2,\"two\nlines\"\nu3\nu4,four\nu5,\"open at the end\nu6,six");
    t.ok(&["ingest", "pool", "a.csv"]);
    assert_eq!(values(t, "SELECT url, replace(text, chr(10), '|') FROM pool ORDER BY url"), ["u2,two|lines", "u4,four", "u6,six"]);
    let expected = [
        "a.csv 0 a quote is not closed false",
        "a.csv 2 another number of fields than the header false",
        "a.csv 4 a quote is not closed false",
    ];
    assert_eq!(rejects(t), expected);
}

fn arrays(t: &Sandbox) {
    source::metadata(&t.path("a.parquet"), 0..5);
    let vectors = |n: usize, dim: usize| (0..n).flat_map(|i| source::vector(i, dim)).collect::<Vec<_>>();
    // One of another number of rows, one whose name no column can have, and one that is a column of text.
    let all = [
        ("short", 4, vectors(3, 4)),
        ("b32_img", 512, vectors(5, 512)),
        ("a.b", 4, vectors(5, 4)),
        ("text", 4, vectors(5, 4)),
        ("own", 4, vectors(5, 4)),
    ];
    source::write_npz(&t.path("a.npz"), all.into_iter(), false);
    t.ok(&["ingest", "pool", "a.parquet", "a.npz"]);
    assert_eq!(values(t, "SELECT count(b32_img), count(own), count(text) FROM pool"), ["5,5,5"]);
    let expected = ["a.b", "short", "text"].map(|name| format!("a.npz {name} array of another type or shape true"));
    assert_eq!(rejects(t), expected);
    assert_eq!(values(t, "SELECT kind, rows, rejected FROM ledger ORDER BY kind"), ["embeddings,5,3", "metadata,5,0"]);
}

/// Once this passes with datafusion.execution.collect_statistics on, the session need not switch it off.
fn missing_statistics(t: &Sandbox) {
    table(t, "m.parquet", 0, &[("n", numbers(&[5]))]);
    t.ok(&["ingest", "pool", "m.parquet"]);
    write_groups(&t.path("u.parquet"), &[&[5, 6], &[1, 9]]);
    tarn_tests::remove_statistics(&t.path("u.parquet"), 1);
    assert_eq!(values(t, "SELECT min(n), max(n), count(*) FROM 'u.parquet'"), ["1,9,4"]);
    assert_eq!(values(t, "SELECT n FROM 'u.parquet' ORDER BY n DESC LIMIT 1"), ["9"]);
}

/// A row group each.
fn write_groups(path: &std::path::Path, groups: &[&[i64]]) {
    let batch = |values: &[i64]| RecordBatch::try_from_iter([("n", numbers(values))]).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch(&[]).schema(), None).unwrap();
    for group in groups {
        writer.write(&batch(group)).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

/// -0 equals 0, and NaN is above every number, whoever compares.
fn zeros(t: &Sandbox) {
    let y: ArrayRef = Arc::new(arrow::array::Float64Array::from_iter((0..40).map(|i| (i % 5 > 0).then_some(f64::from(i % 4) - 1.0))));
    table(t, "a.parquet", 0, &[("y", y)]);
    t.ok(&["ingest", "pool", "a.parquet"]);
    let conditions = [
        ("y = -0.0", 8),
        ("y = 0.0", 8),
        ("y < -0.0", 8),
        ("y >= -0.0", 24),
        ("y IN (-0.0, 2.0)", 16),
        ("y BETWEEN -1.0 AND -0.0", 16),
        ("y <> -0.0", 24),
        ("y = CAST('-0' AS DOUBLE)", 8),
        ("y < CAST('NaN' AS DOUBLE)", 32),
        ("y > CAST('NaN' AS DOUBLE)", 0),
        ("y = CAST('NaN' AS DOUBLE)", 0),
        ("y <> CAST('NaN' AS DOUBLE)", 32),
    ];
    let count = |when: &str| {
        for (condition, expected) in conditions {
            let sql = format!("SELECT count(*) FROM pool WHERE {condition}");
            assert_eq!(values(t, &sql), [expected.to_string()], "{condition} {when}");
        }
    };
    count("without an index");
    t.ok(&["sql", "pool", "-c", "CREATE INDEX ON pool (y) USING btree"]);
    count("with an index");
}

fn verify(t: &Sandbox) {
    t.write("a.csv", "url,text\nu1,one\nu2\n");
    t.write("b.csv", "url,text\nu3,three\n");
    t.ok(&["ingest", "pool", "a.csv", "b.csv"]);
    let said = t.ok(&["verify", "pool"]);
    assert!(said.contains("a.csv came in without 1 rows or members: another number of fields than the header"), "{said}");
    assert!(said.contains("1 of 2 files in the ledger came in whole"), "{said}");
}

fn deep(t: &Sandbox) {
    t.write("a.csv", "url,text\nu1,one\nu2,c5\n");
    t.ok(&["ingest", "pool", "a.csv"]);
    let run = |sql: String| {
        t.write("q.sql", sql);
        t.tarn(&["sql", "pool", "-f", "q.sql", "--format", "csv"])
    };
    let chain = |n: usize, word: &str, of: fn(usize) -> String| (0..n).map(of).collect::<Vec<_>>().join(word);
    let where_ = |condition: String| format!("SELECT count(*) AS n FROM pool WHERE {condition}");
    for (sql, last) in [
        (where_(chain(6000, " OR ", |i| format!("text = 'c{i}'"))), "1"),
        (where_(chain(3000, " OR ", |i| format!("text LIKE '%c{i}%'"))), "1"),
        (where_(chain(3000, " AND ", |i| format!("text NOT LIKE '%c{i}%'"))), "1"),
        (chain(1500, " UNION ALL ", |_| "SELECT 1 AS n".into()), "1"),
        (format!("SELECT {} AS n", chain(1000, " + ", |_| "1".into())), "1000"),
    ] {
        let output = run(sql);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.code == 0 && stdout.lines().last() == Some(last), "{}{stdout}", output.stderr);
    }
    for sql in
        [chain(8000, " + ", |_| "1".into()), chain(5000, " || ", |_| "'a'".into()), format!("{}1{}", "(".repeat(3000), ")".repeat(3000))]
    {
        let output = run(format!("SELECT {sql}"));
        assert!(output.code == 1 && output.stderr.starts_with("error: "), "{} {}", output.code, output.stderr);
    }
}

/// The shell's commands work where nobody types, and quotes of all kinds hold semicolons.
fn piped(t: &Sandbox) {
    t.write("a.csv", "url,text\nu1,one\n");
    t.ok(&["ingest", "pool", "a.csv"]);
    t.write("q.sql", "SELECT $$a;b$$ AS x;\n\\d\nSELECT E'a\\';b' AS z;\n\\q\nSELECT nothing;\n");
    let said = t.ok(&["sql", "pool", "-f", "q.sql", "--format", "csv"]);
    assert!(said.starts_with("x\na;b\n") && said.contains("pool (") && said.ends_with("z\na';b\n"), "{said}");
    t.fails(2, &["sql", "pool", "-c", "\\nosuch"], &["unknown command", "lists the commands"]);
    t.write("latin.sql", b"SELECT 1;\nSELECT 'caf\xe9';\n");
    t.fails(1, &["sql", "pool", "-f", "latin.sql"], &["line 2 is not UTF-8"]);
}

fn messages(t: &Sandbox) {
    // What the first ingest refused can be asked for, though there are no samples.
    t.write("m.csv", "name,age\nx,1\n");
    t.tarn(&["ingest", "pool", "m.csv"]);
    assert_eq!(rejects(t), ["m.csv no uid, and no url and text to make one of false"]);
    t.fails(1, &["sql", "pool", "-c", "SELECT * FROM pool"], &["table 'pool' not found"]);
    t.fails(1, &["verify", "pool"], &["has no table 'pool' yet"]);
    t.write("a.csv", "url,text\nu1,one\n");
    t.ok(&["ingest", "pool", "a.csv"]);
    for fraction in ["2", "-0.5"] {
        let given = format!("fraction={fraction}");
        let words = ["must be from 0 to 1, got", fraction];
        t.fails(1, &["filter", "pool", "random_subset", "--param", &given, "-o", "x.npy"], &words);
    }
    t.ok(&["filter", "pool", "random_subset", "--param", "fraction=1", "-o", "x.npy"]);
    source::shard(&t.path("s/0.tar"), 0..8);
    t.ok(&["ingest", "pool", "s"]);
    let train = |more: &[&str]| {
        let command = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "--batch-size", "4", "--device", "cpu"];
        t.tarn(&[&command[..], more].concat())
    };
    let refused = train(&["--max-steps", "1", "-o", "pool"]);
    assert!(refused.code == 1 && refused.stderr.contains("pool is a pool, expected a folder for the run"), "{}", refused.stderr);
    assert!(!t.path("pool/receipt.json").exists());
    assert_eq!(train(&["--max-steps", "1", "-o", "run"]).code, 0);
    let finished = train(&["--max-steps", "3", "--seed", "4", "-o", "run", "--resume"]);
    assert!(finished.code == 0 && finished.stderr.contains("other steps, seed than the run's are given"), "{}", finished.stderr);
    let finished = train(&["--max-steps", "1", "-o", "run", "--resume"]);
    assert!(finished.code == 0 && !finished.stderr.contains("warning"), "{}", finished.stderr);
}

/// A damaged file is named, and everything else is looked at all the same.
fn damaged_files(t: &Sandbox) {
    storage::sources(t);
    t.ok(&["ingest", "pool", "m", "s"]);
    let data = t.path("pool/pool.lance/data");
    let largest = std::fs::read_dir(&data).unwrap().map(|file| file.unwrap().path()).max_by_key(|path| path.metadata().unwrap().len());
    let largest = largest.unwrap();
    std::fs::File::options().write(true).open(&largest).unwrap().set_len(1000).unwrap();
    let verified = t.tarn(&["verify", "pool"]);
    let found = String::from_utf8(verified.stdout).unwrap();
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(verified.code == 1 && found.contains(&format!("pool.lance/data/{name}")), "{found}");
    assert!(found.contains("images has 120 rows, the ledger says 120") && !found.contains("/rustc/"), "{found}");
    t.fails(
        1,
        &["sql", "pool", "-c", "SELECT max(length(text)), sum(original_width), count(clip_a) FROM pool"],
        &["tarn verify POOL says which file"],
    );
    // A table that is gone is not taken for one that is complete.
    std::fs::remove_dir_all(t.path("pool/pool.lance")).unwrap();
    t.fails(1, &["ingest", "pool", "m"], &["pool has lost its table pool: the ledger has", "bring the table's folder back"]);
}

/// Vectors of a user's own may be of any length, and so may an index over a few of them.
fn own_vectors(t: &Sandbox) {
    source::metadata(&t.path("m/0.parquet"), 0..10);
    let zero_and_long = (0..10).flat_map(|i| [f16::from_f32(i as f32), f16::from_f32((i * i) as f32 / 9.0)].repeat(4)).collect();
    source::write_npz(&t.path("m/0.npz"), [("own", 8, zero_and_long)].into_iter(), false);
    t.ok(&["ingest", "pool", "m"]);
    let verified = t.ok(&["verify", "pool"]);
    assert!(verified.contains("10 of 10 vectors of own have a length other than 1"), "{verified}");
    t.ok(&["index", "pool", "create", "own", "--name", "i"]);
    let checked = t.ok(&["index", "pool", "check", "i", "--nprobes", "3", "--refine", "10"]);
    assert!(checked.contains("1.0000"), "{checked}");
    for (name, expression, words) in [
        ("s", "sum(original_width)", "it is of many rows, expected an expression of one"),
        ("w", "row_number() OVER (ORDER BY uid)", "it is of many rows"),
        ("uid", "1", "column 'uid' is already in the pool"),
        ("_rowid", "original_width", "column '_rowid' has a name with a dot, or one that Lance keeps"),
        ("bad", "CAST(text AS INT)", "Cannot cast string 'caption 0' to value of Int32 type"),
    ] {
        let sql = format!("ALTER TABLE pool ADD COLUMN {name} AS ({expression})");
        let output = t.tarn(&["sql", "pool", "-c", &sql]);
        assert!(output.code == 1 && output.stderr.contains(words) && !output.stderr.contains("/rustc/"), "{}", output.stderr);
    }
    // CommonPool's are directions.
    source::metadata(&t.path("b/1.parquet"), 10..20);
    source::write_npz(&t.path("b/1.npz"), [("b32_img", 512, vec![f16::ONE; 5120])].into_iter(), false);
    t.ok(&["ingest", "pool", "b"]);
    let verified = t.tarn(&["verify", "pool"]);
    let found = String::from_utf8(verified.stdout).unwrap();
    assert!(verified.code == 1 && found.contains("10 of 10 vectors of b32_img have a length other than 1"), "{found}");
    // What only looks like a subset.
    t.write("text.npy", "0123456789abcdef");
    t.fails(1, &["export", "pool", "text.npy", "--to", "parquet", "-o", "out"], &["text.npy: not a subset: text, expected"]);
    // A folder that is named twice, and files that are passed over.
    t.write("m/readme.txt", "of no kind");
    let again = t.tarn(&["ingest", "pool", "m", "m"]);
    assert!(again.code == 0 && again.stderr.contains("passed over 1: of no known kind (first: m/readme.txt)"), "{}", again.stderr);
}
