//! `ORDER BY cosine_distance(column, constant) LIMIT k` and its like: the rows are cut to the k nearest by a search; what
//! stands above is left as it is, and sorts them.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{Expr, FetchType, LogicalPlan, LogicalPlanBuilder, Operator, Projection, SkipType};
use datafusion::optimizer::AnalyzerRule;
use datafusion::scalar::ScalarValue;
use index::Distance;

use super::Nearest;
use super::chain::is_of_pool;
use super::planner::{constant, one_query};

#[derive(Debug)]
pub(crate) struct OrderByDistance;

impl AnalyzerRule for OrderByDistance {
    fn name(&self) -> &str {
        "order_by_distance"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let plan = plan.transform_down_with_subqueries(|plan| {
            let LogicalPlan::Limit(limit) = &plan else { return Ok(Transformed::no(plan)) };
            let (FetchType::Literal(Some(fetch)), SkipType::Literal(skip)) = (limit.get_fetch_type()?, limit.get_skip_type()?) else {
                return Ok(Transformed::no(plan));
            };
            if fetch == 0 {
                return Ok(Transformed::no(plan));
            }
            match rewrite(&limit.input, fetch + skip)? {
                Some(input) => {
                    let mut limit = limit.clone();
                    limit.input = Arc::new(input);
                    Ok(Transformed::yes(LogicalPlan::Limit(limit)))
                }
                None => Ok(Transformed::no(plan)),
            }
        })?;
        Ok(plan.data)
    }
}

/// The plan under a limit of `k` rows with a search in it, where it sorts by a distance.
fn rewrite(plan: &LogicalPlan, k: usize) -> Result<Option<LogicalPlan>> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let Some(input) = rewrite(&projection.input, k)? else { return Ok(None) };
            Ok(Some(LogicalPlan::Projection(Projection::try_new(projection.expr.clone(), Arc::new(input))?)))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Some(input) = rewrite(&alias.input, k)? else { return Ok(None) };
            Ok(Some(LogicalPlanBuilder::from(input).alias(alias.alias.clone())?.build()?))
        }
        LogicalPlan::Sort(sort) => {
            let [key] = &sort.expr[..] else { return Ok(None) };
            if key.nulls_first {
                return Ok(None);
            }
            let Some(input) = search(&sort.input, key.expr.clone(), key.asc, k)? else { return Ok(None) };
            let mut sort = sort.clone();
            sort.input = Arc::new(input);
            Ok(Some(LogicalPlan::Sort(sort)))
        }
        _ => Ok(None),
    }
}

/// What a sort is over, its rows cut to the `k` nearest by the key.
fn search(plan: &LogicalPlan, key: Expr, ascending: bool, k: usize) -> Result<Option<LogicalPlan>> {
    if let LogicalPlan::Projection(projection) = plan {
        let key = resolve(key, projection)?;
        let Some(input) = search(&projection.input, key, ascending, k)? else { return Ok(None) };
        return Ok(Some(LogicalPlan::Projection(Projection::try_new(projection.expr.clone(), Arc::new(input))?)));
    }
    let Some((distance, column, query)) = distance_of(&key, ascending) else { return Ok(None) };
    if !plan.schema().has_column(&column) || !is_of_pool(plan, &column) {
        return Ok(None);
    }
    let columns: Vec<Expr> = plan.schema().iter().map(Expr::from).collect();
    let options = vec![
        ("k".to_string(), constant(i64::try_from(k).unwrap_or(i64::MAX))),
        ("metric".to_string(), Expr::Literal(ScalarValue::from(distance.name()), None)),
    ];
    let nearest = Nearest::new(one_query(query)?, plan.clone(), column, options, true, true, None)?.into_plan();
    // The distance is what the query says it is, not a column more.
    Ok(Some(LogicalPlanBuilder::from(nearest).project(columns)?.build()?))
}

/// A key over what a projection gives, as one over what it is given.
fn resolve(key: Expr, projection: &Projection) -> Result<Expr> {
    let resolved = key.transform_up(|expr| {
        let Expr::Column(column) = &expr else { return Ok(Transformed::no(expr)) };
        match projection.schema.maybe_index_of_column(column) {
            Some(i) => Ok(Transformed::yes(projection.expr[i].clone().unalias_nested().data)),
            None => Ok(Transformed::no(expr)),
        }
    })?;
    Ok(resolved.data)
}

/// The distance that a sort key goes by, the column, and the constant: less is nearer where ascending, more where not.
fn distance_of(key: &Expr, ascending: bool) -> Option<(Distance, Column, Expr)> {
    match key {
        Expr::Alias(alias) => distance_of(&alias.expr, ascending),
        Expr::Cast(cast) if cast.field.data_type().is_floating() => distance_of(&cast.expr, ascending),
        Expr::Negative(inner) => distance_of(inner, !ascending),
        // 1 - cosine_distance(...), and other constants.
        Expr::BinaryExpr(e) if e.op == Operator::Minus && is_number(&e.left) => distance_of(&e.right, !ascending),
        Expr::BinaryExpr(e) if matches!(e.op, Operator::Minus | Operator::Plus) && is_number(&e.right) => distance_of(&e.left, ascending),
        Expr::ScalarFunction(call) => {
            let (distance, nearer_is_less) = match call.name() {
                "cosine_distance" => (Distance::Cosine, true),
                "cosine_similarity" => (Distance::Cosine, false),
                "inner_product" => (Distance::Dot, false),
                "l2_distance" => (Distance::L2, true),
                _ => return None,
            };
            let [a, b] = &call.args[..] else { return None };
            let (column, query) = match (plain(a), plain(b)) {
                (Some(column), None) => (column, b),
                (None, Some(column)) => (column, a),
                _ => return None,
            };
            (ascending == nearer_is_less && is_constant(query)).then(|| (distance, column.clone(), query.clone()))
        }
        _ => None,
    }
}

fn plain(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain(&alias.expr),
        _ => None,
    }
}

fn is_number(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.data_type().is_numeric() && !value.is_null(),
        Expr::Cast(cast) => is_number(&cast.expr),
        _ => false,
    }
}

/// Whether an expression has one value for the whole statement: it names no column and nothing random.
fn is_constant(expr: &Expr) -> bool {
    let mut constant = true;
    let walked = expr.apply(|node| {
        constant &= match node {
            Expr::Column(_) | Expr::OuterReferenceColumn(..) | Expr::Placeholder(_) => false,
            Expr::ScalarFunction(call) => call.func.signature().volatility != datafusion::logical_expr::Volatility::Volatile,
            Expr::ScalarSubquery(subquery) => subquery.outer_ref_columns.is_empty(),
            _ => true,
        };
        Ok(if constant { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    constant && walked.is_ok()
}
