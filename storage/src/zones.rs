//! Zone maps: for each stretch of rows the least and the greatest value of a column, so that a scan passes over stretches
//! that a filter cannot meet. Worth it where the order of the rows follows the column.

use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::scalar::{BuiltinIndexType, ScalarIndexParams};

use crate::lock::Lock;
use crate::{Error, Pool, Result, Table, computed};

impl Pool {
    /// Makes the zone map of a column of `pool`, or makes it anew.
    pub fn create_zone_map<'a>(&'a self, column: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let lock = Lock::take_swept(self).await?;
            let mut dataset = Dataset::clone(&*self.require(Table::Pool).await?);
            if dataset.schema().field(column).is_none() {
                let names: Vec<&str> = dataset.schema().fields.iter().map(|field| field.name.as_str()).collect();
                return Err(Error::NoColumn { path: self.root().into(), column: column.into(), known: names.join(", ") });
            }
            // Values of a computed column are replaced where what it reads is; an index would not know.
            let field = arrow::datatypes::Field::from(dataset.schema().field(column).expect("looked up above"));
            if computed::is_computed(&field) {
                return Err(Error::IndexOfComputed { column: column.to_string() });
            }
            let params = ScalarIndexParams::for_builtin(BuiltinIndexType::ZoneMap);
            let made = dataset.create_index(&[column], IndexType::ZoneMap, None, &params, true).await;
            made.map_err(Error::lance(dataset.uri()))?;
            lock.done();
            Ok(())
        }
        .boxed()
    }
}
