use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, FixedSizeBinaryArray, Float32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, DynamicFileCatalog, MemTable, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider, TableProvider, UrlTableFactory,
};
use datafusion::common::config::CatalogOptions;
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::datasource::dynamic_file::DynamicListTableFactory;
use datafusion::prelude::SessionContext;
use index::IndexInfo;
use storage::{Pool, Subset, Table};

use crate::scan::LanceTable;

/// Returns the catalogs of a pool: its tables, beside those that statements have made, with files as tables.
pub(crate) async fn catalogs(pool: &Pool, own: Arc<MemorySchemaProvider>) -> crate::Result<(Arc<DynamicFileCatalog>, Arc<Files>)> {
    let wrap = |e| crate::Error::query(e, &[]);
    let mut of_pool: HashMap<String, Arc<dyn TableProvider>> = HashMap::new();
    let mut listed = Vec::new();
    for table in Table::ALL {
        if let Some(dataset) = pool.dataset(table).await? {
            if table == Table::Pool {
                listed = index::indexes_of(&dataset).await?;
            }
            of_pool.insert(table.name().to_string(), Arc::new(LanceTable::new(dataset).await.map_err(wrap)?));
        }
    }
    of_pool.insert(INDEXES.to_string(), Arc::new(indexes(&listed).map_err(wrap)?));
    let defaults = CatalogOptions::default();
    let (catalogs, catalog) = (MemoryCatalogProviderList::new(), MemoryCatalogProvider::new());
    catalog.register_schema(&defaults.default_schema, Arc::new(Tables { of_pool, own })).map_err(wrap)?;
    catalogs.register_catalog(defaults.default_catalog, Arc::new(catalog));
    let files = Arc::new(Files { others: DynamicListTableFactory::new(Default::default()) });
    Ok((Arc::new(DynamicFileCatalog::new(Arc::new(catalogs), files.clone())), files))
}

/// The pool's tables, which no statement replaces, and those that statements have made.
#[derive(Debug)]
struct Tables {
    of_pool: HashMap<String, Arc<dyn TableProvider>>,
    own: Arc<MemorySchemaProvider>,
}

impl Tables {
    fn must_be_own(&self, name: &str) -> Result<()> {
        if self.of_pool.contains_key(name) { plan_err!("table '{name}' is the pool's own") } else { Ok(()) }
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.of_pool.keys().cloned().chain(self.own.table_names()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.of_pool.get(name) {
            Some(table) => Ok(Some(table.clone())),
            None => self.own.table(name).await,
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.of_pool.contains_key(name) || self.own.table_exist(name)
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        self.must_be_own(&name)?;
        self.own.register_table(name, table)
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        self.must_be_own(name)?;
        self.own.deregister_table(name)
    }
}

/// The name of the table that lists the indexes.
pub(crate) const INDEXES: &str = "indexes";

/// The indexes as a table.
fn indexes(indexes: &[IndexInfo]) -> Result<MemTable> {
    let texts = |of: &dyn Fn(&IndexInfo) -> Option<String>| Arc::new(indexes.iter().map(of).collect::<StringArray>()) as ArrayRef;
    let numbers = |of: &dyn Fn(&IndexInfo) -> Option<i64>| Arc::new(indexes.iter().map(of).collect::<Int64Array>()) as ArrayRef;
    let searched = |index: &IndexInfo, n: usize| index.distance.map(|_| n as i64);
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("name", texts(&|index| Some(index.name.clone())), false),
        ("column", texts(&|index| Some(index.column.clone())), false),
        ("kind", texts(&|index| Some(index.kind.map_or(index.lance_kind.clone(), |kind| kind.name().to_string()))), false),
        ("metric", texts(&|index| index.distance.map(|distance| distance.name().to_string())), true),
        ("rows", numbers(&|index| Some(index.rows as i64)), false),
        ("lagging", numbers(&|index| Some(index.lagging as i64)), false),
        ("pieces", numbers(&|index| Some(index.pieces as i64)), false),
        ("bytes", numbers(&|index| Some(index.bytes as i64)), false),
        ("nprobes", numbers(&|index| searched(index, index.defaults.nprobes)), true),
        ("refine", numbers(&|index| searched(index, index.defaults.refine)), true),
    ])?;
    MemTable::try_new(batch.schema(), vec![vec![batch]])
}

/// `'file.parquet'`, `'file.csv'`, `'file.json'` and `'subset.npy'` as tables.
#[derive(Debug)]
pub(crate) struct Files {
    others: DynamicListTableFactory,
}

impl Files {
    /// Has files read as this context says.
    pub fn read_by(&self, context: &SessionContext) {
        self.others.session_store().with_state(context.state_weak_ref());
    }
}

#[async_trait]
impl UrlTableFactory for Files {
    async fn try_new(&self, url: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !url.ends_with(".npy") {
            return self.others.try_new(url).await;
        }
        let subset = Subset::read(url.as_ref()).map_err(|e| DataFusionError::External(Box::new(crate::Error::Storage(e))))?;
        Ok(Some(Arc::new(table_of(&subset)?)))
    }
}

/// Rows of a batch, so that a large subset is worked on by all cores.
const BATCH_ROWS: usize = 1 << 16;

/// A subset as a table: `uid`, and `weight` where it has weights. Memory: 16 bytes an entry, 20 with weights.
fn table_of(subset: &Subset) -> Result<MemTable> {
    let mut fields = vec![Field::new("uid", DataType::FixedSizeBinary(16), false)];
    if subset.weights().is_some() {
        fields.push(Field::new("weight", DataType::Float32, false));
    }
    let schema = Arc::new(Schema::new(fields));
    let batch = |start: usize| {
        let end = subset.len().min(start + BATCH_ROWS);
        let bytes: Vec<u8> = subset.uids()[start..end].iter().flat_map(|uid| uid.0).collect();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(bytes), None)?)];
        if let Some(weights) = subset.weights() {
            columns.push(Arc::new(Float32Array::from(weights[start..end].to_vec())));
        }
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    };
    let batches = (0..subset.len()).step_by(BATCH_ROWS).map(batch).collect::<Result<Vec<_>>>()?;
    MemTable::try_new(schema.clone(), vec![batches])
}
