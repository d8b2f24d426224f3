//! Statements that DataFusion does not have, or that mean more here.

pub(crate) mod add_column;
pub(crate) mod copy_subset;
pub(crate) mod create_vectors;
pub(crate) mod deep;
mod distinct;
mod parse;

use std::path::PathBuf;

use datafusion::execution::context::SessionState;
use datafusion::sql::parser::{CopyToSource, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use index::NewIndex;
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
    /// `CREATE INDEX name ON pool (column) USING kind WITH (option = value)`
    CreateIndex { new: NewIndex, if_not_exists: bool },
    /// `DROP INDEX name`
    DropIndex { name: String, if_exists: bool },
    /// `CREATE VECTORS name AS query`
    CreateVectors { name: String, query: String },
    /// `DROP VECTORS name`
    DropVectors { name: String, if_exists: bool },
    /// `COPY (query) TO 'name.npy'`
    CopySubset { query: Box<DfStatement>, sql: String, path: PathBuf },
}

/// Reads one statement, what tarn adds to queries expanded.
pub(crate) fn parse(state: &SessionState, text: &str) -> Result<Statement> {
    if let Some(statement) = parse::parse(text)? {
        return Ok(statement);
    }
    let dialect = state.config().options().sql_parser.dialect;
    let mut statement = state.sql_to_statement(text, &dialect).map_err(|e| Error::query(e, &[]))?;
    deep::balance(&mut statement)?;
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
