//! Table functions in a FROM clause, arranged for the planner. Tables that they are given become queries, in which
//! DataFusion looks for the names of tables. What `nearest` stands beside becomes its left side, and conditions on its rows
//! go into it, so that they hold before the search.

use std::ops::ControlFlow;

use datafusion::sql::parser::DFParserBuilder;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, Ident, Join, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query,
    Select, SetExpr, TableFactor, TableWithJoins, Value, Visit, Visitor,
};

use super::FUNCTION;
use crate::tables::{FULL_TEXT, FUNCTIONS};
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
    let relations = select
        .from
        .iter_mut()
        .flat_map(|item| std::iter::once(&mut item.relation).chain(item.joins.iter_mut().map(|join| &mut join.relation)));
    for (name, args) in relations.filter_map(arguments) {
        let of_rows = is_nearest(&name) || FUNCTIONS.iter().any(|f| f.of_rows && name.to_string().eq_ignore_ascii_case(f.name));
        if let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(table))) = args.first_mut().filter(|_| of_rows)
            && !matches!(table, Expr::Subquery(_))
        {
            *table = parse(&format!("(SELECT * FROM {})", relation_text(table)?))?;
        }
    }
    if !select.from.iter().any(has_search) {
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
            _ => {
                return Err(usage(
                    "nearest is joined by CROSS JOIN LATERAL nearest(...), or JOIN LATERAL nearest(...) ON true; LEFT JOIN is not supported",
                ));
            }
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

/// The name and the arguments of a call of a table function.
fn arguments(factor: &mut TableFactor) -> Option<(ObjectName, &mut Vec<FunctionArg>)> {
    match factor {
        TableFactor::Table { name, args: Some(args), .. } => Some((name.clone(), &mut args.args)),
        TableFactor::Function { name, args, .. } => Some((name.clone(), args)),
        _ => None,
    }
}

/// Whether a call is of a search, whose conditions hold before it.
fn is_search(name: &ObjectName) -> bool {
    is_nearest(name) || name.to_string().eq_ignore_ascii_case(FULL_TEXT.name)
}

fn has_search(item: &TableWithJoins) -> bool {
    std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)).any(|relation| search(relation).is_some())
}

/// The name by which the rows of a search are known.
fn search(factor: &TableFactor) -> Option<Ident> {
    let (name, alias) = match factor {
        TableFactor::Table { name, args: Some(_), alias, .. } | TableFactor::Function { name, alias, .. } if is_search(name) => {
            (name, alias)
        }
        _ => return None,
    };
    Some(alias.as_ref().map_or_else(|| Ident::new(name.to_string().to_lowercase()), |alias| alias.name.clone()))
}

/// The arguments of a call of `nearest`.
fn parts(factor: &TableFactor) -> Option<&[FunctionArg]> {
    match factor {
        TableFactor::Table { name, args: Some(args), .. } if is_nearest(name) => Some(&args.args),
        TableFactor::Function { name, args, .. } if is_nearest(name) => Some(args),
        _ => None,
    }
}

/// Whether its query names columns of what stands before it.
fn is_dependent(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::Function { lateral: true, name, .. } if is_nearest(name) => true,
        _ => match parts(factor).and_then(|args| args.get(2)) {
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

/// The names before a dot, also in queries within.
fn qualifiers(expr: &Expr) -> Vec<Ident> {
    struct Qualifiers(Vec<Ident>);
    impl Visitor for Qualifiers {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::CompoundIdentifier(names) = expr {
                self.0.extend(names.first().cloned());
            }
            ControlFlow::Continue(())
        }
    }
    let mut qualifiers = Qualifiers(Vec::new());
    let _ = expr.visit(&mut qualifiers); // it never breaks off
    qualifiers.0
}

/// The name by which a relation is known.
fn name_of(relation: &TableFactor) -> Option<Ident> {
    match relation {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => Some(alias.name.clone()),
        TableFactor::Table { name, .. } => match name.0.last() {
            Some(ObjectNamePart::Identifier(name)) => Some(name.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn same(a: &Ident, b: &Ident) -> bool {
    let folded = |name: &Ident| if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() };
    folded(a) == folded(b)
}

/// Moves the conditions of a SELECT that are on the rows of a search alone into it: all but those on `_distance` or `_score` where
/// it is the only relation, otherwise those whose columns are written with its alias.
fn move_conditions(select: &mut Select, alone: bool) -> Result<()> {
    let Some(selection) = select.selection.take() else { return Ok(()) };
    let mut calls: Vec<(Ident, Vec<Expr>, bool)> = Vec::new();
    let mut others: Vec<Ident> = Vec::new();
    for item in &select.from {
        // Beside an outer join a condition says more than which rows there are.
        let inner = item
            .joins
            .iter()
            .all(|join| matches!(join.join_operator, JoinOperator::CrossJoin(_) | JoinOperator::Inner(_) | JoinOperator::Join(_)));
        for relation in std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)) {
            others.extend(name_of(relation));
            calls.extend(search(relation).map(|alias| (alias, Vec::new(), inner)));
        }
    }
    let mut stay = Vec::new();
    for condition in conjuncts(selection) {
        let of = |call: &(Ident, Vec<Expr>, bool)| {
            let names = names(&condition);
            // A query within may name what stands outside.
            let foreign = qualifiers(&condition).iter().any(|name| {
                !same(name, &call.0)
                    && (alone && names.iter().any(|parts| parts.len() > 1 && same(&parts[0], name))
                        || others.iter().any(|other| same(other, name)))
            });
            let distance = names
                .iter()
                .any(|name| name.last().is_some_and(|last| [super::DISTANCE, "_score"].contains(&last.value.to_lowercase().as_str())));
            let own = !names.is_empty() && names.iter().all(|name| name.len() > 1 && same(&name[0], &call.0));
            call.2 && !distance && !foreign && (alone || own)
        };
        match calls.iter_mut().find(|call| of(call)) {
            Some((_, conditions, _)) => conditions.push(condition),
            None => stay.push(condition),
        }
    }
    select.selection = stay.into_iter().reduce(|a, b| Expr::BinaryOp { left: Box::new(a), op: BinaryOperator::And, right: Box::new(b) });
    let relations = select.from.iter_mut().flat_map(|item| {
        std::iter::once(&mut item.relation).chain(item.joins.iter_mut().map(|join| &mut join.relation)).filter(|r| search(r).is_some())
    });
    for (relation, (alias, conditions, _)) in relations.zip(calls) {
        if conditions.is_empty() {
            continue;
        }
        let Some((_, args)) = arguments(relation) else { continue };
        let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(table))) = args.first_mut() else { continue };
        *table = parse(&format!("(SELECT * FROM {table} AS {alias} WHERE {})", all_of(&conditions)))?;
    }
    // What stands before is cut down before there is a search for each of its rows.
    for i in 0..select.from.len() {
        let beside = select.from.get(i + 1).is_some_and(|next| parts(&next.relation).is_some());
        let item = &mut select.from[i];
        let searched = match item.joins.first() {
            Some(join) => parts(&join.relation).is_some(),
            None => beside,
        };
        // An outer join may yet give rows without these columns.
        let inner = |join: &Join| {
            matches!(
                join.join_operator,
                JoinOperator::CrossJoin(_)
                    | JoinOperator::Inner(_)
                    | JoinOperator::Join(_)
                    | JoinOperator::Left(_)
                    | JoinOperator::LeftOuter(_)
            )
        };
        if searched && parts(&item.relation).is_none() && item.joins.iter().all(inner) {
            cut_left(&mut item.relation, &mut select.selection)?;
        }
    }
    Ok(())
}

fn all_of(conditions: &[Expr]) -> String {
    conditions.iter().map(|condition| format!("({condition})")).collect::<Vec<_>>().join(" AND ")
}

/// Moves conditions whose columns are written with a relation's name into it.
fn cut_left(relation: &mut TableFactor, selection: &mut Option<Expr>) -> Result<()> {
    let Some(name) = name_of(relation) else { return Ok(()) };
    let Some(conditions) = selection.take().map(conjuncts) else { return Ok(()) };
    let own = |condition: &Expr| {
        let names = names(condition);
        let alone = qualifiers(condition).iter().all(|other| same(other, &name));
        !names.is_empty() && alone && names.iter().all(|parts| parts.len() > 1 && same(&parts[0], &name))
    };
    let (mine, others): (Vec<Expr>, Vec<Expr>) = conditions.into_iter().partition(own);
    *selection = others.into_iter().reduce(|a, b| Expr::BinaryOp { left: Box::new(a), op: BinaryOperator::And, right: Box::new(b) });
    if !mine.is_empty() {
        *relation = first_relation(&format!("SELECT * FROM (SELECT * FROM {relation} WHERE {}) AS {name}", all_of(&mine)))?;
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

/// The table that an argument names, by name or as text, as it stands in a FROM clause.
fn relation_text(table: &Expr) -> Result<String> {
    let text = match table {
        Expr::Value(value) => value.value.clone().into_string().map(|name| format!("\"{}\"", name.replace('"', "\"\""))),
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Function(_) => Some(table.to_string()),
        _ => None,
    };
    text.ok_or_else(|| usage(&format!("expected a table, or a query in parentheses, got {table}")))
}

/// The relation that an argument is: a query, as `arrange` has made it.
pub(crate) fn relation_of(table: &Expr) -> Result<TableFactor> {
    match table {
        Expr::Subquery(_) => first_relation(&format!("SELECT * FROM {table}")),
        other => Err(usage(&format!("expected a table, or a query in parentheses, got {other}"))),
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
