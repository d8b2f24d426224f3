use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;

/// Keeps DataFusion from joining two lists over one expression as if neither knew NULL: it takes `a NOT IN (1) OR a NOT IN
/// (2)` for true where `a` is NULL, and forgets a NULL within a list (`inlist_intersection` and `inlist_except` in its
/// expression simplifier; tests/sql/answers.slt).
#[derive(Debug)]
pub(crate) struct InLists;

impl AnalyzerRule for InLists {
    fn name(&self) -> &str {
        "in_lists"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let plan = plan.transform_down_with_subqueries(|plan| {
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                Ok(expr.transform_up(|expr| Ok(rewrite(expr)))?.update_data(|expr| name.restore(expr)))
            })
        });
        plan.map(|plan| plan.data)
    }
}

fn rewrite(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::InList(list) if list.list.iter().any(is_null) => Transformed::yes(without_nulls(list)),
        Expr::BinaryExpr(mut pair) if would_join(&pair.left, pair.op, &pair.right) => {
            let (of, _) = in_list(&pair.right).expect("a list, or they would not be joined");
            let of = of.clone();
            let right = std::mem::replace(&mut *pair.right, unknown());
            *pair.right = of.clone().is_null().and(unknown()).or(of.is_not_null().and(right));
            Transformed::yes(Expr::BinaryExpr(pair))
        }
        other => Transformed::no(other),
    }
}

/// Returns `a IN (1) OR NULL` for `a IN (1, NULL)`, and `a NOT IN (1) AND NULL` for `a NOT IN (1, NULL)`.
fn without_nulls(list: InList) -> Expr {
    let InList { expr, list, negated } = list;
    let list: Vec<Expr> = list.into_iter().filter(|item| !is_null(item)).collect();
    if list.is_empty() {
        return unknown();
    }
    let rest = Expr::InList(InList { expr, list, negated });
    if negated { rest.and(unknown()) } else { rest.or(unknown()) }
}

fn unknown() -> Expr {
    Expr::Literal(ScalarValue::Boolean(None), None)
}

fn is_null(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => value.is_null(),
        Expr::Cast(cast) => is_null(&cast.expr),
        Expr::TryCast(cast) => is_null(&cast.expr),
        _ => false,
    }
}

/// Returns what is looked for in a list, and whether it shall not be there.
fn in_list(expr: &Expr) -> Option<(&Expr, bool)> {
    match expr {
        Expr::InList(list) => Some((&list.expr, list.negated)),
        Expr::Not(inner) => in_list(inner).map(|(of, negated)| (of, !negated)),
        _ => None,
    }
}

fn would_join(left: &Expr, op: Operator, right: &Expr) -> bool {
    let (Some((a, not_a)), Some((b, not_b))) = (in_list(left), in_list(right)) else { return false };
    a == b && (op == Operator::And && !(not_a && not_b) || op == Operator::Or && not_a && not_b)
}
