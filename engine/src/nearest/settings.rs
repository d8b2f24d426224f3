use std::sync::Arc;

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, plan_err};
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::create_physical_expr;
use datafusion::physical_plan::ColumnarValue;
use datafusion::scalar::ScalarValue;
use index::{Distance, Effort, IndexInfo};

use super::exec::external;
use super::{Nearest, SearchOptions};
use crate::scan::LanceTable;

/// How a search goes.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub k: Option<usize>,
    pub within: Option<f32>,
    pub distance: Distance,
    pub exact: bool,
    pub nprobes: usize,
    pub refine: usize,
    pub index: Option<String>,
}

/// The value of a constant.
pub(crate) fn value_of(name: &str, expr: &Expr, state: &SessionState) -> Result<ScalarValue> {
    let empty = DFSchema::empty();
    let props = state.execution_props();
    let batch =
        RecordBatch::try_new_with_options(Arc::new(empty.as_arrow().clone()), vec![], &RecordBatchOptions::new().with_row_count(Some(1)))?;
    match create_physical_expr(expr, &empty, props)?.evaluate(&batch)? {
        ColumnarValue::Scalar(value) => Ok(value),
        ColumnarValue::Array(array) if array.len() == 1 => ScalarValue::try_from_array(&array, 0),
        ColumnarValue::Array(_) => plan_err!("'{name}' must be a constant"),
    }
}

/// A whole number of at least 0.
pub(crate) fn whole(value: &ScalarValue) -> Option<usize> {
    match value.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(Some(n))) if value.data_type().is_integer() => usize::try_from(n).ok(),
        _ => None,
    }
}

impl Settings {
    pub fn of(node: &Nearest, state: &SessionState) -> Result<Settings> {
        let set = state.config_options().extensions.get::<SearchOptions>().cloned().unwrap_or_default();
        let mut settings = Settings {
            k: None,
            within: None,
            distance: Distance::Cosine,
            exact: set.exact,
            nprobes: set.nprobes,
            refine: set.refine,
            index: None,
        };
        for (name, expr) in &node.options {
            let value = value_of(name, expr, state)?;
            let count = || match whole(&value) {
                Some(n) => Ok(n),
                None => plan_err!("'{name}' of nearest must be a whole number of at least 0, got {value}"),
            };
            match name.as_str() {
                "k" => settings.k = Some(count()?),
                "nprobes" => settings.nprobes = count()?,
                "refine" => settings.refine = count()?,
                "within" => match value.cast_to(&DataType::Float32) {
                    Ok(ScalarValue::Float32(Some(x))) if !x.is_nan() => settings.within = Some(x),
                    _ => return plan_err!("'within' of nearest must be a number, got {value}"),
                },
                "exact" => match value {
                    ScalarValue::Boolean(Some(exact)) => settings.exact = exact,
                    _ => return plan_err!("'exact' of nearest must be true or false, got {value}"),
                },
                "metric" => {
                    let text = value.try_as_str().flatten().unwrap_or_default().to_string();
                    let Some(distance) = Distance::parse(&text) else {
                        return plan_err!("'metric' of nearest must be cosine, dot or l2, got {value}");
                    };
                    settings.distance = distance;
                }
                _ => settings.index = value.try_as_str().flatten().map(str::to_string),
            }
        }
        Ok(settings)
    }

    /// The index to go through: the one named, or the first over the column that goes by the same distance.
    pub async fn choose(&self, table: &LanceTable, column: &str) -> Result<Option<IndexInfo>> {
        if self.exact || self.k.is_none() {
            return Ok(None);
        }
        let indexes = index::indexes_of(table.dataset()).await.map_err(external)?;
        if let Some(name) = &self.index {
            let found = indexes.iter().find(|index| index.name == *name);
            let Some(found) = found else {
                let known = indexes.iter().map(|index| index.name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(external(index::Error::IndexMissing { name: name.clone(), known }));
            };
            if found.column != column || found.distance != Some(self.distance) {
                let goes_by = found.distance.map_or("no distance", Distance::name);
                let (of, distance) = (&found.column, self.distance.name());
                return plan_err!("index '{name}' is over {of} and goes by {goes_by}, the search over {column} and by {distance}");
            }
            return Ok(Some(found.clone()));
        }
        Ok(indexes.into_iter().find(|index| index.column == column && index.distance == Some(self.distance) && index.rows > 0))
    }

    pub fn effort(&self, index: &IndexInfo) -> Effort {
        let or = |given: usize, default: usize| if given > 0 { given } else { default };
        Effort { nprobes: or(self.nprobes, index.defaults.nprobes), refine: or(self.refine, index.defaults.refine) }
    }
}
