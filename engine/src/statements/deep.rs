//! Trees of expressions that are no deeper than what is asked needs.

use std::ops::ControlFlow;

use datafusion::common::{DFSchema, DataFusionError};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr as LogicalExpr;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Value, VisitMut, VisitorMut};

use super::distinct;
use crate::{Error, Result};

/// Chains of `AND` and `OR` from this length on are balanced; shorter ones stay as they are written.
const CHAIN: usize = 64;
/// Planning names an expression after all that it is made of, and takes time as the square of its depth.
const DEEPEST: usize = 2000;

/// Balances long chains of conditions, and puts them where they are written. An error where an expression is still deeper than planning can take.
pub(super) fn balance(statement: &mut Statement) -> Result<()> {
    let mut balancer = Balancer { depth: 0 };
    let visited = match statement {
        Statement::Statement(statement) => VisitMut::visit(statement.as_mut(), &mut balancer),
        _ => ControlFlow::Continue(()),
    };
    match visited {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::TooDeep { most: DEEPEST }),
    }
}

/// Reads an expression over these columns, as it would stand in a query.
pub(crate) fn expression(state: &SessionState, text: &str, columns: &DFSchema) -> Result<LogicalExpr, DataFusionError> {
    let dialect = state.config().options().sql_parser.dialect;
    let mut sql = state.sql_to_expr_with_alias(text, &dialect)?;
    match VisitMut::visit(&mut sql.expr, &mut Balancer { depth: 0 }) {
        ControlFlow::Continue(()) => state.create_logical_expr_from_sql_expr(sql, columns),
        ControlFlow::Break(()) => Err(DataFusionError::External(Box::new(Error::TooDeep { most: DEEPEST }))),
    }
}

struct Balancer {
    depth: usize,
}

impl VisitorMut for Balancer {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        distinct::mend(expr);
        let op = match expr {
            Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or), .. } => Some(op.clone()),
            _ => None,
        };
        if let Some(op) = op {
            balance_chain(expr, &op);
        }
        self.depth += 1;
        if self.depth > DEEPEST { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn post_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

fn nothing() -> Expr {
    Expr::Value(Value::Null.into())
}

fn balance_chain(expr: &mut Expr, op: &BinaryOperator) {
    let mut links = 0;
    let mut at = &*expr;
    while let Expr::BinaryOp { left, op: this, .. } = at
        && this == op
    {
        links += 1;
        at = left;
    }
    if links < CHAIN {
        return;
    }
    let mut operands = Vec::with_capacity(links + 1);
    let mut rest = std::mem::replace(expr, nothing());
    while links > 0
        && let Expr::BinaryOp { left, right, .. } = rest
    {
        operands.push(*right);
        rest = *left;
        links -= 1;
    }
    operands.push(rest);
    operands.reverse();
    // Neighbours in pairs, then pairs of pairs: the order stays.
    while operands.len() > 1 {
        let mut pairs = Vec::with_capacity(operands.len().div_ceil(2));
        let mut left = operands.into_iter();
        while let Some(first) = left.next() {
            pairs.push(match left.next() {
                Some(second) => Expr::BinaryOp { left: Box::new(first), op: op.clone(), right: Box::new(second) },
                None => first,
            });
        }
        operands = pairs;
    }
    *expr = operands.pop().unwrap_or_else(nothing);
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParser;

    use super::*;

    fn balanced(sql: &str) -> Result<String> {
        let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        balance(&mut statement).map(|()| statement.to_string())
    }

    #[test]
    fn conditions_keep_their_order() {
        for word in [" OR ", " AND "] {
            let chain = (0..1000).map(|i| format!("x = {i}")).collect::<Vec<_>>().join(word);
            let sql = format!("SELECT * FROM t WHERE {chain}");
            assert_eq!(balanced(&sql).unwrap(), sql);
        }
        // A tree of a mixed chain is written without parentheses as well: `AND` binds closer.
        let mixed = "SELECT * FROM t WHERE a OR b AND c OR NOT d";
        assert_eq!(balanced(mixed).unwrap(), mixed);
    }

    #[test]
    fn what_stays_deep_is_an_error() {
        let sum = |n: usize| format!("SELECT {}", vec!["1"; n].join(" + "));
        assert!(balanced(&sum(1900)).is_ok());
        assert!(balanced(&sum(2100)).is_err());
        let chain = (0..30_000).map(|i| format!("x = {i}")).collect::<Vec<_>>().join(" OR ");
        assert!(balanced(&format!("SELECT {chain}")).is_ok());
    }
}
