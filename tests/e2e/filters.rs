//! Filters: the same uids and the same numbers as the published tools, and what a person does with them.

use std::path::Path;
use std::process::Stdio;

use storage::{Receipt, Subset};

use crate::{DataTest, Sandbox, Test};

pub const TESTS: &[Test] = &[
    ("filter_files_and_copies", files_and_copies),
    ("computed_columns", computed_columns),
    ("killed_computations_resume", kills),
    ("looking_at_filters", looking),
    ("interrupted_queries", interrupted),
    ("resources_are_named", resources),
    ("function_reference_is_current", reference),
];

pub const DATA_TESTS: &[DataTest] =
    &[("baselines_as_datacomp", baselines), ("functions_as_published", functions), ("pool_of_vectors", vectors)];

/// A pool of the real metadata, its vector sets, and a folder of resources.
fn mini(t: &Sandbox, data: &Path) {
    let path = |name: &str| data.join(name).display().to_string();
    t.ok(&["ingest", "pool", &path("commonpool-mini/metadata")]);
    t.ok(&["vectors", "pool", "add", "centroids", &path("vectors/centroids_l14.npy")]);
    t.ok(&["vectors", "pool", "add", "targets", &path("vectors/targets_l14.npy")]);
    std::fs::create_dir_all(t.path("resources")).unwrap();
    std::fs::copy(data.join("language/lid_small.bin"), t.path("resources/lid.176.bin")).unwrap();
    std::fs::copy(data.join("language/imagenet21k_wordnet_ids.txt"), t.path("resources/imagenet21k_wordnet_ids.txt")).unwrap();
}

const RESOURCES: [&str; 2] = ["--resources", "resources"];

fn wordnet_is_there() -> bool {
    let there = Path::new("/usr/share/wordnet/index.noun").exists();
    if !there {
        eprintln!("wordnet-base is not installed: text_based is not compared");
    }
    there
}

fn baselines(t: &Sandbox, data: &Path) {
    mini(t, data);
    let select = |filter: &str, params: &[&str]| {
        let params: Vec<&str> = params.iter().flat_map(|param| ["--param", param]).collect();
        t.ok(&[&["filter", "pool", filter, "-o", "out.npy"][..], &params, &RESOURCES].concat());
        std::fs::read(t.path("out.npy")).unwrap()
    };
    let expected = |name: &str| std::fs::read(data.join("expected").join(name)).unwrap();
    assert!(select("no_filter", &[]) == expected("no_filter.npy"));
    assert!(select("basic_filter", &[]) == expected("basic_filter.npy"));
    assert!(select("laion2b", &[]) == expected("laion2b.npy"));
    assert!(select("clip_score", &[]) == expected("clip_score_l14_30_percent.npy"));
    assert!(select("clip_score", &["arch=b32", "fraction=0.1"]) == expected("clip_score_b32_10_percent.npy"));
    assert!(select("clip_score", &["arch=b32", "threshold=0.28"]) == expected("clip_score_b32_28_threshold.npy"));
    assert!(select("image_based", &[]) == expected("image_based.npy"));
    if wordnet_is_there() {
        assert!(select("text_based", &[]) == expected("text_based.npy"));
        let receipt = Receipt::read(&t.path("out.receipt.json")).unwrap();
        assert!(
            ["lid.176.bin", "index.noun", "noun.exc", "imagenet21k_wordnet_ids.txt"]
                .iter()
                .all(|name| receipt.resources.contains_key(*name))
        );
    }
    select("image_based_intersect_clip_score", &[]);
    let read = |path: &Path| Subset::read(path).unwrap();
    let (image, clip) = (read(&data.join("expected/image_based.npy")), read(&data.join("expected/clip_score_l14_30_percent.npy")));
    let both: Vec<_> = image.uids().iter().copied().filter(|uid| clip.uids().binary_search(uid).is_ok()).collect();
    assert_eq!(read(&t.path("out.npy")).uids(), both);
    // The same again from a column that was computed once.
    t.ok(&[&["sql", "pool", "-c", "ALTER TABLE pool ADD COLUMN english AS (lang_fasttext(text))"][..], &RESOURCES].concat());
    let plan = t.ok(&[&["filter", "pool", "basic_filter", "--explain"][..], &RESOURCES].concat());
    assert!(
        plan.contains("english = ") && !plan.contains("FilterExec: character_length(text@1) > 5 AND word_count(text@1) > 2 AND lang"),
        "{plan}"
    );
    assert!(select("basic_filter", &[]) == expected("basic_filter.npy"));
    assert!(Receipt::read(&t.path("out.receipt.json")).unwrap().resources.contains_key("lid.176.bin"));
    // Another model: the column does not stand for its answers.
    std::fs::copy(data.join("language/lid_small.ftz"), t.path("resources/lid.176.bin")).unwrap();
    assert!(select("basic_filter", &[]) != expected("basic_filter.npy"));
}

fn functions(t: &Sandbox, data: &Path) {
    mini(t, data);
    let csv = data.join("expected/text_functions.csv").display().to_string();
    let agree = |resources: &str, condition: &str| {
        let sql = format!("SELECT count(*) AS n FROM pool JOIN '{csv}' AS c ON pool.uid = c.uid WHERE {condition}");
        t.ok(&["sql", "pool", "--resources", resources, "--format", "csv", "-c", &sql]).trim_start_matches("n\n").trim().to_string()
    };
    for condition in [
        "lang(text) = c.cld3",
        "abs(lang_score(text) - c.cld3_probability) < 0.0001",
        "lang_fasttext(text) = c.fasttext_bin",
        "word_count(text) = c.word_count",
        "char_length(text) = c.char_count",
        "fasttext_token_count(text) = c.fasttext_tokens",
    ] {
        assert_eq!(agree("resources", condition), "3914", "{condition}");
    }
    std::fs::create_dir(t.path("quantised")).unwrap();
    std::fs::copy(data.join("language/lid_small.ftz"), t.path("quantised/lid.176.ftz")).unwrap();
    assert_eq!(agree("quantised", "lang_fasttext(text) = c.fasttext_ftz"), "3914");
    // A model that breaks off costs the query, and says which file it is.
    let whole = std::fs::read(data.join("language/lid_small.bin")).unwrap();
    for len in [0, 3, 40, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(t.path("quantised/lid.176.bin"), &whole[..len]).unwrap();
        t.fails(
            1,
            &["sql", "pool", "--resources", "quantised", "-c", "SELECT lang_fasttext(text) FROM pool"],
            &["quantised/lid.176.bin: "],
        );
    }
}

fn vectors(t: &Sandbox, data: &Path) {
    mini(t, data);
    let count = |condition: &str| {
        t.ok(&["sql", "pool", "--format", "csv", "-c", &format!("SELECT count(*) AS n FROM pool WHERE {condition}")])
            .trim_start_matches("n\n")
            .trim()
            .to_string()
    };
    let with_vectors = count("l14_img IS NOT NULL");
    assert_ne!(with_vectors, "0");
    // The scores are the inner products of the stored vectors.
    assert_eq!(count("abs(inner_product(l14_img, l14_txt) - clip_l14_similarity_score) < 0.001"), with_vectors);
    assert_eq!(count("abs(cosine_similarity(l14_img, l14_txt) + cosine_distance(l14_img, l14_txt) - 1) < 0.000001"), with_vectors);
    // The nearest centroid has the largest product, and `embedding` is that sample's vector.
    let sql = "SELECT count(*) AS n FROM pool JOIN vectors AS v ON v.name = 'centroids' AND v.id = nearest_centroid(l14_img, 'centroids') WHERE abs(inner_product(l14_img, v.vector) - max_similarity(l14_img, 'centroids')) < 0.0001";
    assert_eq!(t.ok(&["sql", "pool", "--format", "csv", "-c", sql]), format!("n\n{with_vectors}\n"));
    let first = "(SELECT min(uid) FROM pool WHERE l14_img IS NOT NULL)";
    let sql = format!("SELECT uid = {first} AS same FROM pool ORDER BY cosine_distance(l14_img, embedding({first}, 'l14_img')) LIMIT 1");
    assert_eq!(t.ok(&["sql", "pool", "--format", "csv", "-c", &sql]), "same\ntrue\n");
    embeddings_later(t, data);
    t.ok(&["vectors", "pool", "drop", "targets"]);
    t.fails(1, &["vectors", "pool", "drop", "targets"], &["pool has no vector set 'targets', it has centroids"]);
    let centroids = data.join("vectors/centroids_l14.npy").display().to_string();
    t.fails(1, &["vectors", "pool", "add", "centroids", &centroids], &["vector set 'centroids' exists"]);
    t.fails(
        1,
        &[&["filter", "pool", "image_based", "-o", "a.npy", "--param", "centroids=centroid"][..], &RESOURCES].concat(),
        &["no vector set 'centroid'", "did you mean 'centroids'?"],
    );
}

/// A column computed from vectors holds no longer where vectors come later: it lags there, and is computed again.
fn embeddings_later(t: &Sandbox, data: &Path) {
    let metadata = data.join("commonpool-mini/metadata");
    let (first, second) = ("b792fcacb00e3078e3b8fe5c46ee5c6e", "c41ea2177b0cd65aaf5ee1a1938ca886");
    std::fs::create_dir(t.path("late")).unwrap();
    let copy = |name: String| std::fs::copy(metadata.join(&name), t.path("late").join(&name)).map(drop).unwrap();
    copy(format!("{first}.parquet"));
    copy(format!("{second}.parquet"));
    copy(format!("{first}.npz"));
    t.ok(&["ingest", "late_pool", "late"]);
    t.ok(&["sql", "late_pool", "-c", "ALTER TABLE pool ADD COLUMN z AS (cosine_similarity(l14_img, l14_txt))"]);
    copy(format!("{second}.npz"));
    let output = t.tarn(&["ingest", "late_pool", "late"]);
    assert!(output.stderr.contains("computed z for"), "{}", output.stderr);
    let sql = "SELECT count(z) = count(l14_img) AS same, count(*) = count(z) AS whole FROM pool";
    assert_eq!(t.ok(&["sql", "late_pool", "--format", "csv", "-c", sql]), "same,whole\ntrue,true\n");
    t.ok(&["verify", "late_pool"]);
}

fn files_and_copies(t: &Sandbox) {
    let pool = t.small_pool();
    t.write(
        "wide.sql",
        "-- about: wide\n-- param least: int = 104\nSELECT uid, original_width / 100.0 AS weight FROM pool WHERE original_width >= $least",
    );
    t.ok(&["filter", pool, "wide.sql", "-o", "wide.npy", "--param", "least=105"]);
    let wide = Subset::read(&t.path("wide.npy")).unwrap();
    assert_eq!((wide.len(), wide.weights().map(<[f32]>::len)), (3, Some(3)));
    // A file of one's own is used as a shipped filter is.
    t.ok(&["sql", pool, "-c", "COPY (SELECT uid FROM filter('wide.sql', least => 105)) TO 'copied.npy'"]);
    assert_eq!(Subset::read(&t.path("copied.npy")).unwrap().uids(), wide.uids());
    assert_eq!(Receipt::read(&t.path("copied.receipt.json")).unwrap().subset_size, 3);
    assert_eq!(t.ok(&["sql", pool, "--format", "csv", "-c", "SELECT count(*) AS n, max(weight) AS w FROM 'wide.npy'"]), "n,w\n3,1.07\n");
    let joined = t.ok(&["sql", pool, "--format", "csv", "-c", "SELECT count(*) AS n FROM pool JOIN 'copied.npy' AS c ON pool.uid = c.uid"]);
    assert_eq!(joined, "n\n3\n");
    t.fails(1, &["sql", pool, "-c", "COPY (SELECT text FROM pool) TO 'x.npy'"], &["the query has no column 'uid'"]);
    t.fails(1, &["sql", pool, "-c", "SELECT * FROM 'nothing.npy'"], &["nothing.npy"]);
    t.write("loop.sql", "SELECT uid FROM filter('loop.sql')");
    t.fails(1, &["filter", pool, "loop.sql", "-o", "x.npy"], &["deep", "does one of them name itself?"]);
    t.write("two.sql", "SELECT uid FROM pool; SELECT 1");
    t.fails(1, &["sql", pool, "-c", "SELECT * FROM filter('two.sql')"], &["filter 'two': expected one query"]);
    // Files of other formats are tables.
    t.write("more.csv", "name,n\na,1\nb,2\n");
    t.write("more.json", "{\"name\":\"a\",\"n\":1}\n");
    assert_eq!(
        t.ok(&["sql", pool, "--format", "csv", "-c", "SELECT sum(c.n) AS n FROM 'more.csv' AS c JOIN 'more.json' AS j ON c.name = j.name"]),
        "n\n1\n"
    );
    t.fails(1, &["sql", pool, "-c", "SELECT $n", "--param", "n=1", "--param", "m=2"], &["has no parameter 'm'"]);
}

fn count(t: &Sandbox, sql: &str) -> String {
    t.ok(&["sql", "pool", "--format", "csv", "-c", sql]).lines().nth(1).unwrap_or_default().to_string()
}

fn computed_columns(t: &Sandbox) {
    let pool = t.small_pool();
    t.ok(&["sql", pool, "-c", "ALTER TABLE pool ADD COLUMN words AS (word_count(text))"]);
    let plan = |sql: &str| t.ok(&["sql", pool, "-c", &format!("EXPLAIN {sql}")]);
    for sql in [
        "SELECT uid FROM pool WHERE word_count(text) > 2",
        "SELECT p.uid FROM pool AS p WHERE word_count(p.text) > 2",
        "SELECT word_count(text) AS n, count(*) FROM pool GROUP BY n",
        "SELECT a.uid FROM pool a JOIN pool b ON a.uid = b.uid WHERE word_count(b.text) > 2",
    ] {
        let plan = plan(sql);
        let physical = plan.split("physical_plan").nth(1).unwrap();
        assert!(
            physical.contains("words") && !physical.contains("word_count(text") && !physical.contains("columns=[uid, text"),
            "{sql}: {plan}"
        );
    }
    // Where it would not be the same, the expression stays.
    for sql in [
        "SELECT uid FROM (SELECT uid, words, upper(text) AS text FROM pool) AS pool WHERE word_count(text) > 2",
        "SELECT word_count(q.text) FROM (SELECT a.words, b.text FROM pool a JOIN pool b ON a.uid < b.uid) AS q",
        "SELECT coalesce(word_count(b.text), 7) FROM pool a LEFT JOIN pool b ON a.uid = b.url",
    ] {
        assert!(plan(sql).contains("word_count("), "{sql}: {}", plan(sql));
    }
    // Rows that come later are computed with the ingest.
    let mut more = tarn_tests::rows();
    more.iter_mut().enumerate().for_each(|(i, row)| row.uid = format!("{:032x}", i + 100));
    tarn_tests::write_metadata(&t.path("more.parquet"), &more);
    let output = t.tarn(&["ingest", pool, "more.parquet"]);
    assert!(output.stderr.contains("computed words for 8 new samples"), "{}", output.stderr);
    assert_eq!(
        count(t, "SELECT count(*) FROM pool WHERE words IS DISTINCT FROM word_count(concat(text, ''))"),
        "2",
        "the two NULL captions"
    );
    // Compacting keeps it.
    t.ok(&["compact", pool]);
    assert_eq!(count(t, "SELECT sum(words) FROM pool"), "30");
    t.ok(&["verify", pool]);
    // A source that brings such a column itself goes in without it.
    t.write("other.csv", "uid,words\n000000000000000000000000000000ff,3\n");
    let output = t.tarn(&["ingest", pool, "other.csv"]);
    assert!(output.stderr.contains("rejected 1: a column is computed in this pool"), "{}", output.stderr);
    assert_eq!(count(t, "SELECT count(*) FROM pool WHERE uid = '000000000000000000000000000000ff' AND words IS NULL"), "1");
    t.ok(&["sql", pool, "-c", "ALTER TABLE pool DROP COLUMN words"]);
    t.fails(1, &["sql", pool, "--at", "1", "-c", "ALTER TABLE pool DROP COLUMN words"], &["the pool is open at an older version"]);
}

/// A computation is killed at random moments; in the end it is whole.
fn kills(t: &Sandbox) {
    let mut csv = String::from("url,text\n");
    (0..30_000).for_each(|i| csv += &format!("u{i},caption number {i} with some words\n"));
    t.write("many.csv", csv);
    t.ok(&["ingest", "pool", "many.csv", "--fragment-rows", "2000"]);
    let add = "ALTER TABLE pool ADD COLUMN language AS (concat(lang(text), word_count(text)))";
    let (mut killed, mut random) = (0, 11u64);
    while killed < 15 {
        let mut tarn = t.command(&["sql", "pool", "-c", add]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(std::time::Duration::from_millis(random >> 56));
        tarn.kill().unwrap();
        tarn.wait().unwrap();
        killed += 1;
    }
    t.ok(&["sql", "pool", "-c", add]);
    assert_eq!(count(t, "SELECT count(*) FROM pool WHERE language = concat(lang(concat(text, '')), word_count(text))"), "30000");
    t.ok(&["verify", "pool", "--repair"]);
    assert_eq!(count(t, "SELECT count(language) FROM pool"), "30000");
}

fn looking(t: &Sandbox) {
    let pool = t.small_pool();
    let drops = t.ok(&["filter", pool, "SELECT uid FROM pool WHERE word_count(text) >= 2 AND original_width > 101", "--explain-drop"]);
    assert!(drops.starts_with("4 of 8 samples survive (50.00%)"), "{drops}");
    let line = |start: &str| {
        drops
            .lines()
            .find(|line| line.contains(start))
            .unwrap_or_default()
            .split('|')
            .map(|cell| cell.trim().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(line("word_count(text) >= 2")[2..6], ["2", "25.00%", "2", "25.00%"]);
    assert_eq!(line("original_width > 101")[2..6], ["2", "25.00%", "2", "25.00%"]);
    assert!(drops.contains("decile of clip_l14_similarity_score") && drops.contains("below 200"), "{drops}");
    assert!(t.ok(&["filter", pool, "no_filter", "--explain-drop"]).starts_with("8 of 8 samples survive"));
    let drops = t.ok(&[
        "filter",
        pool,
        "SELECT uid FROM pool WHERE original_width > 102 AND uid IN (SELECT uid FROM filter('clip_score'))",
        "--explain-drop",
    ]);
    assert!(drops.starts_with("3 of 8 samples survive"), "{drops}");
    let none = "SELECT uid FROM pool WHERE EXISTS (SELECT 1 FROM images WHERE images.uid = pool.uid)";
    assert_eq!(t.tarn(&["filter", pool, none, "--explain-drop"]).code, 1);
    let diff = t.ok(&["filter", pool, "clip_score", "--diff", "SELECT uid FROM pool WHERE original_width >= 105"]);
    for words in ["clip_score: 3", "both: 2", "Jaccard: 0.5000", "only clip_score, for instance:", "00000000000000000000000000000005"] {
        assert!(diff.contains(words), "{words} is not in {diff}");
    }
    let plan = t.ok(&["filter", pool, "clip_score", "--explain"]);
    assert!(plan.contains("LanceScanExec: pool.lance@") && plan.contains("columns=[uid, clip_l14_similarity_score]"), "{plan}");
    let plan = t.ok(&["sql", pool, "-c", "EXPLAIN SELECT uid FROM pool WHERE original_width > 103 LIMIT 2"]);
    assert!(plan.contains("columns=[uid], filter=original_width > 103, limit=2"), "{plan}");
    let plan = t.ok(&["sql", pool, "-c", "EXPLAIN ANALYZE SELECT uid FROM pool WHERE original_width > 103"]);
    assert!(plan.contains("rows_scanned=8") && plan.contains("output_rows=4"), "{plan}");
}

/// A query that would take a year ends at Ctrl-C.
fn interrupted(t: &Sandbox) {
    let pool = t.small_pool();
    let tables = (0..12).map(|i| format!("pool AS p{i}")).collect::<Vec<_>>().join(" CROSS JOIN ");
    let sql = format!("SELECT count(*) FROM {tables} WHERE sample_hash(p0.uid, p1.original_width) < 2");
    let tarn = t.command(&["sql", pool, "-c", &sql]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let pid = tarn.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = tarn.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
}

fn resources(t: &Sandbox) {
    let pool = t.small_pool();
    std::fs::create_dir(t.path("none")).unwrap();
    let listed = t.ok(&["resources", "--resources", "none"]);
    assert!(listed.contains("lid.176.bin or lid.176.ftz") && listed.contains("missing  get it from: https://"), "{listed}");
    t.fails(
        1,
        &["filter", pool, "basic_filter", "-o", "a.npy", "--resources", "none"],
        &["the optional file 'lid.176.bin' or 'lid.176.ftz' is missing, looked for in none", "get it from"],
    );
    t.fails(2, &["filter", pool, "basic_filter", "-o", "a.npy", "--resources", "nowhere"], &["no such folder: nowhere"]);
    assert!(!t.path("a.npy").exists());
    t.write("none/lid.176.bin", "no model");
    t.fails(1, &["filter", pool, "basic_filter", "-o", "a.npy", "--resources", "none"], &["none/lid.176.bin: it is not a fastText model"]);
}

/// `engine/FUNCTIONS.md` is what the functions say of themselves; `TARN_WRITE_REFERENCE=1` writes it.
fn reference(_: &Sandbox) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/FUNCTIONS.md");
    if std::env::var_os("TARN_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, engine::reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == engine::reference(),
        "engine/FUNCTIONS.md is not current: TARN_WRITE_REFERENCE=1 cargo test --release --workspace --test e2e"
    );
}
