//! Nearest neighbours in SQL: `FROM nearest(...)`, alone or for each row of what stands before it, and
//! `ORDER BY cosine_distance(column, constant) LIMIT k`. All become one node, which searches an index or everything.

pub(crate) mod chain;
pub(crate) mod exec;
mod order_by;
mod planner;
pub(crate) mod settings;
mod syntax;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, TableReference, extensions_options, plan_err};
use datafusion::config::ConfigExtension;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};

pub(crate) use exec::Planner;
pub(crate) use order_by::OrderByDistance;
pub(crate) use planner::NearestPlanner;
pub(crate) use syntax::{arrange, relation_of};

/// The name of the table function.
pub(crate) const FUNCTION: &str = "nearest";
/// The column that it adds.
pub(crate) const DISTANCE: &str = "_distance";
/// The column of the left side that holds what is looked for.
const QUERY: &str = "__query";
/// The words that `nearest` takes by name.
const OPTIONS: [&str; 7] = ["k", "within", "metric", "exact", "nprobes", "refine", "index"];

extensions_options! {
    /// `SET tarn.exact = true` and the like.
    pub struct SearchOptions {
        /// Search everything, whatever indexes there are.
        pub exact: bool, default = false
        /// Partitions of an index that are looked into; 0 for the index's own default.
        pub nprobes: usize, default = 0
        /// Candidates of an index that are looked at again by their full vectors, in multiples of k; 0 for the default.
        pub refine: usize, default = 0
    }
}

impl ConfigExtension for SearchOptions {
    const PREFIX: &'static str = "tarn";
}

/// For each row of `queries`, whose last column is `__query`, the nearest of `rows` by `column`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Nearest {
    pub queries: LogicalPlan,
    pub rows: LogicalPlan,
    pub column: Column,
    /// By their names, as constants.
    pub options: Vec<(String, Expr)>,
    /// One query, for all of the statement: NULL is an error, and its columns are not given on.
    pub single: bool,
    /// Whether rows without a vector stand in where there are not enough with one, as in an ORDER BY.
    pub with_nulls: bool,
    /// The name by which `_distance` is known beside others.
    pub qualifier: Option<TableReference>,
    schema: DFSchemaRef,
}

impl Nearest {
    pub fn new(
        queries: LogicalPlan,
        rows: LogicalPlan,
        column: Column,
        options: Vec<(String, Expr)>,
        single: bool,
        with_nulls: bool,
        qualifier: Option<TableReference>,
    ) -> Result<Nearest> {
        let mut fields: Vec<(Option<TableReference>, Arc<Field>)> = Vec::new();
        let of = |schema: &DFSchemaRef| schema.iter().map(|(qualifier, field)| (qualifier.cloned(), field.clone())).collect::<Vec<_>>();
        if !single {
            fields.extend(of(queries.schema()).into_iter().filter(|(_, field)| field.name() != QUERY));
        }
        fields.extend(of(rows.schema()));
        fields.push((qualifier.clone(), Arc::new(Field::new(DISTANCE, DataType::Float32, true))));
        let same =
            |a: &(Option<TableReference>, Arc<Field>), b: &(Option<TableReference>, Arc<Field>)| a.0 == b.0 && a.1.name() == b.1.name();
        if let Some(i) = (0..fields.len()).find(|&i| fields[..i].iter().any(|field| same(field, &fields[i]))) {
            return plan_err!(
                "nearest gives two columns '{}': give each side a name, FROM prompts p, LATERAL nearest(...) n",
                fields[i].1.name()
            );
        }
        let schema = Arc::new(DFSchema::new_with_metadata(fields, Default::default())?);
        Ok(Nearest { queries, rows, column, options, single, with_nulls, qualifier, schema })
    }

    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// Columns that the left side gives on.
    fn of_queries(&self) -> usize {
        if self.single { 0 } else { self.queries.schema().fields().len() - 1 }
    }
}

impl UserDefinedLogicalNodeCore for Nearest {
    fn name(&self) -> &str {
        "Nearest"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.queries, &self.rows]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let columns = [Column::new_unqualified(QUERY), self.column.clone()].map(Expr::Column);
        columns.into_iter().chain(self.options.iter().map(|(_, value)| value.clone())).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Nearest: {}", self.column)?;
        self.options.iter().try_for_each(|(name, value)| write!(f, ", {name}={value}"))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Nearest> {
        let (Some(rows), Some(queries)) = (inputs.pop(), inputs.pop()) else { return plan_err!("nearest has two inputs") };
        let names = self.options.iter().map(|(name, _)| name.clone());
        let options = names.zip(exprs.into_iter().skip(2)).collect();
        Nearest::new(queries, rows, self.column.clone(), options, self.single, self.with_nulls, self.qualifier.clone())
    }

    fn necessary_children_exprs(&self, output: &[usize]) -> Option<Vec<Vec<usize>>> {
        let left = self.of_queries();
        let rows = self.rows.schema().fields().len();
        let of_queries: Vec<usize> = output.iter().copied().filter(|&i| i < left).collect();
        let of_rows: Vec<usize> = output.iter().filter(|&&i| i >= left && i < left + rows).map(|i| i - left).collect();
        Some(vec![of_queries, of_rows])
    }
}

impl fmt::Debug for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.fmt_for_explain(f)
    }
}

impl Hash for Nearest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.queries, &self.rows, &self.column, &self.options, self.single).hash(state);
    }
}

impl PartialOrd for Nearest {
    fn partial_cmp(&self, _: &Nearest) -> Option<std::cmp::Ordering> {
        None
    }
}
