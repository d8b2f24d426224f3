use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, FixedSizeBinaryArray, Float32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::{DynamicFileCatalog, MemTable, TableProvider, UrlTableFactory};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::dynamic_file::DynamicListTableFactory;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use index::IndexInfo;
use storage::{Pool, Subset, Table};

use crate::scan::LanceTable;

/// Registers every table that the pool has, in place of what was registered before.
pub(crate) async fn register(context: &SessionContext, pool: &Pool) -> crate::Result<()> {
    let wrap = |e| crate::Error::query(e, &[]);
    for table in Table::ALL {
        if let Some(dataset) = pool.dataset(table).await? {
            let provider = LanceTable::new(dataset).await.map_err(wrap)?;
            context.deregister_table(table.name()).map_err(wrap)?;
            context.register_table(table.name(), Arc::new(provider)).map_err(wrap)?;
        }
    }
    let listed = match pool.dataset(Table::Pool).await? {
        Some(dataset) => index::indexes_of(&dataset).await?,
        None => Vec::new(),
    };
    let table = indexes(&listed).map_err(wrap)?;
    context.deregister_table(INDEXES).map_err(wrap)?;
    context.register_table(INDEXES, Arc::new(table)).map_err(wrap)?;
    Ok(())
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

/// The context with `'file.parquet'`, `'file.csv'`, `'file.json'` and `'subset.npy'` as tables.
pub(crate) fn with_files(context: SessionContext) -> SessionContext {
    let files = Arc::new(Files { others: DynamicListTableFactory::new(Default::default()) });
    let catalogs = DynamicFileCatalog::new(context.state().catalog_list().clone(), files.clone());
    let state = SessionStateBuilder::from(context.state()).with_catalog_list(Arc::new(catalogs)).build();
    let context = SessionContext::new_with_state(state);
    files.others.session_store().with_state(context.state_weak_ref());
    context
}

#[derive(Debug)]
struct Files {
    others: DynamicListTableFactory,
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
