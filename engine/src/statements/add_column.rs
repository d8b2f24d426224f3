//! `ALTER TABLE pool ADD COLUMN name AS (expression)`: the expression's values, computed once and stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlanBuilder, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use storage::{Compute, Computed};

use super::deep;
use crate::computed::analyzed;
use crate::snapshot::Snapshot;
use crate::{Error, Result};

/// What is needed to compute a column.
pub(crate) struct Plan {
    pub computed: Computed,
    pub data_type: DataType,
    pub compute: Compute,
}

/// Plans a column over the pool's columns; its functions' files and vector sets are read.
pub(crate) async fn plan(snapshot: &Snapshot, column: &str, expression: &str) -> Result<Plan> {
    let state = snapshot.state();
    let errors = |e: DataFusionError| snapshot.error(e);
    let scan = snapshot.table(storage::Table::Pool.name()).await?.into_unoptimized_plan();
    if !storage::schema::can_be_column(column) {
        return Err(storage::Error::ColumnName { path: snapshot.root().into(), column: column.into() }.into());
    }
    if scan.schema().field_with_unqualified_name(column).is_ok_and(|field| Computed::of_field(field).is_none()) {
        return Err(storage::Error::ColumnExists { column: column.into() }.into());
    }
    let unplanned = deep::expression(&state, expression, scan.schema()).map_err(errors)?;
    let refused = |reason: &str| Error::ColumnExpression {
        column: column.to_string(),
        expression: expression.to_string(),
        reason: reason.to_string(),
    };
    if unplanned.exists(|expr| Ok(matches!(expr, Expr::AggregateFunction(_) | Expr::WindowFunction(_)))).map_err(errors)? {
        return Err(refused("it is of many rows, expected an expression of one"));
    }
    for (name, volatility) in volatilities(&unplanned).map_err(errors)? {
        match volatility {
            _ if name.starts_with("embed_") => {
                return Err(refused("it depends on a model, whose files may change (tarn embed adds a model's columns)"));
            }
            Volatility::Immutable => {}
            Volatility::Stable => return Err(refused("it may give another value at another time")),
            Volatility::Volatile => return Err(refused("it gives another value each time")),
        }
    }
    let projected =
        LogicalPlanBuilder::from(scan.clone()).project(vec![unplanned.clone()]).and_then(|plan| plan.build()).map_err(errors)?;
    snapshot.load_sets(&projected).await?;
    let uses = snapshot.uses(&projected)?;
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
    let is_computed =
        |input: &&String| scan.schema().field_with_unqualified_name(input).is_ok_and(|field| Computed::of_field(field).is_some());
    if let Some(input) = inputs.iter().find(is_computed) {
        return Err(refused(&format!("'{input}' is computed itself: write what it stands for")));
    }
    let fields: Vec<_> = inputs.iter().filter_map(|name| scan.schema().field_with_unqualified_name(name).ok().cloned()).collect();
    let schema = Arc::new(Schema::new(fields));
    let df_schema = DFSchema::try_from(schema.clone()).map_err(errors)?;
    let data_type = stored(expr.get_type(&df_schema).map_err(errors)?);
    if data_type == DataType::Null {
        return Err(refused("it is NULL in every row"));
    }
    let simplifier = ExprSimplifier::new(SimplifyContext::builder().with_schema(Arc::new(df_schema.clone())).build());
    let expr = simplifier.simplify(expr).map_err(errors)?;
    let physical = state.create_physical_expr(expr, &df_schema).map_err(errors)?;
    let resources: BTreeMap<String, String> = snapshot.digests(&uses)?;
    let computed = Computed { column: column.to_string(), expression: expression.to_string(), resources, inputs, lagging: 0 };
    let to = data_type.clone();
    let compute: Compute = Arc::new(move |batch| Ok(evaluate(&physical, &schema, &to, batch)?));
    Ok(Plan { computed, data_type, compute })
}

/// The type that a column of such values is stored in.
fn stored(data_type: DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Dictionary(_, values) => *values,
        other => other,
    }
}

/// The functions that are called, and how steady each is.
fn volatilities(expr: &Expr) -> datafusion::common::Result<Vec<(String, Volatility)>> {
    let mut found = Vec::new();
    expr.apply(|expr| {
        if let Expr::ScalarFunction(call) = expr {
            found.push((call.name().to_string(), call.func.signature().volatility));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
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
    let values = arrow::compute::cast(&values, to)?;
    // -0 is told from 0 by some comparisons and not by others.
    Ok(match to {
        DataType::Float32 => Arc::new(values.as_primitive::<Float32Type>().unary::<_, Float32Type>(|x| x + 0.0)),
        DataType::Float64 => Arc::new(values.as_primitive::<Float64Type>().unary::<_, Float64Type>(|x| x + 0.0)),
        _ => values,
    })
}
