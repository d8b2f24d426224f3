//! Plans whose rows are rows of one table of the pool, some left out: which columns they give, and which rows by address.

use std::any::Any;
use std::sync::Arc;

use datafusion::common::{Column, Result};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, LogicalPlanBuilder, Operator, Projection, TableScan};

use crate::scan::{ADDRESS, LanceTable};

/// A plan over one table.
pub(crate) struct Chain {
    pub table: LanceTable,
    /// For each column of the plan the table's.
    pub columns: Vec<Option<String>>,
    /// Whether it leaves rows out.
    pub filtered: bool,
}

/// The table of a scan.
fn table_of(scan: &TableScan) -> Option<LanceTable> {
    let provider = source_as_provider(&scan.source).ok()?;
    (provider.as_ref() as &dyn Any).downcast_ref::<LanceTable>().cloned()
}

/// The input whose rows a plan gives on, none of them twice.
fn source(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => Some(&alias.input),
        LogicalPlan::Filter(filter) => Some(&filter.input),
        LogicalPlan::Limit(limit) => Some(&limit.input),
        LogicalPlan::Sort(sort) => Some(&sort.input),
        LogicalPlan::Projection(projection) => Some(&projection.input),
        LogicalPlan::Join(join) if matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark) => {
            Some(&join.left)
        }
        _ => None,
    }
}

impl Chain {
    pub fn of(plan: &LogicalPlan) -> Option<Chain> {
        if let LogicalPlan::TableScan(scan) = plan {
            let columns = scan.projected_schema.fields().iter().map(|field| Some(field.name().clone())).collect();
            let filtered = !scan.filters.is_empty() || scan.fetch.is_some();
            return Some(Chain { table: table_of(scan)?, columns, filtered });
        }
        let mut chain = Chain::of(source(plan)?)?;
        match plan {
            LogicalPlan::SubqueryAlias(_) | LogicalPlan::Sort(_) => {}
            LogicalPlan::Projection(projection) => {
                let of = |expr: &Expr| match expr.clone().unalias_nested().data {
                    Expr::Column(column) => chain.columns[projection.input.schema().maybe_index_of_column(&column)?].clone(),
                    _ => None,
                };
                chain.columns = projection.expr.iter().map(of).collect();
            }
            _ => {
                chain.filtered = true;
                chain.columns.resize(plan.schema().fields().len(), None); // the mark of a mark join
            }
        }
        Some(chain)
    }

    /// The table's name for a column of the plan.
    pub fn name_of(&self, plan: &LogicalPlan, column: &Column) -> Option<&str> {
        self.columns[plan.schema().maybe_index_of_column(column)?].as_deref()
    }
}

/// The named vector set whose rows a plan gives, all of them, and the place of its column `id`.
pub(crate) fn set_of(plan: &LogicalPlan) -> Option<(String, usize)> {
    let chain = Chain::of(plan)?;
    let at = chain.columns.iter().position(|column| column.as_deref() == Some("id"))?;
    let mut scan = plan;
    while let Some(input) = source(scan) {
        if !matches!(scan, LogicalPlan::SubqueryAlias(_) | LogicalPlan::Projection(_) | LogicalPlan::Sort(_)) {
            return None;
        }
        scan = input;
    }
    let LogicalPlan::TableScan(scan) = scan else { return None };
    let ([Expr::BinaryExpr(e)], None, true) = (&scan.filters[..], scan.fetch, chain.table.is(storage::Table::Vectors)) else { return None };
    match (e.left.as_ref(), e.op, e.right.as_ref()) {
        (Expr::Column(column), Operator::Eq, Expr::Literal(name, _)) if column.name == "name" => {
            Some((name.try_as_str().flatten()?.to_string(), at))
        }
        _ => None,
    }
}

/// Whether a plan's rows are rows of one table of the pool, and a column one of its own.
pub(crate) fn is_of_pool(plan: &LogicalPlan, column: &Column) -> bool {
    Chain::of(plan).is_some_and(|chain| chain.name_of(plan, column).is_some() && chain.columns.iter().all(Option::is_some))
}

/// The addresses of the rows that a plan gives, as its only column.
pub(crate) fn addresses(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let plan = with_address(plan)?;
    let address = address_of(&plan)?;
    LogicalPlanBuilder::from(plan).project(vec![Expr::Column(address)])?.build()
}

fn address_of(plan: &LogicalPlan) -> Result<Column> {
    let (qualifier, field) = plan.schema().qualified_field_with_unqualified_name(ADDRESS)?;
    Ok(Column::new(qualifier.cloned(), field.name()))
}

fn with_address(plan: &LogicalPlan) -> Result<LogicalPlan> {
    if let LogicalPlan::TableScan(scan) = plan
        && let Some(table) = table_of(scan)
    {
        let table = table.with_addresses();
        let source = provider_as_source(Arc::new(table));
        let mut projection: Vec<usize> = match &scan.projection {
            Some(projection) => projection.clone(),
            None => (0..scan.source.schema().fields().len()).collect(),
        };
        projection.push(source.schema().index_of(ADDRESS)?);
        let scan = TableScan::try_new(scan.table_name.clone(), source, Some(projection), scan.filters.clone(), scan.fetch)?;
        return Ok(LogicalPlan::TableScan(scan));
    }
    let Some(input) = source(plan) else { return Ok(plan.clone()) };
    let input = with_address(input)?;
    if let LogicalPlan::Projection(projection) = plan {
        let mut exprs = projection.expr.clone();
        exprs.push(Expr::Column(address_of(&input)?));
        return Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?));
    }
    let mut inputs: Vec<LogicalPlan> = plan.inputs().into_iter().cloned().collect();
    inputs[0] = input;
    plan.with_new_exprs(plan.expressions(), inputs)
}
