//! Runs `tests/sql/**/*.slt`, each against a fresh copy of a small pool.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use engine::Session;
use futures::TryStreamExt;
use libtest_mimic::{Arguments, Trial};
use sqllogictest::{DBOutput, DefaultColumnType, Runner, strict_column_validator};
use storage::Pool;
use tarn_tests::{Row, rows, write_embeddings, write_metadata};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut files = Vec::new();
    find(&folder, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no .slt file in {}", folder.display());
    let trial = |path: PathBuf| {
        let name = path.strip_prefix(&folder).unwrap_or(&path).display().to_string();
        Trial::test(name, move || run(&path).map_err(Into::into))
    };
    libtest_mimic::run(&Arguments::from_args(), files.into_iter().map(trial).collect()).exit();
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "slt") {
            files.push(path);
        }
    }
}

fn run(path: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let pool = dir.path().join("pool").display().to_string();
    let (metadata, resources) = (dir.path().join("metadata.parquet"), dir.path().join("resources"));
    write_metadata(&metadata, &rows());
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let mut sources = vec![metadata.display().to_string()];
        if path.parent().is_some_and(|folder| folder.ends_with("search")) {
            sources.extend(vectors(dir.path(), &metadata));
        }
        storage::ingest::ingest(&Pool::at(&pool), &sources, &Default::default(), &|_| {}).await.map_err(|e| e.to_string())?;
        let mut runner = Runner::new(|| async {
            let options = engine::Options { resources: Some(resources.clone()), ..Default::default() };
            Ok(Database(Session::over(Pool::open(&pool).await.map_err(engine::Error::from)?, options).await?))
        });
        runner.with_column_validator(strict_column_validator);
        runner.run_file_async(path).await.map_err(|e| e.display(false).to_string())
    })
}

/// Embeddings of the first eight samples, and two samples more that have none: `v` of 16 numbers, which is read through
/// Lance, `w` of 128, which is read in place. Sample i points along axis i and by a quarter along the next.
fn vectors(folder: &Path, metadata: &Path) -> Vec<String> {
    let of = |dim: usize| {
        (0..8 * dim).map(move |at| (at / dim, at % dim)).map(|(i, j)| {
            if i == j {
                1.0
            } else if i + 1 == j {
                0.25
            } else {
                0.0
            }
        })
    };
    let npz = metadata.with_extension("npz");
    write_embeddings(&npz, &[("v", 16, of(16).collect()), ("w", 128, of(128).collect())]);
    let more = folder.join("more.parquet");
    let others = rows().into_iter().zip(9..11).map(|(row, i)| Row { uid: format!("{i:032x}"), text: Some("a cat without".into()), ..row });
    write_metadata(&more, &others.collect::<Vec<_>>());
    [npz, more].map(|path| path.display().to_string()).to_vec()
}

struct Database(Session);

/// A query's error with its hint, on one line.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", .0, .0.hint().map(|hint| format!(" ({hint})")).unwrap_or_default())]
struct Failed(#[from] engine::Error);

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Database {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failed> {
        let stream = self.0.sql(sql, &[]).await?;
        let schema = stream.schema();
        let batches: Vec<_> = stream.try_collect().await.map_err(|e| self.0.error(e))?;
        if schema.fields().is_empty() {
            return Ok(DBOutput::StatementComplete(0));
        }
        let types = schema.fields().iter().map(|f| match f.data_type() {
            t if t.is_integer() => DefaultColumnType::Integer,
            t if t.is_floating() => DefaultColumnType::FloatingPoint,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::FixedSizeBinary(_) => DefaultColumnType::Text,
            _ => DefaultColumnType::Any,
        });
        let mut rows = Vec::new();
        for batch in &batches {
            for i in 0..batch.num_rows() {
                rows.push(batch.columns().iter().map(|column| cell(column.as_ref(), i)).collect());
            }
        }
        Ok(DBOutput::Rows { types: types.collect(), rows })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "tarn"
    }
}

fn cell(column: &dyn Array, i: usize) -> String {
    if column.is_null(i) {
        return "NULL".to_string();
    }
    if let Some(text) = column.as_string_opt::<i32>().filter(|text| text.value(i).is_empty()) {
        return format!("(empty{})", text.value(i));
    }
    match ArrayFormatter::try_new(column, &FormatOptions::new()) {
        Ok(formatter) => formatter.value(i).to_string(),
        Err(e) => e.to_string(),
    }
}
