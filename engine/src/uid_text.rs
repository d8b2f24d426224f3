use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ExprSchema, Result, ScalarValue, plan_err};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawWindowExpr};
use datafusion::logical_expr::{Between, BinaryExpr, Expr, ExprSchemable, LogicalPlan, WindowFrame, WindowFrameBound, WindowFrameUnits};
use datafusion::optimizer::AnalyzerRule;
use storage::Uid;

use crate::functions::uid_call;
use arrow::datatypes::DataType;

/// Lets SQL compare a uid with its text: `uid = '51f4...'`, `uid IN ('51f4...')`, `uid BETWEEN '0' AND ...`.
/// Literals become uids when the query is planned, so that a scan can look them up; other text goes through `uid()`.
#[derive(Debug)]
pub(crate) struct UidText;

fn is_uid(expr: &Expr, schema: &dyn ExprSchema) -> bool {
    matches!(expr.get_type(schema), Ok(DataType::FixedSizeBinary(16)))
}

/// `expr` as a uid, if it is text; otherwise as it is.
fn to_uid(expr: Expr, schema: &dyn ExprSchema) -> Result<Expr> {
    if let Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)), metadata) =
        &expr
    {
        return match text.parse::<Uid>() {
            Ok(uid) => Ok(Expr::Literal(ScalarValue::FixedSizeBinary(16, Some(uid.0.to_vec())), metadata.clone())),
            Err(e) => plan_err!("{e}"),
        };
    }
    match expr.get_type(schema) {
        Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Ok(uid_call(expr)),
        _ => Ok(expr),
    }
}

fn pair(left: Expr, right: Expr, schema: &dyn ExprSchema) -> Result<(Expr, Expr)> {
    match (is_uid(&left, schema), is_uid(&right, schema)) {
        (true, false) => Ok((left, to_uid(right, schema)?)),
        (false, true) => Ok((to_uid(left, schema)?, right)),
        _ => Ok((left, right)),
    }
}

fn rewrite(expr: Expr, schema: &dyn ExprSchema) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if op.supports_propagation() => {
            let (left, right) = pair(*left, *right, schema)?;
            Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))))
        }
        Expr::InList(InList { expr, list, negated }) if is_uid(&expr, schema) => {
            let list = list.into_iter().map(|item| to_uid(item, schema)).collect::<Result<_>>()?;
            Transformed::yes(Expr::InList(InList { expr, list, negated }))
        }
        Expr::Between(Between { expr, negated, low, high }) if is_uid(&expr, schema) => {
            let (low, high) = (Box::new(to_uid(*low, schema)?), Box::new(to_uid(*high, schema)?));
            Transformed::yes(Expr::Between(Between { expr, negated, low, high }))
        }
        expr => Transformed::no(expr),
    })
}

impl AnalyzerRule for UidText {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        let plan = plan.transform_up_with_subqueries(|plan| {
            let mut schema = DFSchema::empty();
            for input in plan.inputs() {
                schema.merge(input.schema());
            }
            if let LogicalPlan::TableScan(scan) = &plan {
                schema.merge(&scan.projected_schema);
            }
            plan.map_expressions(|expr| expr.transform_up(|expr| rewrite(expr, &schema)))
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "uid_text"
    }
}

impl ExprPlanner for UidText {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let (left, right) = pair(expr.left, expr.right, schema)?;
        Ok(PlannerResult::Original(RawBinaryExpr { op: expr.op, left, right }))
    }

    fn plan_window(&self, mut expr: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        if NO_FRAME.contains(&expr.func_def.name()) && expr.window_frame.units == WindowFrameUnits::Range {
            let start = WindowFrameBound::Preceding(ScalarValue::UInt64(None));
            expr.window_frame = WindowFrame::new_bounds(WindowFrameUnits::Rows, start, WindowFrameBound::CurrentRow);
        }
        Ok(PlannerResult::Original(expr))
    }
}

/// Functions that look at no frame. That which they have by default, a range up to the present row, can be had of
/// numbers only, and windows go by uid to break ties.
const NO_FRAME: [&str; 8] = ["row_number", "rank", "dense_rank", "percent_rank", "cume_dist", "ntile", "lag", "lead"];
