//! Indexes of the table `pool`, which are Lance's: making, listing, extending and dropping them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::DataType;
use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance::table::format::IndexMetadata;
use lance_index::IndexParams;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::{BuiltinIndexType, InvertedIndexParams, ScalarIndexParams};
use storage::{OnProgress, Pool, Table};

use crate::build::{Watch, create_over_vectors, extend};
use crate::kind::Sizes;
use crate::{Distance, Error, Kind, Result};

/// An index to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIndex {
    /// By default the column and the kind: `l14_img_ivf_rq`.
    pub name: Option<String>,
    pub column: String,
    pub kind: Kind,
    /// By name as in SQL's WITH, their values as text.
    pub options: BTreeMap<String, String>,
    /// Whether one of this name is replaced.
    pub replace: bool,
}

/// An index as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexInfo {
    pub name: String,
    pub column: String,
    pub kind: Option<Kind>,
    /// Lance's word for the kind.
    pub lance_kind: String,
    /// What a vector index goes by.
    pub distance: Option<Distance>,
    /// Rows that it holds, and rows of the pool that came after it.
    pub rows: u64,
    pub lagging: u64,
    /// Pieces that are searched one after the other: one, and one more for each update.
    pub pieces: usize,
    pub bytes: u64,
    /// What searches use where they are not told otherwise.
    pub defaults: Effort,
}

/// How hard an index is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Partitions looked into.
    pub nprobes: usize,
    /// Candidates looked at again by their full vectors, in multiples of k.
    pub refine: usize,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { nprobes: 64, refine: 4 }
    }
}

fn known_options(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::IvfFlat | Kind::IvfSq => &["metric", "partitions", "seed"],
        Kind::IvfRq => &["metric", "partitions", "seed", "bits"],
        Kind::IvfPq => &["metric", "partitions", "seed", "bits", "sub_vectors"],
        Kind::IvfHnswFlat | Kind::IvfHnswSq => &["metric", "partitions", "seed", "m", "ef_construction"],
        Kind::IvfHnswPq => &["metric", "partitions", "seed", "m", "ef_construction", "bits", "sub_vectors"],
        Kind::FullText => &["language", "stem", "stop_words", "positions"],
        _ => &[],
    }
}

impl NewIndex {
    fn check_options(&self) -> Result<()> {
        let known = known_options(self.kind);
        match self.options.keys().find(|option| !known.contains(&option.as_str())) {
            Some(option) => Err(Error::UnknownOption { kind: self.kind.name(), option: option.clone(), known: known.join(", ") }),
            None => Ok(()),
        }
    }

    pub(crate) fn number<T: std::str::FromStr + PartialOrd>(
        &self,
        option: &str,
        range: std::ops::RangeInclusive<T>,
        expected: &'static str,
    ) -> Result<Option<T>> {
        let Some(text) = self.options.get(option) else { return Ok(None) };
        match text.parse().ok().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::OptionValue { option: option.into(), expected, got: text.clone() }),
        }
    }

    fn yes(&self, option: &str, default: bool) -> Result<bool> {
        match self.options.get(option).map(|text| text.to_lowercase()) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| Error::OptionValue { option: option.into(), expected: "true or false", got: text }),
        }
    }

    pub(crate) fn distance(&self) -> Result<Distance> {
        match self.options.get("metric") {
            None => Ok(Distance::Cosine),
            Some(name) => Distance::parse(name).ok_or_else(|| Error::OptionValue {
                option: "metric".into(),
                expected: "cosine, dot or l2",
                got: name.clone(),
            }),
        }
    }

    pub(crate) fn sizes(&self, dim: usize) -> Result<Sizes> {
        let bits = match self.kind {
            Kind::IvfRq => self.number("bits", 1..=9, "1 to 9")?,
            _ => self.number("bits", 4..=8, "4 or 8")?,
        };
        let sub_vectors = self.number("sub_vectors", 1..=dim, "a number that divides the vectors' length")?;
        if let Some(n) = sub_vectors.filter(|n| !dim.is_multiple_of(*n)) {
            let expected = "a number that divides the vectors' length";
            return Err(Error::OptionValue { option: "sub_vectors".into(), expected, got: n.to_string() });
        }
        let neighbours = self.number("m", 4..=256, "4 to 256")?;
        let candidates = self.number("ef_construction", neighbours.unwrap_or(20)..=1 << 16, "at least m, at most 65536")?;
        Ok(Sizes { bits, sub_vectors, neighbours, candidates })
    }
}

/// Makes an index over a column of `pool`. Killed before its end, it leaves the pool as it was.
pub fn create_index<'a>(pool: &'a Pool, new: &'a NewIndex, on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<String>> {
    pool.write(move |writer| async move {
        new.check_options()?;
        let dataset = pool.require(Table::Pool).await?;
        let data_type = dataset.schema().field(&new.column).map(|field| field.data_type());
        let data_type = data_type.ok_or_else(|| storage::Error::no_column(&dataset, &new.column))?;
        // Values of a computed column are replaced where what it reads is; an index would not know.
        if storage::is_computed(&dataset, &new.column) {
            return Err(storage::Error::IndexOfComputed { column: new.column.clone() }.into());
        }
        check_column(new, &data_type)?;
        let name = new.name.clone().unwrap_or_else(|| format!("{}_{}", new.column, new.kind.name()));
        if !new.replace && list_indexes(pool).await?.iter().any(|index| index.name == name) {
            return Err(Error::IndexExists { name });
        }
        let mut dataset = Dataset::clone(&dataset);
        if new.kind.is_vector() {
            create_over_vectors(&writer, &mut dataset, new, &name, on_progress).await?;
        } else {
            let params = scalar_params(new)?;
            let progress = Arc::new(Watch::new(format!("index {name}")));
            let columns = [new.column.as_str()];
            // Under a name of its own, which no index has, for the case that it takes another's place.
            let mut builder = dataset.create_index_builder(&columns, new.kind.index_type(), params.as_ref());
            builder = builder.name(format!("{name}__new")).progress(progress.clone());
            let piece = progress.during(builder.execute_uncommitted(), on_progress).await.map_err(Error::lance)?;
            writer.replace_index(&dataset, &name, vec![IndexMetadata { name: name.clone(), ..piece }]).await?;
        }
        Ok(name)
    })
}

fn check_column(new: &NewIndex, data_type: &DataType) -> Result<()> {
    let wrong =
        |expected| Err(Error::IndexColumn { column: new.column.clone(), got: data_type.to_string(), expected, kind: new.kind.name() });
    let is_text = matches!(data_type, DataType::Utf8 | DataType::LargeUtf8);
    match new.kind {
        kind if kind.is_vector() => match data_type {
            DataType::FixedSizeList(item, dim) if matches!(item.data_type(), DataType::Float16 | DataType::Float32) => match kind {
                Kind::IvfRq if dim % 8 != 0 => wrong("vectors whose length is a multiple of 8"),
                _ => Ok(()),
            },
            _ => wrong("vectors of float16 or float32"),
        },
        Kind::FullText | Kind::NGram if !is_text => wrong("text"),
        Kind::LabelList if !matches!(data_type, DataType::List(_) | DataType::LargeList(_)) => wrong("lists"),
        Kind::FullText | Kind::NGram | Kind::LabelList => Ok(()),
        Kind::BloomFilter if matches!(data_type, DataType::FixedSizeBinary(_)) => wrong("numbers or text (btree takes uids)"),
        _ if data_type.is_nested() => wrong("numbers, text or uids"),
        _ => Ok(()),
    }
}

fn scalar_params(new: &NewIndex) -> Result<Box<dyn IndexParams>> {
    let builtin = match new.kind {
        Kind::BTree => BuiltinIndexType::BTree,
        Kind::Bitmap => BuiltinIndexType::Bitmap,
        Kind::ZoneMap => BuiltinIndexType::ZoneMap,
        Kind::BloomFilter => BuiltinIndexType::BloomFilter,
        Kind::LabelList => BuiltinIndexType::LabelList,
        Kind::NGram => BuiltinIndexType::NGram,
        _ => {
            let params = InvertedIndexParams::default();
            let params = params.stem(new.yes("stem", true)?).remove_stop_words(new.yes("stop_words", true)?);
            let params = params.with_position(new.yes("positions", false)?);
            let language = new.options.get("language").map_or("English", String::as_str);
            let params = params.language(language).map_err(|_| Error::OptionValue {
                option: "language".into(),
                expected: "a language with stemming rules, such as English",
                got: language.to_string(),
            })?;
            return Ok(Box::new(params));
        }
    };
    Ok(Box::new(ScalarIndexParams::for_builtin(builtin)))
}

pub(crate) fn joined(e: tokio::task::JoinError) -> Error {
    match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Stopped,
    }
}

/// The indexes of `pool`, by name.
pub fn list_indexes(pool: &Pool) -> BoxFuture<'_, Result<Vec<IndexInfo>>> {
    async move {
        let dataset = pool.require(Table::Pool).await?;
        indexes_of(&dataset).await
    }
    .boxed()
}

/// The indexes of a table, by name.
pub fn indexes_of(dataset: &Dataset) -> BoxFuture<'_, Result<Vec<IndexInfo>>> {
    async move {
        let total: HashMap<u32, u64> = dataset.fragments().iter().map(|f| (f.id as u32, f.num_rows().unwrap_or(0) as u64)).collect();
        let mut indexes = Vec::new();
        for index in dataset.describe_indices(None).await.map_err(Error::lance)? {
            if index.name().starts_with("__") {
                continue;
            }
            let mut covered = 0;
            for (id, rows) in &total {
                if index.segments().iter().any(|piece| piece.fragment_bitmap.as_ref().is_some_and(|bits| bits.contains(*id))) {
                    covered += rows;
                }
            }
            let ids = index.field_ids();
            let column = ids.first().and_then(|id| dataset.schema().field_by_id(*id as i32)).map(|field| field.name.clone());
            let details: serde_json::Value = index.details().ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let kind = Kind::of_lance(index.index_type());
            indexes.push(IndexInfo {
                name: index.name().to_string(),
                column: column.unwrap_or_default(),
                kind,
                lance_kind: index.index_type().to_string(),
                distance: details["metric_type"].as_str().and_then(Distance::parse),
                rows: covered,
                lagging: total.values().sum::<u64>() - covered,
                pieces: index.segments().len(),
                bytes: index.total_size_bytes().unwrap_or(0),
                defaults: effort_of(dataset, index.name()),
            });
        }
        indexes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(indexes)
    }
    .boxed()
}

/// Keys of the table's configuration that hold what searches use by default.
fn keys(name: &str) -> [String; 2] {
    ["nprobes", "refine"].map(|what| format!("tarn.index.{name}.{what}"))
}

pub(crate) fn effort_of(dataset: &Dataset, name: &str) -> Effort {
    let [nprobes, refine] = keys(name).map(|key| dataset.config().get(&key).and_then(|text| text.parse().ok()));
    let default = Effort::default();
    Effort { nprobes: nprobes.unwrap_or(default.nprobes), refine: refine.unwrap_or(default.refine) }
}

pub(crate) async fn set_effort(dataset: &mut Dataset, name: &str, effort: Effort) -> Result<()> {
    let [nprobes, refine] = keys(name);
    let values = [(nprobes, effort.nprobes.to_string()), (refine, effort.refine.to_string())];
    dataset.update_config(values.iter().map(|(key, value)| (key.as_str(), value.as_str()))).await.map_err(Error::lance)?;
    Ok(())
}

/// Stores what searches of an index use by default.
pub fn set_defaults<'a>(pool: &'a Pool, name: &'a str, effort: Effort) -> BoxFuture<'a, Result<()>> {
    pool.write(move |writer| async move {
        let index = named(pool, name).await?;
        set_effort(&mut writer.table(Table::Pool).await?, &index.name, effort).await
    })
}

/// The index of this name; an error where there is none.
pub(crate) async fn named(pool: &Pool, name: &str) -> Result<IndexInfo> {
    let indexes = list_indexes(pool).await?;
    let known = indexes.iter().map(|index| index.name.as_str()).collect::<Vec<_>>().join(", ");
    indexes.into_iter().find(|index| index.name == name).ok_or(Error::IndexMissing { name: name.to_string(), known })
}

/// Removes an index.
pub fn drop_index<'a>(pool: &'a Pool, name: &'a str) -> BoxFuture<'a, Result<()>> {
    pool.write(move |writer| async move {
        named(pool, name).await?;
        let mut dataset = writer.table(Table::Pool).await?;
        dataset.drop_index(name).await.map_err(Error::lance)?;
        let keys = keys(name);
        let there: Vec<&str> = keys.iter().map(String::as_str).filter(|key| dataset.config().contains_key(*key)).collect();
        if !there.is_empty() {
            dataset.update_config(there.into_iter().map(|key| (key, None::<&str>))).await.map_err(Error::lance)?;
        }
        Ok(())
    })
}

/// Extends an index to the rows that came after it, and gives their number.
pub fn update_index<'a>(pool: &'a Pool, name: &'a str, on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<u64>> {
    pool.write(move |writer| async move {
        let index = named(pool, name).await?;
        let mut dataset = writer.table(Table::Pool).await?;
        if index.lagging == 0 {
            return Ok(0);
        }
        match (index.kind.filter(|kind| kind.is_vector()), index.distance) {
            // What the others share between their pieces is Lance's to hand on.
            (Some(kind), Some(distance)) if matches!(kind, Kind::IvfFlat | Kind::IvfRq) => {
                extend(&mut dataset, &index, kind, distance, on_progress).await?;
            }
            _ => {
                let options = OptimizeOptions::append().index_names(vec![name.to_string()]);
                dataset.optimize_indices(&options).await.map_err(Error::lance)?;
            }
        }
        Ok(index.lagging)
    })
}
