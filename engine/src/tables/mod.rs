//! Table functions that give rows of the pool with something more: `full_text`, `neg_clip_loss`, `semantic_duplicates`,
//! and `near_duplicates` and `near_eval_images`, which stand alone.

mod exec;
mod planner;
mod reference;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{Column, DFSchema, DFSchemaRef, Result, TableReference, plan_err};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};

pub(crate) use exec::TablePlanner;
pub(crate) use planner::TableFunctions;
pub(crate) use reference::reference;

/// A table function: what it takes, and what it adds to the rows that it is given.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Function {
    pub name: &'static str,
    /// Whether rows come first: a table, or a query in parentheses.
    pub of_rows: bool,
    /// Columns of the rows that are named next.
    pub columns: &'static [&'static str],
    /// Then values in their order, and by name.
    pub values: &'static [&'static str],
    /// Values that may be left out.
    pub options: &'static [&'static str],
    pub usage: &'static str,
}

pub(crate) const FULL_TEXT: Function = Function {
    name: "full_text",
    of_rows: true,
    columns: &["column"],
    values: &["words"],
    options: &["match", "k"],
    usage: "full_text(pool, text, 'red dog' [, match => 'any'|'all'|'phrase'] [, k => 100])",
};

pub(crate) const NEG_CLIP_LOSS: Function = Function {
    name: "neg_clip_loss",
    of_rows: true,
    columns: &["image", "text"],
    values: &[],
    options: &["batch_size", "rounds", "temperature", "seed"],
    usage: "neg_clip_loss(pool, l14_img, l14_txt [, batch_size => 32768] [, rounds => 10] [, temperature => 0.01] [, seed => 0])",
};

pub(crate) const SEMANTIC_DUPLICATES: Function = Function {
    name: "semantic_duplicates",
    of_rows: true,
    columns: &["column"],
    values: &["set"],
    options: &["threshold", "keep"],
    usage: "semantic_duplicates(pool, l14_img, 'centroids' [, threshold => 0.95] [, keep => 'hard'|'easy'|a column of scores])",
};

pub(crate) const NEAR_DUPLICATES: Function = Function {
    name: "near_duplicates",
    of_rows: false,
    columns: &[],
    values: &[],
    options: &["threshold", "keep"],
    usage: "near_duplicates([threshold => 4] [, keep => a column of scores])",
};

pub(crate) const NEAR_EVAL_IMAGES: Function = Function {
    name: "near_eval_images",
    of_rows: false,
    columns: &[],
    values: &[],
    options: &["threshold"],
    usage: "near_eval_images([threshold => 4])",
};

pub(crate) const FUNCTIONS: [&Function; 5] = [&FULL_TEXT, &NEG_CLIP_LOSS, &SEMANTIC_DUPLICATES, &NEAR_DUPLICATES, &NEAR_EVAL_IMAGES];

impl Function {
    /// What it adds to its rows, or gives.
    fn adds(&self) -> Vec<Field> {
        let uid = |name: &str| Field::new(name, DataType::FixedSizeBinary(16), false);
        match self.name {
            "full_text" => vec![Field::new("_score", DataType::Float32, false)],
            "neg_clip_loss" => vec![Field::new("neg_clip_loss", DataType::Float32, false)],
            "semantic_duplicates" => vec![uid("like"), Field::new("similarity", DataType::Float32, false)],
            "near_eval_images" => {
                let text = |name: &str| Field::new(name, DataType::Utf8, false);
                vec![uid("uid"), text("task"), text("sample"), Field::new("distance", DataType::Int32, false)]
            }
            _ => vec![uid("uid"), uid("like"), Field::new("distance", DataType::Int32, false)],
        }
    }
}

/// A call of a table function.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub function: &'static Function,
    pub rows: Option<LogicalPlan>,
    pub columns: Vec<Column>,
    /// By their names, as constants.
    pub values: Vec<(String, Expr)>,
    schema: DFSchemaRef,
}

impl Call {
    pub fn new(function: &'static Function, rows: Option<LogicalPlan>, columns: Vec<Column>, values: Vec<(String, Expr)>) -> Result<Call> {
        let mut fields: Vec<(Option<TableReference>, Arc<Field>)> = Vec::new();
        if let Some(rows) = &rows {
            fields.extend(rows.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), field.clone())));
        }
        fields.extend(function.adds().into_iter().map(|field| (None, Arc::new(field))));
        let schema = Arc::new(DFSchema::new_with_metadata(fields, Default::default())?);
        Ok(Call { function, rows, columns, values, schema })
    }

    pub fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }

    /// What it gives, as Arrow knows it.
    fn arrow_schema(&self) -> Arc<Schema> {
        Arc::new(self.schema.as_arrow().clone())
    }
}

impl UserDefinedLogicalNodeCore for Call {
    fn name(&self) -> &str {
        self.function.name
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        self.rows.iter().collect()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let columns = self.columns.iter().cloned().map(Expr::Column);
        columns.chain(self.values.iter().map(|(_, value)| value.clone())).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:", self.function.name)?;
        self.columns.iter().try_for_each(|column| write!(f, " {column}"))?;
        self.values.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Call> {
        if inputs.len() != self.inputs().len() {
            return plan_err!("{} has {} inputs", self.function.name, self.inputs().len());
        }
        let names = self.values.iter().map(|(name, _)| name.clone());
        let values = names.zip(exprs.into_iter().skip(self.columns.len())).collect();
        Call::new(self.function, inputs.pop(), self.columns.clone(), values)
    }

    fn necessary_children_exprs(&self, output: &[usize]) -> Option<Vec<Vec<usize>>> {
        let Some(rows) = &self.rows else { return Some(Vec::new()) };
        let n = rows.schema().fields().len();
        Some(vec![output.iter().copied().filter(|&i| i < n).collect()])
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.fmt_for_explain(f)
    }
}

impl Hash for Call {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.function.name, &self.rows, &self.columns, &self.values).hash(state);
    }
}

impl PartialOrd for Call {
    fn partial_cmp(&self, _: &Call) -> Option<std::cmp::Ordering> {
        None
    }
}
