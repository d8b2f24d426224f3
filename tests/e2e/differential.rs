//! Queries drawn at random give the rows that DuckDB gives, without and with indexes and computed columns. Ignored where
//! `TARN_TEST_PYTHON` names no Python that has it.

use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use tarn_tests::write_parquet;

use crate::s3::python_with;
use crate::{Sandbox, source};

const ROWS: usize = 700;
/// How many queries are drawn; `TARN_TEST_QUERIES` asks for more.
const QUERIES: usize = 300;

const RUN: &str = r#"
import duckdb, json, sys
c = duckdb.connect()
c.execute("CREATE TABLE pool AS SELECT * FROM 'pool.parquet'")
for query in open("duckdb.sql", encoding="utf-8").read().split(";\n"):
    if query.strip():
        for (row,) in c.execute(query).fetchall():
            print(json.dumps({"r": row}, ensure_ascii=False, separators=(",", ":")))
"#;

/// xorshift: the same queries in every run.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

fn write_source(t: &Sandbox, random: &mut Random) {
    let words = ["", "a", "A cat", "ein Hünd", "猫", "zwei  Wörter", "a\nb", "🏴‍☠️", "%_", "Ωmega"];
    let mut some = |share: usize| random.below(100) < share;
    let there: Vec<[bool; 5]> = (0..ROWS).map(|_| [some(85), some(80), some(80), some(90), some(70)]).collect();
    let text =
        |random: &mut Random, i: usize| format!("{}{}", words[random.below(words.len())], if i.is_multiple_of(3) { "" } else { "x" });
    let texts: ArrayRef = Arc::new(StringArray::from_iter((0..ROWS).map(|i| there[i][0].then(|| text(random, i)))));
    let a: ArrayRef = Arc::new(Int64Array::from_iter((0..ROWS).map(|i| there[i][1].then(|| random.below(41) as i64 - 20))));
    // Quarters are exact, so that sums are the same in any order; -0 and NaN as sources have them.
    let y = |random: &mut Random| match random.below(30) {
        0 => -0.0,
        1 => f64::NAN,
        n => (n as f64 - 15.0) * 0.25,
    };
    let y: ArrayRef = Arc::new(Float64Array::from_iter((0..ROWS).map(|i| there[i][2].then(|| y(random)))));
    let g: ArrayRef = Arc::new(StringArray::from_iter((0..ROWS).map(|i| there[i][3].then(|| ["u", "v", "w", "", "é"][random.below(5)]))));
    let b: ArrayRef = Arc::new(BooleanArray::from_iter((0..ROWS).map(|i| there[i][4].then(|| random.below(2) == 1))));
    let uids: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(source::uid)));
    let urls: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| format!("u{i:04}"))));
    for (file, rows) in [(0, 0..300), (1, 300..ROWS)] {
        let columns = [("uid", &uids), ("url", &urls), ("text", &texts), ("a", &a), ("y", &y), ("g", &g), ("b", &b)];
        let columns = columns.map(|(name, values)| (name, values.slice(rows.start, rows.len()), true));
        write_parquet(&t.path(&format!("m/{file}.parquet")), &RecordBatch::try_from_iter_with_nullable(columns).unwrap());
    }
}

fn condition(r: &mut Random, depth: usize, p: &str) -> String {
    let number = |r: &mut Random| {
        let n = r.below(30) as i64 - 15;
        let (whole, quarters) = (n.to_string(), format!("{:.2}", n as f64 * 0.25));
        [whole.as_str(), quarters.as_str(), "-0.0", "0.0", "CAST('NaN' AS DOUBLE)", "NULL"][r.below(6)].to_string()
    };
    let comparison = ["=", "<>", "<", "<=", ">", ">="];
    match r.below(if depth == 0 { 9 } else { 13 }) {
        0 | 1 => format!("{p}y {} {}", r.of(&comparison), number(r)),
        2 => format!("{p}a {} {}", r.of(&comparison), r.below(30) as i64 - 15),
        3 => format!("{p}g {} '{}'", r.of(&comparison), r.of(&["u", "v", "", "é", "zz"])),
        4 => format!("{p}{} IS {}NULL", r.of(&["a", "y", "g", "b", "text"]), r.of(&["", "NOT "])),
        5 => format!("{p}y {}BETWEEN {} AND {}", r.of(&["", "NOT "]), number(r), number(r)),
        6 => format!("{p}a {}IN ({}, {}{})", r.of(&["", "NOT "]), r.below(9), -(r.below(9) as i64), r.of(&["", ", NULL"])),
        7 => format!("{p}text {}LIKE '{}'", r.of(&["", "NOT "]), r.of(&["%x", "a%", "%ö%", "_", "%猫%", ""])),
        8 => format!("length({p}text) {} {}", r.of(&comparison), r.below(8)),
        9 | 10 => format!("({} {} {})", condition(r, depth - 1, p), r.of(&["AND", "OR"]), condition(r, depth - 1, p)),
        11 => format!("NOT ({})", condition(r, depth - 1, p)),
        _ => {
            format!("{p}b{}", r.of(&["", " IS TRUE", " IS NOT TRUE", " IS NOT DISTINCT FROM (a > 0)"])).replace("(a >", &format!("({p}a >"))
        }
    }
}

/// A query of one column of text.
fn query(r: &mut Random, number: usize) -> String {
    let show = |columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|c| format!("coalesce(CAST({c} AS VARCHAR), 'NULL')")).collect();
        format!("'{number}|' || {} AS r", columns.join(" || '|' || "))
    };
    let (way, nulls) = (r.of(&["", " DESC"]), r.of(&["", " NULLS FIRST", " NULLS LAST"]));
    let wanted = condition(r, 2, "");
    match r.below(9) {
        0 | 1 => format!("SELECT {} FROM pool WHERE {wanted}", show(&["url"])),
        2 => {
            let by = r.of(&["g", "b", "a % 3", "text"]);
            let columns = show(&["k", "count(*)", "count(a)", "min(a)", "max(a)", "sum(a)", "min(y)", "max(y)", "min(text)", "max(text)"]);
            format!("SELECT {columns} FROM (SELECT {by} AS k, * FROM pool WHERE {wanted}) GROUP BY k")
        }
        3 => {
            let by = r.of(&["a", "y", "g", "text", "b"]);
            let order = format!("ORDER BY {by}{way}{nulls}, url LIMIT {}", r.below(40));
            format!("SELECT {} FROM (SELECT * FROM pool WHERE {wanted} {order})", show(&[by, "url"]))
        }
        4 => {
            let (best, x) = (r.of(&["max", "min"]), r.of(&["a", "y", "text"]));
            let groups =
                format!("SELECT g, {best}({x}) AS m FROM pool WHERE {wanted} GROUP BY g ORDER BY m{way}{nulls} LIMIT {}", r.below(9));
            // Groups of the same best are any of them: only their values are shown.
            format!("SELECT {} FROM ({groups})", show(&["m"]))
        }
        5 => format!("SELECT {} FROM (SELECT DISTINCT g, b, a % 3 AS k FROM pool WHERE {wanted})", show(&["g", "b", "k"])),
        6 => {
            let join = r.of(&["JOIN", "LEFT JOIN", "FULL JOIN"]);
            let (p, q) = (condition(r, 1, ""), condition(r, 1, ""));
            let on = r.of(&["p.a = q.a", "p.y = q.y", "p.g = q.g AND p.a = q.a", "p.text = q.text AND p.b IS NOT DISTINCT FROM q.b"]);
            let sides = format!("(SELECT * FROM pool WHERE {p}) p {join} (SELECT * FROM pool WHERE {q}) q ON {on}");
            format!("SELECT {} FROM {sides} WHERE coalesce(p.url, q.url) < 'u0200'", show(&["p.url", "q.url"]))
        }
        7 => {
            let inner = condition(r, 1, "q.");
            let within = match r.below(3) {
                0 => format!("p.a {}IN (SELECT q.a FROM pool q WHERE {inner})", r.of(&["", "NOT "])),
                1 => format!("{}EXISTS (SELECT 1 FROM pool q WHERE q.a = p.a AND {inner})", r.of(&["", "NOT "])),
                _ => format!("p.y >= (SELECT max(q.y) FROM pool q WHERE {inner})"),
            };
            format!("SELECT {} FROM pool p WHERE {within}", show(&["p.url"]))
        }
        _ => {
            let columns = show(&["count(*)", "count(y)", "sum(y)", "min(y)", "max(y)", "count(DISTINCT text)", "max(url)"]);
            format!("SELECT {columns} FROM pool WHERE {wanted}")
        }
    }
}

/// Each query's rows, in one order.
fn rows(output: &str) -> Vec<&str> {
    let mut rows: Vec<&str> = output.lines().collect();
    rows.sort_unstable();
    rows
}

pub(crate) fn same_as_duckdb(t: &Sandbox) {
    let python = python_with("duckdb").expect("ignored without");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    write_source(t, &mut random);
    t.ok(&["ingest", "pool", "m"]);
    t.ok(&["sql", "pool", "-c", "SELECT url, text, a, y, g, b FROM pool", "-o", "pool.parquet"]);
    let count = std::env::var("TARN_TEST_QUERIES").ok().and_then(|n| n.parse().ok()).unwrap_or(QUERIES);
    let queries: Vec<String> = (0..count).map(|number| query(&mut random, number)).collect();
    t.write("tarn.sql", queries.join(";\n"));
    t.write("duckdb.sql", queries.join(";\n"));
    let output = Command::new(python).args(["-c", RUN]).current_dir(t.path(".")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = String::from_utf8(output.stdout).unwrap();
    assert!(rows(&expected).len() > count, "most queries have rows");
    let same = |when: &str| {
        let found = t.ok(&["sql", "pool", "-f", "tarn.sql", "--format", "jsonl"]);
        let (found, expected) = (rows(&found), rows(&expected));
        let other = found
            .iter()
            .find(|row| expected.binary_search(row).is_err())
            .or_else(|| expected.iter().find(|row| found.binary_search(row).is_err()));
        if found != expected {
            let row = other.map_or("a number of rows", |row| row);
            let number = row.trim_start_matches(r#"{"r":""#).split('|').next().and_then(|n| n.parse::<usize>().ok());
            panic!("{when}: {row} is of one side alone: {}", number.map_or("", |n| &queries[n]));
        }
    };
    same("without indexes");
    for (column, kind) in [("a", "btree"), ("y", "btree"), ("g", "bitmap"), ("text", "btree"), ("url", "zonemap")] {
        t.ok(&["sql", "pool", "-c", &format!("CREATE INDEX ON pool ({column}) USING {kind}")]);
    }
    same("with indexes");
    t.ok(&["sql", "pool", "-c", "ALTER TABLE pool ADD COLUMN letters AS (length(text))"]);
    t.ok(&["sql", "pool", "-c", "ALTER TABLE pool ADD COLUMN third AS (a % 3)"]);
    same("with computed columns");
}
