use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use datafusion::common::ParamValues;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::optimizer::Analyzer;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use storage::{Pool, Receipt, Subset, Table, Uid};

use crate::filter::Bound;
use crate::uid_text::UidText;
use crate::{Error, Result, catalog, functions};

/// Named parameters of a query, `$name` in its text: always bound, never pasted.
pub type Params = [(String, ScalarValue)];

/// SQL over one pool.
pub struct Session {
    context: SessionContext,
    pool: Pool,
}

impl Session {
    /// Opens a pool at its newest version.
    pub fn open<'a>(root: &'a str) -> BoxFuture<'a, Result<Session>> {
        async move { Session::over(Pool::open(root).await?).await }.boxed()
    }

    /// Over a pool that is open, at the version that it is read at.
    pub fn over<'a>(pool: Pool) -> BoxFuture<'a, Result<Session>> {
        async move {
            let config = SessionConfig::new()
                .with_information_schema(true)
                .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
                .set_bool("datafusion.execution.parquet.schema_force_view_types", false);
            let mut rules: Vec<_> = vec![Arc::new(UidText) as _];
            rules.extend(Analyzer::new().rules);
            let state = SessionStateBuilder::new().with_default_features().with_config(config).with_analyzer_rules(rules).build();
            // `'file.parquet'` and the like are tables.
            let context = SessionContext::new_with_state(state).enable_url_table();
            {
                let state = context.state_ref();
                let mut state = state.write();
                use datafusion::execution::FunctionRegistry;
                state.register_expr_planner(Arc::new(UidText)).map_err(|e| Error::query(e, &[]))?;
            }
            functions::register(&context);
            catalog::register(&context, &pool).await?;
            Ok(Session { context, pool })
        }
        .boxed()
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs one statement; batches stream out as they are made, and dropping the stream cancels the query.
    pub fn sql<'a>(&'a self, text: &'a str, params: &'a Params) -> BoxFuture<'a, Result<SendableRecordBatchStream>> {
        async move {
            let frame = self.frame(text, params).await?;
            frame.execute_stream().await.map_err(|e| self.error(e))
        }
        .boxed()
    }

    async fn frame(&self, text: &str, params: &Params) -> Result<DataFrame> {
        let frame = self.context.sql(text).await.map_err(|e| self.error(e))?;
        if params.is_empty() {
            return Ok(frame);
        }
        let values: HashMap<String, ScalarValue> = params.iter().cloned().collect();
        frame.with_param_values(ParamValues::from(values)).map_err(|e| self.error(e))
    }

    /// The subset that a filter selects, and where it came from.
    pub fn subset<'a>(&'a self, filter: &'a Bound) -> BoxFuture<'a, Result<(Subset, Receipt)>> {
        async move {
            let start = Instant::now();
            let frame = self.frame(filter.sql(), filter.params()).await?;
            check_columns(&frame)?;
            let mut stream = frame.execute_stream().await.map_err(|e| self.error(e))?;
            let (mut uids, mut weights, mut row) = (Vec::new(), Vec::new(), 0);
            while let Some(batch) = stream.try_next().await.map_err(|e| self.error(e))? {
                read_uids(&batch, row, &mut uids)?;
                read_weights(&batch, row, &mut weights)?;
                row += batch.num_rows() as u64;
            }
            let weights = (weights.len() == uids.len() && !uids.is_empty()).then_some(weights);
            let subset = Subset::new(uids, weights);
            let receipt = Receipt {
                sql: filter.sql().to_string(),
                parameters: filter.params().iter().map(|(name, value)| (name.clone(), json(value))).collect(),
                wall_seconds: start.elapsed().as_secs_f64(),
                ..Receipt::of(filter.name(), &self.pool, &subset).await?
            };
            Ok((subset, receipt))
        }
        .boxed()
    }

    /// Names of all functions, for completion and "did you mean".
    pub fn function_names(&self) -> Vec<String> {
        let state = self.context.state();
        let mut names: Vec<String> = state.scalar_functions().keys().cloned().collect();
        names.extend(state.aggregate_functions().keys().cloned());
        names.extend(state.window_functions().keys().cloned());
        names.sort();
        names
    }

    /// Tables of the pool, each with its columns and their types.
    pub async fn tables(&self) -> Vec<(String, Vec<(String, DataType)>)> {
        let mut tables = Vec::new();
        for table in Table::ALL {
            if let Ok(frame) = self.context.table(table.name()).await {
                let columns = frame.schema().fields().iter().map(|f| (f.name().clone(), f.data_type().clone()));
                tables.push((table.name().to_string(), columns.collect()));
            }
        }
        tables
    }

    /// An error of DataFusion in the words of this crate.
    pub fn error(&self, error: datafusion::error::DataFusionError) -> Error {
        Error::query(error, &self.function_names())
    }
}

fn check_columns(frame: &DataFrame) -> Result<()> {
    let schema = frame.schema();
    let Ok(uid) = schema.field_with_unqualified_name("uid") else {
        let columns = schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::NoUidColumn { columns });
    };
    if uid.data_type() != &DataType::FixedSizeBinary(16) {
        return Err(Error::ColumnType { column: "uid", expected: "a uid", got: uid.data_type().to_string() });
    }
    match schema.field_with_unqualified_name("weight") {
        Ok(weight) if !weight.data_type().is_numeric() => {
            Err(Error::ColumnType { column: "weight", expected: "a number", got: weight.data_type().to_string() })
        }
        _ => Ok(()),
    }
}

fn read_uids(batch: &RecordBatch, row: u64, uids: &mut Vec<Uid>) -> Result<()> {
    let column = batch["uid"].as_fixed_size_binary();
    for (i, uid) in column.iter().enumerate() {
        let uid = uid.ok_or(Error::NullInSubset { column: "uid", row: row + i as u64 })?;
        uids.push(Uid(uid.try_into().expect("uids are 16 bytes wide")));
    }
    Ok(())
}

fn read_weights(batch: &RecordBatch, row: u64, weights: &mut Vec<f32>) -> Result<()> {
    let Some(column) = batch.column_by_name("weight") else { return Ok(()) };
    let column = cast(column, &DataType::Float32).map_err(|e| Error::Query { message: e.to_string(), hint: None })?;
    for (i, weight) in column.as_primitive::<Float32Type>().iter().enumerate() {
        let row = row + i as u64;
        match weight {
            None => return Err(Error::NullInSubset { column: "weight", row }),
            Some(weight) if !weight.is_finite() || weight < 0.0 => return Err(Error::Weight { row, weight }),
            Some(weight) => weights.push(weight),
        }
    }
    Ok(())
}

fn json(value: &ScalarValue) -> serde_json::Value {
    match value {
        ScalarValue::Float64(Some(x)) => (*x).into(),
        ScalarValue::Int64(Some(x)) => (*x).into(),
        ScalarValue::Boolean(Some(x)) => (*x).into(),
        value if value.is_null() => serde_json::Value::Null,
        value => value.to_string().into(),
    }
}
