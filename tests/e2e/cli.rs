//! Arguments, outputs and errors as a user meets them.

use crate::{Sandbox, Test};

pub const TESTS: &[Test] = &[
    ("missing_pool", missing_pool),
    ("wrong_usage", wrong_usage),
    ("sources", sources),
    ("queries", queries),
    ("formats", formats),
    ("filters", filters),
    ("second_ingest_adds_nothing", second_ingest_adds_nothing),
    ("training_errors", training_errors),
    ("checkpoint_errors", checkpoint_errors),
];

fn missing_pool(t: &Sandbox) {
    t.fails(1, &["sql", "nowhere", "-c", "SELECT 1"], &["error: no pool at nowhere", "hint: make one with: tarn ingest nowhere SOURCE..."]);
    std::fs::create_dir(t.path("empty")).unwrap();
    t.fails(1, &["sql", "empty", "-c", "SELECT 1"], &["error: empty is not a pool: it holds no pool.lance"]);
    t.fails(1, &["filter", "nowhere", "no_filter", "-o", "a.npy"], &["no pool at nowhere"]);
    t.fails(1, &["train", "nowhere", "--select", "no_filter", "--scale", "tiny", "-o", "run"], &["no pool at nowhere"]);
}

fn wrong_usage(t: &Sandbox) {
    let pool = t.small_pool();
    t.fails(2, &["ingset"], &["unrecognized subcommand 'ingset'", "'ingest'"]);
    t.fails(2, &["filter", pool, "no_filter"], &["--output"]);
    t.fails(2, &["filter", pool, "no_filter", "-o", "a.txt"], &["the subset must be a .npy file, got a.txt"]);
    t.fails(2, &["sql", pool, "-c", "SELECT 1", "--param", "x"], &["expected NAME=VALUE, got 'x'"]);
    t.fails(2, &["embed", pool, "--model", "m", "--column", "My Column"], &["'My Column' is no column's name"]);
}

fn sources(t: &Sandbox) {
    t.fails(1, &["ingest", "pool", "nothing.parquet"], &["no such file or folder: nothing.parquet"]);
    std::fs::create_dir(t.path("empty")).unwrap();
    t.fails(1, &["ingest", "pool", "empty"], &["nothing to ingest in empty"]);
    let odd = t.write("a.xyz", "x");
    t.fails(1, &["ingest", "pool", &odd], &["cannot ingest a.xyz: unknown kind of file"]);
    // A broken file costs nothing but itself.
    t.write("m/broken.parquet", "PAR1 and then nothing");
    tarn_tests::write_metadata(&t.path("m/good.parquet"), &tarn_tests::rows());
    let output = t.tarn(&["ingest", "pool", "m"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("ingested 8 samples"), "{}", output.stderr);
    assert!(
        output.stderr.contains("rejected 1: not readable (first: ")
            && output.stderr.contains("m/broken.parquet: not a readable parquet file"),
        "{}",
        output.stderr
    );
    // Bad uids and uids that are there already are counted, each with its place.
    let mut rows = tarn_tests::rows();
    rows[0].uid = "not a uid".into();
    tarn_tests::write_metadata(&t.path("again.parquet"), &rows);
    let output = t.tarn(&["ingest", "pool", "again.parquet"]);
    assert!(output.stderr.contains("again.parquet, row 0: not a uid)"), "{}", output.stderr);
    assert!(output.stderr.contains("rejected 7: duplicate uid"), "{}", output.stderr);
}

fn second_ingest_adds_nothing(t: &Sandbox) {
    let pool = t.small_pool();
    let output = t.tarn(&["ingest", pool, "metadata.parquet"]);
    assert!(output.stderr.contains("passed over 1 files that the pool has already"), "{}", output.stderr);
    assert_eq!(t.ok(&["sql", pool, "-c", "SELECT count(*) AS n FROM pool", "--format", "csv"]), "n\n8\n");
    assert_eq!(
        t.ok(&["sql", pool, "-c", "SELECT kind, rows, rejected FROM ledger", "--format", "csv"]),
        "kind,rows,rejected\nmetadata,8,0\n"
    );
}

fn queries(t: &Sandbox) {
    let pool = t.small_pool();
    t.fails(1, &["sql", pool, "-c", "SELECT txt FROM pool"], &["error: no column 'txt'", "hint: did you mean 'text'?"]);
    t.fails(1, &["sql", pool, "-c", "SELECT * FROM pol"], &["'pol", "hint: did you mean 'pool'?"]);
    t.fails(1, &["sql", pool, "-c", "SELECT word_cnt(text) FROM pool"], &["hint: did you mean 'word_count'?"]);
    t.fails(1, &["sql", pool, "-f", "no.sql"], &["no.sql"]);
    t.fails(1, &["sql", pool, "-c", "SELECT * FROM runs"], &["hint: runs is not there yet"]);
    t.fails(1, &["sql", pool, "-c", "SELECT uid FROM pool WHERE original_width < $n"], &["hint: give it with --param n=VALUE"]);
    let file = t.write("q.sql", "-- two statements;\nSELECT 1 AS a;\nSELECT 2 AS b;\n");
    assert_eq!(t.ok(&["sql", pool, "-f", &file, "--format", "csv"]), "a\n1\nb\n2\n");
    let sql = "SELECT count(*) AS n FROM pool WHERE original_width < $w";
    assert_eq!(t.ok(&["sql", pool, "-c", sql, "--param", "w=103", "--format", "csv"]), "n\n3\n");
}

fn formats(t: &Sandbox) {
    let pool = t.small_pool();
    let sql = "SELECT uid, text FROM pool ORDER BY uid LIMIT 1";
    let uid = "00000000000000000000000000000001";
    assert!(t.ok(&["sql", pool, "-c", sql]).contains(&format!("| {uid} | a cat |")));
    assert_eq!(t.ok(&["sql", pool, "-c", sql, "--format", "csv"]), format!("uid,text\n{uid},a cat\n"));
    assert_eq!(t.ok(&["sql", pool, "-c", sql, "--format", "json"]), format!("[{{\"uid\":\"{uid}\",\"text\":\"a cat\"}}]\n"));
    assert_eq!(t.ok(&["sql", pool, "-c", sql, "--format", "jsonl"]), format!("{{\"uid\":\"{uid}\",\"text\":\"a cat\"}}\n"));
    let arrow = t.tarn(&["sql", pool, "-c", sql, "--format", "arrow"]);
    let mut reader = arrow::ipc::reader::StreamReader::try_new(&arrow.stdout[..], None).unwrap();
    let batch = reader.next().unwrap().unwrap();
    assert_eq!(batch.schema().field(0).data_type(), &arrow::datatypes::DataType::FixedSizeBinary(16));
    t.ok(&["sql", pool, "-c", sql, "--format", "parquet", "-o", "one.parquet"]);
    let sql = "SELECT text FROM 'one.parquet'";
    assert_eq!(t.ok(&["sql", pool, "-c", sql, "--format", "csv"]), "text\na cat\n");
}

fn filters(t: &Sandbox) {
    let pool = t.small_pool();
    t.fails(1, &["filter", pool, "clip_scor", "-o", "a.npy"], &["error: unknown filter 'clip_scor'", "hint: did you mean 'clip_score'?"]);
    let bind = |param: &'static str| ["filter", "pool", "clip_score", "--param", param, "-o", "a.npy"];
    t.fails(1, &bind("fraction=much"), &["parameter 'fraction' of filter 'clip_score' must be of type double, got 'much'"]);
    t.fails(1, &bind("fracton=0.1"), &["has no parameter 'fracton'", "hint: did you mean 'fraction'?"]);
    t.fails(1, &bind("arch=h14"), &["must be one of l14, b32, got 'h14'"]);
    t.fails(1, &bind("threshold=0.99"), &["error: the subset is empty"]);
    t.fails(1, &["filter", pool, "SELECT text FROM pool", "-o", "a.npy"], &["the query has no column 'uid', its columns are: text"]);
    t.fails(
        1,
        &["filter", pool, "SELECT text AS uid FROM pool", "-o", "a.npy"],
        &["column 'uid' of the query has type Utf8", "uid(column)"],
    );
    let file = t.write("mine.sql", "-- about: mine\n-- param w: int\nSELECT uid FROM pool WHERE original_width < $w");
    t.fails(1, &["filter", pool, &file, "-o", "a.npy"], &["filter 'mine' needs a value for its parameter 'w'"]);
    assert!(!t.path("a.npy").exists(), "a filter that fails leaves no file");

    t.ok(&["filter", pool, &file, "--param", "w=103", "-o", "a.npy"]);
    let bytes = std::fs::read(t.path("a.npy")).unwrap();
    assert_eq!(bytes.len(), 128 + 3 * 16);
    let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(t.path("a.receipt.json")).unwrap()).unwrap();
    assert_eq!((receipt["subset_size"].as_u64(), receipt["parameters"]["w"].as_i64()), (Some(3), Some(103)));
    assert_eq!(receipt["pool_rows"].as_u64(), Some(8));
    // Four of seven scores are NULL or below; int(7 * 0.3) = 2 gives three rows.
    t.ok(&["filter", pool, "clip_score", "-o", "b.npy"]);
    assert_eq!(std::fs::metadata(t.path("b.npy")).unwrap().len(), 128 + 3 * 16);
    // The same query gives the same bytes.
    t.ok(&["filter", pool, "random_subset", "--param", "fraction=0.5", "-o", "c.npy"]);
    t.ok(&["filter", pool, "random_subset", "--param", "fraction=0.5", "-o", "d.npy"]);
    assert_eq!(std::fs::read(t.path("c.npy")).unwrap(), std::fs::read(t.path("d.npy")).unwrap());
    // Weights lie beside the subset.
    t.ok(&["filter", pool, "SELECT uid, original_width / 100.0 AS weight FROM pool LIMIT 2", "-o", "w.npy"]);
    assert_eq!(std::fs::metadata(t.path("w.weights.npy")).unwrap().len(), 128 + 2 * 4);
    assert!(t.ok(&["filter", "--list"]).contains("clip_score: keep the fraction"));
    assert!(t.ok(&["filter", "--show", "no_filter"]).contains("SELECT uid FROM pool"));
}

fn training_errors(t: &Sandbox) {
    let pool = t.small_pool();
    let train = |select: &'static str, scale: &'static str| ["train", "pool", "--select", select, "--scale", scale, "-o", "run"];
    t.fails(1, &train("no_filter", "smal"), &["unknown scale 'smal', known are tiny, debug, small", "hint: did you mean 'small'?"]);
    t.fails(1, &train("SELECT uid FROM pool WHERE false", "tiny"), &["the subset is empty"]);
    t.fails(1, &train("no_filter", "tiny"), &["has no table 'images' yet", "tarn ingest POOL shards/"]);
    t.fails(1, &train("missing.npy", "tiny"), &["missing.npy"]);
    t.write("odd.npy", "not numpy");
    t.fails(1, &train("odd.npy", "tiny"), &["not a subset: text, expected a .npy array"]);
    t.fails(1, &["embed", pool, "--model", ".", "--column", "x"], &["not a checkpoint: . holds no open_clip_config.json"]);
    assert!(!t.path("run").exists(), "a run that cannot start leaves no folder");
}

fn checkpoint_errors(t: &Sandbox) {
    let config = |width: usize, extra: &str| {
        format!(
            r#"{{"model_cfg": {{"embed_dim": 8, "vision_cfg": {{"image_size": 16, "layers": 1, "width": {width}, "head_width": 8, "patch_size": 8{extra}}},
            "text_cfg": {{"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}}}}}}"#
        )
    };
    t.write("sets/wds_x_test/classnames.txt", "x");
    t.write("sets/wds_x_test/zeroshot_classification_templates.txt", "a {c}");
    t.write("sets/wds_x_test/test/nshards.txt", "1");
    t.write("sets/wds_x_test/test/0.tar", [0; 1024]);
    t.write("m/open_clip_config.json", config(16, ""));
    t.fails(1, &["eval", "m", "--data", "sets"], &["open_clip_model.safetensors"]);
    t.write("m/open_clip_config.json", config(16, r#", "quick_gelu": true"#));
    t.fails(1, &["eval", "m", "--data", "sets"], &["vision_cfg.quick_gelu = true is not supported"]);
    t.write("m/open_clip_config.json", config(12, ""));
    t.fails(1, &["eval", "m", "--data", "sets"], &["head_width must divide the vision width, got 8 and 12"]);
    t.write("m/open_clip_config.json", "{");
    t.fails(1, &["eval", "m", "--data", "sets"], &["m/open_clip_config.json"]);
    // Weights of another shape.
    t.write("m/open_clip_config.json", config(16, ""));
    let wide: train::OpenClipConfig = serde_json::from_str(&config(24, "")).unwrap();
    let values = train::parameters::Parameters::new(&wide.model_cfg).draw(0);
    train::Checkpoint { config: wide, values }.write(&t.path("wide")).unwrap();
    std::fs::copy(t.path("wide/open_clip_model.safetensors"), t.path("m/open_clip_model.safetensors")).unwrap();
    t.fails(1, &["eval", "m", "--data", "sets"], &["has shape [24], the configuration asks for [16]", "belong to different models"]);
    t.fails(1, &["eval", "wide", "--data", "m"], &["no evaluation sets in m"]);
    t.fails(1, &["report", "wide"], &["wide holds no results", "tarn eval wide --data DIR"]);
}
