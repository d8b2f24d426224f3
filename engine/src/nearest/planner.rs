//! `FROM nearest(...)` as a plan.

use datafusion::common::{Column, DFSchema, Result, TableReference, plan_err};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, FunctionArg, FunctionArgExpr, TableAlias, TableFactor, TableWithJoins};

use super::syntax::{is_nearest, relation_of};
use super::{FUNCTION, Nearest, OPTIONS, QUERY};

const USAGE: &str =
    "nearest takes a table, a column, what is looked for, and k: nearest(pool, l14_img, embedding('51f4...', 'l14_img'), 10)";

/// Plans `nearest(...)`, and `(left CROSS JOIN LATERAL nearest(...))` as `arrange` makes it.
#[derive(Debug)]
pub(crate) struct NearestPlanner;

impl RelationPlanner for NearestPlanner {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        match relation {
            TableFactor::Table { name, args: Some(args), alias, .. } if is_nearest(&name) => {
                let alias = alias.unwrap_or_else(|| TableAlias { explicit: false, name: FUNCTION.into(), columns: Vec::new(), at: None });
                let plan = alone(&args.args, context)?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, Some(alias)))))
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } if is_beside(&table_with_joins) => {
                let plan = beside(*table_with_joins, context)?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))))
            }
            other => Ok(RelationPlanning::Original(Box::new(other))),
        }
    }
}

fn parts(factor: TableFactor) -> Option<(Vec<FunctionArg>, Option<TableAlias>)> {
    match factor {
        TableFactor::Table { name, args: Some(args), alias, .. } if is_nearest(&name) => Some((args.args, alias)),
        TableFactor::Function { name, args, alias, .. } if is_nearest(&name) => Some((args, alias)),
        _ => None,
    }
}

fn is_beside(table: &TableWithJoins) -> bool {
    table.joins.len() == 1 && parts(table.joins[0].relation.clone()).is_some()
}

/// The arguments of a call.
struct Call {
    rows: LogicalPlan,
    column: Column,
    query: SqlExpr,
    options: Vec<(String, SqlExpr)>,
}

fn call(args: &[FunctionArg], context: &mut dyn RelationPlannerContext) -> Result<Call> {
    let mut positional = Vec::new();
    let mut options: Vec<(String, SqlExpr)> = Vec::new();
    for arg in args {
        let (name, value) = match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) if options.is_empty() => {
                positional.push(value.clone());
                continue;
            }
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => (name.value.clone(), value.clone()),
            FunctionArg::ExprNamed { name: SqlExpr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => {
                (name.value.clone(), value.clone())
            }
            other => return plan_err!("{USAGE}, got {other}"),
        };
        if !OPTIONS.contains(&name.as_str()) {
            return plan_err!("nearest takes no '{name}', it takes: {}", OPTIONS.join(", "));
        }
        if options.iter().any(|(known, _)| *known == name) {
            return plan_err!("nearest is given '{name}' twice");
        }
        options.push((name, value));
    }
    let mut positional = positional.into_iter();
    let (Some(table), Some(column), Some(query)) = (positional.next(), positional.next(), positional.next()) else {
        return plan_err!("{USAGE}");
    };
    if let Some(k) = positional.next() {
        if options.iter().any(|(name, _)| name == "k") {
            return plan_err!("nearest is given 'k' twice");
        }
        options.insert(0, ("k".into(), k));
    }
    if let Some(more) = positional.next() {
        return plan_err!("{USAGE}, got one more: {more}");
    }
    if !options.iter().any(|(name, _)| name == "k" || name == "within") {
        return plan_err!("nearest needs a number of rows, or how far they may be: nearest(pool, l14_img, ..., 10) or within => 0.2");
    }
    let name = match &column {
        SqlExpr::Identifier(name) => context.normalize_ident(name.clone()),
        SqlExpr::CompoundIdentifier(names) if !names.is_empty() => context.normalize_ident(names[names.len() - 1].clone()),
        SqlExpr::Value(value) => match value.value.clone().into_string() {
            Some(name) => name,
            None => return plan_err!("nearest takes the name of a column second, got {column}"),
        },
        other => return plan_err!("nearest takes the name of a column second, got {other}"),
    };
    let relation = relation_of(&table).map_err(|e| datafusion::common::DataFusionError::Plan(e.to_string()))?;
    let rows = context.plan(relation)?;
    let (qualifier, field) = match rows.schema().qualified_field_with_unqualified_name(&name) {
        Ok((qualifier, field)) => (qualifier.cloned(), field.name().clone()),
        Err(e) => return Err(e),
    };
    Ok(Call { rows, column: Column::new(qualifier, field), query, options })
}

fn constants(options: Vec<(String, SqlExpr)>, context: &mut dyn RelationPlannerContext) -> Result<Vec<(String, Expr)>> {
    let empty = DFSchema::empty();
    options.into_iter().map(|(name, value)| Ok((name, context.sql_to_expr(value, &empty)?))).collect()
}

/// The rows nearest to one vector.
fn alone(args: &[FunctionArg], context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let Call { rows, column, query, options } = call(args, context)?;
    let query = context.sql_to_expr(query, &DFSchema::empty())?;
    let queries = LogicalPlanBuilder::empty(true).project(vec![query.alias(QUERY)])?.build()?;
    let options = constants(options, context)?;
    Ok(Nearest::new(queries, rows, column, options, true, false, None)?.into_plan())
}

/// For each row of what stands before it the nearest.
fn beside(mut table: TableWithJoins, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let nearest = table.joins.pop().and_then(|join| parts(join.relation));
    let Some((args, alias)) = nearest else { return plan_err!("{USAGE}") };
    let left = context.plan(table.relation)?;
    let Call { rows, column, query, options } = call(&args, context)?;
    let query = context.sql_to_expr(query, left.schema())?;
    let mut columns: Vec<Expr> = left.schema().iter().map(Expr::from).collect();
    columns.push(query.alias(QUERY));
    let queries = LogicalPlanBuilder::from(left).project(columns)?.build()?;
    let name = alias.map_or_else(|| FUNCTION.to_string(), |alias| context.normalize_ident(alias.name));
    let qualifier = TableReference::bare(name);
    let rows = LogicalPlanBuilder::from(rows).alias(qualifier.clone())?.build()?;
    let column = Column::new(Some(qualifier.clone()), column.name);
    let options = constants(options, context)?;
    Ok(Nearest::new(queries, rows, column, options, false, false, Some(qualifier))?.into_plan())
}

/// What an `ORDER BY ... LIMIT` looks for, as the left side of a node.
pub(super) fn one_query(query: Expr) -> Result<LogicalPlan> {
    LogicalPlanBuilder::empty(true).project(vec![query.alias(QUERY)])?.build()
}

pub(super) fn constant(value: impl Into<i64>) -> Expr {
    lit(value.into())
}
