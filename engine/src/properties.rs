//! Properties of queries and filters over anything that can be typed.

use arrow::array::AsArray;
use futures::TryStreamExt;
use proptest::prelude::*;
use storage::Pool;
use tarn_tests::damaged;
use tokio::runtime::Runtime;

use crate::resources::fasttext::{FastText, Scratch};
use crate::resources::wordnet::{WordNet, read_list};
use crate::{Filter, Options, Session};

/// A pool of a few hundred rows with NULLs in every column but the uid, in several fragments, and a computed column.
fn pool(runtime: &Runtime, folder: &std::path::Path) -> Pool {
    let mut csv = String::from("uid,text,original_width,original_height,clip_l14_similarity_score,clip_b32_similarity_score\n");
    for i in 0u64..300 {
        let cell = |every: u64, text: String| if i % every == 0 { String::new() } else { text };
        let text = cell(7, ["a cat", "two dogs", "one", "the quick brown fox", "ein Hund"][i as usize % 5].to_string());
        let (width, height) = (cell(11, (i * 37 % 640).to_string()), cell(13, (i * 91 % 480).to_string()));
        let score = cell(17, (((i * 7919) % 1000) as f32 / 1000.0 - 0.2).to_string());
        csv += &format!("{:032x},{text},{width},{height},{score},{score}\n", i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    let path = folder.join("rows.csv");
    std::fs::write(&path, csv).expect("a writable folder");
    let pool = Pool::at(&folder.join("pool").display().to_string());
    let options = storage::ingest::Options { fragment_rows: 64, ..Default::default() };
    runtime.block_on(async {
        storage::ingest::ingest(&pool, &[path.display().to_string()], &options, &|_| {}).await.expect("ingested");
        let session = Session::over(pool.clone(), Options::default()).await.expect("open");
        run(&session, "ALTER TABLE pool ADD COLUMN words AS (word_count(text))").await;
    });
    pool
}

/// The first column's values as text, sorted.
async fn run(session: &Session, sql: &str) -> Vec<String> {
    let rows = session.sql(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let batches: Vec<_> = rows.try_collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut values: Vec<String> = Vec::new();
    for batch in batches {
        let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8);
        match (column, batch.column(0).as_fixed_size_binary_opt()) {
            (_, Some(uids)) => values.extend(uids.iter().flatten().map(|uid| format!("{uid:?}"))),
            (Ok(column), _) => values.extend(column.as_string::<i32>().iter().map(|value| format!("{value:?}"))),
            (Err(e), _) => values.push(e.to_string()),
        }
    }
    values.sort();
    values
}

fn condition() -> impl Strategy<Value = String> {
    let operator = prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">="]);
    let width = (prop::sample::select(vec!["original_width", "original_height"]), operator.clone(), -10i64..700);
    let score = (operator.clone(), -0.3f64..1.0);
    let words = (operator.clone(), 0i64..6);
    let leaf = prop_oneof![
        width.prop_map(|(column, operator, x)| format!("{column} {operator} {x}")),
        score.prop_map(|(operator, x)| format!("clip_l14_similarity_score {operator} {x:.3}")),
        words.prop_map(|(operator, x)| format!("word_count(text) {operator} {x}")),
        (operator, 1i64..4).prop_map(|(operator, x)| format!("original_width {operator} {x} * original_height")),
        prop::sample::select(vec![
            "text IS NULL".to_string(),
            "original_width IS NOT NULL".to_string(),
            "text LIKE '%o%'".to_string(),
            "text IN ('one', 'a cat')".to_string(),
            "original_width BETWEEN 100 AND 300".to_string(),
            "NOT isnan(clip_l14_similarity_score)".to_string(),
            "char_length(text) > 5".to_string(),
            "lang(text) = 'en'".to_string(),
            "clip_l14_similarity_score >= (SELECT top_fraction(clip_l14_similarity_score, 0.3) FROM pool)".to_string(),
            "uid IN (SELECT uid FROM filter('clip_score', fraction => 0.5))".to_string(),
        ]),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" AND "))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" OR "))),
            inner.prop_map(|one| format!("NOT ({one})")),
        ]
    })
}

#[test]
fn optimized_and_plain_plans_give_the_same_rows() {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let pool = pool(&runtime, folder.path());
    let (optimized, plain) = runtime.block_on(async {
        let optimized = Session::over(pool.clone(), Options::default()).await.expect("open");
        let plain = Session::over(pool, Options::default()).await.expect("open");
        // No filter reaches a scan, and no column stands for an expression.
        plain.forget_computed().await;
        (optimized, plain)
    });
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&condition(), |condition| {
        // A projection that hides the columns behind expressions keeps filters above the scan.
        let hidden =
            "SELECT uid, concat(text) AS t0, text, original_width, original_height, clip_l14_similarity_score FROM pool ORDER BY random()";
        let fast = runtime.block_on(run(&optimized, &format!("SELECT uid FROM pool WHERE {condition}")));
        let slow = runtime.block_on(run(&plain, &format!("SELECT uid FROM ({hidden} LIMIT 1000000) AS q WHERE {condition}")));
        prop_assert_eq!(&fast, &slow, "{}", &condition);
        let some = runtime.block_on(run(&optimized, &format!("SELECT uid FROM pool WHERE {condition} LIMIT 5")));
        prop_assert_eq!(some.len(), fast.len().min(5), "{}", &condition);
        prop_assert!(some.iter().all(|uid| fast.contains(uid)), "{}", &condition);
        let counted = runtime.block_on(run(&optimized, &format!("SELECT count(*) FROM pool WHERE {condition}")));
        prop_assert_eq!(counted, vec![format!("{:?}", Some(fast.len().to_string()))], "{}", &condition);
        Ok(())
    });
    outcome.expect("the same rows");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_as_a_filter_is_an_answer_or_an_error(text in "(-- (about|source|param)[ -~]{0,40}\n){0,4}[ -~\n]{0,60}", name in "\\PC{0,8}", value in "\\PC{0,12}") {
        if let Ok(filter) = Filter::parse("any", &text) {
            let _ = filter.bind(&[(name, value)]);
        }
    }

    #[test]
    fn a_declared_parameter_takes_what_its_type_can_hold(n in any::<i64>(), x in -1e9f64..1e9, b in any::<bool>(), t in "[a-z' ]{1,12}") {
        let header = "-- param n: int\n-- param x: double\n-- param b: boolean\n-- param t: text\nSELECT uid FROM pool";
        let given = [("n", n.to_string()), ("x", x.to_string()), ("b", b.to_string()), ("t", t.clone())].map(|(name, value)| (name.to_string(), value));
        let bound = Filter::parse("mine", header).expect("a sound header").bind(&given).expect("values of their types");
        let values: Vec<String> = bound.params().iter().map(|(_, value)| value.to_string()).collect();
        prop_assert_eq!(&values[..3], [n.to_string(), x.to_string(), b.to_string()]);
        prop_assert!(values[3] == t || t.eq_ignore_ascii_case("null"));
    }

    #[test]
    fn any_language_model_is_read_or_refused(bytes in damaged(language_model()), text in "\\PC{0,30}") {
        if let Ok(model) = FastText::read(&bytes[..], bytes.len() as u64) {
            model.detect(&text, &mut Scratch::default());
        }
    }

    #[test]
    fn any_wordnet_is_read_or_refused(index in damaged(INDEX.to_vec()), exceptions in damaged(b"mice mouse\n".to_vec()), list in damaged(b"n02121808\n2123045\n".to_vec())) {
        let folder = tempfile::tempdir().expect("a folder");
        for part in ["noun", "verb", "adj", "adv"] {
            std::fs::write(folder.path().join(format!("index.{part}")), &index).expect("written");
            std::fs::write(folder.path().join(format!("{part}.exc")), &exceptions).expect("written");
        }
        if let Ok(wordnet) = WordNet::open(folder.path()) {
            wordnet.first_synset("mice");
        }
        std::fs::write(folder.path().join("list.txt"), &list).expect("written");
        let _ = read_list(&folder.path().join("list.txt"));
    }
}

const INDEX: &[u8] = b"  1 This is a comment\nmouse n 2 2 @ ~ 2 1 02330245 03793489  \ncat n 1 1 @ 1 1 02121620  \n";

/// A fastText model of two words, two labels and four buckets for n-grams, with the plain softmax.
fn language_model() -> Vec<u8> {
    let mut bytes = Vec::new();
    let ints = |bytes: &mut Vec<u8>, of: &[i32]| of.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
    ints(&mut bytes, &[793_712_314, 12]);
    // dim, window, epochs, min_count, negatives, word_ngrams, loss, model, buckets, min_n, max_n, update rate; sampling
    ints(&mut bytes, &[2, 5, 5, 1, 5, 1, 3, 3, 4, 2, 4, 100]);
    bytes.extend(1e-4f64.to_le_bytes());
    ints(&mut bytes, &[4, 2, 2]);
    bytes.extend(4i64.to_le_bytes());
    bytes.extend((-1i64).to_le_bytes());
    for (word, kind) in [("cat", 0u8), ("hund", 0), ("__label__en", 1), ("__label__de", 1)] {
        bytes.extend([word.as_bytes(), &[0]].concat());
        bytes.extend(1i64.to_le_bytes());
        bytes.push(kind);
    }
    for rows in [6i64, 2] {
        bytes.push(0);
        bytes.extend([rows, 2].map(i64::to_le_bytes).concat());
        (0..rows * 2).for_each(|i| bytes.extend((i as f32 / 8.0).to_le_bytes()));
    }
    bytes
}

#[test]
fn the_language_model_that_is_damaged_is_sound() {
    let bytes = language_model();
    let model = FastText::read(&bytes[..], bytes.len() as u64).expect("a sound model");
    assert!(model.detect("hund cat", &mut Scratch::default()).is_some());
    // Parts of words, and nowhere to look them up.
    let without_buckets = [&bytes[..40], &[0; 4], &bytes[44..]].concat();
    assert!(FastText::read(&without_buckets[..], bytes.len() as u64).is_err());
}
