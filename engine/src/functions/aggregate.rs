use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Documentation, Signature, Volatility};
use datafusion::scalar::ScalarValue;

use super::SECTION;

/// `top_fraction(score, fraction)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TopFraction {
    signature: Signature,
}

impl Default for TopFraction {
    fn default() -> Self {
        let types = vec![DataType::Float64, DataType::Float64];
        TopFraction { signature: Signature::exact(types, Volatility::Immutable) }
    }
}

static DOCUMENTATION: LazyLock<Documentation> = LazyLock::new(|| {
    Documentation::builder(
        SECTION,
        "DataComp's threshold: of the n scores that are not NULL, sorted descending, the element at index int(n * fraction). Keeping `score >= threshold` keeps n * fraction + 1 rows, and more where scores tie. A fraction of 1 gives the smallest score.",
        "top_fraction(score, fraction)",
    )
    .with_argument("score", "A number.")
    .with_argument("fraction", "A constant in [0, 1].")
    .with_sql_example("SELECT uid FROM pool WHERE clip_l14_similarity_score >= (SELECT top_fraction(clip_l14_similarity_score, 0.3) FROM pool)")
    .build()
});

impl AggregateUDFImpl for TopFraction {
    fn name(&self) -> &str {
        "top_fraction"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::<Scores>::default())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let scores = DataType::new_list(DataType::Float64, true);
        Ok(vec![
            Arc::new(Field::new(format!("{}_scores", args.name), scores, true)),
            Arc::new(Field::new(format!("{}_fraction", args.name), DataType::Float64, true)),
        ])
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&DOCUMENTATION)
    }
}

/// Every score seen: 8 bytes a row.
#[derive(Debug, Default)]
struct Scores {
    scores: Vec<f64>,
    fraction: Option<f64>,
}

impl Scores {
    fn set_fraction(&mut self, fractions: &dyn Array) -> Result<()> {
        for fraction in fractions.as_primitive::<Float64Type>().iter().flatten() {
            if !(0.0..=1.0).contains(&fraction) {
                return exec_err!("top_fraction: the fraction must be between 0 and 1, got {fraction}");
            }
            if self.fraction.is_some_and(|known| known != fraction) {
                return exec_err!("top_fraction: the fraction must be the same in every row");
            }
            self.fraction = Some(fraction);
        }
        Ok(())
    }
}

impl Accumulator for Scores {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.set_fraction(&values[1])?;
        let scores = values[0].as_primitive::<Float64Type>();
        self.scores.extend(scores.iter().flatten().filter(|score| !score.is_nan()));
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.set_fraction(&states[1])?;
        for scores in states[0].as_list::<i32>().iter().flatten() {
            self.scores.extend_from_slice(scores.as_primitive::<Float64Type>().values());
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values = Float64Array::from(std::mem::take(&mut self.scores));
        let offsets = OffsetBuffer::from_lengths([values.len()]);
        let item = Arc::new(Field::new_list_field(DataType::Float64, true));
        let list = ListArray::new(item, offsets, Arc::new(values), None);
        Ok(vec![ScalarValue::List(Arc::new(list)), ScalarValue::Float64(self.fraction)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let (Some(fraction), n) = (self.fraction, self.scores.len()) else { return Ok(ScalarValue::Float64(None)) };
        if n == 0 {
            return Ok(ScalarValue::Float64(None));
        }
        let at = ((n as f64 * fraction) as usize).min(n - 1);
        let (_, threshold, _) = self.scores.select_nth_unstable_by(at, |a, b| b.total_cmp(a));
        Ok(ScalarValue::Float64(Some(*threshold)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.scores.capacity() * size_of::<f64>()
    }
}
