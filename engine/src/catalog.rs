use std::sync::Arc;

use datafusion::prelude::SessionContext;
use lance::datafusion::LanceTableProvider;
use storage::{Pool, Table};

use crate::{Error, Result};

/// Registers every table that the pool has. Rows come in no particular order, as SQL allows, so that scans can run
/// ahead; vectors and images are read only where a query names them.
pub(crate) async fn register(context: &SessionContext, pool: &Pool) -> Result<()> {
    for table in Table::ALL {
        if let Some(dataset) = pool.dataset(table).await? {
            let provider = LanceTableProvider::new_with_ordering(dataset, false, false, false);
            context.register_table(table.name(), Arc::new(provider)).map_err(|e| Error::query(e, &[]))?;
        }
    }
    Ok(())
}
