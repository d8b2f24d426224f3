//! Statements whose forms here the parser of DataFusion does not have.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Query, Value, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;
use index::{Kind, NewIndex};
use storage::Table;

use super::Statement;
use crate::{Error, Result};

const FORMS: &str = "the forms are: ALTER TABLE pool ADD COLUMN name AS (expression), ALTER TABLE pool DROP COLUMN name, \
CREATE INDEX name ON pool (column) USING ivf_rq WITH (metric = 'cosine'), DROP INDEX name, CREATE VECTORS name AS SELECT ..., DROP VECTORS name";

/// One of these statements; `None` where the text is none of them.
pub(super) fn parse(text: &str) -> Result<Option<Statement>> {
    let dialect = GenericDialect {};
    let Ok(mut parser) = Parser::new(&dialect).try_with_sql(text) else { return Ok(None) };
    let parsed = if parser.parse_keywords(&[Keyword::ALTER, Keyword::TABLE]) {
        alter_table(&mut parser)
    } else if parser.parse_keywords(&[Keyword::CREATE, Keyword::INDEX]) {
        create_index(&mut parser, false)
    } else if parser.parse_keywords(&[Keyword::CREATE, Keyword::OR, Keyword::REPLACE, Keyword::INDEX]) {
        create_index(&mut parser, true)
    } else if parser.parse_keywords(&[Keyword::DROP, Keyword::INDEX]) {
        drop_named(&mut parser).map(|(name, if_exists)| Statement::DropIndex { name, if_exists })
    } else if words(&mut parser, &["create", "vectors"]) {
        return create_vectors(&mut parser, text).map(Some);
    } else if words(&mut parser, &["drop", "vectors"]) {
        drop_named(&mut parser).map(|(name, if_exists)| Statement::DropVectors { name, if_exists })
    } else {
        return Ok(None);
    };
    parsed
        .map_err(|e| match e {
            Failed::Syntax(e) => {
                let message = e.to_string().trim_start_matches("sql parser error: ").to_string();
                Error::Query { message, hint: Some(FORMS.into()) }
            }
            Failed::Index(e) => e.into(),
        })
        .map(Some)
}

enum Failed {
    Syntax(ParserError),
    Index(index::Error),
}

impl From<ParserError> for Failed {
    fn from(e: ParserError) -> Failed {
        Failed::Syntax(e)
    }
}

fn syntax(message: String) -> Failed {
    Failed::Syntax(ParserError::ParserError(message))
}

/// Whether the next words are these; if not, nothing is read.
fn words(parser: &mut Parser, words: &[&str]) -> bool {
    let there = (0..words.len()).all(|i| match parser.peek_nth_token(i).token {
        Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(words[i]),
        _ => false,
    });
    if there {
        words.iter().for_each(|_| drop(parser.next_token()));
    }
    there
}

fn of_pool(parser: &mut Parser) -> Result<(), Failed> {
    let table = parser.parse_object_name(false)?.to_string();
    match table.eq_ignore_ascii_case(Table::Pool.name()) {
        true => Ok(()),
        false => Err(syntax(format!("only the table pool can be altered, got {table}"))),
    }
}

fn name(parser: &mut Parser) -> Result<String, Failed> {
    let name = parser.parse_identifier()?;
    Ok(if name.quote_style.is_some() { name.value } else { name.value.to_lowercase() })
}

fn end(parser: &mut Parser) -> Result<(), Failed> {
    let _ = parser.consume_token(&Token::SemiColon);
    match parser.peek_token().token {
        Token::EOF => Ok(()),
        other => Err(syntax(format!("Expected: the end, found: {other}"))),
    }
}

fn alter_table(parser: &mut Parser) -> Result<Statement, Failed> {
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
            return Err(syntax(format!("column '{column}' cannot be computed from a query")));
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

fn create_index(parser: &mut Parser, replace: bool) -> Result<Statement, Failed> {
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let given = if parser.peek_keyword(Keyword::ON) { None } else { Some(name(parser)?) };
    parser.expect_keyword(Keyword::ON)?;
    of_pool(parser)?;
    parser.expect_token(&Token::LParen)?;
    let column = name(parser)?;
    parser.expect_token(&Token::RParen)?;
    parser.expect_keyword(Keyword::USING)?;
    let kind = Kind::parse(&parser.parse_identifier()?.value).map_err(Failed::Index)?;
    let mut options = BTreeMap::new();
    if parser.parse_keyword(Keyword::WITH) {
        parser.expect_token(&Token::LParen)?;
        for (option, value) in parser.parse_comma_separated(|parser| {
            let option = parser.parse_identifier()?.value.to_lowercase();
            parser.expect_token(&Token::Eq)?;
            Ok((option, parser.parse_value()?.value))
        })? {
            let text = match &value {
                Value::Number(number, _) => number.clone(),
                other => other.clone().into_string().unwrap_or_else(|| other.to_string()),
            };
            if options.insert(option.clone(), text).is_some() {
                return Err(syntax(format!("option '{option}' is given twice")));
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    end(parser)?;
    Ok(Statement::CreateIndex { new: NewIndex { name: given, column, kind, options, replace }, if_not_exists })
}

fn drop_named(parser: &mut Parser) -> Result<(String, bool), Failed> {
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = name(parser)?;
    end(parser)?;
    Ok((name, if_exists))
}

/// `CREATE VECTORS name AS query`: what follows AS is DataFusion's.
fn create_vectors(parser: &mut Parser, text: &str) -> Result<Statement> {
    let wrong = |message: String| Error::Query { message, hint: Some("CREATE VECTORS name AS SELECT vector FROM ...".into()) };
    let named = name(parser).map_err(|_| wrong("CREATE VECTORS needs a name".into()))?;
    if !parser.parse_keyword(Keyword::AS) {
        return Err(wrong(format!("Expected: AS, found: {}", parser.peek_token())));
    }
    let start = parser.peek_token().span.start;
    let lines: Vec<&str> = text.split('\n').collect();
    let (line, column) = (start.line.saturating_sub(1) as usize, start.column.saturating_sub(1) as usize);
    let first: String = lines.get(line).map_or_else(String::new, |line| line.chars().skip(column).collect());
    let query = std::iter::once(first).chain(lines.iter().skip(line + 1).map(|line| line.to_string())).collect::<Vec<_>>().join("\n");
    if query.trim().is_empty() {
        return Err(wrong("CREATE VECTORS needs a query".into()));
    }
    Ok(Statement::CreateVectors { name: named, query })
}
