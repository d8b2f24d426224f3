//! `ALTER TABLE pool ADD COLUMN name AS (expression)`: the expression's values, computed once and stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::logical_expr::{ExprSchemable, LogicalPlanBuilder};
use datafusion::physical_expr::PhysicalExpr;
use storage::{Compute, Computed};

use crate::computed::analyzed;
use crate::{Error, Result, Session};

/// What is needed to compute a column.
pub(crate) struct Plan {
    pub computed: Computed,
    pub data_type: DataType,
    pub inputs: Vec<String>,
    pub compute: Compute,
}

/// Plans a column over the pool's columns; its functions' files and vector sets are read.
pub(crate) async fn plan(session: &Session, column: &str, expression: &str) -> Result<Plan> {
    let state = session.context().state();
    let errors = |e: DataFusionError| session.error(e);
    let scan = session.context().table(storage::Table::Pool.name()).await.map_err(errors)?.into_unoptimized_plan();
    let unplanned = state.create_logical_expr(expression, scan.schema()).map_err(errors)?;
    let refused = |reason: &str| Error::ColumnExpression {
        column: column.to_string(),
        expression: expression.to_string(),
        reason: reason.to_string(),
    };
    if unplanned.is_volatile() {
        return Err(refused("it gives another value each time"));
    }
    let projected =
        LogicalPlanBuilder::from(scan.clone()).project(vec![unplanned.clone()]).and_then(|plan| plan.build()).map_err(errors)?;
    session.load_sets(&projected).await?;
    let uses = session.uses(&projected)?;
    if !uses.sets.is_empty() {
        return Err(refused("it depends on a vector set, which may change"));
    }
    let expr = analyzed(&state, &scan, unplanned).map_err(errors)?;
    let mut inputs: Vec<String> = expr.column_refs().into_iter().map(|column| column.name.clone()).collect();
    inputs.sort();
    if inputs.is_empty() {
        return Err(refused("it names no column of the pool"));
    }
    if inputs.iter().any(|input| input == column) {
        return Err(refused("it names itself"));
    }
    let fields: Vec<_> = inputs.iter().filter_map(|name| scan.schema().field_with_unqualified_name(name).ok().cloned()).collect();
    let schema = Arc::new(Schema::new(fields));
    let df_schema = DFSchema::try_from(schema.clone()).map_err(errors)?;
    let data_type = stored(expr.get_type(&df_schema).map_err(errors)?);
    let physical = state.create_physical_expr(expr, &df_schema).map_err(errors)?;
    let resources: BTreeMap<String, String> = session.digests(&uses)?;
    let computed = Computed { column: column.to_string(), expression: expression.to_string(), resources, lagging: 0 };
    let to = data_type.clone();
    let compute: Compute = Arc::new(move |batch| Ok(evaluate(&physical, &schema, &to, batch)?));
    Ok(Plan { computed, data_type, inputs, compute })
}

/// The type that a column of such values is stored in.
fn stored(data_type: DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Dictionary(_, values) => *values,
        other => other,
    }
}

fn evaluate(
    expr: &Arc<dyn PhysicalExpr>,
    schema: &Arc<Schema>,
    to: &DataType,
    batch: RecordBatch,
) -> datafusion::common::Result<arrow::array::ArrayRef> {
    let columns = schema.fields().iter().map(|field| batch[field.name().as_str()].clone()).collect();
    let batch = RecordBatch::try_new(schema.clone(), columns)?;
    let values = expr.evaluate(&batch)?.into_array(batch.num_rows())?;
    Ok(arrow::compute::cast(&values, to)?)
}
