//! Nearest neighbours: indexes against exact search, filters, rows that go and come, and kills.

use std::process::Stdio;

use half::f16;

use crate::{DataTest, Sandbox, Test, source};

pub const TESTS: &[Test] = &[
    ("indexes_with_all_partitions_are_exact", all_partitions),
    ("searches_after_changes", changes),
    ("killed_index_builds_leave_the_pool", kills),
    ("order_by_distance_is_rewritten", rewritten),
    ("kmeans_is_the_same_again", kmeans),
    ("graphs_of_sets", graphs),
    ("near_and_exact_duplicates", duplicates),
];

pub const DATA_TESTS: &[DataTest] = &[("selections_by_vectors", selections)];

/// 3,000 samples in three fragments, vectors of 32 (read through Lance) and of 128 (read in place) for all but the last 200.
pub(crate) fn pool(t: &Sandbox) {
    for file in 0..3 {
        let samples = file * 1000..(file + 1) * 1000;
        source::metadata(&t.path(&format!("m/{file}.parquet")), samples.clone());
        let end = samples.end.min(2800);
        source::metadata(&t.path(&format!("n/{file}.parquet")), samples.start..end);
        embeddings(t, &format!("n/{file}.npz"), samples.start..end);
    }
    t.ok(&["ingest", "pool", "n", "m", "--fragment-rows", "1000"]);
}

/// Vectors that are scattered around twenty places.
fn embeddings(t: &Sandbox, path: &str, samples: std::ops::Range<usize>) {
    let value = |i: usize, j: usize, of: usize| ((i * 7919 + j * 104_729 + of) % 1009) as f32 / 1009.0 - 0.5;
    let vector = |i: usize, dim: usize| {
        let x: Vec<f32> = (0..dim).map(|j| value(i % 20, j, 3) + 0.4 * value(i, j, i % 7)).collect();
        let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.into_iter().map(move |x| f16::from_f32(x / length))
    };
    let values = |dim: usize| samples.clone().flat_map(move |i| vector(i, dim));
    source::write_npz(&t.path(path), [("clip_a", 32, values(32).collect()), ("clip_b", 128, values(128).collect())].into_iter(), false);
}

pub(crate) fn rows(t: &Sandbox, sql: &str) -> String {
    t.ok(&["sql", "pool", "-c", sql, "--format", "csv"])
}

/// What a search of ten finds from twelve places, by their distances.
pub(crate) fn search(t: &Sandbox, column: &str, options: &str, condition: &str) -> String {
    let sql = format!(
        "SELECT p.uid, n.uid, n._distance FROM (SELECT uid, {column} AS q FROM pool WHERE {column} IS NOT NULL AND original_width % 60 = 3) p, \
         LATERAL nearest(pool, {column}, p.q, 10{options}) n {condition} ORDER BY 1, 3, 2"
    );
    let found = rows(t, &sql);
    assert!(found.lines().count() > 50 || condition.contains("1000000"), "{found}");
    found
}

fn all_partitions(t: &Sandbox) {
    pool(t);
    for (column, kinds) in [("clip_a", &["ivf_rq", "ivf_flat"][..]), ("clip_b", &["ivf_rq", "ivf_flat", "ivf_sq", "ivf_pq", "ivf_hnsw_sq"])]
    {
        for metric in ["cosine", "l2", "dot"] {
            let with_metric = format!(", metric => '{metric}'");
            let exact = search(t, column, &format!("{with_metric}, exact => true"), "");
            for kind in kinds {
                // Product quantisers need 256 rows a partition to train on, and graphs are of one metric at a time.
                if ["ivf_pq", "ivf_hnsw_sq"].contains(kind) && metric != "cosine" {
                    continue;
                }
                let partitions = "partitions=8";
                t.ok(&[
                    "index",
                    "pool",
                    "create",
                    column,
                    "--using",
                    kind,
                    "--name",
                    "i",
                    "--with",
                    &format!("metric={metric}"),
                    "--with",
                    partitions,
                ]);
                let through = search(t, column, &format!("{with_metric}, nprobes => 8, refine => 300, index => 'i'"), "");
                assert_eq!(exact, through, "{column} {kind} {metric}");
                for condition in ["WHERE n.original_width < 206", "WHERE n.original_width % 2 = 0", "WHERE n.original_width > 1000000"] {
                    let exact = search(t, column, &format!("{with_metric}, exact => true"), condition);
                    let through = search(t, column, &format!("{with_metric}, nprobes => 8, refine => 300, index => 'i'"), condition);
                    assert_eq!(exact, through, "{column} {kind} {metric} {condition}");
                }
                t.ok(&["index", "pool", "drop", "i"]);
            }
        }
    }
}

fn changes(t: &Sandbox) {
    pool(t);
    t.ok(&["index", "pool", "create", "clip_b", "--with", "partitions=8"]);
    let same = |what: &str| {
        let exact = search(t, "clip_b", ", exact => true", "");
        let through = search(t, "clip_b", ", nprobes => 8, refine => 300", "");
        assert_eq!(exact, through, "{what}");
    };
    let lagging = || rows(t, "SELECT lagging, pieces FROM indexes").lines().nth(1).unwrap_or_default().to_string();
    assert_eq!(lagging(), "0,1");
    // New rows are found before the index has them, and after.
    source::metadata(&t.path("more/9.parquet"), 5000..5400);
    embeddings(t, "more/9.npz", 5000..5400);
    t.ok(&["ingest", "pool", "more"]);
    assert_eq!(lagging(), "400,1");
    same("new rows");
    let listed = t.tarn(&["index", "pool", "list"]);
    assert!(listed.stderr.contains("lacks 400 rows"), "{}", listed.stderr);
    t.ok(&["index", "pool", "update"]);
    assert_eq!(lagging(), "0,2");
    same("an index of two pieces");
    t.ok(&["compact", "pool"]);
    same("after compaction");
    // Vectors that come later for rows that the index has.
    source::metadata(&t.path("late/2.parquet"), 2800..3000);
    embeddings(t, "late/2.npz", 2800..3000);
    t.ok(&["ingest", "pool", "late"]);
    same("late vectors");
    t.ok(&["verify", "pool", "--repair"]);
    same("after a repair");
}

fn kills(t: &Sandbox) {
    pool(t);
    let expected = search(t, "clip_b", ", exact => true", "");
    t.ok(&["index", "pool", "create", "clip_b", "--name", "i"]);
    let mut random = 5u64;
    for _ in 0..12 {
        let create = ["index", "pool", "create", "clip_b", "--name", "i", "--replace"];
        let mut tarn = t.command(&create).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(std::time::Duration::from_millis(random >> 55));
        tarn.kill().unwrap();
        tarn.wait().unwrap();
        assert_eq!(search(t, "clip_b", ", nprobes => 100, refine => 300", ""), expected);
        assert_eq!(rows(t, "SELECT name FROM indexes").trim(), "name\ni", "the index that is replaced stays until it is");
    }
    t.ok(&["index", "pool", "create", "clip_b", "--name", "i", "--replace"]);
    assert_eq!(search(t, "clip_b", ", nprobes => 100, refine => 300", ""), expected);
    t.ok(&["verify", "pool"]);
}

fn rewritten(t: &Sandbox) {
    pool(t);
    t.ok(&["index", "pool", "create", "clip_b", "--name", "near", "--with", "partitions=8"]);
    let query = format!("embedding('{}', 'clip_b')", source::uid(7));
    let explain = |sql: &str| rows(t, &format!("EXPLAIN {sql}"));
    let forms = [
        format!("SELECT uid FROM pool ORDER BY cosine_distance(clip_b, {query}) LIMIT 5"),
        format!("SELECT uid, 1 - cosine_distance(clip_b, {query}) AS s FROM pool ORDER BY s DESC LIMIT 5"),
        format!("SELECT uid FROM pool p WHERE original_width > 1500 ORDER BY cosine_similarity({query}, p.clip_b) DESC LIMIT 5"),
        format!(
            "SELECT uid FROM (SELECT uid, clip_b AS v FROM pool WHERE word_count(text) > 0) t ORDER BY cosine_distance(v, {query}) LIMIT 3 OFFSET 2"
        ),
        format!(
            "SELECT uid FROM pool WHERE uid IN (SELECT uid FROM pool WHERE original_width > 1500) ORDER BY cosine_distance(clip_b, {query}) LIMIT 5"
        ),
    ];
    for sql in &forms {
        let plan = explain(sql);
        assert!(
            plan.contains("NearestExec: pool.lance.clip_b by cosine, k=5, through index near (IVF_RQ), nprobes=8, refine=4"),
            "{sql}: {plan}"
        );
        let exactly = rows(t, &format!("SET tarn.exact = true; {sql}"));
        assert_eq!(rows(t, &format!("SET tarn.nprobes = 8; SET tarn.refine = 300; {sql}")), exactly, "{sql}");
        // As DataFusion does it alone: with a second key there is no search.
        let naive = sql.replace(" LIMIT", ", uid LIMIT");
        assert!(!explain(&naive).contains("NearestExec"), "{naive}");
        assert_eq!(rows(t, &naive), exactly, "{sql}");
    }
    assert!(explain(&forms[0].replace("cosine_distance", "l2_distance")).contains("by l2, k=5, exact"));
    for sql in [
        format!("SELECT uid FROM pool ORDER BY cosine_distance(clip_b, {query}) DESC LIMIT 5"),
        format!("SELECT uid FROM pool ORDER BY cosine_distance(clip_b, {query})"),
        "SELECT uid FROM pool ORDER BY cosine_distance(clip_b, clip_b) LIMIT 5".to_string(),
    ] {
        assert!(!explain(&sql).contains("NearestExec"), "{sql}");
    }
    let checked = t.ok(&["index", "pool", "check", "near", "--queries", "20", "--recall", "0.9", "--set"]);
    assert!(checked.contains("| clip_b"), "{checked}");
    t.fails(1, &["index", "pool", "check", "nearr"], &["the pool has no index 'nearr', it has near", "did you mean 'near'?"]);
    t.fails(1, &["index", "pool", "create", "clip_b", "--using", "ivf_qq"], &["unknown kind of index 'ivf_qq'"]);
}

fn kmeans(t: &Sandbox) {
    pool(t);
    let find = |name: &str, more: &[&str]| {
        let args = ["vectors", "pool", "kmeans", name, "--column", "clip_b", "-k", "12", "--samples", "2000", "--iterations", "8"];
        t.ok(&[&args[..], more].concat());
        rows(t, &format!("SELECT id, vector FROM vectors WHERE name = '{name}' ORDER BY id"))
    };
    let first = find("a", &[]);
    assert_eq!(first, find("b", &[]));
    assert_ne!(first, find("c", &["--seed", "1"]));
    assert_eq!(find("d", &["--start", "kmeans++", "--batch", "500"]), find("e", &["--start", "kmeans++", "--batch", "500"]));
    // Stopped in between, it goes on to the same end.
    let mut random = 3u64;
    for _ in 0..6 {
        let args = ["vectors", "pool", "kmeans", "f", "--column", "clip_b", "-k", "12", "--samples", "2000", "--iterations", "8"];
        let mut tarn = t.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(std::time::Duration::from_millis(random >> 58));
        tarn.kill().unwrap();
        tarn.wait().unwrap();
    }
    if rows(t, "SELECT count(*) FROM vectors WHERE name = 'f'").contains("\n0") {
        find("f", &[]);
    }
    assert_eq!(first, rows(t, "SELECT id, vector FROM vectors WHERE name = 'f' ORDER BY id"));
    t.fails(1, &["vectors", "pool", "kmeans", "a", "--column", "clip_b", "-k", "12"], &["vector set 'a' exists"]);
    t.fails(1, &["vectors", "pool", "kmeans", "--column", "clip_b", "-k", "5000"], &["2800 samples are too few for 5000 centroids"]);
    t.fails(2, &["vectors", "pool", "kmeans", "--column", "clip_b", "-k", "0"], &["at least 1"]);
    t.fails(1, &["vectors", "pool", "kmeans", "--column", "text", "-k", "5"], &["column 'text' holds Utf8"]);
}

fn graphs(t: &Sandbox) {
    pool(t);
    t.ok(&["sql", "pool", "-c", "CREATE VECTORS many AS SELECT clip_b FROM pool WHERE clip_b IS NOT NULL ORDER BY uid"]);
    let sql = format!(
        "SELECT id FROM nearest(vectors, vector, embedding('{}', 'clip_b'), 5) WHERE name = 'many' ORDER BY _distance, id",
        source::uid(7)
    );
    let exact = rows(t, &sql);
    t.ok(&["vectors", "pool", "graph", "many"]);
    // Which neighbours a graph has depends on the order in which cores insert them: one of five may be missed.
    let found = rows(t, &sql);
    assert!(found.lines().filter(|id| exact.lines().any(|other| other == *id)).count() >= 5, "{found}{exact}");
    assert!(rows(t, &format!("EXPLAIN {sql}")).contains("through the graph of many"), "{}", rows(t, &format!("EXPLAIN {sql}")));
    // A graph that is broken, or of other vectors, is not used.
    std::fs::write(t.path("pool/sets/many.graph/graph.hnsw.data"), b"x").unwrap();
    assert_eq!(rows(t, &sql), exact);
    assert!(!rows(t, &format!("EXPLAIN {sql}")).contains("through the graph"));
}

fn duplicates(t: &Sandbox) {
    source::metadata(&t.path("m/0.parquet"), 0..40);
    // The pictures of samples 20 to 29 are those of 0 to 9.
    let members = (0..30).flat_map(|i| {
        let picture = source::picture(if i < 20 { i } else { i - 20 });
        source::members(i)
            .into_iter()
            .map(move |(name, bytes)| if name.ends_with(".jpg") { (name, picture.clone()) } else { (name, bytes) })
    });
    t.write("s/0.tar", source::tar(members));
    t.ok(&["ingest", "pool", "m", "s"]);
    let n = |filter: &str, more: &[&str]| {
        t.ok(&[&["filter", "pool", filter, "-o", "out.npy"][..], more].concat());
        storage::Subset::read(&t.path("out.npy")).unwrap().len()
    };
    assert_eq!(n("dedup_exact", &[]), 30);
    assert_eq!(n("dedup_near", &["--param", "threshold=0"]), 30);
    assert_eq!(rows(t, "SELECT count(phash) FROM images"), "count(images.phash)\n30\n");
    let again = n("dedup_near", &["--param", "threshold=64"]);
    assert_eq!(again, 11, "all but one image, and the ten samples without");
    t.ok(&["verify", "pool"]);
}

/// The filters of the literature on real vectors: what they drop follows from their definitions.
fn selections(t: &Sandbox, data: &std::path::Path) {
    t.ok(&["ingest", "pool", &data.join("commonpool-mini/metadata").display().to_string()]);
    for set in ["centroids", "targets"] {
        t.ok(&["vectors", "pool", "add", set, &data.join(format!("vectors/{set}_l14.npy")).display().to_string()]);
    }
    let count = |sql: &str| rows(t, sql).lines().nth(1).unwrap_or_default().to_string();
    t.ok(&["filter", "pool", "normsim", "-o", "n.npy", "--param", "fraction=0.2"]);
    let least = "(SELECT top_fraction(max_similarity(l14_img, 'targets'), 0.2) FROM pool)";
    let expected = count(&format!("SELECT count(*) FROM pool WHERE max_similarity(l14_img, 'targets') >= {least}"));
    assert_eq!(count("SELECT count(*) FROM 'n.npy'"), expected);
    t.ok(&["filter", "pool", "neg_clip_loss", "-o", "l.npy", "--param", "batch_size=500", "--param", "rounds=2"]);
    assert_eq!(count("SELECT count(*) FROM 'l.npy'"), "588"); // int(1957 * 0.3) + 1
    // A pair is dropped if and only if one of its cluster that comes before it is nearer than the threshold.
    t.ok(&["filter", "pool", "semantic_dedup", "-o", "s.npy", "--param", "threshold=0.75", "--param", "keep=clip_l14_similarity_score"]);
    let by_hand = "WITH c AS (SELECT uid, l14_img, nearest_centroid(l14_img, 'centroids') AS cluster, clip_l14_similarity_score AS s FROM pool WHERE l14_img IS NOT NULL) \
        SELECT count(*) FROM pool WHERE uid NOT IN (SELECT b.uid FROM c a JOIN c b ON a.cluster = b.cluster AND (a.s > b.s OR (a.s = b.s AND a.uid < b.uid)) \
        WHERE cosine_similarity(a.l14_img, b.l14_img) > 0.75)";
    let kept: i64 = count("SELECT count(*) FROM 's.npy'").parse().unwrap();
    let expected: i64 = count(by_hand).parse().unwrap();
    assert!(kept < 3914 && (kept - expected).abs() <= 2, "{kept} and {expected}: equal scores may stand in another order");
    let neighbours =
        "SELECT count(*), count(DISTINCT n.uid) > 5 FROM vectors v, LATERAL nearest(pool, l14_img, v.vector, 3) n WHERE v.name = 'targets'";
    assert_eq!(count(neighbours), "180,true");
}
