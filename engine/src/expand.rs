//! What tarn adds to queries, expanded where it stands: `filter('name', param => value)` as a relation,
//! `embedding(uid, 'column')` as a value. And what DataFusion would pass over in silence, refused.

use std::ops::ControlFlow;

use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::{CopyToSource, DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    CastKind, DataType, ExactNumberInfo, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Query, Statement as SqlStatement,
    TableFactor, UnaryOperator, Value, ValueWithSpan, Visit, VisitMut, Visitor, VisitorMut,
};

use crate::filter::{Filter, Parameter, ParameterType};
use crate::functions::internal;
use crate::{Error, Result};

/// Filters within filters, at most.
const DEPTH: usize = 16;

/// Expands a statement in place.
pub(crate) fn expand(statement: &mut Statement) -> Result<()> {
    match statement {
        Statement::Statement(statement) => walk(statement.as_mut(), 0),
        Statement::Explain(explain) => expand(&mut explain.statement),
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => walk(query, 0),
            CopyToSource::Relation(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

fn walk(node: &mut impl VisitMut, depth: usize) -> Result<()> {
    match node.visit(&mut Expander { depth }) {
        ControlFlow::Break(e) => Err(*e),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Expander {
    depth: usize,
}

impl VisitorMut for Expander {
    type Break = Box<Error>;

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Box<Error>> {
        match expand_factor(factor, self.depth) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(Box::new(e)),
        }
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Box<Error>> {
        match crate::nearest::arrange(query) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(Box::new(e)),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Box<Error>> {
        match expand_embedding(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(Box::new(e)),
        }
    }
}

fn expand_factor(factor: &mut TableFactor, depth: usize) -> Result<()> {
    let (TableFactor::Table { sample, .. } | TableFactor::Derived { sample, .. }) = factor else { return Ok(()) };
    if sample.is_some() {
        return Err(Error::TableSample);
    }
    let TableFactor::Table { name, args: Some(args), alias, .. } = factor else { return Ok(()) };
    if !name.to_string().eq_ignore_ascii_case("filter") {
        return Ok(());
    }
    if depth == DEPTH {
        return Err(Error::FilterDepth { filter: args.args.first().map(|arg| arg.to_string()).unwrap_or_default(), depth });
    }
    let mut args = args.args.iter();
    let named = match args.next() {
        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))) => value.value.clone().into_string(),
        _ => None,
    };
    let named = named.ok_or_else(|| usage("filter takes a filter's name or file first, as text: filter('clip_score', fraction => 0.3)"))?;
    let filter = Filter::resolve(&named)?;
    let mut given: Vec<(String, Expr)> = Vec::new();
    for arg in args {
        let (name, value) = match arg {
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => (name.value.clone(), value.clone()),
            FunctionArg::ExprNamed { name: Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => {
                (name.value.clone(), value.clone())
            }
            other => return Err(usage(&format!("a filter's parameters are given by name: param => value, got {other}"))),
        };
        if given.iter().any(|(other, _)| *other == name) {
            return Err(usage(&format!("parameter '{name}' is given twice")));
        }
        given.push((name, value));
    }
    let mut query = query(filter.sql(), filter.name())?;
    let values = filter.parameters.iter().map(|parameter| value_of(&filter, parameter, &given)).collect::<Result<Vec<_>>>()?;
    if let Some((unknown, _)) = given.iter().find(|(name, _)| !filter.parameters.iter().any(|p| p.name == *name)) {
        return Err(filter.unknown_parameter(unknown));
    }
    let parameters: Vec<(&str, Expr)> = filter.parameters.iter().map(|p| p.name.as_str()).zip(values).collect();
    if let Some(unknown) = undeclared(&query, &filter) {
        return Err(filter.undeclared(&unknown));
    }
    substitute(&mut query, &parameters);
    walk(&mut query, depth + 1)?;
    let alias = alias.take();
    *factor = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias, sample: None };
    Ok(())
}

fn usage(message: &str) -> Error {
    Error::Query { message: message.to_string(), hint: None }
}

/// What stands for `$name`: the value given or its default, as the parameter's type.
fn value_of(filter: &Filter, parameter: &Parameter, given: &[(String, Expr)]) -> Result<Expr> {
    let value = match given.iter().find(|(name, _)| *name == parameter.name) {
        Some((_, value)) => {
            if let Some(text) = literal(value) {
                filter.value(parameter, &text)?; // the same errors as on the command line
            }
            value.clone()
        }
        None => match &parameter.default {
            Some(value) => of_scalar(value),
            None => return Err(filter.missing_parameter(&parameter.name)),
        },
    };
    let data_type = match parameter.data_type {
        ParameterType::Text => DataType::Varchar(None),
        ParameterType::Double => DataType::Double(ExactNumberInfo::None),
        ParameterType::Int => DataType::BigInt(None),
        ParameterType::Boolean => DataType::Boolean,
    };
    let typed = Expr::Cast { kind: CastKind::Cast, expr: Box::new(value), data_type, array: false, format: None };
    if parameter.choices.is_empty() {
        return Ok(typed);
    }
    // What is no literal is looked at when the query runs.
    let text = |text: &str| Expr::Value(Value::SingleQuotedString(text.to_string()).into());
    let words = [filter.name(), &parameter.name].into_iter().chain(parameter.choices.iter().map(String::as_str));
    call(internal::ONE_OF, [typed].into_iter().chain(words.map(text)))
}

fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => Some(number.to_string()),
            Value::Boolean(value) => Some(value.to_string()),
            Value::Null => Some("NULL".into()),
            other => other.clone().into_string(),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Some(format!("-{}", literal(expr)?)),
        _ => None,
    }
}

fn of_scalar(value: &ScalarValue) -> Expr {
    let value = match value {
        ScalarValue::Utf8(Some(text)) => Value::SingleQuotedString(text.clone()),
        value if value.is_null() => Value::Null,
        other => Value::SingleQuotedString(other.to_string()), // the cast around it reads it
    };
    Expr::Value(value.into())
}

/// The one query of a text.
fn query(sql: &str, filter: &str) -> Result<Query> {
    let wrong = |message: String| Error::Query { message: format!("filter '{filter}': {message}"), hint: None };
    let mut statements =
        DFParserBuilder::new(sql).build().and_then(|mut p| p.parse_statements()).map_err(|e| wrong(Error::query(e, &[]).to_string()))?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(Statement::Statement(statement)), true) => match *statement {
            SqlStatement::Query(query) => Ok(*query),
            other => Err(wrong(format!("expected one query, got {other}"))),
        },
        _ => Err(wrong("expected one query".into())),
    }
}

fn substitute(query: &mut Query, values: &[(&str, Expr)]) {
    struct Placeholders<'a>(&'a [(&'a str, Expr)]);
    impl VisitorMut for Placeholders<'_> {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Value(value) = expr
                && let Value::Placeholder(name) = &value.value
                && let Some((_, value)) = self.0.iter().find(|(known, _)| name.strip_prefix('$') == Some(known))
            {
                *expr = value.clone();
            }
            ControlFlow::Continue(())
        }
    }
    let _ = query.visit(&mut Placeholders(values)); // it never breaks off
}

/// A placeholder that the filter's header does not declare: it must not take a value from the query around it.
fn undeclared(query: &Query, filter: &Filter) -> Option<String> {
    struct Find<'a>(&'a Filter);
    impl Visitor for Find<'_> {
        type Break = String;

        fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<String> {
            match &value.value {
                Value::Placeholder(name) if !self.0.parameters.iter().any(|p| name.strip_prefix('$') == Some(&p.name)) => {
                    ControlFlow::Break(name.trim_start_matches('$').to_string())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    query.visit(&mut Find(filter)).break_value()
}

fn call(name: &str, args: impl Iterator<Item = Expr>) -> Result<Expr> {
    let args = args.map(|arg| arg.to_string()).collect::<Vec<_>>().join(", ");
    let parsed = DFParserBuilder::new(format!("{name}({args})").as_str()).build().and_then(|mut parser| parser.parse_expr());
    parsed.map(|parsed| parsed.expr).map_err(|e| Error::query(e, &[]))
}

/// Whether an expression names a column, outside queries of its own.
struct Columns(bool);

impl Visitor for Columns {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        ControlFlow::Break(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.0 |= matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
        ControlFlow::Continue(())
    }
}

/// `embedding(uid, 'column')`: that sample's vector, a constant where the uid is one.
fn expand_embedding(expr: &mut Expr) -> Result<()> {
    let Expr::Function(function) = expr else { return Ok(()) };
    if !function.name.to_string().eq_ignore_ascii_case("embedding") {
        return Ok(());
    }
    let FunctionArguments::List(list) = &function.args else { return Ok(()) };
    let args: Vec<Option<&Expr>> = list
        .args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect();
    let [Some(uid), Some(column)] = args[..] else {
        return Err(usage("embedding takes a uid and the name of a column: embedding('51f4...', 'l14_img')"));
    };
    let Some(column) = (match column {
        Expr::Value(value) => value.value.clone().into_string(),
        _ => None,
    }) else {
        return Err(usage(&format!("embedding takes the name of a column as text, got {column}")));
    };
    let text = format!("SELECT \"{}\" FROM pool WHERE uid = $uid LIMIT 1", column.replace('"', "\"\""));
    let mut lookup = query(&text, "embedding")?;
    substitute(&mut lookup, &[("uid", uid.clone())]);
    let mut columns = Columns(false);
    let _ = uid.visit(&mut columns); // a query ends it
    if columns.0 {
        return Err(usage(&format!("embedding takes one uid for the whole query, got {uid}")));
    }
    let what = Expr::Value(Value::SingleQuotedString(format!("{uid} in {column}").replace('\'', "")).into());
    *expr = call(internal::FOUND, [Expr::Subquery(Box::new(lookup)), what].into_iter())?;
    Ok(())
}
