//! The commands over real data: CommonPool's layout, real captions and photographs, DataComp's evaluation folders.

use std::path::Path;

use crate::{DataTest, Sandbox};

pub const TESTS: &[DataTest] = &[
    ("real_broken_files_cost_only_themselves", broken_files),
    ("real_filters_equal_datacomps", filters),
    ("real_pool_to_score", pool_to_score),
];

fn ingest(t: &Sandbox, data: &Path) {
    let path = |name: &str| data.join("commonpool-mini").join(name).display().to_string();
    let output = t.tarn(&["ingest", "pool", &path("shards"), &path("metadata")]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("ingested 3914 samples, embeddings of 1957, and 600 images from 9 files"), "{}", output.stderr);
}

/// Flipped bytes and truncated archives: what is whole goes in, the rest is counted and read again when it is mended.
fn broken_files(t: &Sandbox, data: &Path) {
    let source = data.join("commonpool-mini");
    let stem = "metadata/b792fcacb00e3078e3b8fe5c46ee5c6e";
    let npz = std::fs::read(source.join(stem).with_extension("npz")).unwrap();
    let mut flipped = npz.clone();
    flipped[2_000_000..2_000_100].fill(7);
    t.write("s/a.npz", flipped);
    std::fs::copy(source.join(stem).with_extension("parquet"), t.path("s/a.parquet")).unwrap();
    let shard = std::fs::read(source.join("shards/00000000.tar")).unwrap();
    t.write("s/b.tar", &shard[..shard.len() / 2]);
    let output = t.tarn(&["ingest", "pool", "s"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for words in ["not readable", "checksum", "shard breaks off"] {
        assert!(output.stderr.contains(words), "'{words}' is not in: {}", output.stderr);
    }
    let count = |sql: &str| t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]);
    assert_eq!(count("SELECT count(*) > 979 AS rows, count(b32_img) AS vectors FROM pool"), "rows,vectors\ntrue,0\n");
    // The mended shard brings the rest, and nothing twice.
    t.write("s/b.tar", &shard);
    t.ok(&["ingest", "pool", "s/b.tar"]);
    assert_eq!(count("SELECT count(*) AS n, count(DISTINCT uid) AS d FROM images"), "n,d\n200,200\n");
    assert_eq!(count("SELECT count(*) = count(DISTINCT uid) AS same FROM pool"), "same\ntrue\n");
}

/// The same bytes as the subsets of DataComp's own baseline code.
fn filters(t: &Sandbox, data: &Path) {
    ingest(t, data);
    let cases: [(&str, &[&str]); 4] = [
        ("no_filter", &["no_filter"]),
        ("clip_score_l14_30_percent", &["clip_score"]),
        ("clip_score_b32_10_percent", &["clip_score", "--param", "arch=b32", "--param", "fraction=0.1"]),
        ("clip_score_b32_28_threshold", &["clip_score", "--param", "arch=b32", "--param", "threshold=0.28"]),
    ];
    for (name, filter) in cases {
        t.ok(&[&["filter", "pool"], filter, &["-o", "subset.npy"]].concat());
        let expected = std::fs::read(data.join("expected").join(name).with_extension("npy")).unwrap();
        assert!(std::fs::read(t.path("subset.npy")).unwrap() == expected, "{name} differs");
    }
    // Scores are the inner products of the float16 vectors.
    let sql = "SELECT count(*) AS n, max(abs(cosine_similarity(l14_img, l14_txt) - clip_l14_similarity_score)) < 0.001 AS same FROM pool WHERE l14_img IS NOT NULL";
    assert_eq!(t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]), "n,same\n1957,true\n");
}

fn pool_to_score(t: &Sandbox, data: &Path) {
    ingest(t, data);
    let train = ["train", "pool", "--select", "no_filter", "--scale", "tiny", "--max-steps", "3", "-o", "run"];
    let output = t.tarn(&train);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(
        output.stderr.contains("of 3914 uids selected 600 can be drawn: 0 are not in the pool, 3314 have no image"),
        "{}",
        output.stderr
    );
    t.ok(&["embed", "pool", "--model", "run", "--column", "tiny"]);
    let sql = "SELECT count(tiny_img) AS images, count(tiny_txt) = count(text) AS texts, count(tiny_score) AS scores FROM pool";
    assert_eq!(t.ok(&["sql", "pool", "-c", sql, "--format", "csv"]), "images,texts,scores\n600,true,600\n");
    let table = t.ok(&["eval", "run", "--data", &data.join("evalsets").display().to_string()]);
    assert!(table.contains("CIFAR-10") && table.contains("MNIST"), "{table}");
    assert!(t.ok(&["report", "run"]).contains("| no_filter | 3914        | 384          |"), "{}", t.ok(&["report", "run"]));
}
