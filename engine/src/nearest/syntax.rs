//! `nearest(...)` in a FROM clause, arranged for the planner: what it stands beside becomes its left side, and conditions
//! on its rows go into it, so that they hold before the search.

use std::ops::ControlFlow;

use datafusion::sql::parser::DFParserBuilder;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, Ident, Join, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query,
    Select, SetExpr, TableAlias, TableFactor, TableWithJoins, Value, Visit, Visitor,
};

use super::FUNCTION;
use crate::{Error, Result};

/// Arranges every SELECT of a query; queries within it are visited on their own.
pub(crate) fn arrange(query: &mut Query) -> Result<()> {
    arrange_body(&mut query.body)
}

fn arrange_body(body: &mut SetExpr) -> Result<()> {
    match body {
        SetExpr::Select(select) => arrange_select(select),
        SetExpr::SetOperation { left, right, .. } => {
            arrange_body(left)?;
            arrange_body(right)
        }
        _ => Ok(()),
    }
}

fn arrange_select(select: &mut Select) -> Result<()> {
    if !select.from.iter().any(has_nearest) {
        return Ok(());
    }
    let alone = select.from.len() == 1 && select.from[0].joins.is_empty();
    move_conditions(select, alone)?;
    let mut from: Vec<TableWithJoins> = Vec::new();
    for mut item in std::mem::take(&mut select.from) {
        if is_dependent(&item.relation) {
            // FROM prompts, LATERAL nearest(...)
            let Some(before) = from.pop() else {
                return Err(usage(
                    "nearest needs a relation before it whose columns it names: FROM prompts p, LATERAL nearest(pool, l14_img, p.vector, 10)",
                ));
            };
            item.relation = beside(before, std::mem::replace(&mut item.relation, nothing()));
        }
        from.push(arrange_joins(item)?);
    }
    select.from = from;
    Ok(())
}

/// `(left CROSS JOIN LATERAL nearest(...))`, which the planner takes as one relation.
fn beside(left: TableWithJoins, nearest: TableFactor) -> TableFactor {
    let relation = if left.joins.is_empty() { left.relation } else { nested(left) };
    let join = Join { relation: nearest, global: false, join_operator: JoinOperator::CrossJoin(JoinConstraint::None) };
    nested(TableWithJoins { relation, joins: vec![join] })
}

fn nested(table: TableWithJoins) -> TableFactor {
    TableFactor::NestedJoin { table_with_joins: Box::new(table), alias: None }
}

fn nothing() -> TableFactor {
    nested(TableWithJoins { relation: TableFactor::TableFunction { expr: Expr::value(Value::Null), alias: None }, joins: Vec::new() })
}

fn arrange_joins(item: TableWithJoins) -> Result<TableWithJoins> {
    let mut arranged = TableWithJoins { relation: item.relation, joins: Vec::new() };
    for join in item.joins {
        if !is_dependent(&join.relation) {
            arranged.joins.push(join);
            continue;
        }
        let on_true = |on: &JoinConstraint| match on {
            JoinConstraint::None => true,
            JoinConstraint::On(Expr::Value(value)) => value.value == Value::Boolean(true),
            _ => false,
        };
        match &join.join_operator {
            JoinOperator::CrossJoin(on) | JoinOperator::Inner(on) | JoinOperator::Join(on) if on_true(on) => {
                arranged = TableWithJoins { relation: beside(arranged, join.relation), joins: Vec::new() };
            }
            _ => return Err(usage("nearest is joined by CROSS JOIN LATERAL nearest(...), or JOIN LATERAL nearest(...) ON true")),
        }
    }
    Ok(arranged)
}

fn usage(message: &str) -> Error {
    Error::Query { message: message.to_string(), hint: None }
}

pub(super) fn is_nearest(name: &ObjectName) -> bool {
    name.to_string().eq_ignore_ascii_case(FUNCTION)
}

fn has_nearest(item: &TableWithJoins) -> bool {
    std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)).any(|relation| parts(relation).is_some())
}

/// The arguments and the alias of a call of `nearest`.
fn parts(factor: &TableFactor) -> Option<(&[FunctionArg], Option<&TableAlias>)> {
    match factor {
        TableFactor::Table { name, args: Some(args), alias, .. } if is_nearest(name) => Some((&args.args, alias.as_ref())),
        TableFactor::Function { name, args, alias, .. } if is_nearest(name) => Some((args, alias.as_ref())),
        _ => None,
    }
}

/// Whether its query names columns of what stands before it.
fn is_dependent(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::Function { lateral: true, name, .. } if is_nearest(name) => true,
        _ => match parts(factor).and_then(|(args, _)| args.get(2)) {
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(query))) => !names(query).is_empty(),
            _ => false,
        },
    }
}

/// The columns that an expression names outside queries of its own, as they are written.
fn names(expr: &Expr) -> Vec<Vec<Ident>> {
    struct Names {
        found: Vec<Vec<Ident>>,
        queries: usize,
    }
    impl Visitor for Names {
        type Break = ();

        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.queries += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.queries -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                _ if self.queries > 0 => {}
                Expr::Identifier(name) => self.found.push(vec![name.clone()]),
                Expr::CompoundIdentifier(names) => self.found.push(names.clone()),
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }
    let mut names = Names { found: Vec::new(), queries: 0 };
    let _ = expr.visit(&mut names); // it never breaks off
    names.found
}

fn same(a: &Ident, b: &Ident) -> bool {
    let folded = |name: &Ident| if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() };
    folded(a) == folded(b)
}

/// The name under which a call's rows are known.
fn alias_of(alias: Option<&TableAlias>) -> Ident {
    alias.map_or_else(|| Ident::new(FUNCTION), |alias| alias.name.clone())
}

/// Moves the conditions of a SELECT that are on the rows of a `nearest` alone into it: all but those on `_distance` where
/// it is the only relation, otherwise those whose columns are written with its alias.
fn move_conditions(select: &mut Select, alone: bool) -> Result<()> {
    let Some(selection) = select.selection.take() else { return Ok(()) };
    let mut calls: Vec<(Ident, Vec<Expr>)> = Vec::new();
    for item in &select.from {
        for relation in std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)) {
            calls.extend(parts(relation).map(|(_, alias)| (alias_of(alias), Vec::new())));
        }
    }
    let mut stay = Vec::new();
    for condition in conjuncts(selection) {
        let of = |call: &(Ident, Vec<Expr>)| {
            let names = names(&condition);
            let distance = names.iter().any(|name| name.last().is_some_and(|last| last.value.eq_ignore_ascii_case(super::DISTANCE)));
            let own = !names.is_empty() && names.iter().all(|name| name.len() > 1 && same(&name[0], &call.0));
            !distance && (alone || own)
        };
        match calls.iter_mut().find(|call| of(call)) {
            Some((_, conditions)) => conditions.push(condition),
            None => stay.push(condition),
        }
    }
    select.selection = stay.into_iter().reduce(|a, b| Expr::BinaryOp { left: Box::new(a), op: BinaryOperator::And, right: Box::new(b) });
    let relations = select.from.iter_mut().flat_map(|item| {
        std::iter::once(&mut item.relation).chain(item.joins.iter_mut().map(|join| &mut join.relation)).filter(|r| parts(r).is_some())
    });
    for (relation, (alias, conditions)) in relations.zip(calls) {
        if conditions.is_empty() {
            continue;
        }
        let args = match relation {
            TableFactor::Table { args: Some(args), .. } => &mut args.args,
            TableFactor::Function { args, .. } => args,
            _ => continue,
        };
        let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(table))) = args.first_mut() else { continue };
        let conditions = conditions.iter().map(|condition| format!("({condition})")).collect::<Vec<_>>().join(" AND ");
        *table = parse(&format!("(SELECT * FROM {} AS {alias} WHERE {conditions})", relation_text(table)))?;
    }
    Ok(())
}

fn conjuncts(expr: Expr) -> Vec<Expr> {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut all = conjuncts(*left);
            all.extend(conjuncts(*right));
            all
        }
        Expr::Nested(inner) if matches!(*inner, Expr::BinaryOp { op: BinaryOperator::And, .. }) => conjuncts(*inner),
        other => vec![other],
    }
}

/// The table that an argument names, as it stands in a FROM clause.
fn relation_text(table: &Expr) -> String {
    match table {
        Expr::Value(value) => match value.value.clone().into_string() {
            Some(name) => format!("\"{name}\""),
            None => table.to_string(),
        },
        table => table.to_string(),
    }
}

/// The relation that an argument names: a table by name or as text, or a query.
pub(crate) fn relation_of(table: &Expr) -> Result<TableFactor> {
    if let Expr::Value(value) = table
        && let Some(name) = value.value.clone().into_string()
    {
        let name = ObjectName(vec![ObjectNamePart::Identifier(Ident::with_quote('"', name))]);
        let text = format!("SELECT * FROM {name}");
        return first_relation(&text);
    }
    match table {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Subquery(_) | Expr::Function(_) => {
            first_relation(&format!("SELECT * FROM {table}"))
        }
        other => Err(usage(&format!("nearest takes a table or a query in parentheses first, got {other}"))),
    }
}

fn first_relation(text: &str) -> Result<TableFactor> {
    match parse(&format!("({text})"))? {
        Expr::Subquery(query) => match *query.body {
            SetExpr::Select(mut select) => Ok(select.from.swap_remove(0).relation),
            _ => Err(usage(&format!("not a relation: {text}"))),
        },
        _ => Err(usage(&format!("not a relation: {text}"))),
    }
}

fn parse(text: &str) -> Result<Expr> {
    let parsed = DFParserBuilder::new(text).build().and_then(|mut parser| parser.parse_expr());
    parsed.map(|parsed| parsed.expr).map_err(|e| Error::query(e, &[]))
}
