//! Table functions as plans.

use datafusion::common::{Column, DFSchema, Result, plan_err};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, FunctionArg, FunctionArgExpr, TableAlias, TableFactor};

use super::{Call, FUNCTIONS, Function};
use crate::nearest::relation_of;

/// Plans the calls of table functions.
#[derive(Debug)]
pub(crate) struct TableFunctions;

impl RelationPlanner for TableFunctions {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<RelationPlanning> {
        let (name, args, alias) = match &relation {
            TableFactor::Table { name, args: Some(args), alias, .. } => (name.to_string(), &args.args, alias.clone()),
            _ => return Ok(RelationPlanning::Original(Box::new(relation))),
        };
        let Some(function) = FUNCTIONS.into_iter().find(|function| function.name.eq_ignore_ascii_case(&name)) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let plan = plan(function, args, context)?;
        let named = || TableAlias { explicit: false, name: function.name.into(), columns: Vec::new(), at: None };
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, Some(alias.unwrap_or_else(named))))))
    }
}

fn plan(function: &'static Function, args: &[FunctionArg], context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    let usage = |got: &str| plan_err!("{got}: {}", function.usage);
    let (mut positional, mut named) = (Vec::new(), Vec::new());
    for arg in args {
        match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) if named.is_empty() => positional.push(value.clone()),
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => named.push((name.value.clone(), value.clone())),
            FunctionArg::ExprNamed { name: SqlExpr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => {
                named.push((name.value.clone(), value.clone()));
            }
            other => return usage(&format!("{other} is no argument of {}", function.name)),
        }
    }
    let mut positional = positional.into_iter();
    let rows = match function.of_rows {
        true => {
            let Some(table) = positional.next() else { return usage(&format!("{} takes rows first", function.name)) };
            let relation = relation_of(&table).map_err(|e| datafusion::common::DataFusionError::Plan(e.to_string()))?;
            Some(context.plan(relation)?)
        }
        false => None,
    };
    let mut columns = Vec::new();
    for what in function.columns {
        let Some(column) = positional.next() else { return usage(&format!("{} lacks the {what}", function.name)) };
        let name = match &column {
            SqlExpr::Identifier(name) => context.normalize_ident(name.clone()),
            SqlExpr::CompoundIdentifier(names) if !names.is_empty() => context.normalize_ident(names[names.len() - 1].clone()),
            SqlExpr::Value(value) => value.value.clone().into_string().unwrap_or_default(),
            other => return usage(&format!("{other} is no column")),
        };
        let Some(rows) = &rows else { continue };
        let (qualifier, field) = rows.schema().qualified_field_with_unqualified_name(&name)?;
        columns.push(Column::new(qualifier.cloned(), field.name()));
    }
    let empty = DFSchema::empty();
    let mut values: Vec<(String, Expr)> = Vec::new();
    for name in function.values {
        let Some(value) = positional.next() else { return usage(&format!("{} lacks its {name}", function.name)) };
        values.push((name.to_string(), context.sql_to_expr(value, &empty)?));
    }
    if let Some(more) = positional.next() {
        return usage(&format!("{more} is one argument more than {} takes", function.name));
    }
    for (name, value) in named {
        if !function.options.contains(&name.as_str()) {
            return usage(&format!("{} takes no '{name}'", function.name));
        }
        if values.iter().any(|(known, _)| *known == name) {
            return usage(&format!("'{name}' is given twice"));
        }
        // The name of a column may stand without quotes.
        let value = match value {
            SqlExpr::Identifier(column) if name == "keep" => {
                SqlExpr::value(datafusion::sql::sqlparser::ast::Value::SingleQuotedString(context.normalize_ident(column)))
            }
            value => value,
        };
        values.push((name, context.sql_to_expr(value, &empty)?));
    }
    Ok(Call::new(function, rows, columns, values)?.into_plan())
}
