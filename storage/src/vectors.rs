//! Named vector sets: centroids, prototypes, targets. All sets are rows of the table `vectors`.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, Float32Array, Int32Array, ListArray, RecordBatch, RecordBatchIterator, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Float32Type, Int32Type};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};

use crate::{Error, Pool, Result, Table, schema};

/// A named vector set.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorsInfo {
    pub name: String,
    pub len: u64,
    pub dim: usize,
}

impl Pool {
    /// Adds a set; `values` is `[n, dim]`, row by row, and the ids are 0 to n - 1.
    pub fn add_vectors<'a>(&'a self, name: &'a str, dim: usize, values: Vec<f32>) -> BoxFuture<'a, Result<()>> {
        self.write(move |writer| async move {
            self.require(Table::Pool).await?;
            check_name(name)?;
            if self.list_vectors().await?.iter().any(|set| set.name == name) {
                return Err(Error::VectorsExist { name: name.to_string() });
            }
            let n = values.len() / dim;
            let item = Arc::new(Field::new("item", arrow::datatypes::DataType::Float32, true));
            let lists = ListArray::new(item, OffsetBuffer::from_repeated_length(dim, n), Arc::new(Float32Array::from(values)), None);
            let names = StringArray::from_iter_values(std::iter::repeat_n(name, n));
            let ids = Int32Array::from_iter_values(0..n as i32);
            let schema = schema::vectors();
            let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(names), Arc::new(ids), Arc::new(lists)])?;
            writer.append(Table::Vectors, Box::new(RecordBatchIterator::new([Ok(batch)], schema))).await?;
            Ok(())
        })
    }

    /// A set's dimension and its vectors, `[n, dim]` in the order of their ids.
    pub fn read_vectors<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(usize, Vec<f32>)>> {
        async move {
            let mut rows: Vec<(i32, Vec<f32>)> = Vec::new();
            if let Some(dataset) = self.dataset(Table::Vectors).await? {
                let wrap = || Error::lance(dataset.uri());
                let mut scanner = dataset.scan();
                scanner
                    .project(&["id", "vector"])
                    .map_err(wrap())?
                    .filter(&format!("name = '{}'", name.replace('\'', "''")))
                    .map_err(wrap())?;
                let mut batches = scanner.try_into_stream().await.map_err(wrap())?;
                while let Some(batch) = batches.try_next().await.map_err(wrap())? {
                    let (ids, vectors) = (batch["id"].as_primitive::<Int32Type>(), batch["vector"].as_list::<i32>());
                    for i in 0..batch.num_rows() {
                        rows.push((ids.value(i), vectors.value(i).as_primitive::<Float32Type>().values().to_vec()));
                    }
                }
            }
            rows.sort_unstable_by_key(|(id, _)| *id);
            match rows.first() {
                Some((_, first)) => Ok((first.len(), rows.into_iter().flat_map(|(_, vector)| vector).collect())),
                None => Err(self.no_vectors(name).await),
            }
        }
        .boxed()
    }

    async fn no_vectors(&self, name: &str) -> Error {
        let known = self.list_vectors().await.unwrap_or_default();
        let known = known.iter().map(|set| set.name.as_str()).collect::<Vec<_>>().join(", ");
        Error::VectorsMissing { name: name.to_string(), pool: self.root().to_string(), known }
    }

    /// All sets, by name.
    pub fn list_vectors(&self) -> BoxFuture<'_, Result<Vec<VectorsInfo>>> {
        async move {
            let Some(dataset) = self.dataset(Table::Vectors).await? else { return Ok(Vec::new()) };
            let wrap = || Error::lance(dataset.uri());
            let mut sets: Vec<VectorsInfo> = Vec::new();
            let mut scanner = dataset.scan();
            scanner.project(&["name", "vector"]).map_err(wrap())?;
            let mut batches = scanner.try_into_stream().await.map_err(wrap())?;
            while let Some(batch) = batches.try_next().await.map_err(wrap())? {
                let vectors = batch["vector"].as_list::<i32>();
                for (i, name) in batch["name"].as_string::<i32>().iter().flatten().enumerate() {
                    match sets.iter_mut().find(|set| set.name == name) {
                        Some(set) => set.len += 1,
                        None => sets.push(VectorsInfo { name: name.to_string(), len: 1, dim: vectors.value_length(i) as usize }),
                    }
                }
            }
            sets.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(sets)
        }
        .boxed()
    }

    /// The folder for what belongs to vector sets and is no table: graphs, and k-means that is not done. `None` where the
    /// pool is in an object store.
    pub fn sets_folder(&self) -> Option<std::path::PathBuf> {
        (!self.is_remote()).then(|| Path::new(self.root()).join("sets"))
    }

    /// Removes a set.
    pub fn drop_vectors<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.write(move |writer| async move {
            if !self.list_vectors().await?.iter().any(|set| set.name == name) {
                return Err(self.no_vectors(name).await);
            }
            let mut dataset = writer.table(Table::Vectors).await?;
            dataset.delete(&format!("name = '{}'", name.replace('\'', "''"))).await.map_err(Error::lance(self.uri(Table::Vectors)))?;
            Ok(())
        })
    }
}

/// An error where a set cannot have this name.
pub fn check_name(name: &str) -> Result<()> {
    match !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
        true => Ok(()),
        false => Err(Error::VectorsName { name: name.to_string() }),
    }
}

/// Reads a `.npy` of shape `[n, dim]`, or such an array of a `.npz` (its only one where none is named), of float16, float32
/// or float64: the dimension, and the values row by row.
pub fn read_array(path: &Path, array: Option<&str>) -> Result<(usize, Vec<f32>)> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    if path.extension().is_none_or(|extension| extension != "npz") {
        return read_npy(path, "vectors", std::io::BufReader::new(file));
    }
    let broken = |e: zip::result::ZipError| Error::Array {
        path: path.to_path_buf(),
        array: array.unwrap_or("vectors").into(),
        expected: "a .npz".into(),
        got: e.to_string(),
    };
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(broken)?;
    let names: Vec<String> = archive.file_names().flatten().filter_map(|name| name.strip_suffix(".npy").map(str::to_string)).collect();
    let name = match (array, &names[..]) {
        (Some(array), _) if names.iter().any(|name| name == array) => array.to_string(),
        (None, [only]) => only.clone(),
        _ => {
            let known = names.join(", ");
            let expected = if array.is_some() { format!("one of {known}") } else { format!("--array, one of {known}") };
            return Err(Error::Array {
                path: path.to_path_buf(),
                array: array.unwrap_or("none").into(),
                expected,
                got: "no such array".into(),
            });
        }
    };
    let member = archive.by_name(&format!("{name}.npy")).map_err(broken)?;
    read_npy(path, &name, std::io::BufReader::new(member))
}

fn read_npy(path: &Path, array: &str, from: impl std::io::Read) -> Result<(usize, Vec<f32>)> {
    let wrong = |got: String| Error::Array {
        path: path.to_path_buf(),
        array: array.into(),
        expected: "float16, float32 or float64 of shape [n, dim]".into(),
        got,
    };
    let npy = npyz::NpyFile::new(from).map_err(|e| wrong(e.to_string()))?;
    let (shape, descr) = (npy.shape().to_vec(), npy.dtype().descr());
    let &[n, dim] = shape.as_slice() else { return Err(wrong(format!("shape {shape:?}"))) };
    if npy.order() != npyz::Order::C || n == 0 || !(1..=1 << 20).contains(&dim) || n.checked_mul(dim).is_none_or(|all| all > 1 << 40) {
        return Err(wrong(format!("shape {shape:?} in {:?} order", npy.order())));
    }
    let broken = |e: std::io::Error| wrong(e.to_string());
    let values: Vec<f32> = match descr.trim_matches('\'') {
        "<f2" => npy.into_vec::<half::f16>().map_err(broken)?.into_iter().map(f32::from).collect(),
        "<f4" => npy.into_vec().map_err(broken)?,
        "<f8" => npy.into_vec::<f64>().map_err(broken)?.into_iter().map(|x| x as f32).collect(),
        other => return Err(wrong(format!("type {other}"))),
    };
    match values.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(wrong(format!("a value that is not finite in row {}", i as u64 / dim))),
        None => Ok((dim as usize, values)),
    }
}
