//! Uses columns that were computed once: an expression that a query contains is replaced by the column that holds it.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result, TableReference};
use datafusion::datasource::source_as_provider;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan, LogicalPlanBuilder, TableScan};
use datafusion::optimizer::AnalyzerRule;
use storage::Table;

use crate::scan::LanceTable;

/// A stored column and the expression that it holds, over the pool's columns without a qualifier, as analysis leaves it.
#[derive(Debug)]
pub(crate) struct Stored {
    column: String,
    expr: Expr,
    /// Digests of the optional files that it was computed with, by name.
    resources: BTreeMap<String, String>,
    same_files: OnceLock<bool>,
}

impl Stored {
    pub fn new(column: String, expr: Expr, resources: BTreeMap<String, String>) -> Stored {
        let same_files = if resources.is_empty() { OnceLock::from(true) } else { OnceLock::new() };
        Stored { column, expr, resources, same_files }
    }

    /// Returns true if the optional files that it was computed with are those of now; none until `compare` knew them all.
    pub fn same_files(&self) -> Option<bool> {
        self.same_files.get().copied()
    }

    /// Settles whether they are, if all of them are among `of_now`: digests by name.
    pub fn compare(&self, of_now: &BTreeMap<String, String>) {
        if self.resources.keys().all(|name| of_now.contains_key(name)) {
            let _ = self.same_files.set(self.resources.iter().all(|(name, digest)| of_now.get(name) == Some(digest)));
        }
    }
}

/// The rule; it knows no columns until they are set, when their expressions are planned.
#[derive(Debug, Default)]
pub(crate) struct UseComputed(OnceLock<Vec<Stored>>);

impl UseComputed {
    pub fn set(&self, stored: Vec<Stored>) {
        let _ = self.0.set(stored);
    }

    pub fn stored(&self) -> &[Stored] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}

/// An expression over a scan as the analyzer leaves it, without qualifiers.
pub(crate) fn analyzed(state: &SessionState, scan: &LogicalPlan, expr: Expr) -> Result<Expr> {
    let plan = LogicalPlanBuilder::from(scan.clone()).project(vec![expr])?.build()?;
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    let expr = plan.expressions().swap_remove(0).unalias_nested().data;
    unqualified(expr)
}

pub(crate) fn unqualified(expr: Expr) -> Result<Expr> {
    let plain = expr.transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    })?;
    Ok(plain.data)
}

impl AnalyzerRule for UseComputed {
    fn name(&self) -> &str {
        "use_computed"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let stored: Vec<&Stored> = self.stored().iter().filter(|stored| stored.same_files() == Some(true)).collect();
        if stored.is_empty() {
            return Ok(plan);
        }
        let plan = plan.transform_up_with_subqueries(|plan| {
            if !matches!(plan, LogicalPlan::Filter(_) | LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Sort(_)) {
                return Ok(Transformed::no(plan));
            }
            if plan.expressions().iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
                return Ok(Transformed::no(plan)); // its columns are known by the expressions' names
            }
            let mut scans = Vec::new();
            plan.inputs().into_iter().for_each(|input| scans_of(input, None, &mut scans));
            if scans.is_empty() {
                return Ok(Transformed::no(plan));
            }
            let mut schema = DFSchema::empty();
            plan.inputs().into_iter().for_each(|input| schema.merge(input.schema()));
            let names = !matches!(plan, LogicalPlan::Filter(_) | LogicalPlan::Sort(_));
            let changed = plan.map_expressions(|expr| {
                let name = expr.schema_name().to_string();
                let qualified = expr.qualified_name();
                let replaced = expr.transform_down(|expr| Ok(replace(expr, &stored, &scans, &schema)))?;
                // What the plan gives keeps its name.
                replaced.map_data(|new| {
                    Ok(if names && new.schema_name().to_string() != name { new.alias_qualified(qualified.0, qualified.1) } else { new })
                })
            })?;
            changed.map_data(|plan| plan.recompute_schema())
        })?;
        Ok(plan.data)
    }
}

/// The names under which rows of the pool itself reach a plan, joined with nothing that would make them NULL.
fn scans_of(plan: &LogicalPlan, alias: Option<&TableReference>, scans: &mut Vec<TableReference>) {
    match plan {
        LogicalPlan::TableScan(scan) if is_pool(scan) => scans.push(alias.unwrap_or(&scan.table_name).clone()),
        // The columns of any other input may be anything.
        LogicalPlan::SubqueryAlias(inner) if matches!(inner.input.as_ref(), LogicalPlan::TableScan(_)) => {
            scans_of(&inner.input, Some(&inner.alias), scans);
        }
        LogicalPlan::Join(join) if !matches!(join.join_type, JoinType::Inner) => {}
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) | LogicalPlan::Join(_) => {
            plan.inputs().into_iter().for_each(|input| scans_of(input, None, scans));
        }
        _ => {}
    }
}

fn is_pool(scan: &TableScan) -> bool {
    let provider = source_as_provider(&scan.source);
    provider.is_ok_and(|provider| (provider.as_ref() as &dyn Any).downcast_ref::<LanceTable>().is_some_and(|table| table.is(Table::Pool)))
}

fn replace(expr: Expr, stored: &[&Stored], scans: &[TableReference], schema: &DFSchema) -> Transformed<Expr> {
    if matches!(expr, Expr::Column(_) | Expr::Literal(..)) {
        return Transformed::no(expr);
    }
    let refs = expr.column_refs();
    let Some(relation) = refs.iter().next().and_then(|column| column.relation.clone()) else { return Transformed::no(expr) };
    let same = refs.iter().all(|column| column.relation.as_ref() == Some(&relation));
    if !same || !scans.contains(&relation) {
        return Transformed::no(expr);
    }
    let Ok(plain) = unqualified(expr.clone()) else { return Transformed::no(expr) };
    for Stored { column, expr: known, .. } in stored {
        let column = Column::new(Some(relation.clone()), column);
        if *known == plain && schema.has_column(&column) {
            return Transformed::yes(Expr::Column(column));
        }
    }
    Transformed::no(expr)
}
