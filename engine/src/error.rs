use std::path::PathBuf;

use datafusion::common::{DataFusionError, SchemaError};
use storage::Table;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a query or a filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("unknown filter '{name}'")]
    UnknownFilter { name: String, near: Option<String> },
    #[error("parameter '{name}' of filter '{filter}' is given twice")]
    ParameterTwice { filter: String, name: String },
    #[error("filter '{filter}' names ${name}, which its header does not declare")]
    Undeclared { filter: String, name: String },
    #[error("filter '{filter}' has no parameter '{name}', {}", if known.is_empty() { "it has none".to_string() } else { format!("its parameters are: {known}") })]
    UnknownParameter { filter: String, name: String, known: String },
    #[error("parameter '{name}' of filter '{filter}' must be {expected}, got '{got}'")]
    ParameterValue { filter: String, name: String, expected: String, got: String },
    #[error("filter '{filter}' needs a value for its parameter '{name}'")]
    ParameterMissing { filter: String, name: String },
    #[error("{filter}, line {line}: {reason}")]
    Header { filter: String, line: usize, reason: String },
    #[error("the query has no column 'uid', its columns are: {columns}")]
    NoUidColumn { columns: String },
    #[error("column '{column}' of the query has type {got}, expected {expected}")]
    ColumnType { column: &'static str, expected: &'static str, got: String },
    #[error("column '{column}' of the query has a NULL, in row {row}")]
    NullInSubset { column: &'static str, row: u64 },
    #[error("weights must be finite and not negative, row {row} has {weight}")]
    Weight { row: u64, weight: f32 },
    #[error("TABLESAMPLE would draw other rows at every run")]
    TableSample,
    #[error("filters lie within each other more than {depth} deep at {filter}")]
    FilterDepth { filter: String, depth: usize },
    #[error("the WHERE of filter '{filter}' has {conditions} conditions, {most} can be told apart")]
    ManyConditions { filter: String, conditions: usize, most: usize },
    #[error("a condition with a query within cannot be told from the others: {condition}")]
    ConditionWithQuery { condition: String },
    #[error("an expression has more than {most} operators one within another")]
    TooDeep { most: usize },
    #[error("a filter is one query")]
    NotAQuery,
    #[error("the table '{table}' cannot be {what} by SQL")]
    TableFixed { table: String, what: &'static str },
    #[error("the pool is open at an older version, which does not change")]
    OldVersion,
    #[error("column '{column}' cannot be computed as {expression}: {reason}")]
    ColumnExpression { column: String, expression: String, reason: String },
    #[error("the optional file '{name}' is missing, looked for in {places}")]
    ResourceMissing { name: String, places: String, how: &'static str },
    #[error("{}: {source}", path.display())]
    Resource { path: PathBuf, source: std::io::Error },
    #[error("{message}")]
    Query { message: String, hint: Option<String> },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Index(#[from] index::Error),
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::UnknownFilter { near: Some(near), .. } => format!("did you mean '{near}'?"),
            Error::UnknownFilter { .. } => {
                "give a shipped filter (tarn filter --list), a file that ends in .sql, or SQL that starts with SELECT".into()
            }
            Error::UnknownParameter { name, known, .. } => {
                let known = known.split(", ").filter(|known| !known.is_empty());
                return storage::closest(name, known).map(|near| format!("did you mean '{near}'?"));
            }
            Error::Undeclared { name, .. } => {
                format!("declare it in the file's first lines: -- param {name}: double = 0.3  -- what it means")
            }
            Error::ParameterMissing { name, .. } => format!("give it with --param {name}=VALUE"),
            Error::Header { .. } => "a parameter is declared as: -- param fraction: double = 0.3  -- what it means".into(),
            Error::NoUidColumn { .. } => "a filter selects uids: SELECT uid FROM pool WHERE ...".into(),
            Error::TooDeep { .. } => {
                "write long sums and concatenations as lists or tables: IN (...), array_to_string([...], ''), JOIN".into()
            }
            Error::ColumnType { column: "uid", .. } => "a text column becomes one with uid(column)".into(),
            Error::NullInSubset { .. } => "leave such rows out: WHERE ... IS NOT NULL".into(),
            Error::TableSample => "WHERE sample_hash(uid, 0) < 0.1 draws a tenth, the same at every run; another seed draws another".into(),
            Error::ConditionWithQuery { .. } => "compare with and without it: tarn filter POOL A --diff B".into(),
            Error::FilterDepth { .. } => "does one of them name itself?".into(),
            Error::TableFixed { table, .. } if table == "pool" => {
                "samples come by: tarn ingest POOL SOURCE...; columns by: ALTER TABLE pool ADD COLUMN name AS (expression)".into()
            }
            Error::OldVersion => "open it without --at".into(),
            Error::ResourceMissing { how, .. } => format!("get it from: {how}; tarn resources tells where things are"),
            Error::Resource { .. } => "tarn resources tells how to get it".into(),
            Error::Query { hint, .. } => return hint.clone(),
            Error::Storage(e) => return e.hint(),
            Error::Index(e) => return e.hint(),
            _ => return None,
        })
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// DataFusion's error without its stacked prefixes; `functions` are those that could have been meant.
    pub fn query(error: DataFusionError, functions: &[String]) -> Error {
        if matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)) {
            let message = "the query needs more memory than it may have".to_string();
            let hint = "give it more with --memory, or let it hold less: fewer groups or columns, no top_fraction by group";
            return Error::Query { message, hint: Some(hint.into()) };
        }
        let message = plain(&error).replace("datafusion.public.", "");
        let hint = own(&error)
            .and_then(Error::hint)
            .or_else(|| missing_column(&error))
            .or_else(|| unknown_name(&message, functions))
            .or_else(|| missing_value(&message))
            .or_else(|| message.starts_with("LanceError(IO)").then(|| "tarn verify POOL says which file cannot be read".to_string()));
        let message = storage::without_places(&message);
        // DataFusion adds its own guess to some messages; ours is the hint.
        let message = message.split("Did you mean ").next().unwrap_or(&message).trim_end_matches(['.', '\n', ' ']).to_string();
        Error::Query { message, hint }
    }
}

/// An error of ours that DataFusion carries.
fn own(error: &DataFusionError) -> Option<&Error> {
    match error.find_root() {
        DataFusionError::External(inner) => inner.downcast_ref::<Error>(),
        _ => None,
    }
}

/// The innermost cause in words: the last link of DataFusion's chain of wrappers.
fn plain(error: &DataFusionError) -> String {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => plain(inner),
        DataFusionError::Collection(errors) => errors.first().map(plain).unwrap_or_default(),
        DataFusionError::Shared(inner) => plain(inner),
        DataFusionError::Plan(message) | DataFusionError::Execution(message) | DataFusionError::NotImplemented(message) => message.clone(),
        DataFusionError::SQL(e, _) => e.to_string().trim_start_matches("sql parser error: ").to_string(),
        DataFusionError::SchemaError(e, _) => match e.as_ref() {
            SchemaError::FieldNotFound { field, .. } => format!("no column '{}'", field.flat_name()),
            e => e.to_string(),
        },
        DataFusionError::ArrowError(e, _) => match e.as_ref() {
            arrow::error::ArrowError::ExternalError(inner) => match inner.downcast_ref::<DataFusionError>() {
                Some(inner) => plain(inner),
                None => inner.to_string(),
            },
            e => e.to_string(),
        },
        DataFusionError::External(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => plain(inner),
            None => inner.to_string(),
        },
        error => error.strip_backtrace(),
    }
}

fn missing_column(error: &DataFusionError) -> Option<String> {
    let DataFusionError::SchemaError(e, _) = error.find_root() else { return None };
    let SchemaError::FieldNotFound { field, valid_fields } = e.as_ref() else { return None };
    let names: Vec<&str> = valid_fields.iter().map(|f| f.name()).collect();
    Some(match storage::closest(field.name(), names.iter().copied()) {
        Some(near) => format!("did you mean '{near}'?"),
        None if names.is_empty() => "name a table: SELECT ... FROM pool".to_string(),
        None => format!("the columns are: {}", names.join(", ")),
    })
}

/// A hint for "table 'x' not found" and "Invalid function 'x'".
fn unknown_name(message: &str, functions: &[String]) -> Option<String> {
    let name = message.split('\'').nth(1)?;
    let near = if message.contains("Invalid function") {
        storage::closest(name, functions.iter().map(String::as_str))
    } else if message.contains("not found") {
        storage::closest(name, Table::ALL.map(Table::name))
    } else {
        None
    };
    match near {
        Some(near) if near == name => Some(format!("{near} is not there yet: ingest, train or eval make it")),
        near => near.map(|near| format!("did you mean '{near}'?")),
    }
}

/// A hint for a `$name` without a value.
fn missing_value(message: &str) -> Option<String> {
    let name = message.split("Placeholder '$").nth(1)?.split('\'').next()?;
    Some(format!("give it with --param {name}=VALUE"))
}
