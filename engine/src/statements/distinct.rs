//! `a IS [NOT] DISTINCT FROM b AND c`: sqlparser takes `b AND c` for the right side.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value};

/// Puts conditions that the right side of an `IS DISTINCT FROM` has swallowed where SQL has them: `AND` and `OR` bind
/// looser. What stands in parentheses is an [`Expr::Nested`], and stays.
pub(super) fn mend(expr: &mut Expr) {
    if !swallows(expr) {
        return;
    }
    let whole = std::mem::replace(expr, Expr::Value(Value::Null.into()));
    let (first, rest) = in_order(whole);
    // OR of ANDs, each from the left.
    let (mut ors, mut ands) = (None, first);
    for (op, operand) in rest {
        if op == BinaryOperator::And {
            ands = join(ands, op, operand);
        } else {
            ors = Some(or(ors, ands));
            ands = operand;
        }
    }
    *expr = or(ors, ands);
}

fn or(left: Option<Expr>, right: Expr) -> Expr {
    match left {
        Some(left) => join(left, BinaryOperator::Or, right),
        None => right,
    }
}

fn join(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn is_condition(expr: &Expr) -> bool {
    matches!(expr, Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. })
}

/// Returns true if a condition lies bare on the right of an `IS DISTINCT FROM` of this chain.
fn swallows(expr: &Expr) -> bool {
    let mut left = vec![expr];
    while let Some(expr) = left.pop() {
        match expr {
            Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) if is_condition(right) => return true,
            Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) => left.push(right),
            Expr::BinaryOp { left: a, right: b, .. } if is_condition(expr) => left.extend([&**a, &**b]),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => left.push(expr),
            _ => {}
        }
    }
    false
}

/// Returns the operands of a chain of conditions as they are written, each but the first with what joins it.
fn in_order(expr: Expr) -> (Expr, Vec<(BinaryOperator, Expr)>) {
    match expr {
        Expr::BinaryOp { left, op, right } if matches!(op, BinaryOperator::And | BinaryOperator::Or) => {
            let (first, mut rest) = in_order(*left);
            let (next, after) = in_order(*right);
            rest.push((op, next));
            rest.extend(after);
            (first, rest)
        }
        Expr::IsDistinctFrom(left, right) => {
            let (first, rest) = in_order(*right);
            (Expr::IsDistinctFrom(left, Box::new(first)), rest)
        }
        Expr::IsNotDistinctFrom(left, right) => {
            let (first, rest) = in_order(*right);
            (Expr::IsNotDistinctFrom(left, Box::new(first)), rest)
        }
        Expr::UnaryOp { op: UnaryOperator::Not, expr } => {
            let (first, rest) = in_order(*expr);
            (Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(first) }, rest)
        }
        other => (other, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn parse(text: &str) -> Expr {
        Parser::new(&GenericDialect {}).try_with_sql(text).unwrap().parse_expr().unwrap()
    }

    /// Once this fails, sqlparser does right by itself, and the module can go.
    #[test]
    fn sqlparser_still_swallows() {
        assert!(swallows(&parse("a IS DISTINCT FROM b AND c")));
    }

    #[test]
    fn conditions_stand_where_they_are_written() {
        for (text, meant) in [
            ("a IS DISTINCT FROM b AND c", "(a IS DISTINCT FROM b) AND c"),
            ("a IS NOT DISTINCT FROM b OR c AND d", "(a IS NOT DISTINCT FROM b) OR (c AND d)"),
            ("p AND a IS NOT DISTINCT FROM b OR c", "(p AND (a IS NOT DISTINCT FROM b)) OR c"),
            ("NOT a IS DISTINCT FROM b AND c", "(NOT (a IS DISTINCT FROM b)) AND c"),
            ("a IS DISTINCT FROM b AND c IS DISTINCT FROM d OR e", "((a IS DISTINCT FROM b) AND (c IS DISTINCT FROM d)) OR e"),
            ("a IS DISTINCT FROM (b AND c)", "a IS DISTINCT FROM (b AND c)"),
            ("a IS DISTINCT FROM b", "a IS DISTINCT FROM b"),
        ] {
            let mut expr = parse(text);
            mend(&mut expr);
            let mut meant = parse(meant);
            bare(&mut meant);
            bare(&mut expr);
            assert_eq!(expr, meant, "{text}");
        }
    }

    /// Takes parentheses off.
    fn bare(expr: &mut Expr) {
        while let Expr::Nested(inner) = expr {
            *expr = (**inner).clone();
        }
        match expr {
            Expr::BinaryOp { left, right, .. } | Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => {
                bare(left);
                bare(right);
            }
            Expr::UnaryOp { expr, .. } => bare(expr),
            _ => {}
        }
    }
}
