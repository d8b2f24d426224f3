//! Statements that DataFusion does not have, or that mean more here.

pub(crate) mod add_column;
pub(crate) mod copy_subset;

use std::ops::ControlFlow;
use std::path::PathBuf;

use datafusion::execution::context::SessionState;
use datafusion::sql::parser::{CopyToSource, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;
use storage::Table;

use crate::expand::expand;
use crate::{Error, Result};

pub(crate) enum Statement {
    /// One of DataFusion's.
    Plain(Box<DfStatement>),
    /// `ALTER TABLE pool ADD COLUMN name AS (expression)`
    AddColumn { column: String, expression: String },
    /// `ALTER TABLE pool DROP COLUMN name`
    DropColumn { column: String },
    /// `CREATE INDEX ON pool (column) USING zonemap`
    CreateZoneMap { column: String },
    /// `COPY (query) TO 'name.npy'`
    CopySubset { query: Box<DfStatement>, sql: String, path: PathBuf },
}

/// Reads one statement, what tarn adds to queries expanded.
pub(crate) fn parse(state: &SessionState, text: &str) -> Result<Statement> {
    if let Some(statement) = alter(text)? {
        return Ok(statement);
    }
    let dialect = state.config().options().sql_parser.dialect;
    let mut statement = state.sql_to_statement(text, &dialect).map_err(|e| Error::query(e, &[]))?;
    expand(&mut statement)?;
    match statement {
        DfStatement::CopyTo(copy) if copy.target.ends_with(".npy") && copy.stored_as.is_none() => {
            let sql = copy.source.to_string();
            let query = match copy.source {
                CopyToSource::Query(query) => SqlStatement::Query(query),
                CopyToSource::Relation(name) => {
                    let select = format!("SELECT * FROM {name}");
                    return match parse(state, &select)? {
                        Statement::Plain(query) => Ok(Statement::CopySubset { query, sql: select, path: copy.target.into() }),
                        other => Ok(other),
                    };
                }
            };
            let query = Box::new(DfStatement::Statement(Box::new(query)));
            Ok(Statement::CopySubset { query, sql, path: copy.target.into() })
        }
        DfStatement::Statement(statement) => {
            refuse_changes(&statement)?;
            Ok(Statement::Plain(Box::new(DfStatement::Statement(statement))))
        }
        DfStatement::CreateExternalTable(create) if of_pool_name(&create.name.to_string()) => {
            Err(Error::TableFixed { table: create.name.to_string(), what: "made anew" })
        }
        other => Ok(Statement::Plain(Box::new(other))),
    }
}

/// Whether a name, qualified or not, is that of one of the pool's tables.
fn of_pool_name(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name).trim_matches('"');
    Table::ALL.iter().any(|table| table.name().eq_ignore_ascii_case(last))
}

/// `ALTER TABLE` and `CREATE INDEX`, whose forms here the parser of other statements does not have.
fn alter(text: &str) -> Result<Option<Statement>> {
    let dialect = GenericDialect {};
    let Ok(mut parser) = Parser::new(&dialect).try_with_sql(text) else { return Ok(None) };
    let parsed = if parser.parse_keywords(&[Keyword::ALTER, Keyword::TABLE]) {
        alter_table(&mut parser)
    } else if parser.parse_keywords(&[Keyword::CREATE, Keyword::INDEX]) {
        create_index(&mut parser)
    } else {
        return Ok(None);
    };
    parsed.map(Some).map_err(|e| Error::Query {
        message: e.to_string().trim_start_matches("sql parser error: ").to_string(),
        hint: Some(
            "the forms are: ALTER TABLE pool ADD COLUMN name AS (expression), ALTER TABLE pool DROP COLUMN name, CREATE INDEX ON pool (column) USING zonemap".into(),
        ),
    })
}

fn of_pool(parser: &mut Parser) -> Result<(), ParserError> {
    let table = parser.parse_object_name(false)?.to_string();
    match table.eq_ignore_ascii_case(Table::Pool.name()) {
        true => Ok(()),
        false => Err(ParserError::ParserError(format!("only the table pool can be altered, got {table}"))),
    }
}

fn name(parser: &mut Parser) -> Result<String, ParserError> {
    let name = parser.parse_identifier()?;
    Ok(if name.quote_style.is_some() { name.value } else { name.value.to_lowercase() })
}

fn end(parser: &mut Parser) -> Result<(), ParserError> {
    let _ = parser.consume_token(&Token::SemiColon);
    match parser.peek_token().token {
        Token::EOF => Ok(()),
        other => Err(ParserError::ParserError(format!("Expected: the end, found: {other}"))),
    }
}

fn alter_table(parser: &mut Parser) -> Result<Statement, ParserError> {
    of_pool(parser)?;
    let statement = if parser.parse_keyword(Keyword::DROP) {
        let _ = parser.parse_keyword(Keyword::COLUMN);
        Statement::DropColumn { column: name(parser)? }
    } else {
        parser.expect_keyword(Keyword::ADD)?;
        let _ = parser.parse_keyword(Keyword::COLUMN);
        let column = name(parser)?;
        parser.expect_keyword(Keyword::AS)?;
        parser.expect_token(&Token::LParen)?;
        let expression = parser.parse_expr()?;
        if expression.visit(&mut Queries).is_break() {
            return Err(ParserError::ParserError(format!("column '{column}' cannot be computed from a query")));
        }
        let expression = expression.to_string();
        parser.expect_token(&Token::RParen)?;
        Statement::AddColumn { column, expression }
    };
    end(parser)?;
    Ok(statement)
}

/// Breaks off at the first query.
struct Queries;

impl Visitor for Queries {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

fn create_index(parser: &mut Parser) -> Result<Statement, ParserError> {
    parser.expect_keyword(Keyword::ON)?;
    of_pool(parser)?;
    parser.expect_token(&Token::LParen)?;
    let column = name(parser)?;
    parser.expect_token(&Token::RParen)?;
    parser.expect_keyword(Keyword::USING)?;
    let kind = parser.parse_identifier()?.value;
    if !kind.eq_ignore_ascii_case("zonemap") {
        return Err(ParserError::ParserError(format!("unknown kind of index: {kind}, expected zonemap")));
    }
    end(parser)?;
    Ok(Statement::CreateZoneMap { column })
}

/// Tables of the pool change by ingest, train and the statements above alone.
fn refuse_changes(statement: &SqlStatement) -> Result<()> {
    let (what, names): (&'static str, Vec<String>) = match statement {
        SqlStatement::Drop { names, .. } => ("dropped", names.iter().map(|name| name.to_string()).collect()),
        SqlStatement::CreateTable(create) => ("made anew", vec![create.name.to_string()]),
        SqlStatement::CreateView(create) => ("made anew", vec![create.name.to_string()]),
        SqlStatement::Insert(insert) => ("written to", vec![insert.table.to_string()]),
        SqlStatement::Update(update) => ("written to", vec![update.table.to_string()]),
        SqlStatement::Delete(_) => ("written to", vec![Table::Pool.name().to_string()]),
        _ => return Ok(()),
    };
    match names.iter().find(|name| of_pool_name(name)) {
        Some(table) => Err(Error::TableFixed { table: table.clone(), what }),
        None => Ok(()),
    }
}
