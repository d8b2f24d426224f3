use datafusion::common::Result;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

/// Compares with 0 where a query says -0. Arrow's kernels and indexes order -0 below 0, and a pool holds no -0; to IEEE 754
/// and to DuckDB they are equal.
#[derive(Debug)]
pub(crate) struct NoNegativeZero;

impl OptimizerRule for NoNegativeZero {
    fn name(&self) -> &str {
        "no_negative_zero"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(compare_with_zero)?.update_data(|expr| name.restore(expr)))
        })
    }
}

fn compare_with_zero(expr: Expr) -> Result<Transformed<Expr>> {
    let is_comparison = match &expr {
        Expr::BinaryExpr(e) => {
            matches!(e.op, Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq)
                || matches!(e.op, Operator::IsDistinctFrom | Operator::IsNotDistinctFrom)
        }
        Expr::Between(_) | Expr::InList(_) => true,
        _ => false,
    };
    if is_comparison { expr.map_children(as_zero) } else { Ok(Transformed::no(expr)) }
}

fn as_zero(expr: Expr) -> Result<Transformed<Expr>> {
    let zero = match &expr {
        Expr::Literal(ScalarValue::Float64(Some(x)), _) if *x == 0.0 && x.is_sign_negative() => ScalarValue::Float64(Some(0.0)),
        Expr::Literal(ScalarValue::Float32(Some(x)), _) if *x == 0.0 && x.is_sign_negative() => ScalarValue::Float32(Some(0.0)),
        _ => return Ok(Transformed::no(expr)),
    };
    Ok(Transformed::yes(Expr::Literal(zero, None)))
}
